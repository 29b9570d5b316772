"""Name, schedule and trained variables -> a new Keras optimizer, and the proof that it is new."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np

from trainer.cluster.replicas import first_value
from trainer.errors import UserError
from trainer.optimizers.grouped_optimizer import GroupedOptimizer
from trainer.optimizers.groups import Part, find_pattern, preset_names
from trainer.optimizers.learning_rate import learning_rate_at, rate_of
from trainer.optimizers.phased_optimizer import PhasedOptimizer
from trainer.optimizers.phases import Phase, as_start, check_follower
from trainer.optimizers.schedules import check_rate, scaled
from trainer.restore import RestoreReport, weights_of

# Keras' optimizers every slot of which begins at zero, whatever the variable. Not those that inherit from them.
BEGIN_AT_ZERO = tuple(
    getattr(keras.optimizers, name)
    for name in ("SGD", "Adam", "AdamW", "Adamax", "Adadelta", "RMSprop", "Lion", "Lamb", "Adafactor", "Muon")
)


@dataclasses.dataclass(frozen=True)
class OptimizerProof:
    """Proof of an optimizer's state before its first step.

    iterations: its step counter.
    num_slots: variables beside counter and rate.
    slots: `all zero`, or `at their initial values`.
    learning_rate: the rate of the first update.
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


def build_optimizer(
    optimizer: Callable, variables: Sequence[keras.Variable], parts: Sequence[Part] = (), phases: Sequence[Phase] = ()
) -> keras.optimizers.Optimizer:
    """Creates the optimizer and all its variables; call in the strategy's scope, before any tracing.

    optimizer: a function without required arguments that returns a Keras optimizer. A Keras optimizer itself, or one
      that has state already, is taken as a description: a new one is made from its config.
    parts: of the variables, each of which an optimizer of its own then trains; see `groups.divide`.
    phases: what trains after it, one after the other.
    """
    built = _new_optimizer(optimizer)
    if phases:
        built = _phased(built, variables, parts, phases)
    elif parts:
        built = _grouped(built, variables, parts)
    built.build(list(variables))
    return built


def _new_optimizer(optimizer: Callable) -> keras.optimizers.Optimizer:
    built = optimizer
    if callable(optimizer) and not isinstance(optimizer, keras.optimizers.Optimizer):
        built = optimizer()
    if isinstance(built, keras.optimizers.Optimizer) and (built is optimizer or built.built):
        try:
            built = type(built).from_config(built.get_config())
        except NotImplementedError as error:
            raise UserError(
                f"The optimizer {built.name} holds a schedule without get_config: no new one can be made of it. "
                "Give a function that makes it, optimizer=lambda: ..., or write the schedule's get_config."
            ) from error
    if not isinstance(built, keras.optimizers.Optimizer):
        raise UserError(f"The optimizer must be a Keras optimizer, e.g. OPTIMIZER = @SGD; it is {built!r}.")
    if any(
        getattr(each, "gradient_accumulation_steps", None) for each in (built, getattr(built, "inner_optimizer", None))
    ):
        raise UserError(
            f"{built.name}.gradient_accumulation_steps counts micro-batches as steps; "
            "use Step.accumulation_steps instead."
        )
    check_rate(rate_of(built))
    return built


def _grouped(
    whole: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], parts: Sequence[Part]
) -> keras.optimizers.Optimizer:
    """An optimizer for each part, in one that clips and counts for all; within the loss scaling if there is one."""
    if isinstance(whole, keras.optimizers.LossScaleOptimizer):
        return _scaling_alike(whole, _grouped(whole.inner_optimizer, variables, parts))
    place = {id(variable): index for index, variable in enumerate(variables)}
    return GroupedOptimizer(
        learning_rate=_given_rate(whole),
        optimizers=[_part_optimizer(whole, part, number) for number, part in enumerate(parts)],
        places=[[place[id(variable)] for variable in part.variables] for part in parts],
        no_decay=[place[id(variable)] for part in parts for variable in part.no_decay],
        first_steps=[part.group.unfreeze_at for part in parts],
        global_clipnorm=whole.global_clipnorm,
        loss_scale_factor=whole.loss_scale_factor,
        name=whole.name,
    )


def _phased(
    whole: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    parts: Sequence[Part],
    phases: Sequence[Phase],
) -> keras.optimizers.Optimizer:
    """One optimizer after the other, in one that counts for all; within the loss scaling if there is one."""
    if isinstance(whole, keras.optimizers.LossScaleOptimizer):
        return _scaling_alike(whole, _phased(whole.inner_optimizer, variables, parts, phases))
    followers = [_new_optimizer(phase.optimizer) for phase in phases]
    for follower, phase in zip(followers, phases, strict=True):
        check_follower(follower, phase.start)
    # The one of the whole scales the loss for all of them.
    rate, scale, whole_name = _given_rate(whole), whole.loss_scale_factor, whole.name
    members = [_renamed(each, f"phase_{number}") for number, each in enumerate([whole, *followers])]
    return PhasedOptimizer(
        learning_rate=rate,
        optimizers=[_grouped(member, variables, parts) if parts else member for member in members],
        starts=[as_start(phase.start) for phase in phases],
        loss_scale_factor=scale,
        name=whole_name,
    )


def _scaling_alike(
    whole: keras.optimizers.LossScaleOptimizer, inner: keras.optimizers.Optimizer
) -> keras.optimizers.LossScaleOptimizer:
    return keras.optimizers.LossScaleOptimizer(
        inner, initial_scale=whole.initial_scale, dynamic_growth_steps=whole.dynamic_growth_steps
    )


def _renamed(optimizer: keras.optimizers.Optimizer, name: str) -> keras.optimizers.Optimizer:
    """The same, unbuilt, under another name and without a scale of the loss.

    Not built again from its config, which does not hold what its builder called `exclude_from_weight_decay` for.
    """
    optimizer.name, optimizer.loss_scale_factor = name, None
    return optimizer


def _part_optimizer(whole: keras.optimizers.Optimizer, part: Part, number: int) -> keras.optimizers.Optimizer:
    group, kind = part.group, whole
    if group.optimizer is not None:
        kind = _new_optimizer(group.optimizer)
        if isinstance(kind, keras.optimizers.LossScaleOptimizer):
            raise UserError(f"The group {group.pattern!r} cannot scale the loss alone; wrap OPTIMIZER instead.")
        if kind.global_clipnorm or kind.loss_scale_factor:
            raise UserError(
                f"The group {group.pattern!r} cannot clip by a global norm, or scale the loss, alone: set "
                f"global_clipnorm and loss_scale_factor on OPTIMIZER, for all groups, and not on {type(kind).__name__}."
            )
    own_rate = _given_rate(kind) if group.learning_rate is None else group.learning_rate
    rate = scaled(own_rate, part.multiplier, group.unfreeze_at)
    try:
        config = kind.get_config()
    except NotImplementedError as error:
        raise UserError(f"The optimizer cannot be made once for each group: {error}") from error
    config |= {
        "name": f"group_{number}",
        "learning_rate": rate,
        "global_clipnorm": None,
        "loss_scale_factor": None,
    }
    if group.weight_decay is not None and not isinstance(group.weight_decay, bool) and group.weight_decay > 0:
        # Muon has a second one, for what it leaves to Adam.
        config |= {name: group.weight_decay for name in ("weight_decay", "adam_weight_decay") if name in config}
    if group.weight_decay is True and not config.get("weight_decay"):
        raise UserError(
            f"group.weight_decay = True for {group.pattern!r}, and {type(kind).__name__} has no weight_decay; "
            "give the group a number."
        )
    return type(kind).from_config(config)


def _given_rate(optimizer: keras.optimizers.Optimizer):
    """The rate as the optimizer was given it: a number, a schedule or a function."""
    rate = rate_of(optimizer)
    return float(first_value(rate)) if isinstance(rate, keras.Variable) else rate


def constant_rates(optimizer: keras.optimizers.Optimizer) -> list[tuple[keras.Variable, np.ndarray]]:
    """Each variable that holds a constant rate, and the rate as of now; without those that are found on the way."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    found = {id(rate) for rate in inner.found_rates} if isinstance(inner, PhasedOptimizer) else set()
    return [
        (variable, first_value(variable))
        for variable in optimizer.variables
        if variable.name == "learning_rate" and id(variable) not in found
    ]


def trained_variables(model: keras.Model, frozen: Sequence[str] = (), trained: str = "all") -> list[keras.Variable]:
    """The model's trainable variables of a preset, without those in whose normalised name a regex of `frozen` is found.

    trained: a preset, see `groups.PRESETS`.

    Raises `UserError` for a pattern that matches no trainable variable, and if nothing is left to train.
    """
    trainable = {id(variable) for variable in model.trainable_variables}
    named = {weight.name: weight.variable for weight in weights_of(model) if id(weight.variable) in trainable}
    if isinstance(frozen, str):
        raise UserError(f"frozen is a list of patterns; write frozen = [{frozen!r}].")
    left_out: set[str] = set()
    for pattern in frozen:
        found = find_pattern("frozen", pattern, list(named))
        if not found:
            raise UserError(
                f"frozen: {pattern!r} matches no trainable variable; there are {', '.join(list(named)[:8])}."
            )
        left_out.update(found)
    kept = [named[name] for name in preset_names(trained, named) if name not in left_out]
    if not kept:
        raise UserError("No variable is left to train: every one is frozen.")
    return kept


def prove_new(
    optimizer: keras.optimizers.Optimizer,
    build_twin: Callable[[Sequence[keras.Variable]], keras.optimizers.Optimizer],
    variables: Sequence[keras.Variable],
    report: RestoreReport | None,
) -> OptimizerProof:
    """Looks at a built optimizer's every variable and raises `RuntimeError` if any of it is not new.

    build_twin: makes a second one from the same config, on those of `variables` that it is given. Call in the
      strategy's scope.
      variables: all that the optimizer was built on.

    A new optimizer has made no step, has each slot at the value that its twin has, the configured
    rate, and no entry of a checkpoint's optimizer was read on the way (counted by the reader). A whole twin takes as
    much time and memory as the optimizer: of the kinds in `BEGIN_AT_ZERO` it is built on one variable alone, and the
    other slots are compared with zero.
    """
    values = [(variable, first_value(variable)) for variable in optimizer.variables]
    slots = {id(variable) for variable in _slots(optimizer)}
    all_zero = not any(value.any() for variable, value in values if id(variable) in slots)
    new_values = _new_values(optimizer, build_twin, variables, all_zero)
    differing = [
        variable.path
        for variable, value in values
        if id(variable) in new_values and not np.array_equal(value, new_values[id(variable)])
    ]
    iterations = int(first_value(optimizer.iterations))
    keys_read = report.optimizer_keys_read if report else 0
    if iterations or differing or keys_read:
        raise RuntimeError(
            f"The optimizer {optimizer.name} is not new: iterations {iterations}, variables that differ from a "
            f"new one's: {differing or 'none'}, optimizer entries read from the checkpoint: {keys_read}."
        )
    return OptimizerProof(
        name=describe_kind(optimizer),
        iterations=iterations,
        num_slots=len(slots),
        slots="all zero" if all_zero else "at their initial values",
        learning_rate=learning_rate_at(optimizer, 0),
        checkpoint_keys_read=keys_read,
    )


def _slots(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    no_slots = {id(variable) for variable in (optimizer.iterations, *getattr(inner, "bookkeeping", ()))}
    return [
        variable
        for variable in optimizer.variables
        if id(variable) not in no_slots and variable.name not in ("learning_rate", "iteration")
    ]


def _new_values(
    optimizer: keras.optimizers.Optimizer, build_twin: Callable, variables: Sequence[keras.Variable], all_zero: bool
) -> dict[int, np.ndarray]:
    """{id of an optimizer's variable: its value in a new one}; without the slots that are and begin at zero."""
    if all_zero and type(optimizer) in BEGIN_AT_ZERO:
        small = build_twin([min(variables, key=lambda variable: math.prod(variable.shape))])
        # Asked, for Keras may change what it was.
        if not any(first_value(variable).any() for variable in _slots(small)):
            return _values_by_place(_without_slots(optimizer), _without_slots(small))
    return _values_by_place(optimizer.variables, build_twin(variables).variables)


def _without_slots(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    slots = {id(variable) for variable in _slots(optimizer)}
    return [variable for variable in optimizer.variables if id(variable) not in slots]


def _values_by_place(variables: Sequence[keras.Variable], others: Sequence[keras.Variable]) -> dict[int, np.ndarray]:
    return {id(variable): first_value(other) for variable, other in zip(variables, others, strict=True)}


def describe_kind(optimizer: keras.optimizers.Optimizer) -> str:
    """The optimizer's class; of one in groups or phases the classes of all."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and isinstance(
        optimizer.inner_optimizer, GroupedOptimizer | PhasedOptimizer
    ):
        return f"LossScaleOptimizer of {describe_kind(optimizer.inner_optimizer)}"
    if isinstance(optimizer, PhasedOptimizer):
        return ", then ".join(describe_kind(each) for each in optimizer.optimizers)
    if not isinstance(optimizer, GroupedOptimizer):
        return type(optimizer).__name__
    kinds = dict.fromkeys(type(each).__name__ for each in optimizer.optimizers)
    return f"{' and '.join(kinds)} in {len(optimizer.optimizers)} groups"
