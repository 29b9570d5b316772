"""Following a run that another process writes: every checkpoint once, and an end with the run."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY, run_command

CONFIG = "--gin_file=configs/runs/digits_source.gin"


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_it_follows_a_run_to_its_end_and_evaluates_nothing_twice(tmp_path):
    model_dir = tmp_path / "run"
    model_dir.mkdir()
    follow = ["launch.evaluate", CONFIG, f"--model_dir={model_dir}", "--continuous", "--timeout_seconds=120"]
    follower = subprocess.Popen(
        [sys.executable, "-m", *follow], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    trained = run_command(
        "launch.train", CONFIG, "--gin_param=NUM_STEPS = 60", "--gin_param=train.checkpoint_every = 20",
        "--gin_param=train.checkpoints_to_keep = 9", "--gin_param=train.eval_every = 20", f"--model_dir={model_dir}",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    text, errors = follower.communicate(timeout=150)
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
