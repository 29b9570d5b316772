"""Creates the variables of a model that has not seen data yet, without computing anything."""

import inspect
from collections.abc import Sequence

import keras
import tensorflow as tf

from trainer.errors import message_of
from trainer.restore.errors import RestoreError
from trainer.restore.matching.model_tree import layers_of, live_tree, paths, unbuilt_layers
from trainer.restore.matching.names import join, normalize


def build_model(model: keras.Model, input_spec=None) -> None:
    """Builds an unbuilt model in place by calling it on symbolic inputs.

    input_spec: the structure of `tf.TensorSpec` that the model is called with, batch dimension included (None for any
      size); a tuple, or a dict by argument, for a `call` of several inputs.
      Not needed for a model that is built already.
    Under a distribution strategy, call it in the strategy's scope: variables live where they are made.

    Raises `RestoreError` if the model is unbuilt and can't be built this way.
    """
    if not isinstance(model, keras.Layer):
        raise RestoreError(
            f"The model is a {type(model).__module__}.{type(model).__qualname__}; weights go into models of Keras 3."
        )
    if not _is_unbuilt(model):
        _refuse_plain_variables(model)
        return
    if input_spec is None:
        raise RestoreError(
            f"The model {model.name} is not built: it has no variables yet that weights could go to. "
            "Give the inputs' specification, e.g. restore_weights(..., input_spec=tf.TensorSpec([None, 28, 28, 1]))."
        )
    if not all(isinstance(spec, tf.TensorSpec) and spec.shape.rank is not None for spec in tf.nest.flatten(input_spec)):
        raise RestoreError(
            f"input_spec is {input_spec!r}; it takes a tf.TensorSpec of known rank for each input, "
            "e.g. tf.TensorSpec([None, 28, 28, 1])."
        )
    positional, named = _arguments(model, tf.nest.map_structure(_symbolic, input_spec))
    try:
        model(*positional, **named)
        if _is_unbuilt(model):
            model(*positional, **named, training=True)  # some layers are called in training only
    except Exception as error:
        raise RestoreError(
            f"The model {model.name} can't be built from inputs {_show(input_spec)}: "
            f"{type(error).__name__}: {message_of(error)}\nGive the specification that its call() expects; in a run, "
            "by the task's inputs: the name of a feature, or a list or dict of them as the model takes them."
        ) from error
    _refuse_plain_variables(model)
    renew_constants(model)
    if _is_unbuilt(model):
        raise RestoreError(
            f"The model {model.name} was called on {_show(input_spec)} and still has layers without variables: "
            f"{', '.join(layer.name for layer in unbuilt_layers(model))}. Call them in call(), or remove them."
        )


def renew_constants(model: keras.Layer, changed: Sequence[keras.Variable] | None = None) -> None:
    """Computes again what `Normalization` computes with: tensors that were made from its variables when it was built.

    changed: the variables that have new values; None for all. A layer that was built on symbolic inputs holds tensors
      of a graph that is gone, and one that was restored those of its old statistics.
    Functions that Keras traced before, such as `predict`'s, are traced again.
    """
    ids = None if changed is None else {id(variable) for variable in changed}
    layers = layers_of(model)
    stale = [
        layer
        for layer in layers
        if isinstance(layer, keras.layers.Normalization)
        and layer.built
        and (ids is None or any(id(variable) in ids for variable in layer.variables))
    ]
    for layer in stale:
        if layer.input_mean is None:
            layer.finalize_state()
        else:
            layer.build(layer.get_build_config()["input_shape"])  # makes no variables, only the constants
    if stale:
        forget_traces(model)


def forget_traces(model: keras.Layer) -> None:
    """Makes Keras trace `predict` and the like again: the functions hold tables and constants of before."""
    for layer in layers_of(model):
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None


def _arguments(model: keras.Layer, inputs) -> tuple[tuple, dict]:
    """The arguments of `call`: one structure, or, where it asks for several inputs, each of them as an argument."""
    parameters = inspect.signature(model.call).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    if len(needed) > 1 and isinstance(inputs, list | tuple) and len(inputs) == len(needed):
        return tuple(inputs), {}
    if len(needed) > 1 and isinstance(inputs, dict) and set(needed) <= set(inputs):
        return (), inputs
    return (inputs,), {}


def _refuse_plain_variables(model: keras.Model) -> None:
    """Raises `RestoreError` for a `tf.Variable` in a layer: Keras 3 neither trains nor counts it as a weight.

    Keras' own layers have some, which its users can't help: the constants of TextVectorization are such.
    """
    for path, node in paths(live_tree(model)):
        if type(node.layer).__module__.startswith("keras.") and not isinstance(node.layer, keras.Model):
            continue
        for name, value in vars(node.layer).items() if node.layer is not None else ():
            # TensorFlow keeps its own views of a layer's parts under names that begin so.
            if not name.startswith(("_", "self_")) and _holds_plain_variable(value):
                place = join(path, normalize(name))
                raise RestoreError(
                    f"{place} is a plain tf.Variable: Keras 3 would neither restore nor train it. "
                    "Make it with self.add_weight(...) in the layer."
                )


def _holds_plain_variable(value) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(part, tf.Variable) for part in parts)


def _is_unbuilt(model: keras.Model) -> bool:
    return not model.built or bool(unbuilt_layers(model))


def _symbolic(spec: tf.TensorSpec) -> keras.KerasTensor:
    return keras.KerasTensor(tuple(spec.shape), dtype=spec.dtype.name)


def _show(input_spec) -> str:
    return str(tf.nest.map_structure(lambda spec: f"{spec.dtype.name}{list(spec.shape)}", input_spec))
