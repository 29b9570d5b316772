"""Compiles a step's forward and backward pass with XLA before anything runs, and says what would stop it."""

import re
from collections.abc import Sequence

import keras
import tensorflow as tf

from trainer.assembly import batch_specs
from trainer.data import Data
from trainer.errors import UserError
from trainer.restore import layers_of
from trainer.tasks import Task


def describe_fitness(obstacles: Sequence[str]) -> str:
    """What `check_xla` found, in a line."""
    if not obstacles:
        return "compiles; every shape is static"
    return f"compiles; a TPU would refuse shapes that depend on values: {'; '.join(obstacles[:4])}"


def check_xla(
    model: keras.Model,
    task: Task,
    data: Data,
    batch_size: int,
    variables: Sequence[keras.Variable],
    strategy: tf.distribute.Strategy,
) -> list[str]:
    """What a TPU would refuse though XLA on this machine compiles it: operations of dynamic shape, with their place.

    batch_size: examples that one replica sees in one micro-batch.

    Nothing is computed. Raises `UserError` for what XLA cannot compile. Call outside of the strategy's scope.
    """
    if strategy.num_replicas_in_sync > 1:
        _refuse_sums_over_replicas(model)

    batch_spec, weight_spec = batch_specs(data, batch_size)
    for name, spec in batch_spec.items():
        if spec.dtype == tf.string:
            raise UserError(
                f"train.jit_compile: the feature {name!r} is text, which XLA cannot take. Leave it out by "
                "tfds_data.features, or drop it in preprocess."
            )
        if not spec.shape.is_fully_defined():
            raise UserError(
                f"train.jit_compile: the feature {name!r} is of shape {spec.shape}; XLA needs every size. "
                "Pad it to one length in preprocess."
            )

    def gradients(*features_and_weight):
        *features, weight = features_and_weight
        batch = dict(zip(batch_spec, features, strict=True))
        # As the first replica: a mirrored variable is here the one of its device.
        with tf.distribute.ReplicaContext(strategy, 0), tf.GradientTape() as tape:
            loss_sum, weight_sum = task.loss(model, batch, weight, training=True)
            found = [gradient for gradient in tape.gradient(loss_sum, list(variables)) if gradient is not None]
        return [tf.convert_to_tensor(gradient) for gradient in found], loss_sum, weight_sum

    specs = [*batch_spec.values(), weight_spec]
    compiled = tf.function(gradients, jit_compile=True, autograph=False)
    graph = compiled.get_concrete_function(*specs).graph
    try:
        compiled.experimental_get_compiler_ir(*specs)(stage="hlo")
    except (tf.errors.OpError, ValueError, TypeError) as error:
        raise UserError(f"train.jit_compile: {_reason(str(error), graph, model)}") from error
    return _dynamic_shapes(graph, model)


def _refuse_sums_over_replicas(model: keras.Model) -> None:
    layers = [layer.name for layer in layers_of(model) if getattr(layer, "synchronized", False)]
    if layers:
        raise UserError(
            f"train.jit_compile: {', '.join(layers[:4])} takes its statistics over all replicas, for which a pass that "
            "XLA compiles cannot wait. Leave jit_compile off, train on one replica, or normalise otherwise, as "
            "GroupNormalization does."
        )


def _reason(text: str, graph: tf.Graph, model: keras.Model) -> str:
    kinds = re.findall(r"(\w+) \(No registered '\w+' OpKernel", text)
    if not kinds:
        return f"XLA cannot compile the step: {text.strip().splitlines()[0][:300]}"
    places = [_place(op, model) for op in graph.get_operations() if op.type in kinds]
    return (
        f"XLA cannot compile {', '.join(dict.fromkeys(kinds))}, which only the host can run"
        + (f": {'; '.join(places[:4])}" if places else "")
        + ". Take it out of the model and the loss, or leave jit_compile off."
    )


def _dynamic_shapes(graph: tf.Graph, model: keras.Model) -> list[str]:
    def is_dynamic(op: tf.Operation) -> bool:
        known = all(tensor.shape.is_fully_defined() for tensor in op.inputs)
        return known and not all(tensor.shape.is_fully_defined() for tensor in op.outputs)

    return [_place(op, model) for op in graph.get_operations() if is_dynamic(op)]


def _place(op: tf.Operation, model: keras.Model) -> str:
    names = {layer.name for layer in layers_of(model)}
    # A layer that is traced again has a number after its name.
    spellings = [(part, re.sub(r"_\d+$", "", part)) for part in reversed(op.name.split("/"))]
    layer = next((name for pair in spellings for name in pair if name in names), "")
    return f"{op.type} in the layer {layer}" if layer else f"{op.type} ({op.name}) outside of any layer"
