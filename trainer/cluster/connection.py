"""One connection between two workers, on which each line is a message."""

import contextlib
import dataclasses
import json
import socket
import time

_MAX_BYTES = 16 * 2**20  # of one line: no config is as long


def worker_name(addresses: list[str], index: int) -> str:
    return f"worker {index} ({addresses[index]})"


def resolved(address: str) -> tuple[int, tuple]:
    """(family, address) for a socket, of 'host:port'; raises `OSError` for a host name that is unknown."""
    host, _, port = address.rpartition(":")
    family, _, _, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    return family, where


@dataclasses.dataclass
class Link:
    """The connection to one worker; `received` holds the beginning of a line."""

    socket: socket.socket
    last_heard: float = dataclasses.field(default_factory=time.monotonic)
    received: bytes = b""

    def send(self, **message) -> None:
        # A worker that is gone is found out by the end of its connection, one that hangs by its silence.
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> list[dict]:
        """Returns the messages that have come; raises `EOFError` at the end, `ValueError` for another's language."""
        try:
            data = self.socket.recv(2**16)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        self.last_heard = time.monotonic()
        *lines, self.received = (self.received + data).split(b"\n")
        if len(self.received) > _MAX_BYTES:
            raise ValueError("a line without end")
        found = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in found):
            raise ValueError("not our language")
        return found
