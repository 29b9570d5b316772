"""Phases of a run: which optimizer comes next, and what makes its turn come."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import gin
import keras

from trainer.errors import UserError
from trainer.suggest import nearest


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Made by `plateau`."""

    metric: str = "loss"
    mode: str = "min"
    patience: int = 3
    min_delta: float = 0.0


@dataclasses.dataclass(frozen=True)
class Swats:
    """Made by `swats`."""

    decay: float = 0.999
    tolerance: float = 1e-9


@dataclasses.dataclass(frozen=True)
class Phase:
    """Made by `phase`."""

    made_by: ClassVar = "phase"  # for messages

    optimizer: Callable
    start: int | Plateau | Swats


@gin.register(module="phases")
def phase(optimizer: Callable, start: int | Plateau | Swats) -> Phase:
    """A further phase of the run: from `start` on another optimizer makes the updates; it is new when it begins.

    optimizer: a function that returns a Keras optimizer; its steps, and its schedule's, begin at 0 with the phase.
    start: the number of steps before it, or `plateau(...)`, or `swats(...)`.
    """
    if isinstance(start, bool) or not isinstance(start, int | Plateau | Swats):
        raise UserError(f"phase.start = {start!r} must be a number of steps, @plateau() or @swats().")
    if isinstance(start, int) and start < 1:
        raise UserError(f"phase.start = {start} must be 1 or more; the first phase is train.optimizer's.")
    return Phase(optimizer, start)


@gin.register(module="phases")
def plateau(metric: str = "loss", mode: str = "min", patience: int = 3, min_delta: float = 0.0) -> Plateau:
    """The phase begins after `patience` evaluations in a row that were no better than the best before them.

    metric: of the evaluation.
    mode: "min" or "max", what is better.
    min_delta: by how much at least, in its unit.
    """
    if mode not in ("min", "max"):
        raise UserError(f"plateau.mode = {mode!r} must be 'min' or 'max'.")
    if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
        raise UserError(f"plateau.patience = {patience!r} must be a whole number of evaluations, 1 or more.")
    if not isinstance(min_delta, int | float) or not min_delta >= 0:
        raise UserError(f"plateau.min_delta = {min_delta!r} must be 0 or more.")
    return Plateau(metric, mode, patience, float(min_delta))


@gin.register(module="phases")
def swats(decay: float = 0.999, tolerance: float = 1e-9) -> Swats:
    """The phase, of SGD, begins when its rate has settled, and has that rate instead of the configured one.

    At each step the rate is computed with which SGD, projected on the step of the optimizer before it, would have
    made it; the phase begins when this rate differs from its exponential average by less than `tolerance`. The
    average is SGD's rate, times 1 - momentum, since Keras' momentum adds up gradients where the paper averages them.

    decay: of the average.
    tolerance: absolute, as in the paper; noisy gradients may need 1e-5.
    Source: Keskar and Socher, 2017, "Improving Generalization Performance by Switching from Adam to SGD".
    """
    if not isinstance(decay, float) or not 0.0 < decay < 1.0:
        raise UserError(f"swats.decay = {decay!r} must lie between 0 and 1, e.g. 0.999.")
    if not isinstance(tolerance, int | float) or not tolerance > 0:
        raise UserError(f"swats.tolerance = {tolerance!r} must be above 0.")
    return Swats(decay, float(tolerance))


def check_phases(
    phases: Sequence[Phase],
    metrics: Sequence[str],
    evaluates: bool,
    groups: Sequence = (),
    layer_decay: float | None = None,
    optimizer_state: str = "fresh",
) -> None:
    """Raises `UserError` for phases that make no sense, or don't go with what else is asked for.

    metrics: names that an evaluation gives.
    evaluates: whether one is made before the run's end.
    groups, layer_decay: how the variables are divided in every phase.
    """
    if not phases:
        return
    if not isinstance(phases, list | tuple):
        raise UserError(f"phases is a list; write phases = [{phases!r}].")
    for each in phases:
        if not isinstance(each, Phase):
            raise UserError(f"phases = [...] holds {each!r}; each must be made by @phase() with parentheses.")
    steps = [each.start for each in phases if isinstance(each.start, int)]
    if any(after <= before for before, after in zip(steps, steps[1:], strict=False)):
        raise UserError(
            f"phases begin at the steps {', '.join(map(str, steps))}; each must begin after the one before."
        )
    for number, each in enumerate(phases):
        if isinstance(each.start, Plateau):
            if not evaluates:
                raise UserError(
                    "phase.start = @plateau() looks at evaluations, and the run makes none before its end: set "
                    "EVAL_DATA, and Intervals.eval_every above 0."
                )
            if each.start.metric not in metrics:
                raise UserError(
                    f"plateau.metric = {each.start.metric!r} is not evaluated."
                    f"{nearest(each.start.metric, metrics, 'metrics')}"
                )
        if isinstance(each.start, Swats) and any(isinstance(other.start, Swats) for other in phases[:number]):
            raise UserError(
                "Two phases have start = @swats(); the criterion leads from an adaptive optimizer to SGD once."
            )
        if isinstance(each.start, Swats) and (groups or layer_decay is not None):
            raise UserError(
                "phase.start = @swats() finds one rate for all variables; with groups or layer_decay give a step, or "
                "@plateau()."
            )
    for group in groups:
        if group.optimizer is not None or group.unfreeze_at:
            what = "optimizer" if group.optimizer is not None else "unfreeze_at"
            raise UserError(
                f"The group {group.pattern!r} has group.{what}, and the run has phases, each with an optimizer of its "
                "own: leave one of them out. Rates and weight decays of groups hold in every phase."
            )
    if optimizer_state != "fresh":
        raise UserError(
            f"Restore.optimizer_state = {optimizer_state!r} goes with one optimizer for the whole run; a run with "
            "phases begins with a new "
            "one. Set Restore.optimizer_state = 'fresh', or leave phases out."
        )


def check_follower(built: keras.optimizers.Optimizer, start) -> None:
    """Raises `UserError` for an optimizer, just made, that can't have the phase that begins at `start`."""
    name = type(built).__name__
    if isinstance(built, keras.optimizers.LossScaleOptimizer):
        raise UserError("A phase cannot scale the loss alone; wrap OPTIMIZER, and all phases are scaled.")
    if built.loss_scale_factor:
        raise UserError(f"A phase cannot scale the loss alone: set loss_scale_factor on OPTIMIZER, and not on {name}.")
    if isinstance(start, Swats):
        if not isinstance(built, keras.optimizers.SGD):
            raise UserError(f"phase.start = @swats() leads to SGD, whose rate it finds; phase.optimizer is {name}.")
        if not isinstance(built._learning_rate, keras.Variable):
            raise UserError(
                "phase.start = @swats() finds the rate of SGD, and SGD.learning_rate is a schedule: give a number, "
                "which stands for it until then, or let the phase begin at a step."
            )


def waits_for_plateau(phases: Sequence[Phase]) -> bool:
    """Whether evaluations decide when a phase begins, and so the weights."""
    return any(isinstance(each.start, Plateau) for each in phases)


def as_start(start: int | Plateau | Swats):
    """The beginning in the way that `PhasedOptimizer` takes it."""
    if isinstance(start, Swats):
        return {"decay": start.decay, "tolerance": start.tolerance}
    return start if isinstance(start, int) else None


def describe_starts(phases: Sequence[Phase], eval_every: int) -> list[str]:
    """Describes when each phase begins, with every number that decides it."""
    return [
        repr(each.start) + (f", evaluated every {eval_every} steps" if isinstance(each.start, Plateau) else "")
        for each in phases
    ]


def in_words(start: int | Plateau | Swats) -> str:
    """When the phase begins, for a person."""
    if isinstance(start, Plateau):
        than = f" by {start.min_delta:g}" if start.min_delta else ""
        return f"when {start.metric} was no better{than} in {start.patience} evaluations"
    if isinstance(start, Swats):
        return f"when SGD's rate has settled to {start.tolerance:g} (SWATS)"
    return f"from step {start:,} on"
