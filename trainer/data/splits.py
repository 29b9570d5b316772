"""Parts of data that come without splits: `[:80%]`, drawn by a seed, class by class where there are classes."""

import re

import numpy as np

from trainer.errors import UserError

_PART = re.compile(r"\[(\d+(?:\.\d+)?%)?:(\d+(?:\.\d+)?%)?\]")


def check_split(split: str) -> None:
    """Raises `UserError` for a part that is not written as `[:80%]`."""
    if split.startswith("[") and not _PART.fullmatch(split):
        raise UserError(f"The split {split!r} is no part of the data; write '[:80%]', '[80%:]' or '[10%:20%]'.")


def rows_of_split(split: str, labels: np.ndarray, seed: int) -> np.ndarray:
    """[rows] int64, ascending: which rows are in the split.

    split: "all", or a part such as `[:80%]`; the bounds are the same for every part, so that parts never overlap.
    labels: [rows] of whatever each part should have its share of; zeros where there are no classes.
    """
    check_split(split)
    if split == "all":
        return np.arange(len(labels))
    begin, end = (float(bound.rstrip("%")) / 100 if bound else None for bound in _PART.fullmatch(split).groups())  # type: ignore[union-attr]
    chosen = []
    for number, label in enumerate(np.unique(labels)):
        rows = np.flatnonzero(labels == label)
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
        shuffled = generator.permutation(rows)
        bounds = [round(len(rows) * bound) for bound in (begin or 0.0, 1.0 if end is None else end)]
        chosen.append(shuffled[slice(*bounds)])
    rows = np.sort(np.concatenate(chosen))
    if not len(rows):
        raise UserError(f"The split {split!r} holds none of the {len(labels)} examples.")
    return rows
