"""The model as a tree that can be laid beside a checkpoint's: layers by attribute, variables as leaves."""

import dataclasses
from collections.abc import Iterator

import keras
import tensorflow as tf

from trainer.restore.names import join, normalize_siblings

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
    layer, variable: what it stands for; neither for a container.
    in_order: the layers of a Functional or Sequential model in their order, else None.
    """

    children: dict[str, "LiveNode"] = dataclasses.field(default_factory=dict)
    layer: keras.Layer | None = None
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
    for path, node in paths(tree):
        if node.variable is not None:
            names.setdefault(id(node.variable), path)
    taken = set(names.values())
    found = []
    for weight in {id(weight): weight for weight in model.weights}.values():
        if id(weight) not in names:
            names[id(weight)] = _free_name(weight.path, taken)
            taken.add(names[id(weight)])
        found.append(LiveVariable(names[id(weight)], weight))
    return found


def weights_of(model: keras.Model) -> list[LiveVariable]:
    """Every weight of a built model under its normalised name."""
    return live_variables(model, live_tree(model))


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """The model and every layer in it, those in Python lists and dicts too."""
    return [node.layer for _, node in paths(live_tree(model)) if node.layer is not None]


def unbuilt_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers inside a model that would still create variables when they are called.

    A layer without a `build` of its own has none but its parts', and those are looked at too.
    """
    without_build = (keras.Layer.build, keras.Model.build)
    return [x for x in layers_of(model) if x is not model and not x.built and type(x).build not in without_build]


def paths(tree: LiveNode) -> Iterator[tuple[str, LiveNode]]:
    """(shortest path, node) of everything in the tree, each once, the nearest first."""
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
        node.layer = thing
        _add_layer(node, thing, known)
    else:
        for name, part in _parts(thing):
            node.children[name] = _node(part, known)
    return node


def _free_name(name: str, taken: set[str]) -> str:
    """The name, or with a number after it where another weight has it already."""
    numbered = (f"{name}_{number}" for number in range(1, len(taken) + 2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _add_layer(node: LiveNode, layer: keras.Layer, known: dict[int, LiveNode]) -> None:
    if isinstance(layer, keras.Sequential | keras.Model) and _is_graph(layer):
        parts = [part for part in layer.layers if part is not layer]
        node.in_order = [_node(part, known) for part in parts]
        node.children.update({part.name: child for part, child in zip(parts, node.in_order, strict=True)})
    held = {
        name: value for name, value in vars(layer).items() if name not in _KERAS_OWN and _holds_weights(value, set())
    }
    spelled = normalize_siblings(held)
    for name, value in held.items():
        node.children.setdefault(spelled[name], _node(value, known))


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
