"""A loss that is not finite is traced to its step and examples, never saved, and gone round if that was asked."""

import json
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy
from grouped import train_with
from test_resume import bits

import trainer
from trainer.data.data import Data
from trainer.data.order import epoch_order
from trainer.data.tfrecords import Records
from trainer.output.metric_writer import read_rows
from trainer.output.model_dir import ModelDir
from trainer.restore import whole_checkpoints
from trainer.run.preemption import Preemption

BAD = 13
X = np.random.default_rng(0).normal(size=[40, 4])
X[BAD] = np.nan
DATA = {"x": X, "label": np.random.default_rng(1).integers(0, 3, 40)}


def run(model_dir, strategy=None, **more):
    options = dict(
        model=lambda: keras.Sequential([keras.layers.Dense(3), keras.layers.Dropout(0.1)]),
        train_data=DATA,
        task=trainer.supervised(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label"
        ),
        optimizer=lambda: keras.optimizers.Adam(0.01),
        global_batch_size=4, num_steps=20, model_dir=model_dir,
        strategy=strategy or make_strategy(1), log_every=0, checkpoint_every=2, steps_per_loop=10, seed=SEED,
    )  # fmt: skip
    return train_with(**{**options, **more})


# One whose first epoch of ten batches comes by the bad example late enough that there are checkpoints before.
SEED = next(seed for seed in range(99) if 4 <= list(epoch_order(40, seed, 0)).index(BAD) // 4 <= 7)
BAD_STEP = list(epoch_order(40, SEED, 0)).index(BAD) // 4 + 1
BEFORE = (BAD_STEP - 1) // 2 * 2


def data_with_bad_batches(*batches, bad=np.nan):
    """Fifty batches of four, of which these have one bad example each, whatever `run` asks for."""
    data = {"x": np.random.default_rng(0).normal(size=[200, 4]), "label": np.arange(200) % 3}
    data["x"][[epoch_order(200, SEED, 0)[4 * batch] for batch in batches]] = bad
    return data


def counters(model_dir):
    """(batches left out, rollbacks) in the last checkpoint."""
    reader = tf.train.load_checkpoint(whole_checkpoints(model_dir / "checkpoints")[-1])
    return tuple(
        int(reader.get_tensor(f"train_state/{name}/.ATTRIBUTES/VARIABLE_VALUE"))
        for name in ("batches_left_out", "rollbacks")
    )


def stop_after(monkeypatch, num_steps):
    """A run then leaves after so many steps of its own, as it does where its time is up."""
    made = 0

    def next_steps(self, count, steps_left=math.inf):
        nonlocal made
        count = min(count, num_steps - made)
        made += count
        return count

    monkeypatch.setattr(Preemption, "next_steps", next_steps)


def test_step_checkpoint_and_examples_are_named_and_no_bad_weight_is_saved(tmp_path):
    with pytest.raises(trainer.UserError) as caught:
        run(tmp_path / "run")
    batch = np.sort(epoch_order(40, SEED, 0)[4 * (BAD_STEP - 1) : 4 * BAD_STEP])
    said = str(caught.value)
    assert f"The loss is nan at step {BAD_STEP}, the first after ckpt-{BEFORE}" in said
    assert f"examples {', '.join(map(str, batch))} of train_data" in said and "on_nan = 'rollback'" in said
    assert whole_checkpoints(tmp_path / "run" / "checkpoints")[-1].endswith(f"ckpt-{BEFORE}")


@pytest.mark.full
def test_rollback_leaves_the_batch_out_and_is_the_same_again_after_a_stop(tmp_path, strategy, capsys):
    """The bad example comes twice in 20 steps: two rollbacks."""
    options = dict(strategy=strategy, on_nan="rollback")
    whole = run(tmp_path / "whole", **options)
    assert whole.finished and whole.step == 20
    assert all(np.isfinite(weight).all() for weight in whole.model.get_weights())
    reported = " ".join(capsys.readouterr().out.split())
    assert f"the first after ckpt-{BEFORE}" in reported
    assert f"Back at step {BAD_STEP - 1}, to continue without that batch." in reported
    steps = [row["step"] for row in read_rows(ModelDir(tmp_path / "whole").metrics)]
    assert steps == sorted(set(steps)), "each step is on record once"
    run(tmp_path / "parts", **options, num_steps=BAD_STEP + 3)
    parts = run(tmp_path / "parts", **options)
    assert bits(parts) == bits(whole)
    assert counters(tmp_path / "parts") == counters(tmp_path / "whole") == (2, 2)


# Both after ckpt-5: steps 6 and 7, once the first is left out; then step 13.
THREE_BAD = dict(train_data=data_with_bad_batches(5, 7, 14), checkpoint_every=5, on_nan="rollback")


@pytest.mark.full
def test_two_bad_batches_after_one_checkpoint_are_two_rollbacks(tmp_path, strategy):
    result = run(tmp_path / "run", strategy, **THREE_BAD, log_every=1)
    assert result.finished and counters(tmp_path / "run") == (3, 3)
    assert [row["step"] for row in read_rows(ModelDir(tmp_path / "run").metrics)] == list(range(1, 21))
    good = [batch for batch in range(23) if batch not in (5, 7, 14)]
    order = epoch_order(200, SEED, 0)
    as_if_never = np.concatenate([order[4 * batch : 4 * batch + 4] for batch in good])
    # The same examples in the same batches, from a data set that has no others.
    place = epoch_order(80, SEED, 0)
    data = {}
    for name, value in THREE_BAD["train_data"].items():
        data[name] = np.empty_like(value[:80])
        data[name][place] = value[as_if_never]
    assert bits(run(tmp_path / "clean", strategy, train_data=data)) == bits(result)


def test_two_bad_batches_after_one_checkpoint_count_as_two(tmp_path):
    with pytest.raises(trainer.UserError, match=r"at step 7, .*went back 1 times already; Limits.max_rollbacks = 1"):
        run(tmp_path / "run", **THREE_BAD, max_rollbacks=1)


@pytest.mark.full
def test_stopped_at_whatever_step_a_run_leaves_out_the_same_and_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", **THREE_BAD, log_every=2)
    rows = [row["loss"] for row in read_rows(ModelDir(tmp_path / "whole").metrics)]
    for step in (1, 4, 5, 6, 7, 12, 13, 20):  # around the three, the checkpoints and the ends
        with monkeypatch.context() as patched:
            stop_after(patched, step)
            assert not run(tmp_path / str(step), **THREE_BAD, log_every=2).finished
        parts = run(tmp_path / str(step), **THREE_BAD, log_every=2)
        assert parts.step == 20 and bits(parts) == bits(whole), f"stopped after {step} steps"
        assert counters(tmp_path / str(step)) == (3, 3)
        assert [row["loss"] for row in read_rows(ModelDir(tmp_path / str(step)).metrics)] == rows


def test_a_run_that_leaves_at_a_bad_step_does_not_save_it(tmp_path, monkeypatch):
    stop_after(monkeypatch, 6)
    with pytest.raises(trainer.UserError, match="The loss is nan at step 6, the first after ckpt-5"):
        run(tmp_path / "run", **THREE_BAD | {"on_nan": "stop"})
    assert whole_checkpoints(tmp_path / "run" / "checkpoints")[-1].endswith("ckpt-5")


def test_nan_weights_are_not_evaluated_and_never_the_best(tmp_path):
    def num_nan():
        return keras.metrics.MeanMetricWrapper(lambda y, predicted: tf.cast(tf.math.is_nan(predicted), tf.float32))

    with pytest.raises(trainer.UserError, match="The loss is nan at step 6, the first after ckpt-4"):
        run(
            tmp_path / "run", train_data=data_with_bad_batches(5), eval_data=data_with_bad_batches(), eval_every=3,
            checkpoint_every=4, best_metric="num_nan", task=trainer.supervised(
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label",
                metrics={"num_nan": num_nan},
            ),
        )  # fmt: skip
    assert [row["step"] for row in read_rows(ModelDir(tmp_path / "run").metrics)] == [0, 3]
    assert json.loads((tmp_path / "run/checkpoints/best/info.json").read_text())["step"] == 3


@pytest.mark.parametrize("every", [3, 4], ids=["at a checkpoint", "between two"])
def test_weights_that_a_gradient_spoilt_are_not_saved_and_its_own_step_is_named(tmp_path, every):
    """The gradient of sqrt(y * y) at 0 is inf * 0; the loss is not finite from the next step on."""
    with pytest.raises(trainer.UserError, match=f"The gradient's norm is nan at step 6, the first after ckpt-{every}"):
        run(
            tmp_path / "run", train_data=data_with_bad_batches(5, bad=0.0), checkpoint_every=every,
            model=lambda: keras.Sequential(
                [keras.layers.Dense(3, use_bias=False), keras.layers.Activation(lambda y: tf.sqrt(y * y))]
            ),
        )  # fmt: skip
    assert whole_checkpoints(tmp_path / "run" / "checkpoints")[-1].endswith(f"ckpt-{every}")


@pytest.mark.full
def test_a_gradient_that_loss_scaling_skips_does_not_end_the_run(tmp_path):
    def optimizer():
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**127)

    data = {"x": 100 * data_with_bad_batches()["x"], "label": np.arange(200) % 3}
    result = run(tmp_path / "run", train_data=data, optimizer=optimizer, log_every=1)
    rows = read_rows(ModelDir(tmp_path / "run").metrics)
    assert not np.isfinite(rows[0]["grad_norm"]), "else nothing is tested"
    assert result.finished and all(np.isfinite(weight).all() for weight in result.model.get_weights())


@pytest.mark.parametrize("length", [1, 3, 10])
def test_a_loss_that_is_not_finite_ends_a_run_wherever_its_loops_end(tmp_path, length):
    """Loss scaling makes no update of such a step: the loss is finite again from the next one on."""

    def optimizer():
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))

    options = dict(train_data=data_with_bad_batches(6), optimizer=optimizer, checkpoint_every=0, steps_per_loop=length)
    with pytest.raises(trainer.UserError, match="The loss is nan, seen at step 20"):
        run(tmp_path / "run", **options)


@pytest.mark.full
def test_a_run_that_stopped_continues_when_it_is_allowed_to_go_round(tmp_path):
    with pytest.raises(trainer.UserError):
        run(tmp_path / "run")
    assert run(tmp_path / "run", on_nan="rollback").finished


@pytest.mark.full
@pytest.mark.parametrize("killed_first", [False, True])
def test_a_rate_that_was_lowered_is_the_one_that_a_run_goes_back_to(tmp_path, monkeypatch, killed_first):
    options = dict(train_data=data_with_bad_batches(7), checkpoint_every=5, log_every=1)
    with pytest.raises(trainer.UserError, match="at step 8, the first after ckpt-5"):
        run(tmp_path / "run", **options)
    lowered = options | dict(
        optimizer=lambda: keras.optimizers.Adam(0.001), allow_config_change=True, on_nan="rollback"
    )
    if killed_first:
        stop_after(monkeypatch, 0)
        run(tmp_path / "run", **lowered)
        monkeypatch.undo()
    assert run(tmp_path / "run", **lowered).finished
    rates = {row["step"]: row["learning_rate"] for row in read_rows(ModelDir(tmp_path / "run").metrics)}
    assert [rates[step] for step in (6, 9, 20)] == [pytest.approx(0.001)] * 3


def test_after_so_many_rollbacks_it_stops(tmp_path):
    with pytest.raises(trainer.UserError, match="went back 1 times already; Limits.max_rollbacks = 1"):
        run(tmp_path / "run", on_nan="rollback", max_rollbacks=1)


def test_before_the_first_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    with pytest.raises(trainer.UserError, match="There is no checkpoint before it"):
        run(tmp_path / "run", checkpoint_every=0, on_nan="rollback")
    with pytest.raises(trainer.UserError, match="There is no checkpoint before it"):
        run(None)


@pytest.mark.full
def test_the_checkpoint_of_step_0_is_one_to_go_back_to(tmp_path, monkeypatch):
    options = dict(train_data=data_with_bad_batches(1), checkpoint_every=0, on_nan="rollback")
    with monkeypatch.context() as patched:
        stop_after(patched, 0)
        assert run(tmp_path / "run", **options).step == 0
    assert run(tmp_path / "run", **options).finished
    assert counters(tmp_path / "run") == (1, 1)


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "3"])
def test_a_number_of_rollbacks_that_is_none_is_refused(most):
    with pytest.raises(trainer.UserError, match=f"Limits.max_rollbacks .*{most!r}"):
        trainer.Limits(on_nan="rollback", max_rollbacks=most)


def test_a_word_that_is_no_choice_is_refused(tmp_path):
    with pytest.raises(trainer.UserError, match="on_nan = 'ignore' must be one of 'stop', 'rollback'"):
        run(tmp_path / "run", on_nan="ignore")
    assert not (tmp_path / "run").exists()


def test_examples_of_a_streamed_data_set_are_named(tmp_path):
    data = data_with_bad_batches(4)
    dataset = tf.data.Dataset.from_tensor_slices({name: np.asarray(value) for name, value in data.items()})
    (bad,) = np.flatnonzero(np.isnan(data["x"]).any(axis=1))
    with pytest.raises(trainer.UserError, match=r"Its batch is examples [\d, ]+ of train_data, counted") as caught:
        run(tmp_path / "run", train_data=dataset, num_steps=50, checkpoint_every=1)
    named = re.search(r"examples ([\d, ]+) of", str(caught.value))
    assert named and str(bad) in named[1].split(", ") and named[1].count(",") == 3


def test_records_of_the_examples_in_files_are_named(tmp_path):
    paths = [str(tmp_path / name) for name in ("one.tfrecord", "two.tfrecord")]
    x = np.random.default_rng(0).normal(size=[60, 4]).astype(np.float32)
    x[BAD + 20] = np.nan
    for path, part in zip(paths, (x[:40], x[40:]), strict=True):
        with tf.io.TFRecordWriter(path) as writer:
            for row in part:
                writer.write(tf.io.serialize_tensor(row).numpy())

    def decode(record):
        return {"x": tf.ensure_shape(tf.io.parse_tensor(record, tf.float32), [4]), "label": tf.zeros([], tf.int64)}

    # Without the first twenty of the first file.
    records = Records([(paths[0], 20, 20), (paths[1], 0, 20)], decode)
    stream = lambda: records.batches_in_order(1).unbatch().map(decode)  # noqa: E731
    data = Data("files", 40, stream=stream, records=records, shuffle_buffer=8)
    with pytest.raises(trainer.UserError, match=r"Its batch is records .*, counted from 0") as caught:
        run(tmp_path / "run", train_data=data, checkpoint_every=1)
    named = re.search(r"(?:records|,) ([\d, ]+) of (\S+one.tfrecord)", str(caught.value))
    assert named and named[2] == paths[0] and str(BAD + 20) in named[1].split(", ")
