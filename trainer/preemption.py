"""A signal or the end of the time, agreed by all workers -> how many steps now?"""

import math
import signal
import threading

import tensorflow as tf

from trainer.strategy import is_chief

PREEMPTED_EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: "try again", a supervisor's sign to restart


class Preemption:
    """What the loop asks between two device loops: whether SIGTERM or SIGINT came, and whether time is left.

    Used as a context manager; the handlers of before come back at its end. A second signal takes
    the default action at once: the last checkpoint on disk is whole all the same.
    Outside the main thread, where Python allows no handlers, it hears of none.
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

    def next_steps(self, count: int, steps_left: float = math.inf) -> int:
        """`count`, or the fewer that are left; 0 to save and leave, also where any worker got a signal.

        Every worker must ask at the same step: it is a collective. The chief's clock counts.
        """
        if not self._several_workers:
            return 0 if self._received else int(min(count, steps_left))
        allowed = min(count, steps_left) if is_chief(self._strategy) else 0.0
        total = self._sum_over_workers(tf.constant([float(self._received), float(allowed)]))
        received, allowed = self._strategy.experimental_local_results(total)[0].numpy()
        return 0 if received else int(allowed)

    @tf.function
    def _sum_over_workers(self, received):
        def all_reduce(value):
            # Through a tensor made on the replica: one from outside has no device to reduce to.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        return self._strategy.run(all_reduce, args=(received,))
