"""Compares layers and variables with what a file calls them, where Keras made the names, and pairs whole paths.

Layers without a given name are numbered by class in the order of their making, so a path holds numbers of a process.
A variable's name may not be that of the attribute that holds it: Normalization keeps `mean` as `adapt_mean`. Old `.h5`
files, and files of plain names that were made from `variable.path`, have the first name, and TensorFlow's object
graphs the second.
"""

import collections
import re
from collections.abc import Callable, Collection, Sequence

import keras

from trainer.keras_internals import own_variables, sub_layers
from trainer.restore.matching.model_tree import LiveNode, class_name, number_in
from trainer.restore.source import Node

Pairs = list[tuple[LiveNode, Node]]
LeafNames = Callable[[LiveNode | Node], frozenset[str]]
_CALLED_OTHERWISE_IN_KERAS_2 = {
    keras.layers.DepthwiseConv1D: {"kernel": "depthwise_kernel"},
    keras.layers.DepthwiseConv2D: {"kernel": "depthwise_kernel"},
}
_Path = tuple[int, tuple[str, ...]]  # a path's place in its list, and what is left of it


def settled_pairs(pairs: Pairs) -> Pairs:
    """The pairs by place, except where layers of one class were made in another order than they stand in.

    `Dense(1)(Dense(100)(x))` makes the last layer first, so that it is `dense`. If only one of file and
    model was written so, layers of different shapes are paired by these. Layers of equal shapes are paired
    where place and number agree among them; where they don't, their whole class is left out.
    """
    kept, by_class = [], dict[str, Pairs]()
    for ours, theirs in pairs:
        name = _numbered_class(ours)
        if name and without_number(theirs.keras_name) == name:
            by_class.setdefault(name, []).append((ours, theirs))
        else:
            kept.append((ours, theirs))
    for alike in by_class.values():
        kept += _by_shapes(alike) if _numbers_disagree(alike) else alike
    return kept


def pairs_by_class(
    ours: list[LiveNode], theirs: list[Node], named: Pairs, fits: Callable[[LiveNode, Node], bool]
) -> Pairs:
    """Pairs of layers without a given name, in each class of which either side has as many and all fit.

    named: pairs that are settled.
    fits: whether two layers could be the same.
    """
    taken = {id(part) for pair in named for part in pair}
    mine, others = dict[str, list[LiveNode]](), dict[str, list[Node]]()
    for layer in ours:
        if id(layer) not in taken and _numbered_class(layer):
            mine.setdefault(_numbered_class(layer), []).append(layer)
    for node in theirs:
        if id(node) not in taken:
            others.setdefault(without_number(node.keras_name), []).append(node)
    pairs: Pairs = []
    for name, layers in mine.items():
        alike = list(zip(layers, others.get(name, []), strict=False))
        if len(layers) == len(others.get(name, [])) and all(fits(*pair) for pair in alike):
            pairs += alike
    return pairs


def hold_equal_names(ours: LiveNode, theirs: Node, leaf_names: LeafNames) -> bool:
    """Whether two layers hold variables of equal names, by those of the attributes or by Keras' own.

    leaf_names: names of the variables in a layer as attributes, and as the file has them.
    """
    there = leaf_names(theirs)
    own = _names_of_own(ours)
    called = {names[0] for names, _ in own} or {v.name for v in (ours.layer.weights if ours.layer else ())}
    if there in (leaf_names(ours), called):
        return True
    # Keras 2 wrote a variable into TensorFlow's checkpoints under its own name and its attribute's.
    variables = {id(part) for part in theirs.parts().values() if part.entry is not None}
    found = [_under([*names, *attributes], theirs) for names, attributes in own]
    return (
        bool(found)
        and all(len(parts) == 1 for parts in found)
        and sorted(id(parts[0]) for parts in found) == sorted(variables)
    )


def by_variable_name(live: LiveNode, node: Node) -> Pairs:
    """A layer's own variables and what the file has under Keras' names of them, where no attribute is called so."""
    found = dict[str, Pairs]()
    for part, (names, attributes) in zip(live.own, _names_of_own(live), strict=True):
        for name in names:
            if name in node.children and name not in live.children and node.children.keys().isdisjoint(attributes):
                found.setdefault(name, []).append((part, node.children[name]))
    return [pairs[0] for pairs in found.values() if len(pairs) == 1]


def names_in_keras_2(layer: keras.Layer | None) -> dict[int, str]:
    """{id of a variable in the layer, or in a part of it, that Keras 2 called otherwise: its name there}."""
    found: dict[int, str] = {}
    for part in [layer, *sub_layers(layer)] if layer is not None else []:
        for variable in own_variables(part):
            name = _CALLED_OTHERWISE_IN_KERAS_2.get(type(part), {}).get(variable.name)
            if name is not None:
                found[id(variable)] = name
    return found


def without_number(name: str) -> str:
    """`dense_7` -> `dense`."""
    return re.sub(r"_\d+$", "", name)


def _numbered_class(node: LiveNode) -> str:
    """The class in a layer's name, "" for a name that the user gave."""
    return "" if node.layer is None or node.given_name else class_name(type(node.layer))


def _numbers_disagree(pairs: Pairs) -> bool:
    numbers = [(number_in(ours.name), number_in(theirs.keras_name)) for ours, theirs in pairs]
    return [b for _, b in sorted(numbers)] != sorted(b for _, b in numbers)


def _by_shapes(pairs: Pairs) -> Pairs:
    groups: dict[tuple, tuple[list[LiveNode], list[Node]]] = {}
    for ours, theirs in pairs:
        groups.setdefault(_shapes_here(ours), ([], []))[0].append(ours)
        groups.setdefault(_shapes_there(theirs), ([], []))[1].append(theirs)
    found: Pairs = []
    for mine, others in groups.values():
        alike = list(zip(mine, others, strict=False))
        if alike and (len(mine) != len(others) or _numbers_disagree(alike)):
            return []
        found += alike
    return found


def _shapes_here(node: LiveNode) -> tuple[tuple[int, ...], ...]:
    """Those of all variables in a layer, in no order that counts."""
    return tuple(sorted(tuple(variable.shape) for variable in node.layer.weights)) if node.layer is not None else ()


def _shapes_there(node: Node) -> tuple[tuple[int, ...], ...]:
    below = {id(node): node}
    queue = [node]
    for part in queue:
        new = {id(child): child for child in part.parts().values() if id(child) not in below}
        below |= new
        queue += new.values()
    entries = {id(part.entry): part.entry for part in queue if part.entry is not None}
    return tuple(sorted(entry.shape for entry in entries.values() if entry.kind in ("weight", "counter")))


def _names_of_own(live: LiveNode) -> list[tuple[list[str], list[str]]]:
    """(Keras' names, those of the attributes) of each of a layer's own variables; the first is today's."""
    older = _CALLED_OTHERWISE_IN_KERAS_2.get(type(live.layer), {})
    found = []
    for part in live.own:
        called = part.variable.name if part.variable is not None else ""
        attributes = [name for name, child in live.children.items() if child is part]
        found.append(([called, older[called]] if called in older else [called], attributes))
    return found


def _under(names: list[str], node: Node) -> list[Node]:
    """The variables that the file has under these names."""
    found = {id(part): part for name in names if (part := node.children.get(name)) is not None and part.entry}
    return list(found.values())


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
