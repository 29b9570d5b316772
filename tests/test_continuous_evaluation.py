"""Following a run that another process writes: every checkpoint once, and an end with the run."""

import json
import time

import keras
import pytest
import tensorflow as tf
from commands import run_command, start_command
from conftest import make_strategy
from test_experiment import DATA, TASK, small, train

import trainer
from trainer.output.model_dir import ModelDir, ModelDirLock
from trainer.run import evaluate_checkpoint

CONFIG = "--gin_file=configs/runs/digits_source.gin"


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.full
def test_it_follows_a_run_to_its_end_and_evaluates_nothing_twice(tmp_path):
    model_dir = tmp_path / "run"
    model_dir.mkdir()
    follow = ["launch.evaluate", CONFIG, f"--model_dir={model_dir}", "--continuous", "--timeout_seconds=600"]
    follower = start_command(*follow)
    trained = run_command(
        "launch.train", CONFIG, "--gin_param=NUM_STEPS = 60", "--gin_param=Intervals.checkpoint_every = 20",
        "--gin_param=Saving.keep = 9", "--gin_param=Intervals.eval_every = 20", f"--model_dir={model_dir}",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    text, errors = follower.communicate(timeout=900)
    assert follower.returncode == 0, errors
    seen = {row["step"]: row for row in lines_of(text)}
    assert list(seen) == [20, 40, 60]
    rows = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "split" in row and row["step"]:
            assert seen[row["step"]]["accuracy"] == pytest.approx(row["accuracy"], abs=1e-6)
    again = run_command(*follow)
    assert again.returncode == 0 and lines_of(again.stdout) == [], "all of them are on record"


def test_wrong_flags_are_one_message(tmp_path):
    for flags, said in (
        ([f"--model_dir={tmp_path}", "--checkpoint=x"], "give one of them"),
        ([f"--model_dir={tmp_path / 'none'}"], "is not there"),
    ):
        done = run_command("launch.evaluate", CONFIG, "--continuous", *flags)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.full
def test_a_second_follower_is_refused_beside_the_first_but_not_beside_the_run(tmp_path):
    files = ModelDir(tmp_path)
    follow = ["launch.evaluate", CONFIG, f"--model_dir={tmp_path}", "--continuous", "--timeout_seconds=0.1"]
    with ModelDirLock(files):
        assert run_command(*follow).returncode == 0
        with ModelDirLock(files, follower=True):
            done = run_command(*follow)
    assert done.returncode == 2 and "is being followed by process " in done.stderr, done.stderr


def followed(model_dir, model=small):
    """The steps that are evaluated of a run that is at its end, and what is said."""
    said: list[str] = []
    found = evaluate_checkpoint.follow(
        model, TASK, DATA, model_dir, 10, make_strategy(1), timeout_seconds=5, say=said.append
    )
    return [step for step, _ in found], said


def test_a_damaged_checkpoint_is_passed_over_and_said_once(tmp_path):
    train(model_dir=tmp_path, num_steps=6, checkpoint_every=2)
    data = tmp_path / "checkpoints/ckpt-4.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-50] + bytes(50))
    steps, said = followed(tmp_path)
    assert steps == [2, 6]
    assert len(said) == 1 and "ckpt-4 is passed over, because it is not whole: the checksum of ckpt-4.data" in said[0]


def test_a_checkpoint_that_the_run_deletes_while_the_folder_is_looked_at_is_passed_over(tmp_path, monkeypatch):
    train(model_dir=tmp_path, num_steps=6, checkpoint_every=2)
    listed = tf.io.gfile.listdir

    def listed_just_before(folder):
        names = listed(folder)
        for path in (tmp_path / "checkpoints").glob("ckpt-4.*"):
            path.unlink()
        return names

    monkeypatch.setattr(tf.io.gfile, "listdir", listed_just_before)
    assert followed(tmp_path) == ([2, 6], [])


def test_a_checkpoint_that_the_run_writes_again_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    train(model_dir=tmp_path, num_steps=4, checkpoint_every=2)
    index = tmp_path / "checkpoints/ckpt-4.index"
    whole, faults = index.read_bytes(), evaluate_checkpoint.find_faults
    index.write_bytes(b"cut")

    def written_again(path):
        if index.read_bytes() != whole:
            time.sleep(0.01)
            index.write_bytes(whole)
        return faults(path)

    monkeypatch.setattr(evaluate_checkpoint, "find_faults", written_again)
    assert followed(tmp_path) == ([2, 4], [])


def test_a_whole_checkpoint_that_does_not_fit_the_model_is_a_mistake(tmp_path):
    train(model_dir=tmp_path, num_steps=2)
    with pytest.raises(trainer.RestoreError, match="kernel"):
        followed(tmp_path, lambda: keras.Sequential([keras.layers.Dense(5)]))
