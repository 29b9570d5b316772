"""The rate of a part of the model: another one times a number, from a later step on."""

import keras
from keras.optimizers.schedules import LearningRateSchedule

from trainer.errors import UserError


@keras.saving.register_keras_serializable(package="trainer")
class ScaledRate(LearningRateSchedule):
    """multiplier * schedule(step + first_step), for an optimizer that begins to count at `first_step`."""

    def __init__(self, schedule: LearningRateSchedule, multiplier: float, first_step: int = 0):
        self.schedule = schedule
        self.multiplier = multiplier
        self.first_step = first_step

    def __call__(self, step):
        rate = self.schedule(step + self.first_step if self.first_step else step)
        return rate * self.multiplier if self.multiplier != 1.0 else rate

    def get_config(self):
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "multiplier": self.multiplier,
            "first_step": self.first_step,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "schedule": keras.optimizers.schedules.deserialize(config["schedule"])})


def scaled(rate: float | LearningRateSchedule, multiplier: float, first_step: int = 0) -> float | LearningRateSchedule:
    """The same kind of rate, times `multiplier`, as an optimizer needs it whose step 0 is the run's `first_step`."""
    if isinstance(rate, LearningRateSchedule):
        return rate if (multiplier, first_step) == (1.0, 0) else ScaledRate(rate, multiplier, first_step)
    if callable(rate):
        raise UserError("A learning rate that is a function cannot be split over groups; give a number or a schedule.")
    return rate * multiplier
