"""Cuts a worker's batch into those of replicas and into micro-batches, and adds up what a replica computes on these."""

import operator
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from trainer.cluster.strategy import local_replicas
from trainer.data.step_batches import StackedBatches
from trainer.restore import layers_of


def replica_share(structure, strategy: tf.distribute.Strategy):
    """This replica's part of a worker's batch; call in `strategy.run`."""
    count = local_replicas(strategy)
    return part_of(structure, tf.distribute.get_replica_context().replica_id_in_sync_group % count, count)


def part_of(structure, index, parts: int):
    """The `index`-th of `parts` equal parts along the batch dimension of every tensor."""
    if parts == 1:
        return structure

    def part(value):
        size = value.shape[0] // parts
        if isinstance(value, tf.RaggedTensor):
            return value[index * size : (index + 1) * size]
        rest = value.shape.rank - 1
        # Not by subscript, which forgets the size where the index is a tensor.
        return tf.slice(value, [index * size] + [0] * rest, [size] + [-1] * rest)

    return tf.nest.map_structure(part, structure)


def step_inputs(
    batches: StackedBatches, stack, step: tf.Tensor, strategy: tf.distribute.Strategy, accumulation_steps: int
):
    """The input of `strategy.run` for one step of a stack: each replica's rows of every micro-batch.

    stack: of `batches`.
    Returns [rows, ...], or [micro-batches, rows, ...] where `accumulation_steps` is above 1.

    Micro-batches come first and replicas second: all replicas work on parts of the same one, as
    synchronised BatchNormalization needs. Cut on the host, so that a device gets its own rows only.
    """
    replicas = local_replicas(strategy)

    def share_of(replica: int):
        micro_batch = tf.range(accumulation_steps) if accumulation_steps > 1 else 0
        place = micro_batch * replicas + replica

        def cut(value):
            rows = value.shape[1] // (accumulation_steps * replicas)
            if isinstance(value, tf.RaggedTensor):
                return tf.gather(value[step], tf.expand_dims(place, -1) * rows + tf.range(rows))
            # [steps, batch, ...] is [steps x micro-batches x replicas, rows, ...] in memory: one look-up does.
            parts = value.shape[0] * accumulation_steps * replicas
            return tf.gather(_reshape(value, [parts, rows]), step * accumulation_steps * replicas + place)

        with tf.device("/CPU:0"):
            return batches.look_up(tf.nest.map_structure(cut, stack))

    if strategy.num_replicas_in_sync == 1:
        return share_of(0)
    return strategy.experimental_distribute_values_from_function(
        lambda context: share_of(context.replica_id_in_sync_group % replicas)
    )


def _reshape(value: tf.Tensor, sizes: list[int]) -> tf.Tensor:
    """[steps, batch, ...] -> [*sizes, ...], also where a later size is known only when it runs."""
    rest = value.shape[2:]
    if rest.is_fully_defined():
        return tf.reshape(value, [*sizes, *rest])
    return tf.ensure_shape(tf.reshape(value, tf.concat([sizes, tf.shape(value)[2:]], 0)), [*sizes, *rest])


def needs_other_replicas(model: keras.Model) -> bool:
    """Whether a forward pass waits for other replicas, which it cannot do in a loop or in what XLA compiles.

    So do sums over replicas, and variables that a layer sets to a mean over them.
    """
    return any(getattr(layer, "synchronized", False) for layer in layers_of(model)) or any(
        variable.aggregation != "none" for variable in model.variables
    )


def add_up(compute: Callable, batch, num_steps: int, variables: Sequence[keras.Variable], in_loop: bool):
    """The sums of compute(micro_batch) -> ({index of a variable: gradient}, loss, weight) over all micro-batches.

    batch: tensors [num_steps, rows, ...]; of a single micro-batch, [rows, ...].
    in_loop: computes them in a `tf.while_loop`, in one trace; else the trace holds them `num_steps` times.
    Either way one begins when the one before has ended: what it needed is free again.
    A weight that is a Python number, known without computing, is added up as one.
    """
    if num_steps == 1:
        return compute(batch)

    def micro_batch(index):
        return tf.nest.map_structure(lambda value: None if value is None else value[index], batch)

    if not in_loop:
        sums = compute(micro_batch(0))
        for index in range(1, num_steps):
            with tf.control_dependencies([sums[1]]):
                # Only operations of their own wait: those of the batch are traced already.
                sums = tf.nest.map_structure(operator.add, sums, compute(micro_batch(index)))
        return sums

    traced = {}

    def body(index, gradients, loss, weight):
        found, one_loss, one_weight = compute(micro_batch(index))
        traced["reached"], traced["weight"] = list(found), one_weight
        gradients = [total + found[i] if i in found else total for i, total in enumerate(gradients)]
        return index + 1, gradients, loss + one_loss, weight + one_weight

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    start = (tf.constant(0), zeros, tf.constant(0.0), tf.constant(0.0))
    _, gradients, loss, weight = tf.while_loop(
        lambda index, *_: index < num_steps, body, start, parallel_iterations=1, maximum_iterations=num_steps
    )
    known = isinstance(traced["weight"], float)
    return {i: gradients[i] for i in traced["reached"]}, loss, traced["weight"] * num_steps if known else weight
