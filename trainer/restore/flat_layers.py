"""Pairs the variables of a layer and its parts with the plain list of them that Keras' old `.h5` files keep."""

from collections.abc import Collection

import keras

from trainer.restore.keras_names import names_in_keras_2, without_number
from trainer.restore.keras_paths import Comparison
from trainer.restore.live import trained_first
from trainer.restore.model_tree import LiveNode
from trainer.restore.source import Entry, Node


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
