"""Which rows of a tensor go where when its size changed: embeddings with new tokens, heads that share classes."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from trainer.restore.errors import RestoreError


@dataclasses.dataclass(frozen=True)
class Rows:
    """axis: of both tensors.  sources[i], an index of the file's along it, goes to targets[i], one of the model's."""

    axis: int
    sources: Sequence[int]
    targets: Sequence[int]
    rule: str

    def merged(self, fresh: np.ndarray, read: np.ndarray) -> np.ndarray:
        """A copy of `fresh` with the file's rows in their places."""
        merged = fresh.copy()
        place: list = [slice(None)] * fresh.ndim
        place[self.axis] = list(self.targets)
        merged[tuple(place)] = np.take(read, list(self.sources), axis=self.axis)
        return merged

    def note(self, size: int) -> str:
        return f"{len(set(self.targets))} of {size} rows from the checkpoint, the others stay fresh"


def rows_for(
    name: str,
    shape: tuple[int, ...],
    checkpoint_shape: tuple[int, ...],
    grow: Sequence[str],
    copy_rows: Sequence[tuple[str, dict[int, int]]],
) -> Rows | None:
    """The rows that a rule takes over for the variable `name`; None where no rule fits name and shapes.

    `copy_rows` works along the one axis whose length differs; where none does, along the last one (a
    head's classes), for a variable called `embeddings` along the first (its tokens). `grow` needs one
    axis that is longer in the model, and fills its beginning.
    Raises `RestoreError` for a row that is not there.
    """
    for pattern, rows in copy_rows:
        if re.search(pattern, name):
            axis = changed_axis(shape, checkpoint_shape, 0 if name.split("/")[-1] == "embeddings" else -1)
            if axis is None:
                return None
            for what, indices, size in (
                ("checkpoint", list(rows), checkpoint_shape[axis]),
                ("model", list(rows.values()), shape[axis]),
            ):
                wrong = [index for index in indices if not 0 <= index < size]
                if wrong:
                    raise RestoreError(
                        f"copy_rows: {pattern!r} names row {wrong[0]} of {name}, and the {what}'s has {size} "
                        f"(0 to {size - 1}). The pairs are {{the checkpoint's row: the model's row}}."
                    )
            return Rows(axis, list(rows), list(rows.values()), pattern)
    for pattern in grow:
        if re.search(pattern, name):
            axis = changed_axis(shape, checkpoint_shape, -1)
            if axis is not None and shape[axis] > checkpoint_shape[axis]:
                kept = range(checkpoint_shape[axis])
                return Rows(axis, kept, kept, pattern)
    return None


def changed_axis(shape: tuple[int, ...], checkpoint_shape: tuple[int, ...], otherwise: int) -> int | None:
    """The one axis whose length differs, `otherwise` where none does, None where several do."""
    if len(shape) != len(checkpoint_shape) or not shape:
        return None
    changed = [axis for axis, sizes in enumerate(zip(shape, checkpoint_shape, strict=True)) if sizes[0] != sizes[1]]
    return None if len(changed) > 1 else changed[0] if changed else range(len(shape))[otherwise]
