"""How many steps still fit into the time that a run was given."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from trainer.errors import UserError


class Deadline:
    """max_seconds: from now on, in seconds of the monotonic clock; 0 for no end.

    What was measured of this run is what is reckoned with: the mean time of its steps, and the longest
    save or evaluation so far, for which time is left at the end.
    """

    def __init__(self, max_seconds: float = 0, clock: Callable[[], float] = time.monotonic):
        if not isinstance(max_seconds, int | float) or not 0 <= max_seconds < math.inf:
            raise UserError(f"max_seconds = {max_seconds!r} must be a number, 0 (no end) or more.")
        self._clock = clock
        self._end = clock() + max_seconds if max_seconds else math.inf
        self._since: float | None = None
        self._loops = self._steps = 0
        self._seconds = self._paused = self._longest_pause = 0.0
        #: What else takes its time at the end, in seconds: a save that goes on in the background, say.
        self.reserved: Callable[[], float] = lambda: 0.0

    def steps_left(self) -> float:
        """Whole steps, 0 or more; infinite without an end, and before any was measured where there is time."""
        now = self._clock()
        if self._since is None:
            self._since = now
        left = self._end - now - max(self._longest_pause, self.reserved())
        if left <= 0:
            return 0
        return math.floor(left * self._steps / self._seconds) if self._seconds and left < math.inf else math.inf

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
        """Around a save or an evaluation."""
        start = self._clock()
        yield
        seconds = self._clock() - start
        self._paused += seconds
        self._longest_pause = max(self._longest_pause, seconds)
