"""Every schedule has the rate that hand arithmetic gives at its edges, and survives a save and a resume."""

import math
import re

import gin
import keras
import pytest
import tensorflow as tf
from conftest import make_strategy
from grouped import train_with

import trainer
from trainer import UserError
from trainer.config import parse_config, register_keras
from trainer.optimizers.build import build_optimizer
from trainer.optimizers.learning_rate import learning_rate_at
from trainer.optimizers.schedules import check_rate, disagreement, scaled
from trainer.output.block_plot import block_plot

keras_schedules = keras.optimizers.schedules

HALF = 0.5 * (1 + math.cos(math.pi / 4))  # a quarter of the way down half a cosine

# schedule -> {step: rate}, the warmup of 20 steps to a rate of 0.4 in each.
WARMED = {
    "constant": (0.4, {20: 0.4, 1000: 0.4}),
    "linear": (
        keras_schedules.PolynomialDecay(0.4, 100, 0.0),
        {20: 0.4, 21: 0.396, 70: 0.2, 119: 0.004, 120: 0.0, 500: 0.0},
    ),
    "cosine": (keras_schedules.CosineDecay(0.4, 100), {20: 0.4, 45: 0.4 * HALF, 70: 0.2, 120: 0.0, 500: 0.0}),
    "inverse square root": (trainer.inverse_square_root(0.4, 20), {20: 0.4, 80: 0.2, 320: 0.1}),
    "exponential": (keras_schedules.ExponentialDecay(0.4, 10, 0.5), {20: 0.4, 30: 0.2, 50: 0.05}),
    "piecewise": (
        keras_schedules.PiecewiseConstantDecay([10, 30], [0.4, 0.2, 0.1]),
        # Keras changes after the boundary, not at it.
        {20: 0.4, 30: 0.4, 31: 0.2, 50: 0.2, 51: 0.1, 500: 0.1},
    ),
    "cosine with restarts": (
        keras_schedules.CosineDecayRestarts(0.4, 20, t_mul=2.0, m_mul=0.5),
        {20: 0.4, 30: 0.2, 40: 0.2, 60: 0.1, 80: 0.1, 120: 0.05, 160: 0.05},
    ),
}


@pytest.mark.parametrize("name", WARMED)
def test_a_warmup_rises_along_a_line_and_leads_into_the_schedules_own_step_0(name):
    schedule, expected = WARMED[name]
    rate = trainer.warmup(schedule, warmup_steps=20)
    rising = {0: 0.0, 1: 0.02, 10: 0.2, 19: 0.38}
    for step, value in {**rising, **expected}.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-6), step


def test_a_warmup_may_begin_above_zero_and_may_have_no_steps():
    rate = trainer.warmup(0.4, warmup_steps=4, start_learning_rate=0.2)
    assert [float(rate(step)) for step in range(6)] == pytest.approx([0.2, 0.25, 0.3, 0.35, 0.4, 0.4])
    assert float(trainer.warmup(0.4, warmup_steps=0)(0)) == pytest.approx(0.4)


def test_one_cycle_goes_up_and_down_and_stays():
    rate = trainer.one_cycle(1.0, warmup_steps=30, decay_steps=70)
    for step, value in {0: 0.04, 15: 0.52, 30: 1.0, 65: 0.500002, 100: 4e-6, 999: 4e-6}.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-6)


def test_the_inverse_square_root_after_a_warmup_of_as_many_steps_is_that_of_the_transformer():
    rate = trainer.warmup(trainer.inverse_square_root(0.4, 100), warmup_steps=100)
    for step in (100, 101, 400, 90_000):
        assert float(rate(step)) == pytest.approx(0.4 * math.sqrt(100 / step), rel=1e-5)


RATES = {
    **{f"warmup, {name}": trainer.warmup(schedule, 20) for name, (schedule, _) in WARMED.items()},
    "one cycle": trainer.one_cycle(0.4, 10, 20),
    "inverse square root": trainer.inverse_square_root(0.4, 20),
    "a part of a cosine": scaled(keras_schedules.CosineDecay(0.4, 100), 0.1, 5),
}


@pytest.mark.parametrize("name", RATES)
def test_a_schedule_is_keras_own_kind_and_comes_back_from_its_config(name):
    rate = RATES[name]
    assert isinstance(rate, keras_schedules.LearningRateSchedule)
    optimizer = keras.optimizers.SGD(rate)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    for step in (0, 7, 20, 33, 200):
        assert float(rate(step)) == learning_rate_at(optimizer, step) == learning_rate_at(again, step)


def test_an_optimizer_uses_in_the_update_what_learning_rate_at_says(strategy):
    rate = trainer.warmup(keras_schedules.CosineDecay(0.4, 10), warmup_steps=3)
    with strategy.scope():
        weight = keras.Variable([0.0])
        optimizer = build_optimizer(lambda: keras.optimizers.SGD(rate), [weight])
    before = 0.0
    for step in range(6):
        optimizer.apply([tf.constant([1.0])], [weight])
        assert before - float(weight.numpy()[0]) == pytest.approx(learning_rate_at(optimizer, step), abs=1e-6)
        before = float(weight.numpy()[0])


@pytest.mark.full
def test_the_steps_of_a_run_have_the_scheduled_rates_before_and_after_a_resume(tmp_path):
    """The gradient of the sum is 1: the weight itself says what the rates of all steps add up to."""
    rate = trainer.warmup(keras_schedules.PolynomialDecay(0.4, 6, 0.0), warmup_steps=4)
    rates = [0.0, 0.1, 0.2, 0.3, 0.4, *(0.4 * (1 - step / 6) for step in range(1, 6))]

    def run(num_steps):
        return train_with(
            model=lambda: keras.Sequential([keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]),
            train_data={"x": [[1.0]] * 8},
            task=trainer.custom_loss(loss=lambda model, batch: tf.reduce_sum(model(batch["x"]), axis=-1), inputs="x"),
            optimizer=lambda: keras.optimizers.SGD(rate),
            global_batch_size=4,
            num_steps=num_steps,
            model_dir=tmp_path,
            steps_per_loop=4,
            strategy=make_strategy(2),
        )

    for steps in (7, 10):
        weight = float(run(steps).model.weights[0].numpy()[0, 0])
        assert weight == pytest.approx(-sum(rates[:steps]), abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trainer.warmup(0.1, -1), "warmup.warmup_steps = -1 must be a whole number of steps, 0 or more"),
        (lambda: trainer.warmup(0.1, 1.5), "warmup.warmup_steps = 1.5 must be a whole number"),
        (lambda: trainer.warmup(-0.1, 5), "warmup.schedule = -0.1 must be a number above 0"),
        (lambda: trainer.warmup(0.1, 5, -1.0), "warmup.start_learning_rate = -1.0 must be 0 or more"),
        (
            lambda: trainer.warmup(keras_schedules.CosineDecay(0.1, 10), 11),
            "warmup.warmup_steps = 11 is longer than the schedule that it leads to: CosineDecay takes 10 steps",
        ),
        (
            lambda: trainer.warmup(keras_schedules.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=5), 3),
            "warmup.schedule = CosineDecay has a warmup of its own of 5 steps",
        ),
        (lambda: trainer.warmup(trainer.one_cycle(0.1, 5, 9), 3), "OneCycle has a warmup of its own"),
        (lambda: trainer.one_cycle(0.1, 0, 9), "one_cycle.warmup_steps = 0 must be a whole number of steps, 1 or more"),
        (lambda: trainer.one_cycle(0.1, 9, 8), "one_cycle.warmup_steps = 9 is longer than the schedule"),
        (lambda: trainer.one_cycle(0.0, 9, 9), "one_cycle.peak_learning_rate = 0.0 must be a number above 0"),
        (lambda: trainer.inverse_square_root(0.1, 0), "inverse_square_root.decay_steps = 0 must be"),
        (
            lambda: check_rate(keras_schedules.CosineDecay(0.1, 10, warmup_steps=5)),
            "CosineDecay.warmup_steps = 5 does nothing without CosineDecay.warmup_target",
        ),
        (
            lambda: check_rate(keras_schedules.CosineDecay(0.1, 10, warmup_steps=50, warmup_target=0.2)),
            "CosineDecay.warmup_steps = 50 is longer than the schedule",
        ),
        (
            lambda: check_rate(keras_schedules.PiecewiseConstantDecay([20, 10], [1.0, 0.1, 0.01])),
            r"PiecewiseConstantDecay.boundaries = \[20, 10\] must be one step or more, each after the one before",
        ),
        (lambda: check_rate(keras_schedules.CosineDecayRestarts(0.1, 5, t_mul=0.5)), "t_mul = 0.5 must be 1 or more"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_by_its_binding(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_keras_own_schedules_are_checked_where_the_optimizer_is_built():
    schedule = keras_schedules.CosineDecay(0.1, 10, warmup_steps=5)
    with pytest.raises(UserError, match="does nothing without"):
        build_optimizer(lambda: keras.optimizers.SGD(schedule), [keras.Variable([0.0])])


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (keras_schedules.CosineDecay(0.1, 100), ""),
        (keras_schedules.CosineDecay(0.1, 96), ""),
        (
            keras_schedules.CosineDecay(0.1, 50),
            "ends at step 50, the run at step 100: its last 50 steps have the rate 0",
        ),
        (keras_schedules.CosineDecay(0.1, 200), "ends at step 200, the run at step 100: it stops at the rate 0.05"),
        (
            trainer.warmup(keras_schedules.CosineDecay(0.1, 100), 20),
            r"ends at step 120 = 20 of warmup \+ 100.* decay_steps = 80 would end both together",
        ),
        (trainer.warmup(keras_schedules.CosineDecay(0.1, 80), 20), ""),
        (trainer.one_cycle(0.1, 20, 30), "ends at step 50 = 20 of warmup"),
        (trainer.warmup(0.1, 20), ""),
        (trainer.warmup(0.1, 100), "the warmup of Warmup takes 100 steps and the run 100"),
        (keras_schedules.ExponentialDecay(0.1, 1000, 0.5), ""),
        (keras_schedules.PiecewiseConstantDecay([50, 300], [1.0, 0.1, 0.01]), "before the boundaries 300 are passed"),
        (keras_schedules.PiecewiseConstantDecay([50], [1.0, 0.1]), ""),
    ],
)
def test_a_schedule_that_disagrees_with_the_run_is_reported(rate, message):
    reported = disagreement(rate, 100)
    assert re.search(message, reported) if message else reported == ""


def test_the_plot_has_the_shape_of_the_curve():
    assert block_plot([0.0, 1.0, 2.0, 4.0], height=2) == ["   █", " ▄██"]
    assert block_plot([0.0, 0.0], height=1) == [""]
    assert block_plot([1e-9, 1.0], height=1) == ["▁█"], "a rate that is not zero is seen"


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["OPTIMIZER = @SGD", "SGD.learning_rate = @warmup"], "built already, so write @warmup\\(\\) with"),
        (
            ["SGD.learning_rate = @warmup()", "warmup.schedule = @CosineDecay"],
            "so write @.*CosineDecay",
        ),
        (["SGD.learning_rate = @warmup()", "warmup.warmup_step = 3"], "no parameter 'warmup_step'.*'warmup_steps'"),
        (["SGD.learning_rate = @warmup()", "warmup.warmup_steps = 1.5"], "warmup.warmup_steps must be a whole number"),
        (["SGD.learning_rate = @warmpu()"], "no configurable 'warmpu'.* Did you mean 'warmup'"),
    ],
)
def test_a_slip_in_a_config_is_found_when_it_is_read(bindings, message):
    register_keras()
    with pytest.raises(UserError, match=message):
        parse_config(["configs/runs/digits_adam_to_sgd.gin"], bindings)


def test_a_config_binds_a_warmup_around_a_schedule_of_keras(capsys):
    register_keras()
    parse_config(
        ["configs/runs/digits_source.gin"],
        [
            "OPTIMIZER = @SGD",
            "SGD.learning_rate = @warmup()",
            "warmup.warmup_steps = 20",
            "warmup.schedule = @CosineDecay()",
            "CosineDecay.initial_learning_rate = 0.4",
            "CosineDecay.decay_steps = %NUM_STEPS",
            "NUM_STEPS = 100",
        ],
    )
    gin.get_configurable("experiment.train")(strategy=make_strategy(1), invocation=trainer.Invocation(dry_run=True))
    page = capsys.readouterr().out
    assert "learning rate    step 0: 0, step 24: 0.398" in page
    assert "WARNING          the schedule ends at step 120 = 20 of warmup + 100, the run at step 100" in page
    (top,) = [line for line in page.splitlines() if "0.4 |" in line]
    assert "█" in top and page.index("0.4 |") < page.index("  0 |")
