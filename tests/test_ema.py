"""Averages of the trained weights: their arithmetic, where they are used, and that they do not touch the training."""

import contextlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy
from test_resume import DATA, Everything, bits, run

import trainer
from trainer.cluster.replicas import first_value, replica_values
from trainer.data.given import as_data
from trainer.optimizers.ema import EmaWeights
from trainer.restore import weights_of
from trainer.run.evaluate_checkpoint import load_and_evaluate
from trainer.step.evaluate import build_evaluate

INPUT = tf.TensorSpec([None, 4], tf.float32)
TASK = trainer.supervised(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label")


def averages_in(model_dir) -> dict[str, np.ndarray]:
    """name -> average, from the newest checkpoint, read by TensorFlow alone."""
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints"))
    start, end = "train_state/ema_weights/", "/.ATTRIBUTES/VARIABLE_VALUE"
    keys = [key for key in reader.get_variable_to_shape_map() if key.startswith(start)]
    return {key.removeprefix(start).removesuffix(end).replace(".S", "/"): reader.get_tensor(key) for key in keys}


def trained(model) -> dict[str, np.ndarray]:
    return {w.name: first_value(w.variable) for w in weights_of(model) if w.variable.trainable}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps with averages on two replicas, and its folder."""
    folder = tmp_path_factory.mktemp("ema") / "run"
    return run(folder, 8, make_strategy(2), ema_decay=0.9), folder


def test_the_average_after_one_and_two_steps_by_hand(strategy):
    with strategy.scope():
        weight = keras.Variable([1.0, 0.0], name="weight")
        ema = EmaWeights({"weight": weight}, 0.9)
    for value, average in ([2.0, 10.0], [1.1, 1.0]), ([4.0, 0.0], [1.39, 0.9]):
        weight.assign(value)
        ema.update()
        for copy in replica_values(ema.variables["weight"]):
            np.testing.assert_allclose(copy, average, rtol=1e-6)


def test_the_average_of_a_run_by_hand(tmp_path, strategy):
    # The loss is the weight itself: SGD takes it from 1 to 0.5 to 0; 0.9 * 1 + 0.1 * 0.5, then 0.9 * 0.95 + 0.1 * 0.
    task = trainer.custom_loss(loss=lambda model, batch: model(batch["x"])[:, 0], inputs="x")
    for num_steps, average in (1, 0.95), (2, 0.855):
        run(
            tmp_path / str(num_steps), num_steps, strategy, ema_decay=0.9, task=task, eval_data=None,
            model=lambda: keras.Sequential([keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")]),
            train_data={"x": np.ones([8, 1], np.float32)}, optimizer=lambda: keras.optimizers.SGD(0.5),
        )  # fmt: skip
        (value,) = averages_in(tmp_path / str(num_steps)).values()
        np.testing.assert_allclose(value, [[average]], rtol=1e-6)


def test_small_steps_of_half_precision_weights_add_up_in_float32():
    weight = keras.Variable([1.0], dtype="bfloat16", name="weight")
    ema = EmaWeights({"weight": weight}, 0.999)
    weight.assign([2.0])
    for _ in range(10):
        ema.update()
    assert ema.variables["weight"].dtype == tf.float32
    np.testing.assert_allclose(ema.variables["weight"].numpy(), [2.0 - 0.999**10], rtol=1e-5)
    with ema.in_place():
        assert float(weight.numpy()[0]) == 1.0078125  # the nearest bfloat16 of 1.00996
    assert float(weight.numpy()[0]) == 2.0


def test_the_weights_come_back_after_an_error_too(strategy):
    with strategy.scope():
        weight = keras.Variable(np.float32([0.1, 0.7]), name="weight")
        ema = EmaWeights({"weight": weight}, 0.5)
        weight.assign([3.0, 1.0 / 3.0])
        ema.update()
    before = [copy.tobytes() for copy in replica_values(weight)]
    with contextlib.suppress(KeyError), ema.in_place():
        for copy in replica_values(weight):
            np.testing.assert_allclose(copy, [1.55, (0.7 + 1 / 3) / 2], rtol=1e-6)
        raise KeyError
    assert [copy.tobytes() for copy in replica_values(weight)] == before


@pytest.mark.full
def test_training_is_the_same_bit_for_bit_with_averages_evaluated_on_the_way(tmp_path, strategy):
    averaged = run(tmp_path / "averaged", 8, strategy, ema_decay=0.9, eval_every=2)
    plain = run(tmp_path / "plain", 8, strategy, eval_every=2)
    assert bits(averaged) == bits(plain)
    assert averaged.final_metrics != plain.final_metrics
    assert averaged.initial_metrics == plain.initial_metrics


def test_the_final_metrics_are_those_of_the_averages(finished):
    result, folder = finished
    strategy = make_strategy(2)
    with strategy.scope():
        model = Everything()
        trainer.restore_weights(model, folder, input_spec=INPUT)
        averages = averages_in(folder)
        for weight in weights_of(model):
            if weight.name in averages:
                weight.variable.assign(averages[weight.name])
    metrics = build_evaluate(strategy, model, TASK, 8)(as_data(DATA, "eval_data"))
    assert metrics == result.final_metrics
    assert json.loads((folder / "summary.json").read_text())["final_metrics"] == result.final_metrics


def test_the_final_weights_are_the_averages_and_the_statistics_of_the_model(finished):
    result, folder = finished
    exported = Everything()
    trainer.restore_weights(exported, folder / "final.weights.h5", input_spec=INPUT)
    averages = averages_in(folder)
    statistics = 0
    for ours, theirs in zip(weights_of(exported), weights_of(result.model), strict=True):
        expected = averages.get(ours.name, first_value(theirs.variable))
        np.testing.assert_array_equal(ours.variable.numpy(), expected, err_msg=ours.name)
        statistics += ours.name not in averages
    assert statistics == 2, "moving mean and variance of the BatchNormalization"


def test_the_checkpoint_holds_the_weights_and_an_average_of_each_that_is_trained(finished):
    result, folder = finished
    averages, weights = averages_in(folder), trained(result.model)
    assert set(averages) == set(weights) and len(weights) == 6
    assert not any(np.array_equal(averages[name], weights[name]) for name in weights)
    reader = tf.train.load_checkpoint(str(folder / "checkpoints"))
    kernel = reader.get_tensor("model/head/_kernel/.ATTRIBUTES/VARIABLE_VALUE")
    np.testing.assert_array_equal(kernel, weights["head/kernel"])


def test_what_is_frozen_has_no_average(tmp_path):
    run(tmp_path / "run", 1, make_strategy(1), ema_decay=0.9, frozen=["^blocks/"])
    assert set(averages_in(tmp_path / "run")) == {"head/kernel", "head/bias"}


@pytest.mark.full
def test_a_resumed_run_ends_with_the_averages_of_an_unbroken_one(tmp_path, strategy):
    whole = run(tmp_path / "whole", 8, strategy, ema_decay=0.9)
    run(tmp_path / "parts", 4, strategy, ema_decay=0.9)
    rest = run(tmp_path / "parts", 8, strategy, ema_decay=0.9)
    assert bits(rest) == bits(whole)
    assert rest.final_metrics == whole.final_metrics
    first, second = averages_in(tmp_path / "whole"), averages_in(tmp_path / "parts")
    assert {name: value.tobytes() for name, value in first.items()} == {n: v.tobytes() for n, v in second.items()}


@pytest.mark.full
@pytest.mark.parametrize("before", [0.9, None])
def test_a_run_is_not_resumed_with_another_decay(before, tmp_path):
    run(tmp_path / "run", 1, make_strategy(1), ema_decay=before)
    with pytest.raises(trainer.UserError, match="holds a run of another config"):
        run(tmp_path / "run", 2, make_strategy(1), ema_decay=0.5)


def test_evaluating_the_checkpoint_gives_the_runs_own_final_metrics(finished):
    result, folder = finished
    report, metrics = load_and_evaluate(Everything, TASK, DATA, str(folder), 8, make_strategy(2), ema=True)
    assert metrics == result.final_metrics
    assert len(report.restored) == 8
    _, of_the_weights = load_and_evaluate(Everything, TASK, DATA, str(folder), 8, make_strategy(2))
    assert of_the_weights["loss"] != metrics["loss"]


def test_a_checkpoint_with_averages_is_somebodys_init_checkpoint_without_a_rule(finished):
    result, folder = finished
    model = Everything()
    report = trainer.restore_weights(model, folder, input_spec=INPUT)
    assert len(report.restored) == 8 and not report.unused
    for ours, theirs in zip(model.weights, result.model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), first_value(theirs))


def test_the_averages_are_restored_by_their_root(finished):
    _, folder = finished
    model = Everything()
    report = trainer.restore_weights(
        model, folder, input_spec=INPUT, root="train_state/ema_weights", reinitialize=["/moving_(mean|variance)$"]
    )
    assert len(report.restored) == 6
    averages = averages_in(folder)
    for weight in weights_of(model):
        if weight.name in averages:
            np.testing.assert_array_equal(weight.variable.numpy(), averages[weight.name])


@pytest.mark.parametrize("decay", [1.5, 1.0, 0.0, -0.1, float("nan"), "0.9", True])
def test_a_decay_that_is_none_is_named_before_anything_is_written(decay, tmp_path):
    with pytest.raises(
        trainer.UserError, match=r"Step\.ema_decay (= .* must lie between 0 and 1, e\.g\. 0\.999|must be a number)"
    ):
        run(tmp_path / "run", 1, make_strategy(1), ema_decay=decay)
    assert not (tmp_path / "run").exists()


def unnamed():
    """Keras numbers these layers again in every process, and at every call."""
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(5), keras.layers.Dense(3)])


@pytest.mark.full
def test_averages_of_layers_that_keras_numbered_are_found_again(tmp_path):
    options = dict(model=unnamed, ema_decay=0.9)
    whole = run(tmp_path / "whole", 8, make_strategy(1), **options)
    run(tmp_path / "parts", 4, make_strategy(1), **options)
    parts = run(tmp_path / "parts", 8, make_strategy(1), **options)
    assert parts.final_metrics == whole.final_metrics
    strategy = tf.distribute.get_strategy()
    for ema, is_the_runs_own in ((True, True), (False, False)):
        _, metrics = load_and_evaluate(unnamed, TASK, DATA, str(tmp_path / "whole"), 8, strategy, ema=ema)
        assert (metrics["loss"] == pytest.approx(whole.final_metrics["loss"])) == is_the_runs_own


def test_an_evaluation_by_averages_of_a_run_without_is_refused(tmp_path):
    run(tmp_path / "run", 2, make_strategy(1), model=unnamed)
    with pytest.raises(trainer.UserError, match="written by a run without: it has no averages"):
        load_and_evaluate(unnamed, TASK, DATA, str(tmp_path / "run"), 8, tf.distribute.get_strategy(), ema=True)
