"""Starts processes for the members' runs: each is a run as `launch.train` makes it, with a config of its own.

A server that has imported the trainer, and nothing of the user's, forks each of them, so that none imports TensorFlow
again and none finds devices, threads or names of Keras that another one has made.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.cluster.strategy import build_strategy
from trainer.cluster.tf_config import cluster_workers
from trainer.errors import RunAgain, UserError, message_of
from trainer.run.signals import leaving_at_signals

_PRELOADED = ["trainer", "trainer.comparison", "matplotlib.figure", "matplotlib.backends.backend_agg"]
MISTAKE, BUG = 2, 1


@dataclasses.dataclass(frozen=True)
class Devices:
    """Arguments of `build_strategy` in each process."""

    strategy: str = "auto"
    virtual_devices: int = 0
    tpu: str | None = None

    def check(self) -> None:
        """Raises `UserError` for several workers, for which every process would wait."""
        if self.strategy == "multi_worker" or (self.strategy == "auto" and len(cluster_workers()[0]) > 1):
            raise UserError(
                "The runs of a comparison are processes of one machine, not workers of one run: name another "
                "--strategy, or take TF_CONFIG away."
            )

    def build(self) -> tf.distribute.Strategy:
        return build_strategy(self.strategy, self.virtual_devices, self.tpu)


class Process:
    """A process that calls `function(*arguments)` and then ends.

    log: what it prints is added to this file; None for nowhere.
    function: of a module, as pickle wants it; it returns an exit status, and gets, where `answers`, a function as its
      last argument that sends an object to `answer`.
    """

    def __init__(self, function: Callable[..., int], *arguments, log: Path | None = None, answers: bool = False):
        receiving, sending = _context().Pipe(duplex=False)
        self._receiving: Connection = receiving
        self._process = _context().Process(target=_call, args=(function, arguments, log, sending if answers else None))
        self._process.start()
        sending.close()

    def answer(self) -> Any:
        """Returns the object that the process sends; raises `UserError` with its message for a user's mistake."""
        try:
            kind, value = self._receiving.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"A process of the comparison ended with {self._process.exitcode}.") from None
        self._process.join()
        if kind == "mistake":
            raise UserError(value)
        if kind == "bug":
            raise RuntimeError(value)
        return value

    def send(self, number: int) -> None:
        if self._process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid or 0, number)

    def status(self) -> int | None:
        """The exit status, the negative number of the signal that ended it, or None while it runs."""
        return self._process.exitcode


@functools.cache
def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with _silent():  # TensorFlow's libraries print as they are imported, whatever the log level
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Standard error goes nowhere meanwhile, also that of a process that is started."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _call(function: Callable[..., int], arguments: tuple, log: Path | None, sending: Connection | None) -> None:
    os.setsid()  # a Ctrl-C in the terminal reaches the comparison alone, which passes it on
    _print_to(log)
    threading.Thread(target=_end_with_parent, daemon=True, name="ends with its parent").start()
    with leaving_at_signals(resumes=True):
        os._exit(_guarded(function, arguments, sending))


def _guarded(function: Callable[..., int], arguments: tuple, sending: Connection | None) -> int:
    def answer(value, kind: str = "value"):
        if sending is not None:
            sending.send((kind, value))

    try:
        return function(*arguments, answer) if sending is not None else function(*arguments)
    except UserError as error:
        message = message_of(error)
        print(f"regraft: {message}", file=sys.stderr, flush=True)
        answer(message, "mistake")
        return MISTAKE
    except Exception as error:  # noqa: BLE001  the outermost frame of the process: printed, and turned into a status
        traceback.print_exc()
        print(f"regraft: An unexpected {type(error).__name__}: {message_of(error)}", file=sys.stderr, flush=True)
        answer(traceback.format_exc(), "bug")
        return BUG
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _print_to(log: Path | None) -> None:
    target = os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    # By lines: the comparison reads there how far the run is.
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _end_with_parent() -> None:
    """No process waits for this run any more; the next command resumes it from its last checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(RunAgain.exit_status)
