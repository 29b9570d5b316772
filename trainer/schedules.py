"""Learning rate as a function of step: what an optimizer will use, read without stepping it."""

import keras
import numpy as np

from trainer.replicas import first_value


def learning_rate_at(optimizer: keras.optimizers.Optimizer, step: int) -> float:
    """The rate that the update after `step` finished updates uses, as a Python float.

    A constant rate, a schedule of Keras or of the user's, and an optimizer that wraps another
    (`LossScaleOptimizer`) all answer.
    """
    rate = getattr(optimizer, "inner_optimizer", optimizer)._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = rate(step)
    elif callable(rate) and not isinstance(rate, keras.Variable):
        rate = rate()  # as Keras calls it: a function of nothing
    return float(first_value(rate) if isinstance(rate, keras.Variable) else np.asarray(rate))


def sample_learning_rate(
    optimizer: keras.optimizers.Optimizer, num_steps: int, before: int = 0
) -> list[tuple[int, float]]:
    """(step, rate) at five points of a run of `num_steps`: first, quarters, last update.

    before: the step count that the optimizer had when the run began.
    """
    last = max(num_steps - 1, 0)
    steps = sorted({0, last // 4, last // 2, (3 * last) // 4, last})
    return [(step, learning_rate_at(optimizer, before + step)) for step in steps]
