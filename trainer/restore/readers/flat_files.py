"""Shared by readers whose format is one flat list of named tensors: kinds by name, a tree, possible shapes."""

import math
from collections.abc import Iterable, Sequence

from trainer.restore.errors import RestoreError
from trainer.restore.readers.optimizer_slots import mark_named_slots
from trainer.restore.source import Entry, Node, tree_of_names

_OPTIMIZER = ("optimizer", "optimizer_state")
_MAX_AXES = 32  # NumPy 1's limit; NumPy 2 has 64
_MAX_SHOWN = 5


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
