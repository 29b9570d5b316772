"""Lays the layers of a model beside those of a file that keeps them by number, by class or by Keras' names.

Keras' old `.h5` files keep a plain list of a layer's variables, its parts' among them; `flat_pairs` pairs those.
"""

from collections.abc import Callable, Collection

import keras

from trainer.restore.matching.keras_paths import (
    Comparison,
    LeafNames,
    Pairs,
    by_variable_name,
    hold_equal_names,
    is_shifted,
    names_in_keras_2,
    pairs_by_class,
    settled_pairs,
    without_number,
)
from trainer.restore.matching.model_tree import LiveNode, number_in, trained_first
from trainer.restore.report import Pairing
from trainer.restore.source import Entry, Node

Kind = Callable[[LiveNode | Node], tuple]


def child_pairs(
    live: LiveNode, node: Node, leaf_names: LeafNames, kind: Kind
) -> tuple[list[tuple[LiveNode, Node, Pairing]], Pairs]:
    """([(part of the model, part of the file, how they were paired)], pairs whose place and number disagree).

    leaf_names: names of the variables in a layer; empty for one without.
    kind: names and shapes of all variables in a layer.

    A name that the user gave a layer says the most. Layers that go by number are paired only where
    their count and all their variables' names agree, layers that go by class only where each class
    has as many on both sides, and neither where a given name says otherwise: a layer that was put
    in between would else shift all after it in silence.
    """
    attributes = _by_name(live, node)
    if node.by_class:
        layers, disputed = _by_class_and_name(live, node, attributes, leaf_names)
    else:
        layers, disputed = _by_place_or_name(live, node, leaf_names, kind)
    by_attribute = Pairing.BY_NAME if node.is_plain else Pairing.BY_PATH
    ways = [(ours, theirs, _way(ours, theirs, node)) for ours, theirs in layers]
    ways_of_attributes = [(ours, theirs, Pairing.BY_NAME) for ours, theirs in by_variable_name(live, node)]
    ways_of_attributes += [(ours, theirs, by_attribute) for ours, theirs in attributes]
    return (ways_of_attributes + ways if node.by_class else ways + ways_of_attributes), disputed


def _way(ours: LiveNode, theirs: Node, parent: Node) -> Pairing:
    """Two layers of one given name are paired by it, and layers in a file of plain names by nothing else."""
    return Pairing.BY_NAME if parent.is_plain or ours.given_name == theirs.keras_name != "" else Pairing.BY_PLACE


def _by_place_or_name(live: LiveNode, node: Node, leaf_names: LeafNames, kind: Kind) -> tuple[Pairs, Pairs]:
    theirs = [layer for layer in node.in_order() if leaf_names(layer)]
    if not theirs:
        return (_by_number(live, node, leaf_names) if live.is_graph else []), []
    ours = [layer for layer in live.in_order or [] if leaf_names(layer)]
    named = _by_given_name(ours, theirs)
    if len(named) in (len(ours), len(theirs)) or (not live.is_graph and node.layers is None):
        return named, []  # a subclassed model's layers stand under its attributes, in no order that counts

    def fits(layer: LiveNode, other: Node) -> bool:
        return hold_equal_names(layer, other, leaf_names)

    pairs = list(zip(ours, theirs, strict=False)) if len(ours) == len(theirs) else []
    if pairs and all(fits(*pair) for pair in pairs) and not _contradicts(pairs, named):
        return _settled(pairs)
    numbered = pairs_by_class(ours, theirs, named, fits)
    taken = {id(part) for pair in (*named, *numbered) for part in pair}
    placed = _by_only_place(
        [layer for layer in ours if id(layer) not in taken], [layer for layer in theirs if id(layer) not in taken], kind
    )
    if _cross(named + placed, ours, theirs):
        placed = []
    pairs, disputed = _settled(numbered + placed)
    return named + pairs, disputed


def _cross(pairs: Pairs, ours: list[LiveNode], theirs: list[Node]) -> bool:
    """Whether layers of the model stand in another order than those that they are paired with."""
    places = [({id(x): i for i, x in enumerate(side)}) for side in (ours, theirs)]
    order = sorted((places[0][id(a)], places[1][id(b)]) for a, b in pairs)
    return [b for _, b in order] != sorted(b for _, b in order)


def _settled(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """(pairs that the numbers of the layers do not contradict, the others)."""
    kept = settled_pairs(pairs)
    taken = {id(part) for pair in kept for part in pair}
    return kept, [pair for pair in pairs if not taken & {id(part) for part in pair}]


def _by_only_place(ours: list[LiveNode], theirs: list[Node], kind: Kind) -> Pairs:
    """One model's layers beside another's that has other layers too, such as a backbone beside the whole model.

    Layers of a kind that the other side has not are left out. Those that are left must fit in their order, and
    in one way only: a layer in the model that the file has not could stand anywhere among others of its kind.
    """
    common = {kind(layer) for layer in ours} & {kind(layer) for layer in theirs}
    mine = [layer for layer in ours if kind(layer) in common]
    other = [layer for layer in theirs if kind(layer) in common]
    if len(mine) <= len(other):
        places = _only_places([kind(layer) for layer in mine], [kind(layer) for layer in other])
        return [(layer, other[place]) for layer, place in zip(mine, places, strict=False)]
    places = _only_places([kind(layer) for layer in other], [kind(layer) for layer in mine])
    return [(mine[place], layer) for layer, place in zip(other, places, strict=False)]


def _only_places(few: list[tuple], many: list[tuple]) -> list[int]:
    """Where each of `few` stands in `many`, in order, if there is one way to lay them beside each other; else []."""
    first = _first_places(few, many)
    last = [len(many) - 1 - place for place in reversed(_first_places(few[::-1], many[::-1]))]
    return first if first == last else []


def _first_places(few: list[tuple], many: list[tuple]) -> list[int]:
    places: list[int] = []
    for place, kind in enumerate(many):
        if len(places) < len(few) and kind == few[len(places)]:
            places.append(place)
    return places if len(places) == len(few) else []


def _by_class_and_name(live: LiveNode, node: Node, attributes: Pairs, leaf_names: LeafNames) -> tuple[Pairs, Pairs]:
    # What stands in the file under an attribute's name is missing among its numbered classes.
    taken = {id(layer) for ours, _ in attributes for layer in _layers_below(ours)}
    remaining = {key: layer for key, layer in live.by_class.items() if leaf_names(layer) and id(layer) not in taken}
    theirs = {key: layer for key, layer in node.by_class.items() if leaf_names(layer)}
    named = _by_given_name(list(remaining.values()), list(theirs.values()))
    pairs: Pairs = []
    for base in dict.fromkeys(without_number(key) for key in theirs):
        keys = [key for key in theirs if without_number(key) == base]
        if set(keys) == {key for key in remaining if without_number(key) == base}:
            pairs += [(remaining[key], theirs[key]) for key in keys]
    pairs, disputed = _settled(pairs)
    if _contradicts(pairs, named):
        pairs = []
    settled = {id(part) for pair in pairs for part in pair}
    return pairs + [pair for pair in named if not settled & {id(part) for part in pair}], disputed


def _by_number(live: LiveNode, node: Node, leaf_names: LeafNames) -> Pairs:
    """Layers in a file of plain names: by the given ones, and those that Keras numbered by their rank in a class.

    `dense_3, dense_4` of one process are `dense, dense_1` of another: equal names among them are chance.
    """
    pairs = []
    ranked: dict[str, dict[int, Node]] = {}
    as_written = node.spelled or {key: key for key in node.children}
    for key, child in ((raw, node.children[name]) for raw, name in as_written.items()):
        if key in live.children and live.children[key].given_name == key:
            pairs.append((live.children[key], child))
        elif node.is_plain and without_number(key) in live.numbered and leaf_names(child):
            ranked.setdefault(without_number(key), {})[number_in(key)] = child
    for name, theirs in ranked.items():
        ours = {number_in(layer.name): layer for layer in live.numbered[name] if leaf_names(layer)}
        alike = [(ours[a], theirs[b]) for a, b in zip(sorted(ours), sorted(theirs), strict=False)]
        # A number of both sides whose rank differs is perhaps no number, but a name that the user gave.
        trusted = is_shifted(ours, theirs) or (len(ours) == len(theirs) and not set(ours) & set(theirs))
        if trusted and all(hold_equal_names(a, b, leaf_names) for a, b in alike):
            pairs += alike
    return pairs


def _by_name(live: LiveNode, node: Node) -> Pairs:
    # Layers that Keras numbered have equal names by chance.
    numbered = {id(child) for child in (*node.by_class.values(), *node.in_order())}
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


def _by_given_name(ours: list[LiveNode], theirs: list[Node]) -> Pairs:
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


def _contradicts(pairs: Pairs, named: Pairs) -> bool:
    partner = {id(ours): theirs for ours, theirs in named}
    other_way = {id(theirs): ours for ours, theirs in named}
    return any(
        partner.get(id(ours), theirs) is not theirs or other_way.get(id(theirs), ours) is not ours
        for ours, theirs in pairs
    )


def flat_pairs(live: LiveNode, node: Node, classes: Collection[str]) -> tuple[dict[int, Entry], dict[Entry, str]]:
    """({id of variable: entry}, {entry: what a person should know}); both empty where the list does not fit.

    classes: names that Keras makes layer names from.

    The names in the list say the most: Keras writes what is trained first, so that a part which was
    frozen stands elsewhere. Shapes come before the numbers that Keras gave to layers, which tell only
    the order in which these were made. Else the order of the list fits if all leaf names agree in their
    places, or if none does and all shapes do, as in files of Keras 1, and if no name says otherwise.
    """
    entries = [part.entry for part in node.flat or [] if part.entry is not None]
    if live.layer is None or not entries:
        return {}, {}
    weights = list({id(v): v for v in live.layer.weights}.values())
    names = _names(live.layer, weights, entries)
    paths = [v.path.removesuffix(v.name) + names[id(v)] for v in weights]
    compared = Comparison(paths, [entry.name for entry in entries], classes)
    by_path = {id(weights[place]): entries[other] for place, other in compared.equal()}
    if compared.is_complete:
        return _by_shape(weights, paths, entries, classes) or by_path, {}
    place_of = {id(v): place for place, v in enumerate(weights)}
    fitting = []
    trained, others = trained_first(weights, live)
    for variables in (trained + others, weights):
        fits = len(variables) == len(entries) and _fit(variables, names, entries)
        if fits and not any(compared.contradicts(place_of[id(v)], place) for place, v in enumerate(variables)):
            fitting.append({id(v): entry for v, entry in zip(variables, entries, strict=True)})
    if not fitting or any(other != fitting[0] for other in fitting):
        return by_path, {}
    return fitting[0], {
        entry: f"by its place in the layer, where the file calls it {_leaf(entry)}"
        for key, entry in fitting[0].items()
        if names[key] != _leaf(entry)
    }


def _names(layer: keras.Layer, weights: list[keras.Variable], entries: list[Entry]) -> dict[int, str]:
    """{id of variable: its name}, as Keras 2 called it if the file has more variables of such a name than the model."""
    leaves = [_leaf(entry) for entry in entries]
    names = {id(v): v.name for v in weights}
    today = list(names.values())
    return names | {
        key: name for key, name in names_in_keras_2(layer).items() if leaves.count(name) > today.count(name)
    }


def _by_shape(
    weights: list[keras.Variable], paths: list[str], entries: list[Entry], classes: Collection[str]
) -> dict[int, Entry]:
    """The pairs of equal paths without Keras' numbers and equal shapes; empty where these are not unique."""

    def unnumbered(path: str, shape: tuple[int, ...]) -> str:
        parts = [part if without_number(part) not in classes else without_number(part) for part in path.split("/")]
        return "/".join([*parts, str(shape)])

    ours = [unnumbered(path, tuple(v.shape)) for v, path in zip(weights, paths, strict=True)]
    compared = Comparison(ours, [unnumbered(entry.name, entry.shape) for entry in entries], ())
    return {id(weights[place]): entries[other] for place, other in compared.equal()} if compared.is_complete else {}


def _fit(variables: list[keras.Variable], names: dict[int, str], entries: list[Entry]) -> bool:
    ours, theirs = [names[id(v)] for v in variables], [_leaf(entry) for entry in entries]
    shapes_fit = all(tuple(v.shape) == entry.shape for v, entry in zip(variables, entries, strict=True))
    return ours == theirs or (not set(ours) & set(theirs) and shapes_fit)


def _leaf(entry: Entry) -> str:
    return entry.name.split("/")[-1]
