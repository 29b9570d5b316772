"""A signal or the end of the time, agreed by all workers -> how many steps now?"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import tensorflow as tf

from trainer.cluster.collectives import Agreement
from trainer.cluster.strategy import is_chief
from trainer.errors import RunAgain
from trainer.run.signals import StopSignals

_SECONDS_BETWEEN_AGREEMENTS = 1.0
_LAST_WORDS_SECONDS = 2.0  # a disk that hangs must not keep the process from leaving


class Interrupted(Exception):
    """Raised on all workers when a signal came to one of them: the work in progress is left unfinished."""


class Preemption:
    """Answers, between two device loops or batches, whether SIGTERM or SIGINT came and whether time is left.

    Used as a context manager, see `StopSignals`. A second signal ends the process at once: the last checkpoint on
    disk is whole all the same.

    grace_seconds: so long after the first signal the process leaves at once with 75, saved or not; 0 for no limit.
    last_checkpoint: what the run then resumes from, for people.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        grace_seconds: float = 0,
        last_checkpoint: Callable[[], str | None] = lambda: None,
    ):
        self._agreement = Agreement(strategy)
        self._is_chief = is_chief(strategy)
        self._grace_seconds = grace_seconds
        self._last_checkpoint = last_checkpoint
        self._signals = StopSignals(lambda number: self._limit())
        self._timer: threading.Timer | None = None
        self._any_received = False  # by any worker

    def __enter__(self):
        self._signals.__enter__()
        if self._signals.received:  # while the run was being built
            self._limit()
        return self

    def __exit__(self, *unused):
        self._signals.__exit__()
        if self._timer is not None:
            self._timer.cancel()

    @property
    def reason(self) -> str:
        """Why the run ends before its last step: a person, the cluster or its time; for people."""
        if self._signals.number == signal.SIGINT:
            return "interrupted"
        return "preempted" if self._any_received else "out of time"

    def next_steps(self, count: int, steps_left: float = math.inf) -> int:
        """`count`, or the fewer that are left; 0 to save and leave, also where any worker got a signal.

        Every worker must ask at the same step: it is a collective. The chief's clock counts.
        """
        received, allowed = self._agree(int(min(count, steps_left)))
        return 0 if received else allowed

    def until_received(self, batches: Iterable) -> Iterator:
        """The batches; raises `Interrupted` before the next one once any worker got a signal.

        Every worker must take the same number of them: now and then it is a collective.
        """
        agree_at = 0
        start = time.monotonic()
        for taken, batch in enumerate(batches):
            if taken == agree_at:
                # One worker alone asks no other; several about once a second by the chief's clock, who counts for all.
                rate = taken / max(time.monotonic() - start, 1e-3)
                ahead = 1 if self._agreement.workers == 1 else max(1, int(rate * _SECONDS_BETWEEN_AGREEMENTS))
                received, ahead = self._agree(ahead)
                if received:
                    raise Interrupted
                agree_at += ahead
            yield batch

    def _agree(self, number: int) -> tuple[bool, int]:
        """Whether any worker got a signal, and the chief's number."""
        received, agreed = self._agreement.all_reduce_sum([self._signals.received, number if self._is_chief else 0])
        self._any_received = self._any_received or bool(received)
        return bool(received), int(agreed)

    def _limit(self) -> None:
        if not self._grace_seconds:
            return
        assert self._signals.received_at is not None
        left = self._signals.received_at + self._grace_seconds - time.monotonic()
        self._timer = threading.Timer(max(left, 0), self._leave_late)
        self._timer.daemon = True
        self._timer.start()

    def _leave_late(self) -> None:
        # Without a good-bye: other workers may wait for this one in a collective, and end as it is gone.
        without_words = threading.Timer(_LAST_WORDS_SECONDS, os._exit, (RunAgain.exit_status,))
        without_words.daemon = True
        without_words.start()
        checkpoint = self._last_checkpoint()
        kept = (
            f"{checkpoint} is whole, and the same command resumes from it" if checkpoint else "There is no checkpoint"
        )
        print(
            f"regraft: The {self._grace_seconds:g} s after the signal (Limits.grace_seconds) are over, and the run was "
            f"not through with saving and leaving. {kept}.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(RunAgain.exit_status)
