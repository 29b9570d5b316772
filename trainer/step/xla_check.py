"""Compiles a step's forward and backward pass with XLA before anything runs, and says what would stop it."""

import re
from collections.abc import Sequence

import keras
import tensorflow as tf

from trainer.data.data import Data
from trainer.errors import UserError
from trainer.restore import layers_of
from trainer.step.trace_checks import batch_specs, trace_metrics
from trainer.tasks.task import Task

_WHO = "Step.jit_compile, and every TPU"


def describe_fitness(obstacles: Sequence[str]) -> str:
    """Describes in a line what `check_xla` found."""
    if not obstacles:
        return "compiles; every shape is static"
    return f"compiles; a TPU would refuse shapes that depend on values: {_list(obstacles)}"


def check_xla(
    model: keras.Model,
    task: Task,
    data: Data,
    batch_size: int,
    variables: Sequence[keras.Variable],
    strategy: tf.distribute.Strategy,
    eval_data: Data | None = None,
) -> list[str]:
    """The operations of dynamic shape, with their place: a TPU would refuse them though XLA compiles them here.

    batch_size: examples that one replica sees in one micro-batch.
    eval_data: what evaluations are of, if there are any; only a TPU compiles them.

    Nothing is computed. Raises `UserError` for what XLA cannot compile. Call outside of the strategy's scope.
    """
    if strategy.num_replicas_in_sync > 1:
        _refuse_sums_over_replicas(model)

    batch_spec, weight_spec = batch_specs(data, batch_size)
    for name, spec in batch_spec.items():
        if spec.dtype == tf.string:
            raise UserError(
                f"{_WHO}: the feature {name!r} is text, which XLA cannot take. Leave it out by "
                "tfds_data.features, or drop it in preprocess."
            )
        if not spec.shape.is_fully_defined():
            raise UserError(
                f"{_WHO}: the feature {name!r} is of shape {spec.shape}; XLA needs every size. "
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
        raise UserError(f"{_WHO}: {_reason(str(error), graph, model)}") from error
    dynamic = _dynamic_shapes(graph, model)
    if eval_data is not None:
        evaluation = trace_metrics(model, task, eval_data, batch_size).graph
        dynamic += [f"{place}, in evaluations" for place in _dynamic_shapes(evaluation, model)]
    return dynamic


def _refuse_sums_over_replicas(model: keras.Model) -> None:
    layers = [layer.name for layer in layers_of(model) if getattr(layer, "synchronized", False)]
    if layers:
        raise UserError(
            f"Step.jit_compile: {_list(layers)} takes its statistics over all replicas, for which a pass that "
            "XLA compiles cannot wait. Leave jit_compile off, train on one replica, or normalise otherwise, as "
            "GroupNormalization does."
        )


def _reason(text: str, graph: tf.Graph, model: keras.Model) -> str:
    kinds = re.findall(r"(\w+) \(No registered '\w+' OpKernel", text)
    if not kinds:
        return f"XLA cannot compile the step: {text.strip().splitlines()[0][:300]}"
    places = [_place(node, model) for nodes in _all_nodes(graph) for node in nodes if node.op in kinds]
    return (
        f"XLA cannot compile {', '.join(dict.fromkeys(kinds))}, which only the host can run"
        + (f": {_list(places)}" if places else "")
        + ". Take it out of the model and the loss, or train without XLA."
    )


def _all_nodes(graph: tf.Graph) -> list[Sequence]:
    """The nodes of the graph, and those of each function in it: bodies of loops, branches, functions that it calls.

    In the same order each time, which a library's own is not; what is of gradients comes last, for what its user
    wrote is what they can change.
    """
    definition = graph.as_graph_def(add_shapes=True)
    functions = sorted(
        definition.library.function,
        key=lambda function: ("_grad_" in function.signature.name, function.signature.name),
    )
    return [definition.node, *(function.node_def for function in functions)]


def _dynamic_shapes(graph: tf.Graph, model: keras.Model) -> list[str]:
    found = []
    for nodes in _all_nodes(graph):
        # The sizes in lists of tensors, such as a recurrent layer keeps, XLA finds by itself.
        unknown = {node.name for node in nodes if not _is_static(node) and not node.op.startswith("TensorList")}
        for node in nodes:
            inputs = {name.lstrip("^").split(":")[0] for name in node.input}
            if node.name in unknown and not inputs & unknown:
                found.append(_place(node, model))
    return found


def _is_static(node) -> bool:
    shapes = node.attr["_output_shapes"].list.shape if "_output_shapes" in node.attr else []
    return not any(shape.unknown_rank or any(dim.size < 0 for dim in shape.dim) for shape in shapes)


def _list(places: Sequence[str]) -> str:
    different = list(dict.fromkeys(places))
    more = f"; and {len(different) - 4} more" if len(different) > 4 else ""
    return "; ".join(different[:4]) + more


def _place(node, model: keras.Model) -> str:
    names = {layer.name for layer in layers_of(model)}
    # A layer that is traced again has a number after its name.
    spellings = [(part, re.sub(r"_\d+$", "", part)) for part in reversed(node.name.split("/"))]
    layer = next((name for pair in spellings for name in pair if name in names), "")
    return f"{node.op} in the layer {layer}" if layer else f"{node.op} ({node.name}) outside of any layer"
