"""The model as a tree that can be laid beside a checkpoint's: layers by attribute, variables as leaves."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.keras_internals import trainable_variables_of
from trainer.restore.model_tree import LiveNode, class_name, free_name, live_tree
from trainer.restore.names import join


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


def as_stored(node: LiveNode) -> list[LiveNode]:
    """A layer's own variables in the order in which Keras' `.weights.h5` files number them.

    Quantized layers and those with LoRA leave some out or write them in another order; they are
    asked, and what they compute for the file is known by its shape.
    """
    layer = node.layer
    if layer is None or type(layer).save_own_variables is keras.Layer.save_own_variables:
        return node.own
    store: dict[str, Any] = {}
    try:
        layer.save_own_variables(store)
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError):
        return node.own  # the user's own way to save, which asks for more than a dict
    if not all(key.isdigit() for key in store):
        return node.own
    left = {id(part.variable): part for part in node.own}
    shapes = {id(variable): tuple(variable.shape) for variable in layer.weights}
    found: dict[str, LiveNode] = {}
    for key, value in store.items():
        if id(value) in left:
            found[key] = left.pop(id(value))
    for key in (key for key in store if key not in found):
        alike = [part for part in left.values() if shapes.get(id(part.variable)) == tuple(np.shape(store[key]))]
        if len(alike) != 1:
            return node.own
        found[key] = left.pop(id(alike[0].variable))
    return [found[key] for key in sorted(found, key=int)]


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
