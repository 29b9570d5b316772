"""Schedules beside Keras' own: warmup, one cycle, the inverse square root, and a rate times a number."""

import math

import gin
import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from trainer.errors import UserError


@keras.saving.register_keras_serializable(package="trainer")
class InverseSquareRoot(LearningRateSchedule):
    """Made by `inverse_square_root`."""

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
    """Made by `one_cycle`."""

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
def inverse_square_root(initial_learning_rate: float, decay_steps: int) -> LearningRateSchedule:
    """initial_learning_rate / sqrt(1 + step / decay_steps): half of it after three times `decay_steps`; no end.

    After a warmup of as many steps as `decay_steps` it is the schedule of Vaswani et al. 2017.
    """
    check_positive("inverse_square_root.initial_learning_rate", initial_learning_rate)
    check_steps("inverse_square_root.decay_steps", decay_steps)
    return InverseSquareRoot(initial_learning_rate, decay_steps)


@gin.register(module="schedules")
def one_cycle(
    peak_learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
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


@keras.saving.register_keras_serializable(package="trainer")
class Warmup(LearningRateSchedule):
    """Made by `warmup`."""

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
    schedule: float | LearningRateSchedule,
    warmup_steps: int,
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


_schedules = keras.optimizers.schedules

# A schedule that ends within so much of the run's last step is meant to end there.
_TOLERANCE = 0.05


def check_steps(name: str, steps, least: int = 1) -> None:
    """Raises `UserError` for what is no number of steps.
    name: of the gin binding."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < least:
        raise UserError(f"{name} = {steps!r} must be a whole number of steps, {least} or more.")


def check_positive(name: str, value) -> None:
    """Raises `UserError` for what is no number above 0.
    name: of the gin binding."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise UserError(f"{name} = {value!r} must be a number above 0.")


def check_not_longer(name: str, warmup_steps: int, schedule: str, decay_steps: int | None) -> None:
    """Raises `UserError` for a schedule shorter than its warmup.
    name: of the gin binding."""
    if decay_steps is not None and warmup_steps > decay_steps:
        raise UserError(
            f"{name} = {warmup_steps} is longer than the schedule that it leads to: {schedule} takes {decay_steps} "
            "steps, the warmup not counted. Shorten the warmup, or make the schedule longer."
        )


def check_rate(rate) -> None:
    """Raises `UserError` for a schedule of Keras that Keras takes and then leaves out, or computes nonsense of."""
    if isinstance(rate, _schedules.CosineDecay):
        check_steps("CosineDecay.warmup_steps", rate.warmup_steps, least=0)
        if rate.warmup_steps and rate.warmup_target is None:
            raise UserError(
                f"CosineDecay.warmup_steps = {rate.warmup_steps} does nothing without CosineDecay.warmup_target, the "
                "rate that it leads to. CosineDecay.initial_learning_rate is then the one that it begins with."
            )
        check_not_longer("CosineDecay.warmup_steps", rate.warmup_steps, "CosineDecay", rate.decay_steps)
    elif isinstance(rate, _schedules.CosineDecayRestarts):
        if rate._t_mul < 1:
            raise UserError(f"CosineDecayRestarts.t_mul = {rate._t_mul!r} must be 1 or more; Keras then finds no rate.")
    elif isinstance(rate, _schedules.PiecewiseConstantDecay):
        steps = list(rate.boundaries)
        if not steps or steps[0] < 0 or any(after <= before for before, after in zip(steps, steps[1:], strict=False)):
            raise UserError(
                f"PiecewiseConstantDecay.boundaries = {steps} must be one step or more, each after the one before."
            )


def own_warmup(rate) -> int:
    """Steps in which the schedule itself warms up."""
    if isinstance(rate, _schedules.CosineDecay) and rate.warmup_target is None:
        return 0
    return getattr(rate, "warmup_steps", 0)


def decay_steps_of(rate) -> int | None:
    """Steps after its warmup until the schedule stays as it is; None if it never does, or a rate has no steps."""
    if isinstance(rate, _schedules.CosineDecay) or (isinstance(rate, _schedules.PolynomialDecay) and not rate.cycle):
        return rate.decay_steps
    return getattr(rate, "ends_after", None)


def disagreement(rate, num_steps: int) -> str:
    """A sentence where a run of `num_steps` is much longer or shorter than the schedule, else nothing."""
    warmup_steps, decay_steps = own_warmup(rate), decay_steps_of(rate)
    name = type(rate).__name__
    if warmup_steps >= num_steps:
        return f"the warmup of {name} takes {warmup_steps:,} steps and the run {num_steps:,}: its rate is never reached"
    last = getattr(rate, "schedule", rate)
    if isinstance(last, _schedules.PiecewiseConstantDecay) and warmup_steps + last.boundaries[-1] >= num_steps - 1:
        unused = [step for step in last.boundaries if warmup_steps + step >= num_steps - 1]
        return f"the run ends at step {num_steps:,}, before the boundaries {', '.join(map(str, unused))} are passed"
    if decay_steps is None or abs(warmup_steps + decay_steps - num_steps) <= _TOLERANCE * num_steps:
        return ""
    end = warmup_steps + decay_steps
    counted = f" = {warmup_steps:,} of warmup + {decay_steps:,}" if warmup_steps else ""
    text = f"the schedule ends at step {end:,}{counted}, the run at step {num_steps:,}"
    if end < num_steps:
        final = float(rate(num_steps))
        text += f": its last {num_steps - end:,} steps have the rate {final:g}"
    else:
        text += f": it stops at the rate {float(rate(num_steps - 1)):.3g}, before the schedule is done"
    return f"{text}. decay_steps = {num_steps - warmup_steps} would end both together"
