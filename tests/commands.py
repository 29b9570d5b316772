"""Starts the project's commands as a user would: `python -m MODULE ARGUMENTS`, each a process of its own.

On Linux they are forks of `fork_server.py`, one server for each of pytest's processes: a command begins in 0.1 CPU
seconds in place of 8. A command is a real new interpreter instead

- where the environment sets something that Python, TensorFlow or another library reads while it is imported,
- with `fresh=True`: for tests of the start itself, or of a start through another program,
- on other systems: macOS' frameworks do not survive a fork.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent

# Read at import or once in a process; a fork of the server has the server's.
_READ_AT_START = re.compile(
    "(PYTHON(?!PATH$)|TF_(?!CONFIG$)|TFDS_|XLA_|KERAS_|CUDA_|NVIDIA_|OMP_|OPENBLAS_|LD_|MALLOC_|GRPC_|MPL|COVERAGE_).*"
)


def start_command(
    module: str, *arguments: str, cwd=REPOSITORY, stderr=subprocess.PIPE, fresh: bool = False, **environment: str
):
    """The running process, with the part of `subprocess.Popen` that tests need; its output is text.

    stderr: `subprocess.STDOUT` writes both into one.  environment: over that of this process.
    """
    whole = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    if not fresh and sys.platform == "linux" and not _needs_fresh_interpreter(whole):
        return _Fork(_server().control, module, arguments, str(cwd), whole, stderr)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=cwd, env=whole, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip


def run_command(module: str, *arguments: str, timeout_seconds: float = 600, **options) -> subprocess.CompletedProcess:
    """Runs the command to its end; returns its exit status and its text. options: as `start_command` has them."""
    process = start_command(module, *arguments, **options)
    try:
        out, error = process.communicate(timeout=timeout_seconds)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


class _Server(NamedTuple):
    """control: the socket that takes commands.  environment: what the process was started with."""

    process: subprocess.Popen
    control: socket.socket
    environment: dict[str, str]


_servers: list[_Server] = []  # none or one
_starting = threading.Lock()  # tests start commands from threads too


def _server() -> _Server:
    with _starting:
        if not _servers:
            _servers.append(_start_server())
        return _servers[0]


def _start_server() -> _Server:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = dict(os.environ)
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tests/fork_server.py"), str(theirs.fileno())],
        cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
    )  # fmt: skip
    theirs.close()
    return _Server(process, ours, environment)


def end_server() -> None:
    """Ends the server, if one was started, and waits for it: its CPU seconds are then counted as ours."""
    while _servers:
        server = _servers.pop()
        server.control.close()
        try:
            server.process.wait(timeout=60)
        except subprocess.TimeoutExpired:  # a command that a test has left behind still runs
            server.process.kill()


def _needs_fresh_interpreter(environment: dict[str, str]) -> bool:
    servers = _server().environment
    changed = {name for name in environment.keys() | servers.keys() if environment.get(name) != servers.get(name)}
    return any(_READ_AT_START.fullmatch(name) for name in changed)


class _Fork:
    """A child of the server, seen as `subprocess.Popen` shows a child of ours."""

    def __init__(self, server: socket.socket, module: str, arguments, cwd: str, environment: dict, stderr: int):
        self.args = [sys.executable, "-m", module, *arguments]
        self.returncode: int | None = None
        report, theirs = socket.socketpair()
        reading, writing = os.pipe()
        reading_errors, writing_errors = os.pipe() if stderr == subprocess.PIPE else (None, writing)
        command = {"module": module, "arguments": arguments, "cwd": cwd, "environment": environment}
        with open(os.devnull, "rb") as nothing, theirs:
            descriptors = [theirs.fileno(), nothing.fileno(), writing, writing_errors]
            socket.send_fds(server, [json.dumps(command).encode()], descriptors)
        for descriptor in {writing, writing_errors}:
            os.close(descriptor)
        self.stdout = open(reading)  # noqa: SIM115  read while it runs
        self.stderr = None if reading_errors is None else open(reading_errors)  # noqa: SIM115
        self._report = report.makefile()
        report.close()
        self.pid = self._next_number()
        self._text: dict[str, str] = {}
        self._status = threading.Thread(target=self._wait_for_status, daemon=True)
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True)
            for name in ("stdout", "stderr")
            if getattr(self, name) is not None
        ]
        self._status.start()

    def _next_number(self) -> int:
        line = self._report.readline()
        if not line:
            raise RuntimeError("The fork server has ended; what it said stands in the output of the tests.")
        return int(line)

    def _wait_for_status(self) -> None:
        self.returncode = self._next_number()

    def _read(self, name: str) -> None:
        with getattr(self, name) as file:
            self._text[name] = file.read()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self._status.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        for reader in self._readers:
            if reader.ident is None:
                reader.start()
        for reader in self._readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return self._text.get("stdout"), self._text.get("stderr")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
