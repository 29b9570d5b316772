"""A signal, agreed by all workers -> stop?"""

import signal
import threading

import tensorflow as tf

PREEMPTED_EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: "try again", a supervisor's sign to restart


class Preemption:
    """Turns SIGTERM and SIGINT into a question that the loop asks between two device loops.

    Used as a context manager; the handlers of before come back at its end. A second signal takes
    the default action at once: the last checkpoint on disk is whole all the same.
    Outside the main thread, where Python allows no handlers, it never asks to stop.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._several_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self._received = False
        self._previous: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *unused):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        del frame
        self._received = True
        signal.signal(number, signal.SIG_DFL)

    def requested(self) -> bool:
        """Whether any worker got a signal. Every worker must ask at the same step: it is a collective."""
        if not self._several_workers:
            return self._received
        total = self._sum_over_workers(tf.constant(float(self._received)))
        return bool(self._strategy.experimental_local_results(total)[0].numpy() > 0)

    @tf.function
    def _sum_over_workers(self, received):
        def all_reduce(value):
            # Through a tensor made on the replica: one from outside has no device to reduce to.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        return self._strategy.run(all_reduce, args=(received,))
