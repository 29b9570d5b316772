"""The model as a tree that can be laid beside a checkpoint's: layers by attribute, variables as leaves."""

import dataclasses
from collections.abc import Iterator

import keras
import tensorflow as tf

from trainer.restore.names import join, normalize

# What Keras keeps in a layer beside the layer's own parts: other views of the same objects, and
# what belongs to compile and fit.
_KERAS_OWN = {
    "_tracker",
    "_layers",
    "_metrics",
    "_operations",
    "_operations_by_depth",
    "_nodes",
    "_nodes_by_depth",
    "_inbound_nodes",
    "_outbound_nodes",
    "_trainable_variables",
    "_non_trainable_variables",
    "_seed_generators",
    "_losses",
    "_loss_ids",
    "_optimizer",
    "optimizer",
    "_loss_tracker",
    "_compile_metrics",
    "_compile_loss",
    "_functional",
}


@dataclasses.dataclass(eq=False)
class LiveNode:
    """A layer, a container or a variable of the model.

    children: attribute name (or index, or the layer's name in a Functional model) -> node.
    in_order: the layers of a Functional or Sequential model in their order, else None.
    """

    children: dict[str, "LiveNode"] = dataclasses.field(default_factory=dict)
    variable: keras.Variable | None = None
    in_order: list["LiveNode"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class LiveVariable:
    """A weight of the model under its normalised name."""

    name: str
    variable: keras.Variable

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape)

    @property
    def dtype(self) -> tf.DType:
        return tf.as_dtype(self.variable.dtype)


def live_tree(model: keras.Model) -> LiveNode:
    """The tree of a built model. Shared layers are one node that is reached by several paths."""
    return _node(model, {})


def live_variables(model: keras.Model, tree: LiveNode) -> list[LiveVariable]:
    """Every weight of the model once, under its shortest path, in the order of `model.weights`.

    Weights are what Keras calls so: variables without metric and random states. One that no
    attribute leads to goes by the path that Keras gave it.
    """
    names: dict[int, str] = {}
    for path, node in _breadth_first(tree):
        if node.variable is not None:
            names.setdefault(id(node.variable), path)
    seen: set[int] = set()
    found = []
    for weight in model.weights:
        if id(weight) not in seen:
            seen.add(id(weight))
            found.append(LiveVariable(names.get(id(weight), weight.path), weight))
    return found


def has_weights(node: LiveNode) -> bool:
    return any(child.variable is not None for _, child in _breadth_first(node))


def _breadth_first(tree: LiveNode) -> Iterator[tuple[str, LiveNode]]:
    seen: set[int] = set()
    queue = [("", tree)]
    for path, node in queue:
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield path, node
        queue += [(join(path, name), child) for name, child in node.children.items()]


def _node(thing, known: dict[int, LiveNode]) -> LiveNode:
    if id(thing) in known:
        return known[id(thing)]
    node = known[id(thing)] = LiveNode()
    if isinstance(thing, keras.Variable):
        node.variable = thing
    elif isinstance(thing, keras.Layer):
        _add_layer(node, thing, known)
    else:
        for name, part in _parts(thing):
            node.children[name] = _node(part, known)
    return node


def _add_layer(node: LiveNode, layer: keras.Layer, known: dict[int, LiveNode]) -> None:
    if isinstance(layer, keras.Sequential | keras.Model) and _is_graph(layer):
        parts = [part for part in layer.layers if part is not layer]
        node.in_order = [_node(part, known) for part in parts]
        node.children.update({part.name: child for part, child in zip(parts, node.in_order, strict=True)})
    for name, value in list(vars(layer).items()):
        if name not in _KERAS_OWN and _holds_weights(value, set()):
            node.children.setdefault(normalize(name), _node(value, known))


def _is_graph(model) -> bool:
    return isinstance(model, keras.Sequential) or hasattr(model, "_functional") or hasattr(model, "_operations")


def _holds_weights(value, seen: set[int]) -> bool:
    if isinstance(value, keras.Variable | keras.Layer):
        return not isinstance(value, keras.Variable) or not value.name.endswith("seed_generator_state")
    if isinstance(value, dict | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        return any(_holds_weights(part, seen) for _, part in _parts(value))
    return False


def _parts(container) -> list[tuple[str, object]]:
    if isinstance(container, dict):
        pairs = [(str(name), value) for name, value in container.items()]
    elif isinstance(container, list | tuple):
        pairs = [(str(index), value) for index, value in enumerate(container)]
    else:
        return []
    return [
        (name, value) for name, value in pairs if isinstance(value, keras.Variable | keras.Layer | dict | list | tuple)
    ]
