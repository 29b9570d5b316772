"""A loss that is not finite is traced to its step and examples, never saved, and gone round if that was asked."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy
from test_resume import bits

import trainer
from trainer.data_order import epoch_order
from trainer.metric_writer import read_rows
from trainer.model_dir import ModelDir
from trainer.restore import whole_checkpoints

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
        global_batch_size=4, num_steps=20, model_dir=model_dir, from_scratch=True,
        strategy=strategy or make_strategy(1), log_every=0, checkpoint_every=2, steps_per_loop=10, seed=SEED,
    )  # fmt: skip
    return trainer.train(**{**options, **more})


# One whose first epoch of ten batches comes by the bad example late enough that there are checkpoints before.
SEED = next(seed for seed in range(99) if 4 <= list(epoch_order(40, seed, 0)).index(BAD) // 4 <= 7)
BAD_STEP = list(epoch_order(40, SEED, 0)).index(BAD) // 4 + 1
BEFORE = (BAD_STEP - 1) // 2 * 2


def test_step_checkpoint_and_examples_are_named_and_no_bad_weight_is_saved(tmp_path):
    with pytest.raises(trainer.UserError) as caught:
        run(tmp_path / "run")
    batch = np.sort(epoch_order(40, SEED, 0)[4 * (BAD_STEP - 1) : 4 * BAD_STEP])
    said = str(caught.value)
    assert f"The loss is nan at step {BAD_STEP}, the first after ckpt-{BEFORE}" in said
    assert f"examples {', '.join(map(str, batch))} of train_data" in said and "on_nan = 'rollback'" in said
    assert whole_checkpoints(tmp_path / "run" / "checkpoints")[-1].endswith(f"ckpt-{BEFORE}")


def test_rollback_leaves_the_batches_out_and_is_the_same_again_after_a_stop(tmp_path, strategy, capsys):
    """The bad example comes twice in 20 steps: two rollbacks."""
    options = dict(strategy=strategy, on_nan="rollback")
    whole = run(tmp_path / "whole", **options)
    assert whole.finished and whole.step == 20
    assert all(np.isfinite(weight).all() for weight in whole.model.get_weights())
    told = " ".join(capsys.readouterr().out.split())
    assert f"Back at step {BEFORE}, without the next {BAD_STEP - BEFORE} batches." in told
    steps = [row["step"] for row in read_rows(ModelDir(tmp_path / "whole").metrics)]
    assert steps == sorted(set(steps)), "each step is on record once"
    run(tmp_path / "parts", **options, num_steps=BAD_STEP + 3)
    parts = run(tmp_path / "parts", **options)
    assert bits(parts) == bits(whole)


def test_a_run_that_stopped_goes_on_when_it_is_allowed_to_go_round(tmp_path):
    with pytest.raises(trainer.UserError):
        run(tmp_path / "run")
    assert run(tmp_path / "run", on_nan="rollback").finished


def test_after_so_many_rollbacks_it_stops(tmp_path):
    with pytest.raises(trainer.UserError, match="went back 1 times already, which is train.most_rollbacks"):
        run(tmp_path / "run", on_nan="rollback", most_rollbacks=1)


def test_before_the_first_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    with pytest.raises(trainer.UserError, match="There is no checkpoint before it"):
        run(tmp_path / "run", checkpoint_every=0, on_nan="rollback")
    with pytest.raises(trainer.UserError, match="There is no checkpoint before it"):
        run(None)


def test_a_word_that_is_no_choice_is_refused(tmp_path):
    with pytest.raises(trainer.UserError, match="on_nan = 'ignore' must be one of 'stop', 'rollback'"):
        run(tmp_path / "run", on_nan="ignore")
    assert not (tmp_path / "run").exists()


def test_a_streamed_data_set_names_the_step_alone(tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices({name: np.asarray(value) for name, value in DATA.items()})
    with pytest.raises(trainer.UserError, match=r"the first after ckpt-\d+ where it is not finite\. The run goes on"):
        run(tmp_path / "run", train_data=dataset, seed=3)
