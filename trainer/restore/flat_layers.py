"""Pairs the variables of a layer and its parts with the plain list of them that Keras' old `.h5` files keep."""

from collections.abc import Iterator

import keras

from trainer.restore.live import LiveNode, paths
from trainer.restore.source import Entry, Node


def flat_pairs(live: LiveNode, node: Node) -> tuple[dict[int, Entry], dict[Entry, str]]:
    """({id of variable: entry}, {entry: what a person should know}); both empty where the list does not fit.

    The list is in the order of Keras 2: what is trained first, and in the layer's own order within.
    It fits if all leaf names agree in their places, or if none does and all shapes do, as in files
    of Keras 1, and if no given name of an inner layer says otherwise.
    """
    entries = [part.entry for part in node.flat or [] if part.entry is not None]
    if live.layer is None or not entries:
        return {}, {}
    owners = _owners(live)
    for variables in _orders(live, live.layer):
        if len(variables) != len(entries):
            continue
        pairs = list(zip(variables, entries, strict=True))
        if _contradicted(pairs, owners, entries):
            continue
        ours, theirs = [v.name for v in variables], [_leaf(entry) for entry in entries]
        if ours == theirs:
            return {id(v): entry for v, entry in pairs}, {}
        if not set(ours) & set(theirs) and all(tuple(v.shape) == entry.shape for v, entry in pairs):
            notes = {entry: f"by its place in the layer, where the file calls it {_leaf(entry)}" for _, entry in pairs}
            return {id(v): entry for v, entry in pairs}, notes
    return _by_inner_names(owners, live.layer, entries), {}


def _orders(live: LiveNode, layer: keras.Layer) -> Iterator[list[keras.Variable]]:
    made_trainable = {id(v.variable) for _, node in paths(live) for v in _own_trainable(node)}
    weights = list({id(v): v for v in layer.weights}.values())
    trained = [v for v in weights if id(v) in made_trainable]
    yield trained + [v for v in weights if id(v) not in made_trainable]
    yield weights


def _own_trainable(node: LiveNode) -> list[LiveNode]:
    return node.own[: len(node.layer._trainable_variables)] if node.layer is not None else []


def _owners(live: LiveNode) -> dict[int, str]:
    """{id of variable: the name that somebody gave its layer, or ""}; the outermost layer's own have none."""
    owners: dict[int, str] = {}
    for _, node in paths(live):
        for variable in node.own:
            owners.setdefault(id(variable.variable), node.given_name if node is not live else "")
    return owners


def _contradicted(pairs, owners: dict[int, str], entries: list[Entry]) -> bool:
    in_file = {segment for entry in entries for segment in entry.name.split("/")}
    return any(
        (name := owners.get(id(variable), "")) and name in in_file and name not in entry.name.split("/")
        for variable, entry in pairs
    )


def _by_inner_names(owners: dict[int, str], layer: keras.Layer, entries: list[Entry]) -> dict[int, Entry]:
    """What the given name of its inner layer and its own name tell, where only one entry has both."""
    found = {}
    for variable in layer.weights:
        name = owners.get(id(variable), "")
        fitting = [e for e in entries if name and name in e.name.split("/") and _leaf(e) == variable.name]
        if len(fitting) == 1:
            found[id(variable)] = fitting[0]
    return found


def _leaf(entry: Entry) -> str:
    return entry.name.split("/")[-1]
