"""What is wrong with a schedule by itself, and where it disagrees with the length of a run."""

import keras

from trainer.errors import UserError

_schedules = keras.optimizers.schedules

# A schedule that ends within so much of the run's last step is meant to end there.
_TOLERANCE = 0.05


def check_steps(name: str, steps, least: int = 1) -> None:
    """Raises `UserError` for what is no number of steps.  name: of the gin binding."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < least:
        raise UserError(f"{name} = {steps!r} must be a whole number of steps, {least} or more.")


def check_positive(name: str, value) -> None:
    """Raises `UserError` for what is no number above 0.  name: of the gin binding."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise UserError(f"{name} = {value!r} must be a number above 0.")


def check_not_longer(name: str, warmup_steps: int, schedule: str, decay_steps: int | None) -> None:
    """Raises `UserError` for a schedule shorter than its warmup.  name: of the gin binding."""
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
    told = f"the schedule ends at step {end:,}{counted}, the run at step {num_steps:,}"
    if end < num_steps:
        final = float(rate(num_steps))
        told += f": its last {num_steps - end:,} steps have the rate {final:g}"
    else:
        told += f": it stops at the rate {float(rate(num_steps - 1)):.3g}, before the schedule is done"
    return f"{told}. decay_steps = {num_steps - warmup_steps} would end both together"
