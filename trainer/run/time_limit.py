"""How many steps still fit into the time that a run was given."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator


class Deadline:
    """max_seconds: from `started_at` on, of the monotonic clock, None for now; 0 for no end.

    longest_loop_seconds: what the steps between two looks of the host may take; a single step may take longer.
    reserved_seconds: gives what else takes its time at the end: a save in the background, say.

    What was measured of this run is what is reckoned with: the mean time of its steps, and the longest
    save or evaluation so far, for which time is left at the end.
    """

    def __init__(
        self,
        max_seconds: float = 0,
        clock: Callable[[], float] = time.monotonic,
        longest_loop_seconds: float = math.inf,
        started_at: float | None = None,
        reserved_seconds: Callable[[], float] = lambda: 0.0,
    ):
        self._clock = clock
        self._longest_loop = longest_loop_seconds
        self._end = (clock() if started_at is None else started_at) + max_seconds if max_seconds else math.inf
        self._since: float | None = None
        self._loops = self._steps = 0
        self._seconds = self._paused = self._longest_pause = 0.0
        self._reserved_seconds = reserved_seconds

    def steps_left(self) -> float:
        """Whole steps, 0 or more: 1 before any was measured; infinite where neither end nor loop is limited."""
        now = self._clock()
        if self._since is None:
            self._since = now
        left = self._end - now - max(self._longest_pause, self._reserved_seconds())
        if left <= 0:
            return 0
        if min(left, self._longest_loop) == math.inf:
            return math.inf
        if not self._steps:
            return 1
        rate = self._steps / max(self._seconds, 1e-9)
        return math.floor(min(left * rate, max(self._longest_loop * rate, 1)))

    def made(self, steps: int) -> None:
        """So many steps were made since this was last called, and what belongs to them; pauses do not."""
        now = self._clock()
        if self._loops == 1:
            # The first ones were traced and compiled too, which says nothing of those to come.
            self._steps, self._seconds = 0, 0.0
        self._loops += 1
        self._steps += steps
        self._seconds += now - (now if self._since is None else self._since) - self._paused
        self._since, self._paused = now, 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Wraps a save or an evaluation."""
        start = self._clock()
        yield
        seconds = self._clock() - start
        self._paused += seconds
        self._longest_pause = max(self._longest_pause, seconds)
