"""Builds the tree of a model's layers, containers and variables that is laid beside a checkpoint's; names weights."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from trainer.keras_internals import own_variables, trainable_variables_of
from trainer.restore.matching.names import join, normalize_siblings

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


def layer_paths(model: keras.Model) -> dict[str, keras.Layer]:
    """{shortest path: layer} of every layer in a built model, the model itself as ""."""
    return {path: node.layer for path, node in paths(live_tree(model)) if node.layer is not None}


def live_variables(model: keras.Model, tree: LiveNode) -> list[LiveVariable]:
    """Every weight of the model once, under its shortest path, in the order of `model.weights`.

    Weights are what Keras calls so: variables without metric and random states. One that no
    attribute leads to goes by the path that Keras gave it.
    """
    names: dict[int, str] = {}
    for path, node in paths(tree):
        if node.variable is not None:
            names.setdefault(id(node.variable), path)
    taken = set(names.values())
    found = []
    for weight in {id(weight): weight for weight in model.weights}.values():
        if id(weight) not in names:
            names[id(weight)] = free_name(weight.path, taken)
            taken.add(names[id(weight)])
        found.append(LiveVariable(names[id(weight)], weight))
    return found


def weights_of(model: keras.Model) -> list[LiveVariable]:
    """Every weight of a built model under its normalised name."""
    return live_variables(model, live_tree(model))


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """The model and every layer in it, those in Python lists and dicts too."""
    return [node.layer for _, node in paths(live_tree(model)) if node.layer is not None]


def lasting_names(model: keras.Model) -> dict[int, str]:
    """{id of a weight: its name, or its place among the weights where the name is a number of this process}."""
    tree = live_tree(model)
    numbered = numbered_by_keras(tree)
    return {
        id(weight.variable): str(place) if id(weight.variable) in numbered else weight.name
        for place, weight in enumerate(live_variables(model, tree))
    }


def classes_in(tree: LiveNode) -> frozenset[str]:
    """The names that Keras makes names of the layers where the user gave none."""
    names = {class_name(type(node.layer)) for _, node in paths(tree) if node.layer is not None}
    # Bidirectional calls its two layers so.
    return frozenset(names | {f"{way}_{name}" for way in ("forward", "backward") for name in names})


def numbered_by_keras(tree: LiveNode) -> set[int]:
    """Ids of the variables whose name here holds a layer's number, which is another one in each process."""
    found: set[int] = set()
    for _, node in paths(tree):
        for layers in node.numbered.values() if node.is_graph else ():
            for layer in layers:
                found |= {id(part.variable) for _, part in paths(layer) if part.variable is not None}
    return found


def numbered_paths(tree: LiveNode) -> set[str]:
    """Paths of the layers that Keras numbered in Functional and Sequential models, by number and by rank."""
    by_number = {join(path, name) for path, node in paths(tree) for name in _ranked(node)}
    return by_number | {join(path, name) for path, node in paths_by_rank(tree) for name in _ranked(node).values()}


def trained_first(weights: list[keras.Variable], tree: LiveNode) -> tuple[list[keras.Variable], list[keras.Variable]]:
    """(those that were made to be trained, the others), each in their order; what is frozen now does not matter."""
    layers = (node.layer for _, node in paths(tree) if node.layer is not None)
    trainable = {id(variable) for layer in layers for variable in trainable_variables_of(layer)}
    return [v for v in weights if id(v) in trainable], [v for v in weights if id(v) not in trainable]


def unbuilt_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers inside a model that would still create variables when they are called.

    A layer without a `build` of its own has none but its parts', and those are looked at too.
    """
    without_build = (keras.Layer.build, keras.Model.build)
    return [x for x in layers_of(model) if x is not model and not x.built and type(x).build not in without_build]


def paths(tree: LiveNode) -> Iterator[tuple[str, LiveNode]]:
    """(shortest path, node) of everything in the tree, each once, the nearest first."""
    return _walk(tree, lambda node: {})


def paths_by_rank(tree: LiveNode) -> Iterator[tuple[str, LiveNode]]:
    """The same, but a layer that Keras numbered goes by its rank: the first Dense of a model is `dense`."""
    return _walk(tree, _ranked)


def _walk(tree: LiveNode, names: Callable[[LiveNode], dict[str, str]]) -> Iterator[tuple[str, LiveNode]]:
    seen: set[int] = set()
    queue = [("", tree)]
    for path, node in queue:
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield path, node
        other = names(node)
        queue += [(join(path, other.get(name, name)), child) for name, child in node.children.items()]


def _ranked(node: LiveNode) -> dict[str, str]:
    """{name of a numbered layer of a Functional or Sequential model: class and rank}."""
    if not node.is_graph:
        return {}
    return {
        layer.name: f"{name}_{rank}" if rank else name
        for name, layers in node.numbered.items()
        for rank, layer in enumerate(layers)
    }
