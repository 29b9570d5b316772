"""The user's rules: what may be renamed, start fresh, stay unused or take some rows, and whether they make sense."""

import dataclasses
import difflib
import re
from collections.abc import Sequence

import numpy as np

from trainer.restore.errors import RestoreError
from trainer.restore.matching.model_tree import LiveVariable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """The user's rules. Every pattern is a regex that is searched for in normalised names.

    A name of the checkpoint is written from the object that fits the model (`backbone/kernel`), as in
    the report; the whole path from the file's top (`model/backbone/kernel`) is understood as well.
    """

    rename: Sequence[tuple[str, str]] = ()
    """(pattern, replacement) pairs that turn a checkpoint's name into the model's; they come first."""

    reinitialize: Sequence[str] = ()
    """Patterns of the model's weights that keep their fresh values, whatever the checkpoint holds."""

    ignore: Sequence[str] = ()
    """Patterns of the checkpoint's weights that may stay unused."""

    match: str = "structure"
    """What pairs weights: "structure" and names; or "order", by which what these leave over is paired with a
    numbered list of the file, by position."""

    root: str | None = None
    """Place in the file of the object that is the model, such as "ema", where several fit."""

    grow: Sequence[str] = ()
    """Patterns of variables that are longer than the checkpoint's and take its rows at their beginning."""

    copy_rows: Sequence[tuple[str, dict[int, int]]] = ()
    """(pattern, {the checkpoint's row: the model's row}) pairs, of variables that take these rows only."""

    def renamed(self, name: str, whole_name: str) -> str:
        """The model's name for a checkpoint's, by the first rule that fits; `name` where none does."""
        for pattern, replacement in self.rename:
            for spelling in (name, whole_name):
                if re.search(pattern, spelling):
                    return re.sub(pattern, replacement, spelling, count=1)
        return name


def check_rules(rules: Rules, weights: list[LiveVariable]) -> None:
    """Raises `RestoreError` for what is no regex, and for a fresh start of something that is not there."""
    for what in ("reinitialize", "ignore", "grow"):
        if isinstance(getattr(rules, what), str):
            raise RestoreError(f"{what} is a list of patterns; write {what} = [{getattr(rules, what)!r}].")
    for rule in rules.rename:
        if isinstance(rule, str) or len(rule) != 2:
            raise RestoreError(
                f"rename: {rule!r} is not a pair of pattern and replacement; "
                "write e.g. rename = [('^backbone/', 'encoder/')]."
            )
        _check_pattern("rename", rule[0])
        try:
            re.sub(f"{rule[0]}|", rule[1], "")  # matches the empty text, so that the replacement is looked at
        except (re.error, IndexError, TypeError) as error:
            raise RestoreError(f"rename: {rule[1]!r} is no replacement for {rule[0]!r}: {error}.") from error
    for copied in rules.copy_rows:
        if isinstance(copied, str) or len(copied) != 2 or not _are_rows(copied[1]):
            raise RestoreError(
                f"copy_rows: {copied!r} is not a pair of pattern and rows; write e.g. "
                "copy_rows = [('^head/', {0: 3, 7: 4})], each the checkpoint's row: the model's row."
            )
        _check_rows(*copied)
    named = [("grow", pattern) for pattern in rules.grow] + [("copy_rows", pattern) for pattern, _ in rules.copy_rows]
    named += [("reinitialize", pattern) for pattern in rules.reinitialize]
    for what, pattern in [*named, *(("ignore", pattern) for pattern in rules.ignore)]:
        _check_pattern(what, pattern)
    for what, pattern in named:
        if not any(re.search(pattern, weight.name) for weight in weights):
            raise RestoreError(_matches_nothing(what, pattern, weights))
    if rules.match not in ("structure", "order"):
        raise RestoreError(f"match = {rules.match!r} is neither 'structure' nor 'order'.")


def _are_rows(rows) -> bool:
    return isinstance(rows, dict) and all(type(row) is int for pair in rows.items() for row in pair)


def _check_rows(pattern: str, rows: dict[int, int]) -> None:
    if not rows:
        raise RestoreError(f"copy_rows: {pattern!r} names no rows; give {{the checkpoint's row: the model's row}}.")
    sources: dict[int, int] = {}
    for source, target in rows.items():
        if target in sources:
            raise RestoreError(
                f"copy_rows: {pattern!r} puts the checkpoint's rows {sources[target]} and {source} into the model's "
                f"row {target}; only one can be there."
            )
        sources[target] = source


def _check_pattern(what: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise RestoreError(f"{what}: {pattern!r} is not a regular expression: {error}.") from error


def _matches_nothing(what: str, pattern: str, weights: list[LiveVariable]) -> str:
    names = [weight.name for weight in weights]
    prefixes = {name.rsplit("/", depth)[0] for name in names for depth in range(name.count("/") + 1)}
    near = difflib.get_close_matches(pattern.strip("^$/"), sorted(prefixes), n=1, cutoff=0.4)
    meant = "" if not near else f"'^{near[0]}$'" if near[0] in names else f"'^{near[0]}/'"
    return (
        f"{what}: {pattern!r} matches no variable of the model."
        + (f" Did you mean {meant}?" if meant else "")
        + f" Its variables: {', '.join(names[:8])}{', ...' * (len(names) > 8)}."
    )


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
