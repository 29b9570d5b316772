"""Forks a process for each command it is asked for. It has imported TensorFlow, and never touches a device itself.

python tests/fork_server.py CONTROL_FD

Each message on the control socket is one command: JSON with `module`, `arguments`, `cwd` and `environment`, and four
file descriptors: where to report, stdin, stdout, stderr. The report is the pid, then the exit status. `commands.py`
is the other end; the server ends with it.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import sys
import threading
import time
from importlib.machinery import PathFinder
from pathlib import Path

REPOSITORY = str(Path(__file__).resolve().parent.parent)

# What a fresh interpreter would have behind the working folder and PYTHONPATH.
_given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
_PATH = [folder for folder in sys.path[1:] if folder not in _given]

# Imported once here instead of in each command: what they import at their top, or soon after.
_PRELOADED = (
    "launch", "trainer", "launch.cluster", "launch.command_line", "trainer.comparison",
    "trainer.run.evaluate_checkpoint", "trainer.step.xla_check", "tensorflow_datasets",
    "tensorflow_datasets.core.dataset_builders",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "rich.table", "sklearn.datasets", "scipy.ndimage",
)  # fmt: skip


def serve(control: socket.socket) -> None:
    """Returns in a process that is to run a command, once it is set up for it; ends the server's own at its end."""
    signal.signal(signal.SIGCHLD, lambda number, frame: _reap())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 4)
        if not message:
            _reap(0)
            os._exit(0)
        if os.fork() == 0:
            control.close()
            _keep(json.loads(message), *descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)


def _reap(flags: int = os.WNOHANG) -> None:
    """Waits for children that have ended, whose CPU seconds then count as ours; with flags=0 for all of them."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, flags)[0]:
            pass


def _keep(command: dict, report: int, *streams: int) -> None:
    """Returns in the command's process; its parent reports the pid and the exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if (pid := os.fork()) == 0:
        os.close(report)
        _become(command, streams)
        return
    for stream in (0, 1, 2, *streams):
        os.close(stream)  # who reads the command's output sees its end
    os.write(report, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(command: dict, streams: tuple[int, ...]) -> None:
    """Sets up everything that differs between this process and a fresh `python -m MODULE`."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["environment"])
    given = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:] = [command["cwd"], *given, *_PATH]
    importlib.invalidate_caches()
    sys.argv = ["-m", *command["arguments"]]
    sys.orig_argv = [sys.executable, "-m", command["module"], *command["arguments"]]
    # Each process seeds them by itself; forks would all draw the same numbers.
    random.seed()
    sys.modules["numpy"].random.seed()
    if PathFinder.find_spec("sitecustomize", given):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    launch = sys.modules["launch"]
    launch.STARTED_AT = time.monotonic()
    launch.catch_early_signals()


def _convert_gins_wrapper() -> None:
    """AutoGraph converts the wrapper of every configurable that tf.data maps: 0.9 s once, a third of a small run."""
    gin, tf = sys.modules["gin"], sys.modules["tensorflow"]
    scale_image = gin.get_configurable("pipeline.scale_image")
    with tf.Graph().as_default():  # which touches no device
        sys.modules["trainer.data.autograph"].in_graph(scale_image)({"image": tf.zeros([1], tf.uint8)})


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.path.insert(0, REPOSITORY)
    importlib.import_module("launch").import_tensorflow()
    for name in _PRELOADED:
        importlib.import_module(name)
    _convert_gins_wrapper()
    assert threading.active_count() == 1, "a fork has one thread: what the others hold is held for ever"
    gc.freeze()  # the collector of a fork would touch, and so copy, all of the pages that it shares with us
    serve(control)
    runpy.run_module(sys.orig_argv[2], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
