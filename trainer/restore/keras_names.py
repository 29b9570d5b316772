"""Compares layers and variables with what a file calls them, where Keras made the names.

Layers without a given name are numbered by class in the order of their making. A variable's name may not be that of
the attribute that holds it: Normalization keeps `mean` as `adapt_mean`. Old `.h5` files, and files of plain names that
were made from `variable.path`, have the first name, and TensorFlow's object graphs the second.
"""

import re
from collections.abc import Callable

import keras

from trainer.keras_internals import own_variables, sub_layers
from trainer.restore.model_tree import LiveNode, class_name, number_in
from trainer.restore.source import Node

Pairs = list[tuple[LiveNode, Node]]
LeafNames = Callable[[LiveNode | Node], frozenset[str]]
_CALLED_OTHERWISE_IN_KERAS_2 = {
    keras.layers.DepthwiseConv1D: {"kernel": "depthwise_kernel"},
    keras.layers.DepthwiseConv2D: {"kernel": "depthwise_kernel"},
}


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

    named: pairs that are settled.  fits: whether two layers could be the same.
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
