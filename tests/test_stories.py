"""The seed stories, each through its shipped config and the real command."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import run_command
from conftest import full, make_strategy
from grouped import train_with

import trainer
from trainer.output.metric_writer import read_rows

ONE = ("--strategy=one_device",)
TWO = ("--strategy=mirrored", "--virtual_devices=2")


def train(config, model_dir, *flags):
    done = run_command("launch.train", f"--gin_file=configs/runs/{config}.gin", f"--model_dir={model_dir}", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights_of(checkpoint) -> dict[str, np.ndarray]:
    """The model's variables as TensorFlow alone reads them; checkpoint: a train state's, or a folder of them."""
    prefix = tf.train.latest_checkpoint(str(checkpoint)) or str(checkpoint)
    names = [name for name, _ in tf.train.list_variables(prefix) if name.startswith("model/")]
    return {name.split("/.ATTR")[0]: tf.train.load_variable(prefix, name) for name in names}


def assert_equal_weights(first, second, tolerance):
    assert first.keys() == second.keys() and first
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=tolerance, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def linear_source(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("linear") / "source"
    train("linear_source", model_dir)
    return model_dir


@pytest.mark.parametrize("flags", [full(ONE), TWO], ids=["one replica", "two replicas"])
def test_story_1_the_first_sgd_step_is_the_one_computed_by_hand(linear_source, tmp_path, flags):
    out = train("linear_adam_to_sgd", tmp_path / "run", f"--gin_param=INIT_CHECKPOINT = '{linear_source}'", *flags)
    before = weights_of(linear_source / "checkpoints")
    after = weights_of(tmp_path / "run/checkpoints")
    w, b = float(before["model/unit/_kernel"][0, 0]), float(before["model/unit/bias"][0])
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    error = w * x + b - y
    # Mean squared error over the three points; SGD with rate 0.005.
    assert float(after["model/unit/_kernel"][0, 0]) == pytest.approx(w - 0.005 * np.mean(2 * error * x), abs=1e-6)
    assert float(after["model/unit/bias"][0]) == pytest.approx(b - 0.005 * np.mean(2 * error), abs=1e-6)
    assert "SGD is new: iterations 0" in out and "0 optimizer entries read" in out


def test_story_1_source_is_an_ordinary_checkpoint_with_adams_state(linear_source):
    prefix = tf.train.latest_checkpoint(str(linear_source / "checkpoints"))
    names = [name for name, _ in tf.train.list_variables(prefix)]
    assert any(name.startswith("optimizer/_variables/") for name in names)
    assert any(name.startswith("optimizer/_iterations") for name in names)


def story_2(digits_source) -> list[str]:
    return [
        f"--gin_param=INIT_CHECKPOINT = '{digits_source}'", "--gin_param=NUM_STEPS = 40",
        "--gin_param=Intervals.log_every = 8", "--gin_param=Intervals.checkpoint_every = 8",
        "--gin_param=Saving.keep = 5",
    ]  # fmt: skip


def test_story_2_the_rate_follows_the_cosine_from_step_0(digits_source, tmp_path):
    train("conv_adam_to_sgd_cosine", tmp_path / "two", *story_2(digits_source), *TWO)
    rows = [row for row in read_rows(tmp_path / "two/metrics.jsonl") if "split" not in row]
    assert [row["step"] for row in rows] == [8, 16, 24, 32, 40]
    for row in rows:
        assert row["learning_rate"] == pytest.approx(
            0.01 * 0.5 * (1 + np.cos(np.pi * (row["step"] - 1) / 40)), abs=1e-6
        )


@pytest.mark.full
def test_story_2_one_replica_makes_the_steps_of_two(digits_source, tmp_path):
    for name, flags in (("one", ONE), ("two", TWO)):
        train("conv_adam_to_sgd_cosine", tmp_path / name, *story_2(digits_source), *flags)
    # The trained net has activations that rounding alone takes across a ReLU's corner: what they add grows on.
    for step, tolerance in ((8, 5e-6), (40, 1e-4)):
        one, two = (weights_of(tmp_path / name / f"checkpoints/ckpt-{step}") for name in ("one", "two"))
        assert_equal_weights(one, two, tolerance)


@pytest.fixture(scope="module")
def custom_source(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("custom") / "source"
    train("custom_step_source", model_dir, "--gin_param=NUM_STEPS = 60")
    return f"--gin_param=INIT_CHECKPOINT = '{model_dir}'"


def test_story_3_a_loss_of_the_users_own_goes_from_adam_to_rmsprop(custom_source, tmp_path):
    steps = "--gin_param=NUM_STEPS = 20"
    out = train("custom_step_adam_to_rmsprop", tmp_path / "two", custom_source, steps, *TWO)
    assert "RMSprop is new: iterations 0" in out
    summary = json.loads((tmp_path / "two/summary.json").read_text())
    assert summary["final_metrics"]["loss"] < summary["initial_metrics"]["loss"]


@pytest.mark.full
def test_story_3_one_replica_makes_the_steps_of_two(custom_source, tmp_path):
    for name, flags in (("one", ONE), ("two", TWO)):
        train("custom_step_adam_to_rmsprop", tmp_path / name, custom_source, "--gin_param=NUM_STEPS = 20", *flags)
    assert_equal_weights(weights_of(tmp_path / "one/checkpoints"), weights_of(tmp_path / "two/checkpoints"), 1e-5)


@pytest.mark.full
def test_story_3_a_changed_parameter_of_the_users_loss_is_another_config(tmp_path):
    train("custom_step_source", tmp_path / "run", "--gin_param=NUM_STEPS = 10")
    operative = (tmp_path / "run/operative_config.gin").read_text()
    assert "smoothed_cross_entropy.smoothing = 0.1" in operative, "what the step will use is on record"
    other = run_command(
        "launch.train", "--gin_file=configs/runs/custom_step_source.gin", f"--model_dir={tmp_path / 'run'}",
        "--gin_param=NUM_STEPS = 20", "--gin_param=smoothed_cross_entropy.smoothing = 0.4",
    )  # fmt: skip
    assert other.returncode == 2 and "smoothed_cross_entropy.smoothing = 0.4" in other.stderr
    train("custom_step_source", tmp_path / "run", "--gin_param=NUM_STEPS = 20")


class TwoDense(keras.Model):
    def __init__(self, width=8):
        super().__init__()
        self.hidden = keras.layers.Dense(width, activation="relu")
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.hidden(x))


@pytest.mark.full
def test_story_3_one_process_trains_with_both_optimizers_in_turn(tmp_path, strategy):
    random = np.random.default_rng(0)
    data = {"x": random.normal(size=[32, 4]), "label": random.integers(0, 3, 32)}

    def loss(model, batch):
        return keras.losses.sparse_categorical_crossentropy(batch["label"], model(batch["x"]), from_logits=True)

    common = dict(model=TwoDense, train_data=data, eval_data=data, global_batch_size=8, num_steps=5, strategy=strategy)
    task = trainer.custom_loss(loss=loss, inputs="x")
    first = train_with(**common, task=task, optimizer=keras.optimizers.Adam, model_dir=tmp_path / "adam")
    second = train_with(
        **common,
        task=task,
        optimizer=keras.optimizers.RMSprop,
        checkpoint=tmp_path / "adam",
        model_dir=tmp_path / "rms",
    )
    assert second.initial_metrics == first.final_metrics
    assert second.final_metrics["loss"] < second.initial_metrics["loss"]
    assert second.optimizer_proof.name == "RMSprop" and second.optimizer_proof.iterations == 0
    assert len(second.restore_report.restored) == 4 and second.restore_report.optimizer_keys_read == 0


def test_an_unbuilt_model_under_a_strategy_is_filled_whole_or_refused(tmp_path, strategy):
    random = np.random.default_rng(0)
    data = {"x": random.normal(size=[8, 4]), "label": random.integers(0, 3, 8)}
    source = TwoDense()
    source(np.zeros([1, 4], np.float32))
    path = tf.train.Checkpoint(model=source, optimizer=keras.optimizers.Adam()).save(str(tmp_path / "ckpt"))
    task = trainer.supervised(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label"
    )
    common = dict(
        train_data=data, task=task, optimizer=lambda: keras.optimizers.SGD(0.0), global_batch_size=4, num_steps=1
    )
    result = train_with(**common, model=TwoDense, checkpoint=path, strategy=strategy)
    for variable, original in zip(result.model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(trainer.cluster.replicas.first_value(variable), original.numpy())

    with pytest.raises(trainer.RestoreError, match="no variable was changed"):
        train_with(**common, model=lambda: TwoDense(width=9), checkpoint=path, strategy=strategy)


@pytest.mark.full
def test_the_parity_of_two_and_three_replicas_holds_without_a_command(tmp_path):
    random = np.random.default_rng(0)
    data = {"x": random.normal(size=[32, 4]), "label": random.integers(0, 3, 32)}
    task = trainer.supervised(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label"
    )
    weights = []
    for replicas in (1, 2, 3):
        result = train_with(
            model=TwoDense, train_data=data, task=task, optimizer=lambda: keras.optimizers.Adam(0.01),
            global_batch_size=12, num_steps=10, strategy=make_strategy(replicas),
        )  # fmt: skip
        weights.append([trainer.cluster.replicas.first_value(variable) for variable in result.model.weights])
    for other in weights[1:]:
        for first, second in zip(weights[0], other, strict=True):
            np.testing.assert_allclose(first, second, atol=1e-6)
