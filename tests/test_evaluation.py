"""Evaluation is exact: every example counts once, on any number of replicas, tails included."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy

from trainer.data.data import in_memory
from trainer.data.tfrecords import Records
from trainer.restore import RestoreError, build_model
from trainer.run.evaluate_checkpoint import load_and_evaluate
from trainer.step.evaluate import build_evaluate
from trainer.tasks.custom_loss import custom_loss
from trainer.tasks.supervised import supervised

RANDOM = np.random.default_rng(0)


def classifier():
    return keras.Sequential([keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(seed=1))])


def data(size):
    return in_memory(
        examples={
            "x": RANDOM.normal(size=[size, 4]),
            "label": RANDOM.integers(0, 3, size),
            "weight": np.arange(size) + 1.0,
        }
    )


def evaluate(strategy, task, examples, batch_size=6):
    with strategy.scope():
        model = classifier()
        build_model(model, task.model_inputs(examples.batch_spec))
    return model, build_evaluate(strategy, model, task, batch_size)(examples)


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 6, 7, 11])
def test_loss_and_accuracy_are_those_of_numpy_over_all_examples(replicas, size):
    task = supervised(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        inputs="x",
        metrics={"accuracy": keras.metrics.SparseCategoricalAccuracy},
    )
    examples = data(size)
    model, metrics = evaluate(make_strategy(replicas), task, examples)
    kernel, bias = (variable.value.numpy() for variable in model.weights)
    logits = examples.examples["x"] @ kernel + bias
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = examples.examples["label"]
    assert metrics["loss"] == pytest.approx(-log_probabilities[np.arange(size), labels].mean(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert metrics["num_examples"] == size


def test_sample_weights_weigh_loss_and_metrics():
    task = supervised(loss=keras.losses.MeanAbsoluteError(), inputs="x", target="label", sample_weight="weight")
    examples = in_memory(examples={"x": np.zeros([3, 4]), "label": [[0.0], [0.0], [6.0]], "weight": [1.0, 1.0, 2.0]})
    _, metrics = evaluate(make_strategy(2), task, examples)
    assert metrics["loss"] == pytest.approx((0 + 0 + 2 * 6) / 4)


def test_a_rank_metric_is_the_same_on_any_number_of_replicas():
    task = supervised(
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        inputs="x",
        target="y",
        metrics={"auc": keras.metrics.AUC},
    )
    examples = in_memory(examples={"x": RANDOM.normal(size=[37, 4]), "y": RANDOM.integers(0, 2, [37, 3])})
    values = [evaluate(make_strategy(replicas), task, examples)[1]["auc"] for replicas in (1, 2, 3)]
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_loss_that_returns_a_scalar_is_exact_on_the_last_batch_too(replicas):
    task = custom_loss(loss=lambda model, batch: tf.reduce_mean(batch["label"]), inputs="x")
    examples = in_memory(examples={"x": np.zeros([7, 4]), "label": np.arange(7.0)})
    _, metrics = evaluate(make_strategy(replicas), task, examples)
    assert metrics["loss"] == pytest.approx(3.0)


class TakesNoEmptyBatch(keras.layers.Layer):
    """As kernels of some processors, a convolution of oneDNN's say; and adds to the loss."""

    def call(self, inputs):
        with tf.control_dependencies([tf.debugging.assert_positive(tf.shape(inputs)[0])]):
            inputs = tf.identity(inputs)
        self.add_loss(tf.reduce_mean(inputs))
        return inputs


@pytest.mark.parametrize("kind", ["what a model adds", "a scalar of the user's"])
def test_a_replica_without_examples_computes_no_empty_batch(kind):
    task = {
        "what a model adds": supervised(loss=keras.losses.MeanAbsoluteError(), inputs="x", target="label"),
        "a scalar of the user's": custom_loss(loss=lambda model, batch: tf.reduce_mean(model(batch["x"])), inputs="x"),
    }[kind]
    strategy = make_strategy(3)
    with strategy.scope():
        model = keras.Sequential([keras.Input([1]), TakesNoEmptyBatch()])
    examples = in_memory(examples={"x": np.arange(7.0)[:, None] + 1, "label": np.arange(7.0)[:, None] + 1})
    metrics = build_evaluate(strategy, model, task, 6)(examples)
    assert metrics["loss"] == pytest.approx(4.0)  # the mean of x, which is all the loss there is


@pytest.mark.parametrize("error", [tf.errors.DataLossError, tf.errors.NotFoundError])
def test_what_fails_in_a_step_is_no_fault_of_the_files(strategy, monkeypatch, error):
    """Read through, a terabyte of them would take hours."""

    def fail(*_):
        raise error(None, None, "a peer is lost")

    monkeypatch.setattr("trainer.data.data.unreadable", lambda segments: pytest.fail("the files are read"))
    task = custom_loss(loss=lambda model, batch: batch["label"], inputs="x")
    examples = dataclasses.replace(data(5), records=Records([("away.tfrecord", 0, 5)], lambda record: {}))
    with strategy.scope():
        model = classifier()
        build_model(model, task.model_inputs(examples.batch_spec))
    monkeypatch.setattr(task, "update_metrics", fail)
    run = build_evaluate(strategy, model, task, 2)
    with pytest.raises(error, match="a peer is lost"):
        run(examples)


def test_evaluating_twice_starts_from_nothing_each_time(strategy):
    task = custom_loss(loss=lambda model, batch: batch["label"], inputs="x")
    examples = in_memory(examples={"x": np.zeros([5, 4]), "label": np.arange(5.0)})
    with strategy.scope():
        model = classifier()
        build_model(model, task.model_inputs(examples.batch_spec))
    run = build_evaluate(strategy, model, task, 2)
    assert run(examples) == run(examples)


def test_a_file_that_needs_the_configs_rules_is_evaluated_with_them(tmp_path):
    kernel, bias = RANDOM.normal(size=[4, 3]).astype("float32"), np.zeros(3, np.float32)
    path = str(tmp_path / "others.npz")
    np.savez(path, **{"old/kernel": kernel, "old/bias": bias, "extra/kernel": np.ones([5, 5], np.float32)})
    task = supervised(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label")
    examples = data(7)

    def metrics(**rules):
        return load_and_evaluate(classifier, task, examples, path, 6, make_strategy(1), **rules)[1]

    with pytest.raises(RestoreError):
        metrics()
    found = metrics(rename=[("^old/", "dense/")], ignore=["^extra/"], match="structure", root=None)
    logits = examples.examples["x"].astype("float32") @ kernel
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(7), examples.examples["label"]]
    assert found["loss"] == pytest.approx(losses.mean(), abs=1e-5)
