"""Which trained variables have a learning rate, a weight decay, an optimizer or a beginning of their own."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import gin
import keras
from keras.optimizers.schedules import LearningRateSchedule

from trainer.errors import UserError
from trainer.optimizers.schedules import check_rate
from trainer.restore import layer_paths, weights_of
from trainer.suggest import nearest

PRESETS = ("all", "last_layer", "biases", "bitfit")

# What a layer calls its biases and the scales of its normalization; weight decay would only pull them to zero.
_BIASES = {"bias", "beta"}
_UNDECAYED = {*_BIASES, "gamma", "scale"}


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Made by `group`."""

    made_by: ClassVar = "group"  # for messages

    pattern: str
    learning_rate_multiplier: float = 1.0
    learning_rate: float | LearningRateSchedule | None = None
    weight_decay: float | bool | None = None
    optimizer: Callable | None = None
    unfreeze_at: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """Variables that one optimizer trains alike.

    label: the group's pattern, or what else tells it from the others.
    no_decay: those of `variables` that have no weight decay.
    multiplier: of the learning rate.
    group: whose rate, decay and optimizer it has.
    """

    label: str
    variables: Sequence[keras.Variable]
    no_decay: Sequence[keras.Variable]
    multiplier: float
    group: ParameterGroup


@gin.register(module="parameter_groups")
def group(
    pattern: str,
    learning_rate_multiplier: float = 1.0,
    learning_rate: float | LearningRateSchedule | None = None,
    weight_decay: float | bool | None = None,
    optimizer: Callable | None = None,
    unfreeze_at: int = 0,
) -> ParameterGroup:
    """The trained variables in whose normalised name the regex `pattern` is found; the rest is as without groups.

    learning_rate_multiplier: of the optimizer's rate, or of the group's own.
    learning_rate: a number or schedule of the group's own; its steps are those of the run.
    weight_decay: None for the optimizer's, but none on biases and norm scales; False or 0 for none at all; a number, or
      True for the optimizer's, on every variable of the group.
    optimizer: a function that returns the group's own optimizer.
    unfreeze_at: the first step that trains the group.
    """
    if not isinstance(pattern, str):
        raise UserError(f"group.pattern = {pattern!r} must be a text in quotes.")
    if not isinstance(learning_rate_multiplier, int | float) or not learning_rate_multiplier > 0:
        raise UserError(
            f"group.learning_rate_multiplier = {learning_rate_multiplier!r} must be above 0; "
            f"Finetune.frozen = [{pattern!r}] leaves a part untrained."
        )
    if isinstance(learning_rate, int | float) and not learning_rate > 0:
        raise UserError(f"group.learning_rate = {learning_rate!r} must be above 0.")
    check_rate(learning_rate)
    if weight_decay is not None and not weight_decay >= 0:
        raise UserError(f"group.weight_decay = {weight_decay!r} must be 0 or more, True or False.")
    if not isinstance(unfreeze_at, int) or isinstance(unfreeze_at, bool) or unfreeze_at < 0:
        raise UserError(f"group.unfreeze_at = {unfreeze_at!r} must be a whole number of steps, 0 or more.")
    return ParameterGroup(pattern, learning_rate_multiplier, learning_rate, weight_decay, optimizer, unfreeze_at)


def divide(
    model: keras.Model,
    trained: Sequence[keras.Variable],
    groups: Sequence[ParameterGroup] = (),
    layer_decay: float | None = None,
    layer_blocks: str | None = None,
) -> list[Part]:
    """The trained variables in parts, each variable in one; no part at all where nothing is asked for.

    layer_decay: the rate of a layer is this times that of the layer after it; the last one's stays.
    layer_blocks: a regex; layers in whose names it finds the same text count as one.

    Raises `UserError` for a pattern that finds no trained variable, and for a variable in two groups.
    """
    if not groups and layer_decay is None:
        if layer_blocks is not None:
            raise UserError(
                "Finetune.layer_blocks says what counts as one layer for Finetune.layer_decay, which is not set."
            )
        return []
    _check_groups(groups)
    here = {id(variable) for variable in trained}
    named = {weight.name: weight.variable for weight in weights_of(model)}
    names = {name: variable for name, variable in named.items() if id(variable) in here}
    owner = _owners(groups, names, named)
    rest = ParameterGroup(pattern="")
    depths, count = _depths(model, names, layer_decay, layer_blocks)

    members: dict[tuple[int, int], list[str]] = {}
    for name in names:
        members.setdefault((owner.get(name, len(groups)), depths[name]), []).append(name)
    parts = []
    for (index, depth), own in sorted(members.items(), key=lambda item: (item[0][0], -item[0][1])):
        chosen = groups[index] if index < len(groups) else rest
        factor = layer_decay**depth if layer_decay is not None else 1.0
        label = chosen.pattern or ("the rest" if groups else "all")
        if count > 1:
            label += f", layer {count - depth} of {count}"
        no_decay = [names[name] for name in own if not _decays(name, names[name], chosen)]
        variables = [names[name] for name in own]
        parts.append(Part(label, variables, no_decay, chosen.learning_rate_multiplier * factor, chosen))
    return parts


def preset_names(preset: str, named: Mapping[str, keras.Variable]) -> list[str]:
    """The names of the variables that a preset trains.

    named: all that could be trained, in the model's order.
    preset: "all"; "last_layer", that of the last variable; "biases", of layers and normalizations alone; "bitfit", both
      of these, as Ben Zaken et al. 2022 train.
    """
    if preset not in PRESETS:
        raise UserError(f"Finetune.trained = {preset!r} is no preset.{nearest(str(preset), PRESETS, 'presets')}")
    if preset == "all" or not named:
        return list(named)
    last = list(named)[-1].rpartition("/")[0]
    of_last = {name for name in named if name.rpartition("/")[0] == last} if preset != "biases" else set()
    biases = {name for name in named if _is_bias(name)} if preset != "last_layer" else set()
    if preset != "last_layer" and not biases:
        raise UserError(f"Finetune.trained = {preset!r}: the model has no trainable biases.")
    return [name for name in named if name in of_last | biases]


def find_pattern(where: str, pattern: str, names: Sequence[str]) -> list[str]:
    """The names in which the regex is found; raises `UserError` for what is none.
    where: the binding."""
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: {pattern!r} is not a regular expression: {error}.") from error
    return [name for name in names if found.search(name)]


def is_bias_or_scale(name: str, variable: keras.Variable) -> bool:
    """Whether a weight decay leaves it out by default: a bias, the scale of a normalization, or any vector."""
    return name.rpartition("/")[2] in _UNDECAYED or len(variable.shape) < 2


def _is_bias(name: str) -> bool:
    return name.rpartition("/")[2] in _BIASES


def _check_groups(groups) -> None:
    if not isinstance(groups, list | tuple):
        raise UserError(f"groups is a list; write groups = [{groups!r}].")
    for each in groups:
        if not isinstance(each, ParameterGroup):
            raise UserError(f"groups = [...] holds {each!r}; each must be made by @group() with parentheses.")


def _owners(groups: Sequence[ParameterGroup], names, all_names) -> dict[str, int]:
    """{name of a variable: the place of its group}."""
    owner: dict[str, int] = {}
    for place, each in enumerate(groups):
        found = find_pattern("group.pattern", each.pattern, list(names))
        if not found:
            others = find_pattern("group.pattern", each.pattern, list(all_names))
            shown = ", ".join(list(names)[:8])
            if others:
                raise UserError(
                    f"The group {each.pattern!r} has no variables: those that it matches are not trained "
                    f"({', '.join(others[:4])}). Trained are {shown}."
                )
            raise UserError(f"group.pattern: {each.pattern!r} matches no variable; there are {shown}.")
        for name in found:
            if name in owner:
                raise UserError(
                    f"Two groups claim {name}: {groups[owner[name]].pattern!r} and {each.pattern!r}. "
                    "Make the patterns narrower, so that every variable is in one group."
                )
            owner[name] = place
    return owner


def _depths(model: keras.Model, names, layer_decay: float | None, layer_blocks: str | None):
    """({name: how many layers come after its own}, number of layers)."""
    if layer_decay is None:
        return dict.fromkeys(names, 0), 1
    if isinstance(layer_decay, bool) or not isinstance(layer_decay, int | float) or not 0.0 < layer_decay <= 1.0:
        raise UserError(f"Finetune.layer_decay = {layer_decay!r} must lie between 0 and 1, e.g. 0.8.")
    if layer_blocks is not None and not find_pattern("Finetune.layer_blocks", layer_blocks, list(names)):
        raise UserError(
            f"Finetune.layer_blocks: {layer_blocks!r} matches no trained variable; there are "
            f"{', '.join(list(names)[:8])}."
        )
    layers = layer_paths(model)
    units = {name: _unit(name, layers, layer_blocks) for name in names}
    order = list(dict.fromkeys(units.values()))
    return {name: len(order) - 1 - order.index(unit) for name, unit in units.items()}, len(order)


def _unit(name: str, layers: dict[str, keras.Layer], layer_blocks: str | None) -> str:
    """The variable's layer: the outermost one that is no model, such as a transformer's block."""
    block = re.search(layer_blocks, name) if layer_blocks else None
    if block:
        return block[0]
    segments = name.split("/")
    prefixes = ["/".join(segments[:length]) for length in range(1, len(segments))]
    outer = (prefix for prefix in prefixes if prefix in layers and not isinstance(layers[prefix], keras.Model))
    return next(outer, "/".join(segments[:-1]) or name)


def _decays(name: str, variable: keras.Variable, chosen: ParameterGroup) -> bool:
    if chosen.weight_decay is None:
        return not is_bias_or_scale(name, variable)
    return bool(chosen.weight_decay)
