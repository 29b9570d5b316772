"""A replacement optimizer is new, in every variable, and says so."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy

from trainer import UserError
from trainer.optimizers.build import build_optimizer, prove_new, trained_variables
from trainer.optimizers.learning_rate import learning_rate_at, sample_learning_rate

OPTIMIZERS = [
    "SGD", "Adam", "AdamW", "Adamax", "Nadam", "Adagrad", "Adadelta", "RMSprop", "Ftrl", "Lion", "Lamb", "Adafactor",
]  # fmt: skip


def small_model():
    model = keras.Sequential([keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2, name="head")])
    model.build((None, 4))
    return model


def build_twins(optimizer, model):
    """What `prove_new` is given: the optimizer, how to build another, and on what."""

    def build(variables):
        return build_optimizer(optimizer, variables)

    return build(model.trainable_variables), build, model.trainable_variables


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_keras_optimizer_is_built_in_scope_and_proved_new(name, strategy):
    with strategy.scope():
        model = small_model()
        proof = prove_new(*build_twins(getattr(keras.optimizers, name), model), None)
    assert proof.iterations == 0 and proof.name == name
    assert proof.learning_rate == pytest.approx(getattr(keras.optimizers, name)().learning_rate)
    assert "is new: iterations 0" in str(proof)


def test_slots_that_do_not_start_at_zero_are_distinguished_from_used_ones():
    with make_strategy(2).scope():
        model = small_model()
        assert prove_new(*build_twins(keras.optimizers.Adagrad, model), None).slots == "at their initial values"


def test_a_used_optimizer_is_not_called_new():
    model = small_model()
    optimizer, *how_to_build = build_twins(lambda: keras.optimizers.SGD(0.1, momentum=0.9), model)
    optimizer.apply([tf.ones(variable.shape) for variable in model.trainable_variables], model.trainable_variables)
    with pytest.raises(RuntimeError, match="is not new: iterations 1"):
        prove_new(optimizer, *how_to_build, None)


@pytest.mark.parametrize("name, touched", [("Adam", "velocity"), ("Adagrad", "accumulator")])
def test_a_single_touched_slot_is_found(name, touched):
    optimizer, *how_to_build = build_twins(getattr(keras.optimizers, name), small_model())
    optimizer.variables[-1].assign(np.ones(optimizer.variables[-1].shape))
    with pytest.raises(RuntimeError, match=touched):
        prove_new(optimizer, *how_to_build, None)


@pytest.mark.parametrize("name, touched", [("Adagrad", "accumulator"), ("ScheduleFreeAdamW", "momentum")])
def test_slots_that_are_zero_where_a_new_one_has_others_are_found(name, touched):
    if not hasattr(keras.optimizers, name):
        pytest.skip(f"this Keras has no {name}")
    optimizer, *how_to_build = build_twins(getattr(keras.optimizers, name), small_model())
    for slot in optimizer.variables[2:]:
        slot.assign(np.zeros(slot.shape))
    with pytest.raises(RuntimeError, match=touched):
        prove_new(optimizer, *how_to_build, None)


def test_another_rate_than_that_of_the_config_is_found():
    optimizer, *how_to_build = build_twins(lambda: keras.optimizers.Adam(0.1), small_model())
    optimizer.learning_rate = 0.2
    with pytest.raises(RuntimeError, match="learning_rate"):
        prove_new(optimizer, *how_to_build, None)


def test_slots_that_begin_at_zero_are_proved_new_without_a_second_set_of_them():
    optimizer, build, variables = build_twins(keras.optimizers.Adam, small_model())
    asked = []

    def build_and_note(some):
        asked.append([tuple(variable.shape) for variable in some])
        return build(some)

    prove_new(optimizer, build_and_note, variables, None)
    assert asked == [[(2,)]]


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="this Keras has none")
def test_an_optimizer_whose_members_are_made_one_for_each_variable_is_proved_new():
    multi = lambda: keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD(0.1))  # noqa: E731
    assert prove_new(*build_twins(multi, small_model()), None).iterations == 0


def test_an_optimizer_object_is_a_description_of_a_new_one():
    model = small_model()
    used = keras.optimizers.SGD(0.25, momentum=0.5)
    used.build(model.trainable_variables)
    used.apply([tf.ones(variable.shape) for variable in model.trainable_variables])
    for description in (used, lambda: used):
        twins = build_twins(description, model)
        assert twins[0] is not used and twins[0].momentum == 0.5
        assert prove_new(*twins, None).learning_rate == 0.25


class StaircaseOfTheUsers(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return tf.where(step < 2, 0.5, 0.25)

    def get_config(self):
        return {}


@pytest.mark.parametrize("rate", [StaircaseOfTheUsers(), lambda: 0.5], ids=["schedule", "function"])
def test_a_rate_of_the_users_own_needs_no_registration_to_be_proved_new(rate):
    twins = build_twins(lambda: keras.optimizers.SGD(rate, momentum=0.9), small_model())
    assert prove_new(*twins, None).learning_rate == 0.5


def test_what_is_no_optimizer_is_refused():
    for wrong in (None, "adam", lambda: keras.losses.MeanSquaredError()):
        with pytest.raises(UserError, match="must be a Keras optimizer"):
            build_optimizer(wrong, small_model().trainable_variables)
    with pytest.raises(UserError, match="Step.accumulation_steps"):
        build_optimizer(lambda: keras.optimizers.SGD(gradient_accumulation_steps=2), small_model().trainable_variables)


def test_frozen_variables_are_left_out_by_regex():
    model = small_model()
    assert trained_variables(model, ["^hidden/"]) == model.layers[1].trainable_variables
    with pytest.raises(UserError, match="matches no trainable variable"):
        trained_variables(model, ["^hiden/"])
    with pytest.raises(UserError, match="is a list of patterns"):
        trained_variables(model, "^hidden/")
    with pytest.raises(UserError, match="is not a regular expression"):
        trained_variables(model, ["("])
    with pytest.raises(UserError, match="No variable is left"):
        trained_variables(model, ["."])


def test_the_learning_rate_is_read_at_any_step_without_stepping():
    schedule = keras.optimizers.schedules.CosineDecay(0.4, 100)
    optimizer = keras.optimizers.SGD(schedule)
    for step in (0, 37, 100):
        assert learning_rate_at(optimizer, step) == pytest.approx(0.2 * (1 + np.cos(np.pi * step / 100)), abs=1e-6)
    assert learning_rate_at(keras.optimizers.Adam(0.125), 5) == 0.125
    assert learning_rate_at(keras.optimizers.SGD(lambda: 0.5), 5) == 0.5
    assert learning_rate_at(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)), 5) == 0.5


def test_the_dry_runs_five_points_are_first_quarters_and_last_update():
    points = sample_learning_rate(keras.optimizers.SGD(0.1), 101)
    assert [step for step, _ in points] == [0, 25, 50, 75, 100]
