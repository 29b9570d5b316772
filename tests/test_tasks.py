"""What an example weighs in the loss, by hand arithmetic; what a model adds to it is a mean over the examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy
from parity.rows import DATA, net, train

import trainer
from trainer.data.data import in_memory
from trainer.step.evaluate import build_evaluate
from trainer.tasks.supervised import supervised


def given_logits(width: int) -> keras.Model:
    """Gives its input back."""
    return keras.Sequential([keras.Input([width]), keras.layers.Activation("linear")])


def loss_of(batch, training=True, width=3, weight=None, **options):
    """The mean loss of a batch whose features are the logits themselves."""
    options = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options}
    task = supervised(inputs="x", target="label", **options)
    batch = {name: tf.constant(value) for name, value in batch.items()}
    total, weights = task.loss(given_logits(width), batch, weight, training)
    return float(total / weights)


# Cross entropies of class 0, 1 and 2: 1, 2 and 3 less than the logarithm of the sum.
LOGITS = [[-1.0, -2.0, -3.0]] * 3
LOG_SUM = float(np.log(np.exp([-1.0, -2.0, -3.0]).sum()))


def test_a_class_weighs_what_the_config_says_and_one_else():
    batch = {"x": LOGITS, "label": [0, 1, 2]}
    assert loss_of(batch, class_weight={0: 3.0, 2: 0.5}) == pytest.approx(LOG_SUM + (3 * 1 + 2 + 0.5 * 3) / 4.5)


@pytest.mark.parametrize(
    "label, loss",
    [
        ([[0], [1], [2]], keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        (np.eye(3, dtype=np.float32), keras.losses.CategoricalCrossentropy(from_logits=True)),
    ],
    ids=["[batch, 1]", "one number for each class"],
)
def test_the_class_is_read_off_whatever_form_the_target_has(label, loss):
    found = loss_of({"x": LOGITS, "label": label}, loss=loss, class_weight={0: 3.0, 2: 0.5})
    assert found == pytest.approx(LOG_SUM + 6.5 / 4.5)


def test_a_class_of_two_is_weighed_with_a_single_output():
    batch = {"x": [[0.0], [2.0]], "label": [0.0, 1.0]}
    found = loss_of(batch, width=1, loss=keras.losses.MeanAbsoluteError(), class_weight={1: 3.0})
    assert found == pytest.approx((0 + 3 * 1) / 4)


def test_class_and_sample_weights_multiply():
    batch = {"x": LOGITS[:2], "label": [0, 1], "weight": [2.0, 1.0]}
    found = loss_of(batch, class_weight={0: 2.0}, sample_weight="weight")
    assert found == pytest.approx(LOG_SUM + (4 * 1 + 1 * 2) / 5)


def test_evaluation_weighs_all_classes_alike():
    batch = {"x": LOGITS, "label": [0, 1, 2]}
    assert loss_of(batch, training=False, class_weight={0: 3.0}) == pytest.approx(LOG_SUM + 2.0)


@pytest.mark.parametrize(
    "wrong", [[1.0, 2.0], {"0": 1.0}, {-1: 1.0}, {0: -1.0}, {0: float("inf")}, {0: "high"}, {True: 1.0}], ids=str
)
def test_what_is_no_weight_of_a_class_is_refused(wrong):
    with pytest.raises(trainer.UserError, match=r"supervised.class_weight maps classes to weights"):
        supervised(loss=keras.losses.SparseCategoricalCrossentropy(), class_weight=wrong)


def test_a_class_that_the_model_does_not_have_is_refused():
    task = supervised(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", class_weight={3: 2.0}
    )
    with pytest.raises(trainer.UserError, match="weighs class 3, but the model has 3 outputs"):
        train(make_strategy(1), task=task)


@pytest.mark.parametrize("training", [True, False])
def test_an_ignored_target_is_not_in_the_denominator(training):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    batch = {"x": LOGITS, "label": [0, -1, 2]}
    assert loss_of(batch, training, loss=loss) == pytest.approx(LOG_SUM + (1 + 3) / 2)
    assert loss_of(batch, training, loss=loss) == pytest.approx(float(loss(np.array([0, -1, 2]), np.array(LOGITS))))


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_evaluation_adds_the_activity_of_every_example_once(replicas):
    """Seven examples in batches of six: the second one is filled up, and replicas see nothing real of it."""
    task = supervised(loss=keras.losses.MeanAbsoluteError(), inputs="x", target="label", sample_weight="weight")
    examples = in_memory(
        examples={"x": np.arange(7.0)[:, None], "label": np.zeros([7, 1]), "weight": [1.0] * 6 + [2.0]}
    )
    strategy = make_strategy(replicas)
    with strategy.scope():
        model = keras.Sequential([
            keras.Input([1]),
            keras.layers.Activation("linear", activity_regularizer=keras.regularizers.L1(0.5)),
        ])  # fmt: skip
    found = build_evaluate(strategy, model, task, 6)(examples)
    assert found["loss"] == pytest.approx((0 + 1 + 2 + 3 + 4 + 5 + 2 * 6) / 8 + 0.5 * 21 / 7)


WEIGHED = supervised(
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label",
    sample_weight="weight",
)  # fmt: skip


def with_activity():
    return net(lambda: keras.layers.Conv2D(4, 1, activity_regularizer=keras.regularizers.L2(0.1)))


@pytest.mark.parametrize("parts", [{"strategy": 2}, {"strategy": 1, "accumulation_steps": 2}], ids=str)
def test_what_would_not_add_up_in_parts_is_refused_before_anything_is_written(parts, tmp_path):
    parts = {**parts, "strategy": make_strategy(parts["strategy"])}
    with pytest.raises(trainer.UserError, match="add_loss or an activity regulariser, and not all examples weigh"):
        train(**parts, model=with_activity(), task=WEIGHED, model_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_in_one_part_it_is_trained():
    assert train(make_strategy(1), model=with_activity(), task=WEIGHED, num_steps=2).finished


def test_penalties_of_weights_go_with_any_weights_in_any_number_of_parts():
    model = net(lambda: keras.layers.Conv2D(4, 1, kernel_regularizer=keras.regularizers.L2(0.1)))
    assert train(make_strategy(2), model=model, task=WEIGHED, num_steps=2, eval_data=DATA).finished
