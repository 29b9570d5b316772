"""Several hosts on this machine: network namespaces with addresses and names of their own, and a slow wire between."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PORT = 2222  # the same on every host, as on a cluster
_NAMES = Path("/etc/netns")  # where `ip netns exec` finds what a namespace has in place of /etc
_LARGE_PACKETS = 9000  # a sixth as many for the wire, which shares the processors with what is measured


class NotPermitted(Exception):
    """There are no network namespaces here; says why."""


@dataclasses.dataclass(frozen=True)
class Host:
    """namespace: its name for `ip netns`.  name: what the others call it, and it itself."""

    namespace: str
    name: str
    address: str

    def command(self, *arguments: str) -> list[str]:
        """What runs a command there; `ip` becomes the command, so that a signal to the one reaches the other."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def cut_off(self) -> None:
        """Nothing comes in or goes out any more."""
        _run("ip", "-n", self.namespace, "link", "set", "wire0", "down")


@contextlib.contextmanager
def connected_hosts(
    count: int, megabits_per_second: float = 100, delay_milliseconds: float = 5
) -> Iterator[list[Host]]:
    """Hosts that reach each other, and nothing else. Raises `NotPermitted`; leaves nothing behind.

    Each knows itself by name as 127.0.1.1, as Debian sets it up, and the others by their addresses.
    """
    _remove_what_was_left()
    found = [Host(f"regraft-{os.getpid()}-{index}", f"host-{index}", f"10.77.0.{index + 1}") for index in range(count)]
    wire = None
    try:
        for host in found:
            _run("ip", "netns", "add", host.namespace)
            _write_names(host, found)
        wire = _start_wire(found, megabits_per_second, delay_milliseconds)
        for host in found:
            # Its own address comes over `lo`.
            _run("ip", "-n", host.namespace, "link", "set", "lo", "up")
            _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "wire0")
            _run("ip", "-n", host.namespace, "link", "set", "wire0", "mtu", str(_LARGE_PACKETS), "up")
        yield found
    finally:
        if wire is not None:
            wire.communicate()  # ends with its standard input
        for host in found:
            _remove(host.namespace)


def _write_names(host: Host, hosts: list[Host]) -> None:
    folder = _NAMES / host.namespace
    folder.mkdir(parents=True)
    lines = [f"{'127.0.1.1' if other is host else other.address} {other.name}" for other in hosts]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    (folder / "resolv.conf").write_text("")  # no one else is asked


def _start_wire(hosts: list[Host], megabits_per_second: float, delay_milliseconds: float) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("wire.py"))]
    command += [f"--megabits_per_second={megabits_per_second}", f"--delay_milliseconds={delay_milliseconds}"]
    ends = [f"{host.namespace}={host.address}" for host in hosts]
    wire = subprocess.Popen(
        [*command, *ends], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert wire.stdout is not None
    if wire.stdout.readline().strip() != "ready":
        raise NotPermitted(f"no wire can be laid here: {wire.communicate()[1].strip().splitlines()[-1]}")
    return wire


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotPermitted(f"the command {command[0]} (iproute2) is not here") from error
    if done.returncode:
        raise NotPermitted(f"`{' '.join(command)}`: {done.stderr.strip()}")


def _remove(namespace: str) -> None:
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)
    shutil.rmtree(_NAMES / namespace, ignore_errors=True)
    with contextlib.suppress(OSError):
        _NAMES.rmdir()  # if it was ours


def _remove_what_was_left() -> None:
    """By runs that were killed before they could."""
    for path in {*Path("/run/netns").glob("regraft-*-*"), *_NAMES.glob("regraft-*-*")}:
        if not Path("/proc", path.name.split("-")[1]).exists():
            _remove(path.name)
