"""A warmup before any schedule: the rate rises along a line to the schedule's first, and its steps begin there."""

import gin
import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from trainer.errors import UserError
from trainer.optimizers.schedules.checks import (
    check_not_longer,
    check_positive,
    check_rate,
    check_steps,
    decay_steps_of,
    own_warmup,
)


@keras.saving.register_keras_serializable(package="trainer")
class Warmup(LearningRateSchedule):
    """What `warmup` makes."""

    def __init__(self, schedule: float | LearningRateSchedule, warmup_steps: int, start_learning_rate: float = 0.0):
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.start_learning_rate = start_learning_rate
        self.ends_after = decay_steps_of(schedule)

    def __call__(self, step):
        step = ops.convert_to_tensor(step)
        # While it warms up this is the schedule's first rate, which is where the line leads to.
        after = ops.maximum(step - self.warmup_steps, 0)
        rate = ops.convert_to_tensor(
            self.schedule(after) if isinstance(self.schedule, LearningRateSchedule) else self.schedule
        )
        start = ops.cast(self.start_learning_rate, rate.dtype)
        rising = start + (rate - start) * (ops.cast(step, rate.dtype) / max(self.warmup_steps, 1))
        return ops.where(step < self.warmup_steps, rising, rate)

    def get_config(self):
        is_schedule = isinstance(self.schedule, LearningRateSchedule)
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule) if is_schedule else self.schedule,
            "warmup_steps": self.warmup_steps,
            "start_learning_rate": self.start_learning_rate,
        }

    @classmethod
    def from_config(cls, config):
        schedule = config["schedule"]
        if isinstance(schedule, dict):
            schedule = keras.optimizers.schedules.deserialize(schedule)
        return cls(**{**config, "schedule": schedule})


@gin.register(module="schedules")
def warmup(
    schedule: float | LearningRateSchedule = gin.REQUIRED,
    warmup_steps: int = gin.REQUIRED,
    start_learning_rate: float = 0.0,
) -> LearningRateSchedule:
    """`warmup_steps` updates along a line from the start rate to the first of `schedule`, which begins after them.

    schedule: what follows, whose own steps do not count the warmup; a number is a rate that stays.
    start_learning_rate: of the first update.

    Raises `UserError` for a schedule that warms up by itself, or is shorter than its warmup.
    """
    check_steps("warmup.warmup_steps", warmup_steps, least=0)
    if start_learning_rate < 0:
        raise UserError(f"warmup.start_learning_rate = {start_learning_rate!r} must be 0 or more.")
    if isinstance(schedule, LearningRateSchedule):
        check_rate(schedule)
    else:
        check_positive("warmup.schedule", schedule)
    if own_warmup(schedule):
        raise UserError(
            f"warmup.schedule = {type(schedule).__name__} has a warmup of its own of {own_warmup(schedule)} steps; "
            "leave out one of the two."
        )
    check_not_longer("warmup.warmup_steps", warmup_steps, type(schedule).__name__, decay_steps_of(schedule))
    return Warmup(schedule, warmup_steps, start_learning_rate)
