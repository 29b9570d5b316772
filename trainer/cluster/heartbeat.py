"""Ends this process when another worker of its cluster is gone; no worker waits in a collective for ever."""

import atexit
import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from trainer.cluster.connection import Link, worker_name
from trainer.errors import RunAgain

_BEATS_IN_A_TIMEOUT = 5
_OWN_MISTAKE_SECONDS = 2  # a mistake of all workers is reported by each itself

_watches: list["WorkerWatch"] = []


def current_watch() -> "WorkerWatch | None":
    """The watch of this process; None where it is no worker of several."""
    return _watches[-1] if _watches else None


class WorkerWatch:
    """addresses: 'host:port' of every worker, the chief's first.
    index: which of them this process is.

    links: to all others on the chief, to the chief on the others.
    timeout_seconds: after how much silence a worker counts as gone. The process then ends with status 75 and one
      message; with a worker's own status and message where that left by a mistake.
    """

    def __init__(self, addresses: list[str], index: int, links: Mapping[int, Link], timeout_seconds: float):
        self.addresses = addresses
        self.index = index
        self._links = dict(links)
        self._timeout = timeout_seconds
        self._pause = timeout_seconds / _BEATS_IN_A_TIMEOUT
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._leaving = threading.Event()

    def __str__(self) -> str:
        chief = "" if self.index == 0 else f"; the chief is {worker_name(self.addresses, 0)}"
        this = worker_name(self.addresses, self.index).removeprefix("worker ")
        return f"{this} of {len(self.addresses)}{chief}"

    def start(self) -> None:
        """Starts to watch."""
        for index, link in self._links.items():
            link.socket.settimeout(self._pause)
            link.last_heard = time.monotonic()
            self._selector.register(link.socket, selectors.EVENT_READ, index)
        threading.Thread(target=self._watch, name="worker watch", daemon=True).start()
        # Of a program that calls the library; the commands say good-bye themselves. An exception that no caller
        # caught stands in `sys.last_value`.
        atexit.register(lambda: self.leave(1, repr(sys.last_value)) if hasattr(sys, "last_value") else self.leave())
        _watches.append(self)

    @contextlib.contextmanager
    def no_longer_than(self, seconds: float, message: str) -> Iterator[None]:
        """Ends the process with 75 and the message if what is done inside takes longer."""
        late = threading.Timer(seconds, self._end, (message, RunAgain.exit_status))
        late.daemon = True
        late.start()
        try:
            yield
        finally:
            late.cancel()

    def leave(self, status: int = 0, message: str = "") -> None:
        """Says good-bye: an end of the connection after it is no death. All workers get a `status` that is a fault."""
        with self._lock:
            if self._leaving.is_set():
                return
            self._leaving.set()
        for link in list(self._links.values()):
            link.send(left=status, message=message)
            with contextlib.suppress(OSError):
                link.socket.shutdown(socket.SHUT_WR)

    def wait_for_peer_failure(self) -> None:
        """After an error that a lost worker may be the reason of: does not return if it was."""
        time.sleep(self._timeout + 2 * self._pause)

    def give_up(self, message: str) -> None:
        """Ends this process and all others with 75 and the message; returns where they end by another already."""
        self._end_all(message, RunAgain.exit_status)

    def _watch(self) -> None:
        last_beat = 0.0
        while self._links:
            # What has come is read before silence is judged: this process may have been stopped itself.
            for key, _ in self._selector.select(timeout=min(self._pause, 1.0)):
                self._hear(key.data)
            if self._leaving.is_set():
                return
            now = time.monotonic()
            if now - last_beat >= self._pause:
                last_beat = now
                for link in self._links.values():
                    link.send(beat=True)
            for index, link in list(self._links.items()):
                if now - link.last_heard > self._timeout:
                    self._lose(index, f"has not been heard of for {self._timeout:g} s")

    def _hear(self, index: int) -> None:
        link = self._links[index]
        try:
            messages = link.messages()
        except (EOFError, ValueError):
            self._lose(index, "is gone: its process has ended, or its host")
            return
        for message in messages:
            if "lost" in message:
                self._end_all(str(message["lost"]), int(message["status"]), told_by=index)
            elif "left" in message:
                self._selector.unregister(link.socket)
                del self._links[index]
                status = int(message["left"])
                if status not in (0, RunAgain.exit_status):
                    self._lose(index, f"stopped: {message['message']}", status)
                return

    def _lose(self, index: int, how: str, status: int | None = None) -> None:
        if self._leaving.is_set():
            return
        message = f"{worker_name(self.addresses, index)} {how}"
        if status is None:
            status = RunAgain.exit_status
            message += ". Run the same command again to resume from the last checkpoint."
        self._end_all(message, status, told_by=index)

    def _end_all(self, message: str, status: int, told_by: int | None = None) -> None:
        """This process, and those that it has a link to: on the chief all, which have none to each other."""
        for index, link in list(self._links.items()):
            if index != told_by:
                link.send(lost=message, status=status)
        self._end(message, status)

    def _end(self, message: str, status: int) -> None:
        """Ends the process: its main thread may wait in a collective, from which nothing brings it back."""
        if status != RunAgain.exit_status and self._leaving.wait(_OWN_MISTAKE_SECONDS):
            return
        with self._lock:
            if self._leaving.is_set():
                return
            self._leaving.set()
            sys.stdout.flush()
            print(f"regraft: {message}", file=sys.stderr, flush=True)
            os._exit(status)
