"""Cuts a worker's batch into what one replica takes, and into micro-batches."""

import tensorflow as tf

from trainer.cluster.strategy import local_replicas
from trainer.data.step_batches import StackedBatches


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
    """What `strategy.run` gives each replica of one step in a stack: its rows of every micro-batch.

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
