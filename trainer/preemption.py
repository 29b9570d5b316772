"""A signal or the end of the time, agreed by all workers -> how many steps now?"""

import math
import signal
import threading

import tensorflow as tf

from trainer.agreement import Agreement
from trainer.errors import RunAgain
from trainer.strategy import is_chief

PREEMPTED_EXIT_STATUS = RunAgain.exit_status


class Preemption:
    """What the loop asks between two device loops: whether SIGTERM or SIGINT came, and whether time is left.

    Used as a context manager; the handlers of before come back at its end. Where they are methods of an object that
    has `received`, it is taken over from there and handed back. A second signal, of either kind,
    takes the default action at once: the last checkpoint on disk is whole all the same.
    Outside the main thread, where Python allows no handlers, it hears of none.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._agreement = Agreement(strategy)
        self._is_chief = is_chief(strategy)
        self._received = False
        self._previous: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                previous = self._previous[number] = signal.signal(number, self._note)
                # Whoever listened before may have heard one while the run was being built.
                self._received |= bool(getattr(getattr(previous, "__self__", None), "received", False))
        return self

    def __exit__(self, *unused):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # One that came too late for this run is for whoever goes on after it.
        listener = getattr(self._previous.get(signal.SIGTERM), "__self__", None)
        if self._received and listener is not None and hasattr(listener, "received"):
            listener.received = True

    def _note(self, number, frame):
        del number, frame
        self._received = True
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)

    def next_steps(self, count: int, steps_left: float = math.inf) -> int:
        """`count`, or the fewer that are left; 0 to save and leave, also where any worker got a signal.

        Every worker must ask at the same step: it is a collective. The chief's clock counts.
        """
        received, allowed = self._agreement.sums([self._received, int(min(count, steps_left)) if self._is_chief else 0])
        return 0 if received else int(allowed)
