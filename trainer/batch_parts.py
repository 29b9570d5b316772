"""Cuts a worker's batch into what one replica takes, and into micro-batches."""

import tensorflow as tf

from trainer.strategy import local_replicas


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
