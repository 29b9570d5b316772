"""Builds the tree of a model's layers, containers and variables that is laid beside a checkpoint's."""

import dataclasses
import functools
import re

import keras

from trainer.keras_internals import own_variables
from trainer.restore.names import normalize_siblings

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


_PARTS = (keras.Variable, keras.Layer, dict, list, tuple)  # what can be a weight, or hold one


@dataclasses.dataclass(eq=False)
class LiveNode:
    """A layer, a container or a variable of the model.

    children: attribute name (or index, or the layer's name in a Functional model) -> node.
    layer, variable: what it stands for; neither for a container.
    in_order: the layers of a model in its order, None for what is no model.
    is_graph: whether the model is Functional or Sequential, so that the order is all that it goes by.
    by_class: a model's or a container's layers as Keras' `.weights.h5` files call them: `dense`, `dense_1`.
    own: the layer's own variables in the order in which it made them, trainable ones first.
    spelled: attribute names and layer names as they are -> those in `children`.
    given_name: the layer's name, "" where Keras made it from class and number.
    numbered: the layers in a model that have such names, by class, in the order of their numbers.
    """

    children: dict[str, "LiveNode"] = dataclasses.field(default_factory=dict)
    layer: keras.Layer | None = None
    variable: keras.Variable | None = None
    in_order: list["LiveNode"] | None = None
    is_graph: bool = False
    by_class: dict[str, "LiveNode"] = dataclasses.field(default_factory=dict)
    own: list["LiveNode"] = dataclasses.field(default_factory=list)
    spelled: dict[str, str] = dataclasses.field(default_factory=dict)
    given_name: str = ""
    numbered: dict[str, list["LiveNode"]] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The layer's own name, "" for what is no layer."""
        return self.layer.name if self.layer is not None else ""

    @functools.cached_property
    def in_order_set(self) -> frozenset["LiveNode"]:
        return frozenset(self.in_order or ())


def live_tree(model: keras.Model) -> LiveNode:
    """The tree of a built model. Shared layers are one node that is reached by several paths."""
    return _node(model, {})


def _node(thing, known: dict[int, LiveNode]) -> LiveNode:
    if id(thing) in known:
        return known[id(thing)]
    node = known[id(thing)] = LiveNode()
    if isinstance(thing, keras.Variable):
        node.variable = thing
    elif isinstance(thing, keras.Layer):
        node.layer = thing
        _add_layer(node, thing, known)
    else:
        parts = [(name, part, _node(part, known)) for name, part in _parts(thing)]
        node.children = {name: child for name, _, child in parts}
        node.by_class = _by_class([(part, child) for _, part, child in parts])
    return node


def free_name(name: str, taken: set[str]) -> str:
    """The name, or with a number after it where another weight has it already."""
    numbered = (f"{name}_{number}" for number in range(1, len(taken) + 2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _add_layer(node: LiveNode, layer: keras.Layer, known: dict[int, LiveNode]) -> None:
    node.given_name = "" if re.fullmatch(rf"{class_name(type(layer))}(_\d+)?", layer.name) else layer.name
    node.own = [_node(variable, known) for variable in own_variables(layer)]
    if isinstance(layer, keras.Model):
        parts = [part for part in layer.layers if part is not layer]
        node.in_order = [_node(part, known) for part in parts]
        node.by_class = _by_class(list(zip(parts, node.in_order, strict=True)))
        node.is_graph = _is_graph(layer)
        if node.is_graph:
            node.children.update({part.name: child for part, child in zip(parts, node.in_order, strict=True)})
            node.spelled.update({part.name: part.name for part in parts})
        for part, child in sorted(zip(parts, node.in_order, strict=True), key=lambda pair: number_in(pair[0].name)):
            if not child.given_name:
                node.numbered.setdefault(class_name(type(part)), []).append(child)
    held = {
        name: value
        for name, value in vars(layer).items()
        if isinstance(value, _PARTS) and name not in _KERAS_OWN and _holds_weights(value, set())
    }
    spelled = normalize_siblings(held)
    for name, value in held.items():
        node.children.setdefault(spelled[name], _node(value, known))
        node.spelled.setdefault(name, spelled[name])


def _is_graph(model) -> bool:
    return isinstance(model, keras.Sequential) or hasattr(model, "_functional") or hasattr(model, "_operations")


def number_in(name: str) -> int:
    """`dense_7` -> 7, `dense` -> 0."""
    number = re.search(r"_(\d+)$", name)
    return int(number[1]) if number else 0


def class_name(layer_class: type) -> str:
    """`MultiHeadAttention` -> `multi_head_attention`, which Keras also makes names of layers from."""
    return snake_case(layer_class.__name__)


@functools.cache
def snake_case(name: str) -> str:
    """`LayerNormalization` -> `layer_normalization`, as Keras makes names from classes."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def _by_class(parts: list[tuple[object, LiveNode]]) -> dict[str, LiveNode]:
    counts: dict[str, int] = {}
    found = {}
    for part, node in parts:
        name = class_name(type(part)) if isinstance(part, keras.Layer) else "container"
        number = counts[name] = counts.get(name, -1) + 1
        found[f"{name}_{number}" if number else name] = node
    return found


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
    return [(name, value) for name, value in pairs if isinstance(value, _PARTS)]
