"""Lays the layers of a model beside those of a file that keeps them by number, by class or by Keras' names."""

import re
from collections.abc import Callable

from trainer.restore.keras_paths import is_shifted
from trainer.restore.live import LiveNode, number_in
from trainer.restore.source import Node

LeafNames = Callable[[LiveNode | Node], frozenset[str]]


def child_pairs(live: LiveNode, node: Node, leaf_names: LeafNames) -> list[tuple[LiveNode, Node]]:
    """The parts that belong together; layers that nothing but their position would pair are left out.

    leaf_names: names of the variables in a layer; empty for one without.

    A name that somebody gave a layer says the most. Layers that go by number are paired only where
    their count and all their variables' names agree, layers that go by class only where each class
    has as many on both sides, and neither where a given name says otherwise: a layer that was put
    in between would else shift all after it in silence.
    """
    attributes = _by_name(live, node)
    if node.by_class:
        return attributes + _by_class_and_name(live, node, attributes, leaf_names)
    return _by_place_or_name(live, node, leaf_names) + attributes


def _by_place_or_name(live: LiveNode, node: Node, leaf_names: LeafNames) -> list[tuple[LiveNode, Node]]:
    if not live.is_graph and node.layers is None:
        return []  # a subclassed model's layers stand under its attributes
    theirs = [layer for layer in _layers_of(node) if leaf_names(layer)]
    if not theirs:
        return _by_number(live, node, leaf_names) if live.is_graph else []
    ours = [layer for layer in live.in_order or [] if leaf_names(layer)]
    named = _by_given_name(ours, theirs)
    if len(named) in (len(ours), len(theirs)):
        return named
    fits = len(ours) == len(theirs) and all(leaf_names(a) == leaf_names(b) for a, b in zip(ours, theirs, strict=True))
    pairs = list(zip(ours, theirs, strict=True)) if fits else []
    return pairs if pairs and not _contradicts(pairs, named) and not _ranks_disagree(pairs) else named


def _by_class_and_name(
    live: LiveNode, node: Node, attributes: list[tuple[LiveNode, Node]], leaf_names: LeafNames
) -> list[tuple[LiveNode, Node]]:
    # What stands in the file under an attribute's name is missing among its numbered classes.
    taken = {id(layer) for ours, _ in attributes for layer in _layers_below(ours)}
    remaining = {key: layer for key, layer in live.by_class.items() if leaf_names(layer) and id(layer) not in taken}
    theirs = {key: layer for key, layer in node.by_class.items() if leaf_names(layer)}
    named = _by_given_name(list(remaining.values()), list(theirs.values()))
    pairs = []
    for base in dict.fromkeys(_base(key) for key in theirs):
        keys = [key for key in theirs if _base(key) == base]
        alike = [(remaining[key], theirs[key]) for key in keys if key in remaining]
        if set(keys) == {key for key in remaining if _base(key) == base} and not _ranks_disagree(alike):
            pairs += alike
    if _contradicts(pairs, named):
        pairs = []
    settled = {id(part) for pair in pairs for part in pair}
    return pairs + [pair for pair in named if not settled & {id(part) for part in pair}]


def _by_number(live: LiveNode, node: Node, leaf_names: LeafNames) -> list[tuple[LiveNode, Node]]:
    """Layers in a file of plain names: by the given ones, and those that Keras numbered by their rank in a class.

    `dense_3, dense_4` of one process are `dense, dense_1` of another: equal names among them are chance.
    """
    pairs = []
    ranked: dict[str, dict[int, Node]] = {}
    as_written = node.spelled or {key: key for key in node.children}
    for key, child in ((raw, node.children[name]) for raw, name in as_written.items()):
        if key in live.children and live.children[key].given_name == key:
            pairs.append((live.children[key], child))
        elif node.is_plain and _base(key) in live.numbered and leaf_names(child):
            ranked.setdefault(_base(key), {})[number_in(key)] = child
    for name, theirs in ranked.items():
        ours = {number_in(layer.name): layer for layer in live.numbered[name] if leaf_names(layer)}
        alike = [(ours[a], theirs[b]) for a, b in zip(sorted(ours), sorted(theirs), strict=False)]
        # A number of both sides whose rank differs is perhaps no number, but a name that somebody gave.
        trusted = is_shifted(ours, theirs) or (len(ours) == len(theirs) and not set(ours) & set(theirs))
        if trusted and all(leaf_names(a) == leaf_names(b) for a, b in alike):
            pairs += alike
    return pairs


def _ranks_disagree(pairs: list[tuple[LiveNode, Node]]) -> bool:
    """Whether layers of one class were made in another order than they stand in, here but not in the file."""
    by_class: dict[str, list[tuple[int, int]]] = {}
    for ours, theirs in pairs:
        name = _base(ours.name)
        if not ours.given_name and ours.layer is not None and _base(theirs.keras_name) == name:
            by_class.setdefault(name, []).append((number_in(ours.name), number_in(theirs.keras_name)))
    return any([b for _, b in sorted(numbers)] != sorted(b for _, b in numbers) for numbers in by_class.values())


def _by_name(live: LiveNode, node: Node) -> list[tuple[LiveNode, Node]]:
    # Layers that Keras numbered have equal names by chance.
    numbered = {id(child) for child in (*node.by_class.values(), *(node.layers or []))}
    ours, theirs = live.children, node.children
    # From the smaller side: a model of a thousand layers is held against each small object of the file.
    names = [name for name in ours if name in theirs] if len(ours) < len(theirs) else [n for n in theirs if n in ours]
    # As it was spelled first: `_proj` of one side may be called `proj` here because the other side has both.
    exact = {live.spelled[raw]: node.spelled[raw] for raw in live.spelled if raw in node.spelled} if names else {}
    taken = set(exact.values())
    pairs = [*exact.items(), *((name, name) for name in names if name not in exact and name not in taken)]
    return [
        (ours[name], theirs[other])
        for name, other in pairs
        if id(theirs[other]) not in numbered and not (live.is_graph and ours[name] in live.in_order_set)
    ]


def _layers_below(live: LiveNode) -> list[LiveNode]:
    """The layer itself, or the layers in a container."""
    if live.layer is not None or live.variable is not None:
        return [live]
    return [layer for child in live.children.values() for layer in _layers_below(child)]


def _layers_of(node: Node) -> list[Node]:
    """The layers of a Functional or Sequential model in their order, as Keras 3 or Keras 2 wrote them."""
    if node.layers is not None:
        return node.layers
    node = node.children.get("functional", node)
    operations = node.children.get("operations") or node.children.get("layers")
    if operations is not None:
        numbered = {int(name): child for name, child in operations.children.items() if name.isdigit()}
    else:
        numbered = {
            int(name.rsplit("-", 1)[-1]): child
            for name, child in node.children.items()
            if re.fullmatch(r"layer_with_weights-\d+", name)
        }
    return [numbered[index] for index in sorted(numbered)]


def _by_given_name(ours: list[LiveNode], theirs: list[Node]) -> list[tuple[LiveNode, Node]]:
    counts: dict[str, int] = {}
    for layer in theirs:
        counts[layer.keras_name] = counts.get(layer.keras_name, 0) + 1
    by_name = {layer.keras_name: layer for layer in theirs if layer.keras_name and counts[layer.keras_name] == 1}
    names = [layer.given_name for layer in ours]
    return [
        (layer, by_name[name])
        for layer, name in zip(ours, names, strict=True)
        if name in by_name and names.count(name) == 1
    ]


def _contradicts(pairs: list[tuple[LiveNode, Node]], named: list[tuple[LiveNode, Node]]) -> bool:
    partner = {id(ours): theirs for ours, theirs in named}
    other_way = {id(theirs): ours for ours, theirs in named}
    return any(
        partner.get(id(ours), theirs) is not theirs or other_way.get(id(theirs), ours) is not ours
        for ours, theirs in pairs
    )


def _base(key: str) -> str:
    return re.sub(r"_\d+$", "", key)
