"""What a run keeps: the newest, some for good, the best; and what becomes of it when it cannot save."""

import json
import os
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import test_nan
from commands import REPOSITORY, run_command
from test_experiment import DATA, train

import trainer
from trainer.output.metric_writer import read_rows
from trainer.run.preemption import Preemption

LONG = dict(num_steps=12, eval_every=2, checkpoint_every=2, eval_data=DATA)


def kept(folder):
    return sorted(int(path.stem.removeprefix("ckpt-")) for path in folder.glob("ckpt-*.index"))


def tensors_in(folder):
    """The bytes of every tensor of the newest checkpoint, as TensorFlow reads them."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(folder)))
    names = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    return {name: np.asarray(reader.get_tensor(name)).tobytes() for name in names}


@pytest.mark.parametrize(("metric", "mode", "choose"), [("loss", "min", min), ("accuracy", "max", max)])
def test_the_best_checkpoint_by_a_metric_is_kept_with_what_made_it_the_best(tmp_path, metric, mode, choose):
    # So large a rate that the metric goes up and down.
    result = train(
        model_dir=tmp_path / "run", best_metric=metric, best_mode=mode, keep=1,
        optimizer=lambda: keras.optimizers.SGD(50.0), **LONG,
    )  # fmt: skip
    rows = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "split" in row and row["step"] > 0]
    best = choose(row[metric] for row in rows)
    first = next(row["step"] for row in rows if row[metric] == best)
    folder = tmp_path / "run/checkpoints/best"
    info = json.loads((folder / "info.json").read_text())
    assert info["step"] == first < 12 and info["value"] == best and info["metric"] == metric
    assert kept(folder) == [first] and kept(tmp_path / "run/checkpoints") == [12]

    with tf.device("/CPU:0"):
        report = trainer.restore_weights(result.model, folder)
    assert report is not None
    weights = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if metric == "loss":
        x, label = np.asarray(DATA["x"], np.float32), DATA["label"]
        assert float(weights(label, result.model(x))) == pytest.approx(best, rel=1e-5)


@pytest.mark.full
def test_a_broken_run_ends_with_the_same_best(tmp_path):
    options = LONG | {"best_metric": "loss", "best_mode": "min", "optimizer": lambda: keras.optimizers.SGD(50.0)}
    train(model_dir=tmp_path / "whole", **options)
    for num_steps in (4, 8, 12):
        train(model_dir=tmp_path / "parts", **options | {"num_steps": num_steps})
    whole, parts = (tensors_in(tmp_path / run / "checkpoints/best") for run in ("whole", "parts"))
    assert whole == parts
    one, two = ((tmp_path / run / "checkpoints/best/info.json").read_text() for run in ("whole", "parts"))
    assert one == two


@pytest.mark.full
def test_a_run_that_continues_past_its_end_is_not_finished_meanwhile_and_keeps_the_old_weights(tmp_path):
    folder = tmp_path / "run"
    options = LONG | {"model_dir": folder}
    train(**options | {"num_steps": 4})
    weights = (folder / "final.weights.h5").read_bytes()
    seen = []

    class Looking(keras.metrics.SparseCategoricalAccuracy):
        def result(self):
            def look():
                reported = json.loads((folder / "summary.json").read_text())
                seen.append(
                    (
                        reported["finished"],
                        reported["step"],
                        reported["num_steps"],
                        (folder / "final.weights.h5").exists(),
                    )
                )

            tf.py_function(look, [], [])
            return super().result()

    task = trainer.supervised(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label",
        metrics={"accuracy": Looking},
    )  # fmt: skip
    train(**options | {"task": task})
    assert seen[-1] == (False, 4, 12, False), "in an evaluation on the way"
    assert (folder / "step_4.weights.h5").read_bytes() == weights != (folder / "final.weights.h5").read_bytes()
    assert json.loads((folder / "summary.json").read_text())["finished"]
    train(**options)
    assert sorted(path.name for path in folder.glob("*.h5")) == ["final.weights.h5", "step_4.weights.h5"]


def test_some_are_kept_for_good(tmp_path):
    train(model_dir=tmp_path / "run", keep_every=6, keep=1, **LONG | {"num_steps": 14})
    assert kept(tmp_path / "run/checkpoints") == [6, 12, 14]


def test_what_cannot_be_kept_is_named_before_anything_is_written(tmp_path):
    for wrong, message in (
        (
            {"best_metric": "acuracy"},
            r"no metric 'acuracy' .Saving.best_metric.; it has loss, accuracy.*Did you mean 'accuracy'",
        ),
        ({"best_metric": "loss", "eval_data": None}, "best_metric = 'loss' needs eval_data"),
        ({"best_metric": "loss", "best_mode": "lowest"}, "best_mode = 'lowest' must be one of 'max', 'min'"),
        ({"on_error": "ignore"}, "Saving.on_error = 'ignore' must be one of 'stop', 'continue'"),
        ({"keep_every": -1}, "keep_every = -1 must be 0 or more"),
    ):
        with pytest.raises(trainer.UserError, match=message):
            train(model_dir=tmp_path / "run", **LONG | wrong)
    assert not (tmp_path / "run").exists()


def big():
    """300 kB."""
    return keras.Sequential([keras.layers.Dense(10_000), keras.layers.Dense(3)])


class KilledInSaving(keras.layers.Dense):
    def save_own_variables(self, store):
        super().save_own_variables(store)
        if "KILLED_IN_SAVING" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_in_saving():
    layers = [keras.layers.Dense(50) for _ in range(8)]
    return keras.Sequential([*layers, KilledInSaving(50), keras.layers.Dense(3)])


def again(folder, **environment):
    """The run once more, in a process of its own: HDF5 might end it, or we."""
    path = f"{REPOSITORY / 'tests'}:{REPOSITORY}"
    return run_command("test_saving", str(folder), PYTHONPATH=path, **environment)


def test_a_damaged_checkpoint_that_a_rollback_finds_is_said(tmp_path, monkeypatch, capsys):
    newest = tmp_path / "run/checkpoints/ckpt-10.data-00000-of-00001"
    next_steps = Preemption.next_steps

    def damages(self, *counts):
        manifest = newest.with_name("ckpt-10.manifest.json")
        if manifest.exists() and newest.stat().st_size > 100:
            newest.write_bytes(newest.read_bytes()[:100])
        return next_steps(self, *counts)

    monkeypatch.setattr(Preemption, "next_steps", damages)
    assert test_nan.run(tmp_path / "run", **test_nan.THREE_BAD, in_background=False).finished
    reported = " ".join(capsys.readouterr().out.split())
    assert reported.count("ckpt-10 is not whole: ") == 1 and "; ckpt-5 is used instead" in reported


@pytest.mark.full
def test_a_full_disk_ends_the_run_and_with_more_room_it_continues_to_the_same_bits(small_disk, tmp_path):
    options = LONG | {"model": big}
    train(model_dir=tmp_path / "whole", **options)
    with pytest.raises(trainer.UserError, match="The checkpoint of step [468] cannot be written.*No space"):
        train(model_dir=small_disk / "run", keep=9, **options)
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    train(model_dir=small_disk / "run", keep=9, **options)
    assert tensors_in(small_disk / "run/checkpoints") == tensors_in(tmp_path / "whole/checkpoints")


def test_or_it_continues_without_saving_and_says_so(small_disk, capsys):
    options = LONG | {"model": big, "model_dir": small_disk / "run", "keep": 9}
    # To the end, where the weights alone have no room either.
    with pytest.raises(trainer.UserError, match="final.weights.h5 cannot be written: No space left on device"):
        train(on_error="continue", **options)
    printed = capsys.readouterr().out
    assert "cannot be written" in printed and "The run continues without (Saving.on_error = 'continue')" in printed
    assert [row["step"] for row in read_rows(small_disk / "run/metrics.jsonl") if "split" in row][-1] == 12
    assert kept(small_disk / "run/checkpoints"), "the older ones are there"


@pytest.mark.full
@pytest.mark.parametrize("leave_bytes", [50_000, 90_000])
def test_a_disk_that_is_full_at_the_end_leaves_the_older_final_weights_whole(small_disk, leave_bytes):
    options = LONG | {"model": killed_in_saving, "model_dir": small_disk / "run", "keep": 1}
    train(**options)
    before = (small_disk / "run/final.weights.h5").read_bytes()
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - leave_bytes))
    done = again(small_disk / "run")
    assert done.returncode == 1, done.stderr
    assert "UserError" in done.stderr and "final.weights.h5 cannot be written: No space left on device" in done.stderr
    assert (small_disk / "run/final.weights.h5").read_bytes() == before
    (small_disk / "filler").unlink()
    train(**options)
    assert not list((small_disk / "run").glob(".tmp.*"))


@pytest.mark.full
def test_a_kill_while_the_final_weights_are_written_leaves_the_older_ones_or_none(tmp_path):
    for earlier in (False, True):
        folder = tmp_path / f"run-{earlier}"
        if earlier:
            train(**LONG | {"model": killed_in_saving, "model_dir": folder})
            before = (folder / "final.weights.h5").read_bytes()
        done = again(folder, KILLED_IN_SAVING="1")
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (folder / ".tmp.final.weights.h5").exists(), "it came in the midst of it"
        if earlier:
            assert (folder / "final.weights.h5").read_bytes() == before
        else:
            assert not (folder / "final.weights.h5").exists()
        train(**LONG | {"model": killed_in_saving, "model_dir": folder})
        assert (folder / "final.weights.h5").exists() and not list(folder.glob(".tmp.*"))


if __name__ == "__main__":
    train(**LONG | {"model": killed_in_saving, "model_dir": sys.argv[1], "keep": 1})
