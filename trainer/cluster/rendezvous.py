"""All workers of a cluster are there and alike before TensorFlow's servers start, or it is said who is not.

TensorFlow waits without end for a worker that never comes. Here every worker reports to the chief, at its
address in TF_CONFIG before TensorFlow's server takes the port, and keeps the connection for `WorkerWatch`.
"""

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from trainer.cluster.connection import Link, resolved, worker_name
from trainer.cluster.heartbeat import WorkerWatch
from trainer.errors import RunAgain, UserError

_RETRY_SECONDS = 0.2
_PATIENCE_SECONDS = 10  # before it is said who is waited for


class RollCall:
    """addresses: 'host:port' of every worker, the chief's first.
    index: which of them this process is.

    start_timeout_seconds: how long to wait for all of them.
    worker_timeout_seconds: see `WorkerWatch`.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        index: int,
        start_timeout_seconds: float = 600,
        worker_timeout_seconds: float = 60,
    ):
        self.addresses = list(addresses)
        self.index = index
        self._start_timeout = start_timeout_seconds
        self._timeout = worker_timeout_seconds
        self._links: dict[int, Link] = {}

    @contextlib.contextmanager
    def answered(self, card: Mapping[str, str]) -> Iterator[None]:
        """Waits until all workers are there and alike; inside, TensorFlow's servers may find each other.

        card: what this worker must have in common with the others, by what people call it.
        Raises `UserError` for an address that cannot be this worker's, an unknown host name, and for cards
        that differ; `RunAgain` where a worker does not come in time. From then on the others are watched.
        """
        deadline = time.monotonic() + self._start_timeout
        self._resolve_all(deadline)
        with self._bound() as own:
            if self.index == 0:
                own.listen(len(self.addresses))
                self._gather(own, card, deadline)
            else:
                self._report(card, deadline)
        watch = WorkerWatch(self.addresses, self.index, self._links, self._timeout)
        watch.start()
        with watch.no_longer_than(
            self._start_timeout,
            "All workers are there, but TensorFlow's servers did not find each other within "
            f"{self._start_timeout:g} s. Can every host reach {', '.join(self.addresses)}?",
        ):
            yield

    def _name(self, index: int) -> str:
        return worker_name(self.addresses, index)

    def _resolve_all(self, deadline: float) -> None:
        # On Kubernetes a name is known once its pod is; elsewhere an unknown one is a mistake.
        patient = "KUBERNETES_SERVICE_HOST" in os.environ
        for index, address in enumerate(self.addresses):
            while True:
                try:
                    resolved(address)
                    break
                except OSError as error:
                    if not patient or time.monotonic() > deadline:
                        raise UserError(
                            f"The host name of {self._name(index)} does not resolve: {error.strerror}. Is it spelled "
                            "as the other hosts know it?"
                        ) from error
                time.sleep(_RETRY_SECONDS)

    @contextlib.contextmanager
    def _bound(self) -> Iterator[socket.socket]:
        """Holds this worker's port until TensorFlow's server takes it, so that no other process does meanwhile."""
        family, where = resolved(self.addresses[self.index])
        # As TensorFlow does it: a host may find its own name at 127.0.1.1, or have its address from a router. Only
        # where the loopback was meant does no other host hear.
        meant = self.addresses[self.index].startswith(("127.", "localhost:", "[::1]:"))
        host = where[0] if meant else ""
        with socket.socket(family, socket.SOCK_STREAM) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                own.bind((host, where[1]))
            except OSError as error:
                taken = " Another process has it: stop that, or give this worker another port."
                raise UserError(
                    f"{self._name(self.index)}, this one, cannot use its port: {error.strerror}."
                    f"{taken if error.errno == errno.EADDRINUSE else ''}"
                ) from error
            yield own

    def _gather(self, own: socket.socket, card: Mapping[str, str], deadline: float) -> None:
        """The chief's part: hears every worker's card, and lets all continue or none."""
        own.settimeout(_RETRY_SECONDS)
        strangers: list[Link] = []
        say = _once_after(_PATIENCE_SECONDS)
        while len(self._links) < len(self.addresses) - 1:
            missing = [self._name(i) for i in range(1, len(self.addresses)) if i not in self._links]
            say(f"waiting for {', '.join(missing)}")
            if time.monotonic() > deadline:
                self._stop_all(
                    f"{', '.join(missing)} did not come within {self._start_timeout:g} s.", RunAgain.exit_status
                )
            with contextlib.suppress(TimeoutError):
                connection = own.accept()[0]
                connection.settimeout(0)
                strangers.append(Link(connection))
            # One that ended meanwhile, killed or tired of waiting, may come again.
            for index, link in list(self._links.items()):
                try:
                    link.messages()
                except (EOFError, ValueError):
                    link.socket.close()
                    del self._links[index]
            for link in list(strangers):
                try:
                    messages = link.messages()
                except (EOFError, ValueError):
                    link.socket.close()
                    strangers.remove(link)
                    continue
                if messages:
                    strangers.remove(link)
                    self._admit(link, messages[0], card)
                    link.send(wait=max(0.0, deadline - time.monotonic()))
        for link in self._links.values():
            link.socket.settimeout(self._timeout)
            link.send(go=True)

    def _admit(self, link: Link, message: dict, card: Mapping[str, str]) -> None:
        index, theirs = message.get("index"), message.get("card")
        if not isinstance(index, int) or not isinstance(theirs, dict):
            link.socket.close()
            return
        if message.get("addresses") != self.addresses or not 0 < index < len(self.addresses):
            link.send(stop=f"{self.addresses[0]} belongs to another cluster: {', '.join(self.addresses)}.", status=2)
            link.socket.close()
            return
        if index in self._links:
            self._links[len(self.addresses)] = link  # gets the answer too
            self._stop_all(f"Two processes say that they are {self._name(index)}.", 2)
        self._links[index] = link
        differences = unlike(card, theirs, self._name(0), self._name(index))
        if differences:
            self._stop_all(differences, 2)

    def _stop_all(self, message: str, status: int) -> None:
        for link in self._links.values():
            link.send(stop=message, status=status)
        raise _with_status(message, status)

    def _report(self, card: Mapping[str, str], deadline: float) -> None:
        """Every other worker's part."""
        say = _once_after(_PATIENCE_SECONDS)
        said = "it does not answer"
        while True:
            say(f"waiting for {self._name(0)}, the chief")
            if time.monotonic() > deadline:
                raise RunAgain(f"{self._name(0)}, the chief, did not come within {self._start_timeout:g} s: {said}.")
            family, where = resolved(self.addresses[0])
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.settimeout(max(_RETRY_SECONDS, min(5.0, deadline - time.monotonic())))
            link = Link(connection)
            try:
                connection.connect(where)
                link.send(index=self.index, addresses=self.addresses, card=dict(card))
                said = "it does not answer"
                answer = self._answer(link, deadline)
            except (OSError, EOFError, ValueError) as error:
                # Not there yet; or another program's, such as the server of a run that is about to end.
                said = getattr(error, "strerror", None) or "another program has its port"
                connection.close()
                time.sleep(_RETRY_SECONDS)
                continue
            if "go" in answer:
                self._links[0] = link
                return
            connection.close()
            if "stop" in answer:
                raise _with_status(str(answer["stop"]), int(answer.get("status", 2)))

    def _answer(self, link: Link, deadline: float) -> dict:
        """{} when time is over; waits a second longer than the chief, which may have started later: only it knows
        who is missing. Raises `ValueError` for another's language, `EOFError` at the end of the connection.
        """
        link.socket.settimeout(_RETRY_SECONDS)
        while time.monotonic() < deadline + 1:
            for message in link.messages():
                if "go" in message or "stop" in message:
                    return message
                wait = message.get("wait")
                if not isinstance(wait, int | float):
                    raise ValueError("not our language")
                deadline = max(deadline, time.monotonic() + wait)
        return {}


def _with_status(message: str, status: int) -> Exception:
    return RunAgain(message) if status == RunAgain.exit_status else UserError(message)


def _once_after(seconds: float) -> Callable[[str], None]:
    start, said = time.monotonic(), False

    def say(text: str) -> None:
        nonlocal said
        if not said and time.monotonic() - start > seconds:
            said = True
            print(f"regraft: {text}", file=sys.stderr, flush=True)

    return say


def unlike(ours: Mapping[str, str], theirs: Mapping[str, str], our_name: str, their_name: str) -> str:
    """A message that shows what two workers do not have in common, both values; "" if they are alike."""
    lines = []
    for what in dict.fromkeys([*ours, *theirs]):
        one, two = ours.get(what, "none"), theirs.get(what, "none")
        if one == two:
            continue
        pairs = _differing(one, two)
        for left, right in pairs[:4]:
            lines += [f"  {what} of {our_name}: {left}", f"  {what} of {their_name}: {right}"]
        if len(pairs) > 4:
            lines.append(f"  and {len(pairs) - 4} more lines of {what}")
    return "The workers are not alike:\n" + "\n".join(lines) if lines else ""


def _differing(one: str, two: str) -> list[tuple[str, str]]:
    """Lines that only one of the texts has, side by side; the texts themselves where they have one line."""
    ours, theirs = one.splitlines(), two.splitlines()
    only_ours = [line for line in ours if line not in theirs]
    only_theirs = [line for line in theirs if line not in ours]
    count = max(len(only_ours), len(only_theirs))
    if not count:
        return [(one, two)]  # the same lines in another order
    pad = ["not there"] * count
    return list(zip((only_ours + pad)[:count], (only_theirs + pad)[:count], strict=True))
