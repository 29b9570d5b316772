"""SIGTERM and SIGINT are noted, so that a comparison leaves between two runs, or when its run has saved itself."""

import os
import signal
import threading
import time
from collections.abc import Callable


class Noted:
    """Whether a signal came. Used as a context manager; a second signal takes the default action at once.

    on_signal: called with the number, in the handler.

    A run that goes on meanwhile has handlers of its own, which come first, and gives these back at its end.
    """

    def __init__(self, on_signal: Callable[[int], None] = lambda number: None):
        self._on_signal = on_signal
        self._before: dict = {}
        self.received = False

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *unused):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        del frame
        if self.received:
            self._on_signal(signal.SIGKILL)
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = True
        self._on_signal(number)


def leave_with_parent(parent: int) -> None:
    """From now on this process gets a SIGTERM, and so saves itself, once the process `parent` is not its parent.

    A parent that is killed can pass nothing on.
    """

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="leaves with its parent").start()
