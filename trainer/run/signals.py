"""Hears SIGTERM and SIGINT, also while the main thread is inside TensorFlow."""

import ctypes
import functools
import os
import signal
import threading
import time
from collections.abc import Callable

NUMBERS = (signal.SIGTERM, signal.SIGINT)

_listening: list["StopSignals"] = []
_lock = threading.Lock()


class StopSignals:
    """Whether SIGTERM or SIGINT came within the context; a second one, of either kind, ends the process by itself.

    on_first, on_second: called with the number, in a thread of their own.

    The handlers of before come back at its end. Inside another one, this one hears instead; what it has received
    then, the other has received, and the other way round. Outside the main thread, where Python allows no handlers,
    it hears of none.
    """

    def __init__(
        self,
        on_first: Callable[[int], None] = lambda number: None,
        on_second: Callable[[int], None] = lambda number: None,
    ):
        self._on_first, self._on_second = on_first, on_second
        self._previous: dict = {}
        self._previous_fd = -1
        #: When the first came, in seconds of the monotonic clock; None as long as none has.
        self.received_at: float | None = None

    @property
    def received(self) -> bool:
        return self.received_at is not None

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        with _lock:
            if _listening:
                self.received_at = _listening[-1].received_at
            _listening.append(self)
        # Python's handlers run between two bytecodes only, and the same signal twice counts once till then. The byte
        # that their part in C writes for each goes to a thread that reads on meanwhile.
        self._previous_fd = signal.set_wakeup_fd(_pipe(), warn_on_full_buffer=False)
        for number in NUMBERS:
            self._previous[number] = signal.signal(number, lambda number, frame: None)
        return self

    def __exit__(self, *unused):
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd, warn_on_full_buffer=False)
        with _lock:
            _listening.remove(self)
            # One that came too late for this one is for the listener that continues after it.
            if _listening and self.received:
                _listening[-1].received_at = self.received_at

    def _hear(self, number: int) -> None:
        if self.received:
            self._on_second(number)
            end_by(number)
        self.received_at = time.monotonic()
        self._on_first(number)


def end_by(number: int) -> None:
    """Ends the process by a signal's default action, from any thread."""
    set_handler = ctypes.pythonapi.PyOS_setsig  # Python's own `signal.signal` is for the main thread alone
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    set_handler(number, None)  # SIG_DFL
    signal.raise_signal(number)


@functools.cache
def _pipe() -> int:
    """The end for writing; the other one is read as long as the process lives."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_read, args=(reading,), name="hears signals", daemon=True).start()
    return writing


def _read(pipe: int) -> None:
    while True:
        for number in os.read(pipe, 64):
            if number not in NUMBERS:
                continue
            with _lock:
                if _listening:
                    _listening[-1]._hear(number)
                else:  # it came at the very end: for the handlers that are back
                    os.kill(os.getpid(), number)
