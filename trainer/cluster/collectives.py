"""Collectives of all workers on the host: each gives its numbers, all get the same ones."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from trainer.cluster.strategy import is_chief, local_replicas, num_workers, worker_index


class Agreement:
    """Sums over the workers of a strategy; where there is one, its own numbers.

    Every call is a collective: all workers must make it, at the same place.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self.workers = num_workers(strategy)
        self.index = worker_index(strategy)
        self._is_chief = is_chief(strategy)

    def all_reduce_sum(self, values: Sequence[int] | np.ndarray) -> np.ndarray:
        """[len(values)] int64: the sums over all workers."""
        own = np.asarray(values, np.int64)
        if self.workers == 1:
            return own
        total = self._sum(tf.constant(own))
        # Every replica of a worker adds what is the worker's.
        return self._strategy.experimental_local_results(total)[0].numpy() // local_replicas(self._strategy)

    def broadcast_from_chief(self, values: Sequence[int]) -> np.ndarray:
        """[len(values)] int64: what the chief gives; of others only the number of values counts."""
        return self.all_reduce_sum(values if self._is_chief else [0] * len(values))

    def gather_texts(self, text: str) -> list[str]:
        """Each worker's text, the chief's first."""
        data = text.encode()
        lengths = self.all_reduce_sum([len(data) if index == self.index else 0 for index in range(self.workers)])
        table = np.zeros([self.workers, int(lengths.max())], np.int64)
        table[self.index, : len(data)] = np.frombuffer(data, np.uint8)
        rows = self.all_reduce_sum(table.ravel()).reshape(table.shape)
        return [bytes(row[:length].astype(np.uint8)).decode() for row, length in zip(rows, lengths, strict=True)]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
    def _sum(self, values):
        def add_up(value):
            # Through a tensor made on the replica: one from outside has no device to reduce to.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        return self._strategy.run(add_up, args=(values,))
