"""Finds which unused weights of a file may be meant for which variables of the model, layer by layer."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence

import tensorflow as tf

from trainer.restore.casts import castable
from trainer.restore.report import Record

Home = tuple[list[Record], list[Record]]  # variables of the model, weights of the file
MAX_KIN = 100  # beyond, so many variables look alike that a guess says nothing, and comparing them takes seconds


def possible_homes(wanted: Sequence[Record], spare: Sequence[Record]) -> list[Home]:
    """(variables of one layer, unused weights of one layer of the file) that may belong together.

    The weights' shapes are among those of the variables, or the other way round, and so are their names; or the
    layers have one name; or all shapes agree. A variable in here must not stay fresh, and a weight must not stay
    behind, unless the user says so.
    """
    theirs = [_Layer.of(name, records, "checkpoint_shape") for name, records in _by_layer(spare)]
    at: dict[tuple, list[_Layer]] = {}
    for layer in theirs:
        for shape in layer.shapes:
            at.setdefault(shape, []).append(layer)
    found = []
    for name, records in _by_layer(wanted):
        ours = _Layer.of(name, records, "shape")
        near = {other.name: other for shape in ours.shapes for other in at.get(shape, [])[:MAX_KIN]}
        found += [(records, other.records) for other in near.values() if ours.may_be(other)]
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Layer:
    """What stands directly in one layer.  shapes: how many weights have each of them.  leaves: their last names."""

    name: str
    records: list[Record]
    shapes: collections.Counter[tuple]
    leaves: frozenset[str]

    @classmethod
    def of(cls, name: str, records: list[Record], shape: str) -> "_Layer":
        leaves = frozenset(record.name.split("/")[-1] for record in records)
        return cls(name, records, collections.Counter(getattr(record, shape) for record in records), leaves)

    def may_be(self, other: "_Layer") -> bool:
        numbered = all(leaf.isdigit() for leaf in other.leaves)
        if is_in_bare_list(other.records[0].name):
            return True
        if not (self.shapes <= other.shapes or other.shapes <= self.shapes):
            return False
        same_layer = self.name.split("/")[-1] == other.name.split("/")[-1] != ""
        same_shapes = self.shapes == other.shapes and len(self.records) > 1
        return numbered or self.leaves <= other.leaves or other.leaves <= self.leaves or same_layer or same_shapes


def _by_layer(records: Sequence[Record]) -> Iterable[tuple[str, list[Record]]]:
    layers: dict[str, list[Record]] = {}
    for record in records:
        layers.setdefault(record.name.rpartition("/")[0], []).append(record)
    return layers.items()


def is_in_bare_list(name: str) -> bool:
    """Whether a name of the file is a mere number, as `model.export()` and `np.savez(*arrays)` write them."""
    return bool(re.search(r"(^|/)\w*variables/\d+$|^arr_\d+$", name))


def same_kind(record: Record, other: Record | None = None) -> bool:
    """Whether the file's dtype (of `other`, or of the record itself) may be cast to the model's."""
    assert record.dtype is not None and (other or record).checkpoint_dtype is not None
    ours, theirs = tf.as_dtype(record.dtype), tf.as_dtype((other or record).checkpoint_dtype)
    return castable(theirs, ours)
