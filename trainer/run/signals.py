"""The one listener for SIGTERM and SIGINT, which also hears while the main thread is inside TensorFlow.

phase                             listener                     first signal                second
a command imports TensorFlow      launch.catch_early_signals   one line, 75 or 128 + n
a command computes, no run        leaving_at_signals           one line, 75 or 128 + n
a run trains, evaluates, saves    Preemption                   saves and leaves, 75        default action
a comparison waits for members    run_members                  SIGTERM to each, 75         SIGKILL to each
a command has its exit status     leaving_at_signals           ignores SIGTERM if it resumes

The first row cannot be this module: `trainer` imports TensorFlow, which that phase waits for. `launch.local` never
imports TensorFlow and passes signals on to its workers. 75 is the status of a command that resumes where it is run
again; others end with 128 + the signal's number, as shells report it.
"""

import contextlib
import ctypes
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from trainer.errors import RunAgain

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
        #: Which signal came first; None as long as none has.
        self.number: int | None = None

    @property
    def received(self) -> bool:
        return self.received_at is not None

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        with _lock:
            if _listening:
                self.received_at, self.number = _listening[-1].received_at, _listening[-1].number
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
                _listening[-1].received_at, _listening[-1].number = self.received_at, self.number

    def _hear(self, number: int) -> None:
        if self.received:
            self._on_second(number)
            end_by(number)
        self.received_at, self.number = time.monotonic(), number
        self._on_first(number)


@contextlib.contextmanager
def leaving_at_signals(resumes: bool) -> Iterator[None]:
    """A signal within ends the process at once with one line: nothing but the signal's own handling would be lost.

    A run within has its own listener, which saves first. After the context the signals have their default actions,
    except that a command that resumes ignores SIGTERM: its status is decided, and a supervisor that stops workers one
    by one must not turn 0 or 75 into 143. If the process hangs at its end, SIGKILL or Ctrl-C ends it.
    """
    # The handlers of before belong to an earlier phase. Python runs no handler at its very end, where the default does.
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL)
    try:
        with StopSignals(functools.partial(_leave, resumes)):
            yield
    finally:
        if resumes:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _leave(resumes: bool, number: int) -> None:
    message = f"regraft: Stopped by {signal.Signals(number).name}; nothing is left half-written."
    message += " Run the same command again." if resumes else ""
    # Past Python's buffers, whose lock the main thread may hold, and without the interpreter's clean end: workers that
    # wait for this one in a collective end when it is gone.
    os.write(2, f"{message}\n".encode())
    os._exit(RunAgain.exit_status if resumes else 128 + number)


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
