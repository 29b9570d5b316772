"""Names the layers in a TensorFlow checkpoint by the full names of their variables, such as `sequential/a/kernel`.

Keras writes a variable's name scope into the object graph
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/trackable_object_graph.proto,
`full_name`), and the scope holds the layer's name: after that of a Sequential model around it, and before those
of the parts in the layer. Keras 3 leaves out the scopes of parts that were built when they were first called.
"""

import os
from collections import Counter
from collections.abc import Iterable

from trainer.restore.source import Node

_Scope = tuple[str, ...]  # a full name without the variable's own


def name_layers(nodes: Iterable[Node]) -> None:
    """Sets `keras_name` on the layers of each Functional and Sequential model, and makes them children by it.

    nodes: all objects of the file, with the labels of their entries set.  A layer whose name the scopes do not
      tell, or that shares it with another layer of the model, keeps its number only.
    """
    for model in nodes:
        layers = model.in_order()
        scopes = {layer: _scopes_below(layer) for layer in layers}
        around = _scopes_around(layers, scopes)
        for layer in layers:
            layer.keras_name = layer.keras_name or _name(layer, scopes[layer], around)
        times = Counter(layer.keras_name for layer in layers)
        named = {layer.keras_name: layer for layer in layers if layer.keras_name and times[layer.keras_name] == 1}
        named = {name: layer for name, layer in named.items() if name not in model.children}
        model.children = named | model.children  # first, so that paths go by names rather than by numbers
        model.spelled = {name: name for name in named} | model.spelled


def _name(layer: Node, scopes: set[_Scope], around: list[_Scope]) -> str:
    own = _own_scopes(layer)
    if len(own) == 1:
        return own.pop()[-1]
    common = _common(scopes)
    for scope in around:
        if common[: len(scope)] == scope and len(common) > len(scope):
            # What all variables of a model have in common may be the name of its only layer instead.
            is_lone_layer = layer.in_order() and any(len(found) < len(scope) + 2 for found in scopes)
            return "" if is_lone_layer else common[len(scope)]
    return ""


def _scopes_around(layers: list[Node], scopes: dict[Node, set[_Scope]]) -> list[_Scope]:
    """Scopes that a layer of the model may stand in, the longest first."""
    found = {own.pop()[:-1] for layer in layers if len(own := _own_scopes(layer)) == 1}
    filled = [below for below in scopes.values() if below]
    if not found and len(filled) > 1:
        found = {_common(set().union(*filled))}
    return sorted(found, key=len, reverse=True)


def _own_scopes(layer: Node) -> set[_Scope]:
    """The scopes of the variables directly in a layer, those without one left out."""
    return {scope for part in layer.children.values() if part.entry is not None and (scope := _scope(part))}


def _scopes_below(layer: Node) -> set[_Scope]:
    seen: set[int] = set()
    queue = [layer]
    found = set()
    for node in queue:
        if id(node) in seen or node.is_optimizer:
            continue
        seen.add(id(node))
        queue += node.children.values()
        if node.entry is not None:
            found.add(_scope(node))
    return found


def _scope(node: Node) -> _Scope:
    assert node.entry is not None
    return tuple(node.entry.label.split("/")[:-1])


def _common(scopes: set[_Scope]) -> _Scope:
    return tuple(os.path.commonprefix([list(scope) for scope in scopes]))
