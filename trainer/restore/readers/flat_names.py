"""Makes a tree of a flat list of named tensors, with kinds and optimizer slots by name, and tests shapes."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from trainer.restore.errors import RestoreError
from trainer.restore.name_tree import tree_of_names
from trainer.restore.source import Entry, Node

_OPTIMIZER = ("optimizer", "optimizer_state")
_MAX_AXES = 32  # NumPy 1's limit; NumPy 2 has 64
_MAX_SHOWN = 5
# Class names and default names of optimizers in TensorFlow 1, Keras and libraries around them.
_OPTIMIZER_NAME = (
    r"(?:distributed|fused|lazy|rectified|proximal)?_?(?:adam(?:w|ax|async|weightdecay)?|ada(?:belief|bound|mod)"
    r"|adafactor|adagrad(?:da)?|adadelta|addsign|amsgrad|ftrl(?:proximal)?|lamb|lars|lion|momentum|nadam|novograd"
    r"|powersign|radam|rmsprop|sgdw?|shampoo|sm3|yogi)(?:optimizer)?"
)
_SCOPE = re.compile(rf"{_OPTIMIZER_NAME}(?:_\d+)?", re.IGNORECASE)
_KERAS_SCOPE = re.compile(r"training(?:_\d+)?")
# TF1 writes `X/Adam` and `X/Adam_1`, BERT `X/adam_m`, Mesh TensorFlow `X_slot_vr`.
_SLOT = re.compile(rf"(?:/{_OPTIMIZER_NAME}(?:_\w+)?(?:/[a-z_]+)?|_slot_(?:m|v|vr|vc)|_momentum_v)$", re.IGNORECASE)
_POWER = re.compile(r"(?:^|/)beta_?[12]?_power(?:_\d+)?$")
_SETTING = re.compile(r"iter|iterations?|lr|learning_rate|decay|momentum|rho|epsilon|beta_[12]")
# Keras 2.11 writes `Adam/m/X`, older ones `training/Adam/X/m`, Keras 3 `adam/X_momentum`; slashes are underscores here.
_WORD = (
    r"(?:m|v|vhat|u|c|r|linear|rms|mg|momentum|velocity(?:_hat)?|accumulator|accum(?:_grad|_var)?"
    r"|accumulated_(?:grad|delta_var)|average(?:_gradient)?)"
)
_IN_SCOPE = (re.compile(rf"(.+)_{_WORD}"), re.compile(rf"{_WORD}_(.+)"))

_Shape = tuple[int, ...]


def all_there(path: str, parts: Sequence[str], present: Iterable[str]) -> None:
    """Raises `RestoreError` that lists the parts of a checkpoint in several files which are not there."""
    present = set(present)
    missing = [part for part in parts if part not in present]
    if missing:
        more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        raise RestoreError(
            f"The checkpoint {path} is in {len(parts)} files, and of these {len(missing)} are not beside it: "
            f"{', '.join(missing[:_MAX_SHOWN])}{more}. Copy all of them into one folder."
        )


def tree_of_flat_names(entries: Sequence[Entry]) -> Node:
    """A tree from the entries' keys, split at slashes where any has one, else at dots; sets names and kinds."""
    separator = "/" if any("/" in entry.key for entry in entries) else "."
    for entry in entries:
        entry.kind = _kind(entry, separator)
    top = tree_of_names(entries, separator)
    mark_named_slots(top, entries)
    for name in _OPTIMIZER:
        if name in top.children:
            top.children[name].is_optimizer = True
    return top


def _kind(entry: Entry, separator: str) -> str:
    if entry.key.split(separator)[0] in _OPTIMIZER:
        return "optimizer"
    if entry.key.removesuffix(":0").endswith("seed_generator_state"):
        return "other"
    return "counter" if not entry.shape and entry.dtype.is_integer else "weight"


def bytes_of(key: str, shape: Sequence[int], item_bytes: int) -> int:
    """Size of an array; raises `ValueError` for a shape that no array has.

    An axis of length zero does not excuse the others: NumPy multiplies them before it sees the zero.
    """
    if len(shape) > _MAX_AXES or min(shape, default=0) < 0 or math.prod(n or 1 for n in shape) * item_bytes >= 2**63:
        raise ValueError(f"the array {key} has the shape {str(list(shape))[:80]}, which is impossible")
    return math.prod(shape) * item_bytes


def mark_named_slots(top: Node, entries: Iterable[Entry]) -> None:
    """Turns the slots among the weights into optimizer state and takes them out of the tree of names.

    A slot has an optimizer's name behind that of a variable in the file (`X/Adam_1`, `X_slot_vr`), or stands
    below an optimizer's name and holds the variable's (`training/Adam/X/m`). Its shape is the variable's, or has
    some of its axes. What has another name stays a weight, since a model may have both `w` and `w/v`.
    """
    weights = [entry for entry in entries if entry.kind == "weight"]
    shapes = {entry.name: entry.shape for entry in weights}
    flat = {name.replace("/", "_"): shape for name, shape in shapes.items()}
    slots = {entry for entry in weights if _is_slot(entry, shapes) or _is_in_optimizer(entry, flat)}
    names = {entry.name for entry in slots}
    slots |= {entry for entry in weights if entry.name.rpartition("/")[0] in names}  # averages of slots
    for entry in slots:
        entry.kind = "optimizer"
    if slots:
        _take_out(top, slots)


def _is_slot(entry: Entry, shapes: Mapping[str, _Shape]) -> bool:
    if _POWER.search(entry.name):
        return not entry.shape
    match = _SLOT.search(entry.name)
    variable = shapes.get(entry.name[: match.start()]) if match else None
    return variable is not None and _is_shape_of_slot(entry.shape, variable)


def _is_in_optimizer(entry: Entry, flat: Mapping[str, _Shape]) -> bool:
    """Whether it is a slot or a setting below an optimizer's name.

    flat: {name of a weight, with underscores for slashes: shape}, as Keras 3 puts it into the name of a slot.
    """
    *scopes, leaf = entry.name.split("/")
    inside = ""
    for place, scope in enumerate(scopes):
        if _SCOPE.fullmatch(scope) or (place and _KERAS_SCOPE.fullmatch(scopes[place - 1])):
            inside = "_".join([*scopes[place + 1 :], leaf])
            break
    if not inside:
        return False
    if not entry.shape and _SETTING.fullmatch(inside):
        return True
    if re.fullmatch(r"Variable(_\d+)?", inside):  # of Keras before 2.3, which gave its slots no names
        return not entry.shape or entry.shape in flat.values()
    names = [match[1] for pattern in _IN_SCOPE if (match := pattern.fullmatch(inside))]
    return any(_is_shape_of_slot(entry.shape, flat[name]) for name in names if name in flat)


def _is_shape_of_slot(slot: _Shape, variable: _Shape) -> bool:
    """Whether a slot has the variable's shape, or some of its axes in their order as Adafactor's do."""
    remaining = iter(variable)
    return slot == variable or all(any(length == axis for axis in remaining) for length in slot if length != 1)


def _take_out(top: Node, slots: set[Entry]) -> None:
    """Removes the slots' nodes, so that what stands beside a variable is the model's."""
    parents = [top]
    for node in parents:
        parents += node.children.values()
    for node in reversed(parents):
        kept = {
            name: child
            for name, child in node.children.items()
            if child.children or not (child.entry is None or child.entry in slots)
        }
        if len(kept) < len(node.children):
            node.children = kept
            node.spelled = {raw: name for raw, name in node.spelled.items() if name in kept}
