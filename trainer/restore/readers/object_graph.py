"""Understands the graph of objects in a TensorFlow checkpoint: tests it, names its layers, tells kinds of entries.

`parse_graph` tests that each object is there. `name_layers` names layers by the full names of their variables, such as
`sequential/a/kernel`: Keras writes a variable's name scope into the graph
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/trackable_object_graph.proto,
`full_name`), and the scope holds the layer's name, after that of a Sequential model around it, and before those of the
parts in the layer. Keras 3 leaves out the scopes of parts that were built when they were first called. `classify` tells
weights from optimizer state, counters and the rest.
"""

import os
from collections import Counter
from collections.abc import Iterable

from tensorflow.core.protobuf import trackable_object_graph_pb2

from trainer.restore.matching.names import expect_bearable, join, readable_name
from trainer.restore.readers.flat_names import mark_named_slots
from trainer.restore.source import CheckpointSource, Entry, Node

VALUE = "VARIABLE_VALUE"
_Scope = tuple[str, ...]  # a full name without the variable's own
_BOOKKEEPING = {"loss_tracker", "compile_metrics", "metrics", "keras_api", "seed_generators", "seed_generator"}
_OUR_COPIES = "train_state/ema_weights"  # of weights that stand in the file already; `root` can name them


def parse_graph(content: bytes) -> trackable_object_graph_pb2.TrackableObjectGraph:
    """The graph, with names that are fit to be shown.

    Raises `DecodeError`, or `ValueError` for one with objects that are not there, with two of one name in one
    object, or with objects that lie deeper than in any model. It may have circles, as Keras' graphs do.
    """
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(content)
    if not graph.nodes:
        raise ValueError("its object graph is empty")
    for node in graph.nodes:
        for part in (*node.children, *node.slot_variables, *node.attributes):
            _make_readable(part)
        _expect_there(len(graph.nodes), [child.node_id for child in node.children])
        for slot in node.slot_variables:
            _expect_there(len(graph.nodes), [slot.original_variable_node_id, slot.slot_variable_node_id])
        _expect_one_each([(child.local_name, child.node_id) for child in node.children])
        _expect_one_each([(VALUE, part.checkpoint_key) for part in node.attributes if part.name == VALUE])
    _expect_shallow(graph)
    return graph


def _make_readable(part) -> None:
    for field in ("local_name", "slot_name", "full_name", "checkpoint_key"):
        raw = getattr(part, field, "")
        name = readable_name(raw)
        if name != raw:
            setattr(part, field, name)


def _expect_there(count: int, numbers: list[int]) -> None:
    for number in numbers:
        if not 0 <= number < count:
            raise ValueError(f"its object graph speaks of object {number}, and has {count}")


def _expect_one_each(pairs: list[tuple[str, object]]) -> None:
    for name, other in pairs if len(dict(pairs)) < len(pairs) else ():
        if dict(pairs)[name] != other:
            raise ValueError(f"its object graph has two parts called {name} in one object")


def _expect_shallow(graph: trackable_object_graph_pb2.TrackableObjectGraph) -> None:
    seen, level, levels = {0}, [("", 0)], 0
    while level:
        below = []
        for path, index in level:
            expect_bearable(path, levels)
            for child in graph.nodes[index].children:
                if child.node_id not in seen:
                    seen.add(child.node_id)
                    below.append((join(path, child.local_name), child.node_id))
        level, levels = below, levels + 1


def name_layers(nodes: Iterable[Node]) -> None:
    """Sets `keras_name` on the layers of each Functional and Sequential model, and makes them children by it.

    nodes: all objects of the file, with the labels of their entries set.  A layer whose name the scopes do not tell, or
      that shares it with another layer of the model, keeps its number only.
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


def classify(source: CheckpointSource, slots: list[Node]) -> list[Entry]:
    """Every entry of the tree once, with its kind and name set.

    slots: objects that the file calls slot variables.
    Weights are what is reached without passing an optimizer, or as an optimizer's own variables list.
    The second case matters: TensorFlow names a tensor by its *shortest* path, so that a model's
    weights may stand in the file as `optimizer/_trainable_variables/N` only.
    """
    slot_ids = {id(node) for node in slots}
    seen: set[int] = set()
    entries: list[Entry] = []
    optimizers: list[tuple[str, Node]] = []

    def walk(top: Node, path: str, kind: str) -> None:
        queue = [(top, path, kind)]
        for node, path, kind in queue:
            if id(node) in seen or id(node) in slot_ids:
                continue
            if node.is_optimizer and kind != "optimizer":
                optimizers.append((path, node))
                continue
            seen.add(id(node))
            if node.entry:
                node.entry.name = path
                node.entry.kind = _kind(node.entry, path, kind)
                entries.append(node.entry)
            for name, child in node.children.items():
                below = join(path, name)
                queue.append((child, below, "other" if name in _BOOKKEEPING or below == _OUR_COPIES else kind))

    if {"variables", "trainable_variables", "all_variables", "signatures"} <= set(source.top.children):
        # model.export() writes each variable a second time, in no order.
        walk(source.top.children["variables"], "variables", "weight")
        walk(source.top.children["all_variables"], "all_variables", "other")
    walk(source.top, "", "weight")
    for path, optimizer in _with_inner(optimizers):
        variables = optimizer.children.get("trainable_variables")
        if variables is not None:
            walk(variables, join(path, "trainable_variables"), "weight")
    for path, optimizer in optimizers:
        walk(optimizer, path, "optimizer")
    for node in slots:
        if node.entry:
            node.entry.kind = "optimizer"
            entries.append(node.entry)
    if source.top.is_plain:  # there are no objects to tell an optimizer by
        mark_named_slots(source.top, entries)
    return entries


def _with_inner(optimizers: list[tuple[str, Node]]) -> list[tuple[str, Node]]:
    """The optimizers, each followed by the one that it wraps (loss scaling, averaging)."""
    found = list(optimizers)
    for path, optimizer in found:
        found += [
            (join(path, name), child)
            for name, child in optimizer.children.items()
            if child.is_optimizer and all(child is not known for _, known in found)
        ]
    return found


def _kind(entry: Entry, path: str, kind: str) -> str:
    if kind != "weight":
        return kind
    if "seed_generator_state" in (entry.name.split("/")[-1], entry.label.split("/")[-1]):
        return "other"
    counts = not entry.shape and entry.dtype.is_integer
    return "counter" if counts or path.split("/")[-1] in ("save_counter", "global_step") else "weight"
