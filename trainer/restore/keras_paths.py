"""Pairs variables by the whole paths that Keras gave them, whatever numbers a process put into these."""

import collections
import re
from collections.abc import Collection, Sequence
from typing import TypeVar

Ours = TypeVar("Ours")
Theirs = TypeVar("Theirs")
_Path = tuple[int, tuple[str, ...]]  # a path's place in its list, and what is left of it


def path_pairs(
    ours: Sequence[tuple[str, Ours]], theirs: Sequence[tuple[str, Theirs]], classes: Collection[str]
) -> list[tuple[Ours, Theirs]]:
    """The pairs of equal paths if every path of either side has its equal, else nothing.

    classes: names that Keras makes layer names from, `dense` and `dense_1` from `Dense`.

    `dense_3, dense_4` of one process are `dense, dense_1` of another: among the layers of one place
    the rank of the number counts. What all paths of a side begin with, as the model's own name, does not.
    """
    found = Comparison([path for path, _ in ours], [path for path, _ in theirs], classes)
    if not found.is_complete:
        return []
    return [(ours[place][1], theirs[other][1]) for place, other in found.equal()]


class Comparison:
    """Two lists of paths, each with ranks in place of Keras' numbers. `ours`, `theirs`: in the order given."""

    def __init__(self, ours: Sequence[str], theirs: Sequence[str], classes: Collection[str]):
        self._classes = classes
        self.ours: list[tuple[str, ...]] = [()] * len(ours)
        self.theirs: list[tuple[str, ...]] = [()] * len(theirs)
        self._rank((), list(enumerate(_split(ours))), list(enumerate(_split(theirs))))
        self._counts = collections.Counter(self.ours), collections.Counter(self.theirs)

    @property
    def is_complete(self) -> bool:
        """Whether each path is there once on either side."""
        return bool(self.ours) and self._counts[0] == self._counts[1] and set(self._counts[0].values()) == {1}

    def contradicts(self, ours: int, theirs: int) -> bool:
        """Whether either of two paths, by their places in the lists, has its equal elsewhere on the other side."""
        a, b = self.ours[ours], self.theirs[theirs]
        return a != b and (self._counts[1][a] == 1 or self._counts[0][b] == 1)

    def has_rank(self, ours: int) -> bool:
        """Whether a path, by its place in the list, goes by the rank of a number that Keras gave."""
        return any(re.search(r"#\d+$", segment) for segment in self.ours[ours])

    def differ_by_rank(self, ours: int, theirs: int) -> bool:
        """Whether two paths have the same names, and only the ranks of numbers that Keras gave differ."""
        one, other = ([re.sub(r"#\d+$", "", part) for part in path] for path in (self.ours[ours], self.theirs[theirs]))
        return one == other

    def are_certain(self, ours: int, theirs: int) -> bool:
        """Whether both paths are unique on their side and hold no number of Keras' that no rank could replace."""
        paths = self.ours[ours], self.theirs[theirs]
        is_unique = all(counts[path] == 1 for counts, path in zip(self._counts, paths, strict=True))
        return is_unique and not any(self._numbered(segment)[0] for path in paths for segment in path)

    def equal(self) -> list[tuple[int, int]]:
        """Places of the paths that are there once on either side."""
        at = {path: place for place, path in enumerate(self.theirs)}
        once = (path for path, count in self._counts[0].items() if count == self._counts[1][path] == 1)
        mine = {path: place for place, path in enumerate(self.ours)}
        return [(mine[path], at[path]) for path in once]

    def _rank(self, before: tuple[str, ...], ours: list[_Path], theirs: list[_Path]) -> None:
        sides = ours, theirs
        for found, side in zip((self.ours, self.theirs), sides, strict=True):
            for place, path in side:
                if len(path) == 1:
                    found[place] = (*before, path[0])
        numbers: tuple[dict, dict] = {}, {}
        for there, side in zip(numbers, sides, strict=True):
            for _, path in side:
                name, number = self._numbered(path[0])
                if name and len(path) > 1:
                    there.setdefault(name, set()).add(number)
        # Where the numbers of one place are not those of another process, only names as they are can be trusted.
        trusted = {name for name in numbers[0] if is_shifted(numbers[0][name], numbers[1].get(name, ()))}
        groups: dict[str, tuple[list[_Path], list[_Path]]] = {}
        for index, side in enumerate(sides):
            for place, path in side:
                if len(path) > 1:
                    name, number = self._numbered(path[0])
                    rank = sorted(numbers[index][name]).index(number) if name in trusted else 0
                    segment = f"{name}#{rank}" if name in trusted else path[0]
                    groups.setdefault(segment, ([], []))[index].append((place, path[1:]))
        for segment, (mine, other) in groups.items():
            self._rank((*before, segment), mine, other)

    def _numbered(self, segment: str) -> tuple[str, int]:
        """(`dense`, 3) of `dense_3`; ("", 0) for a name that the user gave."""
        if segment in self._classes:
            return segment, 0
        name, _, number = segment.rpartition("_")
        return (name, int(number)) if number.isdecimal() and name in self._classes else ("", 0)


def is_shifted(ours: Collection[int], theirs: Collection[int]) -> bool:
    """Whether the numbers of one process' layers may be those of another's that had made other layers before."""
    return len(ours) == len(theirs) and len({a - b for a, b in zip(sorted(ours), sorted(theirs), strict=True)}) == 1


def _split(paths: Sequence[str]) -> list[tuple[str, ...]]:
    split = [tuple(path.split("/")) for path in paths]
    while split and all(len(path) > 1 for path in split) and len({path[0] for path in split}) == 1:
        split = [path[1:] for path in split]
    return split
