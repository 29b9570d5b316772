"""Name, schedule and trained variables -> a new Keras optimizer, and the proof that it is new."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np

from trainer.errors import UserError
from trainer.replicas import first_value
from trainer.restore import RestoreReport, weights_of
from trainer.schedules import learning_rate_at


@dataclasses.dataclass(frozen=True)
class OptimizerProof:
    """What was seen of an optimizer before its first step.

    iterations: its step counter.  num_slots: variables beside counter and rate.
    slots: `all zero`, or `at their initial values`.  learning_rate: the rate of the first update.
    """

    name: str
    iterations: int
    num_slots: int
    slots: str
    learning_rate: float
    checkpoint_keys_read: int

    def __str__(self) -> str:
        return (
            f"optimizer        {self.name} is new: iterations {self.iterations}, {self.num_slots} slots {self.slots}, "
            f"learning rate {self.learning_rate:g} as configured, {self.checkpoint_keys_read} optimizer entries read"
        )


def build_optimizer(optimizer: Callable, variables: Sequence[keras.Variable]) -> keras.optimizers.Optimizer:
    """Creates the optimizer and all its variables; call in the strategy's scope, before any tracing.

    optimizer: a function without required arguments that returns a Keras optimizer. A Keras
      optimizer itself, or one that has state already, is taken as a description: a new one is made
      from its config.
    """
    built = optimizer
    if callable(optimizer) and not isinstance(optimizer, keras.optimizers.Optimizer):
        built = optimizer()
    if isinstance(built, keras.optimizers.Optimizer) and (built is optimizer or built.built):
        built = type(built).from_config(built.get_config())
    if not isinstance(built, keras.optimizers.Optimizer):
        raise UserError(f"The optimizer must be a Keras optimizer, e.g. OPTIMIZER = @SGD; it is {built!r}.")
    if any(
        getattr(each, "gradient_accumulation_steps", None) for each in (built, getattr(built, "inner_optimizer", None))
    ):
        raise UserError(
            f"{built.name}.gradient_accumulation_steps counts micro-batches as steps; "
            "use train.accumulation_steps instead."
        )
    built.build(list(variables))
    return built


@contextlib.contextmanager
def configured_learning_rate(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Afterwards a constant rate is what it was before: a checkpoint that is loaded inside has one of its own."""
    rates = [(variable, first_value(variable)) for variable in optimizer.variables if variable.name == "learning_rate"]
    yield
    for variable, value in rates:
        variable.assign(value)


def trained_variables(model: keras.Model, frozen: Sequence[str] = ()) -> list[keras.Variable]:
    """The model's trainable variables without those whose normalised name matches a regex of `frozen`.

    Raises `UserError` for a pattern that matches no trainable variable, and if nothing is left to train.
    """
    trainable = {id(variable) for variable in model.trainable_variables}
    named = [weight for weight in weights_of(model) if id(weight.variable) in trainable]
    if isinstance(frozen, str):
        raise UserError(f"frozen is a list of patterns; write frozen = [{frozen!r}].")
    for pattern in frozen:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"frozen: {pattern!r} is not a regular expression: {error}.") from error
        if not any(re.search(pattern, weight.name) for weight in named):
            raise UserError(
                f"frozen: {pattern!r} matches no trainable variable; there are {', '.join(w.name for w in named[:8])}."
            )
    kept = [weight.variable for weight in named if not any(re.search(pattern, weight.name) for pattern in frozen)]
    if not kept:
        raise UserError("No variable is left to train: every one is frozen.")
    return kept


def prove_new(
    optimizer: keras.optimizers.Optimizer, twin: keras.optimizers.Optimizer, report: RestoreReport | None
) -> OptimizerProof:
    """Looks at a built optimizer's every variable and raises `RuntimeError` if any of it is not new.

    twin: a second optimizer, built from the same config on the same variables for this comparison.

    A new optimizer has made no step, has each slot at the value that its twin has, the configured
    rate, and no entry of a checkpoint's optimizer was read on the way (counted by the reader).
    """
    assert twin is not optimizer
    values = [first_value(variable) for variable in optimizer.variables]
    differing = [
        variable.path
        for variable, value, other in zip(optimizer.variables, values, twin.variables, strict=True)
        if not np.array_equal(value, first_value(other))
    ]
    iterations = int(first_value(optimizer.iterations))
    keys_read = report.optimizer_keys_read if report else 0
    if iterations or differing or keys_read:
        raise RuntimeError(
            f"The optimizer {optimizer.name} is not new: iterations {iterations}, variables that differ from a "
            f"new one's: {differing or 'none'}, optimizer entries read from the checkpoint: {keys_read}."
        )
    slots = [
        (variable, value)
        for variable, value in zip(optimizer.variables, values, strict=True)
        if variable is not optimizer.iterations and variable.name not in ("learning_rate", "iteration")
    ]
    return OptimizerProof(
        name=type(optimizer).__name__,
        iterations=iterations,
        num_slots=len(slots),
        slots="all zero" if all(not value.any() for _, value in slots) else "at their initial values",
        learning_rate=learning_rate_at(optimizer, 0),
        checkpoint_keys_read=keys_read,
    )
