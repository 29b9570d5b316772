"""The schedules that Keras lacks: one cycle, and the inverse square root."""

import math

import gin
import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from trainer.optimizers.schedules.checks import check_not_longer, check_positive, check_steps


@keras.saving.register_keras_serializable(package="trainer")
class InverseSquareRoot(LearningRateSchedule):
    """What `inverse_square_root` makes."""

    def __init__(self, initial_learning_rate: float, decay_steps: int):
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps

    def __call__(self, step):
        initial = ops.convert_to_tensor(self.initial_learning_rate)
        return initial * ops.rsqrt(1.0 + ops.cast(step, initial.dtype) / self.decay_steps)

    def get_config(self):
        return {"initial_learning_rate": self.initial_learning_rate, "decay_steps": self.decay_steps}


@keras.saving.register_keras_serializable(package="trainer")
class OneCycle(LearningRateSchedule):
    """What `one_cycle` makes."""

    def __init__(
        self,
        peak_learning_rate: float,
        warmup_steps: int,
        decay_steps: int,
        start_division: float = 25.0,
        end_division: float = 250_000.0,
    ):
        self.peak_learning_rate = peak_learning_rate
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.start_division = start_division
        self.end_division = end_division
        self.ends_after = decay_steps

    def __call__(self, step):
        peak = ops.convert_to_tensor(self.peak_learning_rate)
        step = ops.cast(step, peak.dtype)
        rising = _half_cosine(peak / self.start_division, peak, step / self.warmup_steps)
        done = ops.minimum((step - self.warmup_steps) / self.decay_steps, 1.0)
        falling = _half_cosine(peak, peak / self.end_division, done)
        return ops.where(step < self.warmup_steps, rising, falling)

    def get_config(self):
        names = ("peak_learning_rate", "warmup_steps", "decay_steps", "start_division", "end_division")
        return {name: getattr(self, name) for name in names}


@gin.register(module="schedules")
def inverse_square_root(
    initial_learning_rate: float = gin.REQUIRED, decay_steps: int = gin.REQUIRED
) -> LearningRateSchedule:
    """initial_learning_rate / sqrt(1 + step / decay_steps): half of it after three times `decay_steps`; no end.

    After a warmup of as many steps as `decay_steps` it is the schedule of Vaswani et al. 2017.
    """
    check_positive("inverse_square_root.initial_learning_rate", initial_learning_rate)
    check_steps("inverse_square_root.decay_steps", decay_steps)
    return InverseSquareRoot(initial_learning_rate, decay_steps)


@gin.register(module="schedules")
def one_cycle(
    peak_learning_rate: float = gin.REQUIRED,
    warmup_steps: int = gin.REQUIRED,
    decay_steps: int = gin.REQUIRED,
    start_division: float = 25.0,
    end_division: float = 250_000.0,
) -> LearningRateSchedule:
    """Along half a cosine up to the peak, and along another down to next to nothing, where it stays.

    warmup_steps, decay_steps: up and down, so that the cycle has as many as both together.
    start_division, end_division: what the peak is divided by at the first step and at the end; as PyTorch has them.
    Source: Smith and Topin, 2018.
    """
    check_positive("one_cycle.peak_learning_rate", peak_learning_rate)
    check_positive("one_cycle.start_division", start_division)
    check_positive("one_cycle.end_division", end_division)
    check_steps("one_cycle.warmup_steps", warmup_steps)
    check_steps("one_cycle.decay_steps", decay_steps)
    check_not_longer("one_cycle.warmup_steps", warmup_steps, "one_cycle", decay_steps)
    return OneCycle(peak_learning_rate, warmup_steps, decay_steps, start_division, end_division)


def _half_cosine(first, last, done):
    return last + (first - last) * 0.5 * (1.0 + ops.cos(math.pi * done))
