"""Reads the rate that an optimizer will use at a step, without stepping it."""

import keras
import numpy as np
import tensorflow as tf

from trainer.cluster.replicas import first_value
from trainer.errors import UserError


def learning_rate_at(optimizer: keras.optimizers.Optimizer, step: int) -> float:
    """The rate that the update after `step` finished updates uses, as a Python float.

    A constant rate, a schedule of Keras or of the user's, and an optimizer that wraps another
    (`LossScaleOptimizer`) all answer; of several that take turns the one whose turn it is.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(inner, "in_turn"):
        inner, steps_before = inner.in_turn(step)
        step -= steps_before
    return rate_at(rate_of(inner), step)


def rate_of(optimizer: keras.optimizers.Optimizer):
    """The schedule, or the variable or function that stands for a rate."""
    return getattr(optimizer, "inner_optimizer", optimizer)._learning_rate


def rate_at(rate, step: int) -> float:
    """The same for what an optimizer was given as its rate, a number too.

    Raises `UserError` for a schedule that cannot be computed of an integer step, as Keras calls it.
    """
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        schedule = type(rate).__name__
        try:
            # As in a step: TensorFlow computes no root of an integer, where Python's own would pass.
            rate = rate(tf.constant(step, tf.int64))
        except (TypeError, ValueError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
            said = str(getattr(error, "message", error)).splitlines()[0].rstrip(".")
            raise UserError(
                f"The schedule {schedule} cannot be computed at step {step}, an integer: {said}. Begin its __call__ "
                "with step = tf.cast(step, tf.float32)."
            ) from error
    elif callable(rate) and not isinstance(rate, keras.Variable):
        rate = rate()  # as Keras calls it: a function of nothing
    return float(first_value(rate) if isinstance(rate, keras.Variable) else np.asarray(rate))


def sample_learning_rate(
    optimizer: keras.optimizers.Optimizer, num_steps: int, points: int = 5, before: int = 0
) -> list[tuple[int, float]]:
    """(step, rate) at evenly spaced points of a run of `num_steps`: by default first, quarters, last update.

    before: the step count that the optimizer had when the run began.
    """
    return sample_rate(rate_of(optimizer), num_steps, points, before)


def sample_rate(rate, num_steps: int, points: int = 5, before: int = 0) -> list[tuple[int, float]]:
    """The same for what an optimizer was given as its rate."""
    last = max(num_steps - 1, 0)
    steps = sorted({last * point // (points - 1) for point in range(points)})
    return [(step, rate_at(rate, before + step)) for step in steps]
