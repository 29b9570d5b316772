"""One process's place among the others, and what is said when its environment does not tell it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The port of Kubeflow's TFJob; below the ports that Linux gives to outgoing connections (32768 and above).
PORT_BASE = 2222


class ClusterMistake(ValueError):
    """The environment contradicts itself or lacks something; the message names variables, values and the fix."""


@dataclass(frozen=True)
class Place:
    """One source's statement: this is process `index` of `count`.
    said: the same, with the variables that say so."""

    index: int
    count: int
    said: str


@dataclass(frozen=True)
class Cluster:
    """All workers, and which of them this process is.

    kind: what was found, of `KINDS`.
    workers: 'host:port' by index, worker 0 is the chief; of a TPU host names only.
    reason: one line for the log.
    """

    kind: str
    workers: tuple[str, ...]
    index: int
    reason: str

    @property
    def tf_config(self) -> dict | None:
        """The content of TF_CONFIG; None for a TPU, whose strategy asks the TPU itself."""
        if self.kind == "tpu":
            return None
        return {"cluster": {"worker": list(self.workers)}, "task": {"type": "worker", "index": self.index}}

    @property
    def tf_config_json(self) -> str:
        return json.dumps(self.tf_config)


def whole_number(environ: Mapping[str, str], name: str, at_least: int = 0) -> int:
    text = environ[name].strip()
    if not (text.isascii() and text.isdigit()) or int(text) < at_least:
        raise ClusterMistake(f"{name}={text!r} must be a whole number, {at_least} or more.")
    return int(text)


def place_among(environ: Mapping[str, str], index_name: str, count_name: str, source: str) -> Place:
    """Reads a pair of variables, and refuses an index that is not below the count."""
    index, count = whole_number(environ, index_name), whole_number(environ, count_name, at_least=1)
    if index >= count:
        raise ClusterMistake(
            f"{index_name}={index} is not below {count_name}={count}: indices start at 0 and end at {count - 1}."
        )
    return Place(index, count, f"{source}: {index} of {count} by {index_name}, {count_name}")


def require(environ: Mapping[str, str], name: str, why: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise ClusterMistake(f"{name} is not set: {why}")
    return value


def numbered(hosts: Sequence[str], port_base: int) -> tuple[str, ...]:
    """One address for each process: the first of a host gets `port_base`, the next of the same host the next port."""
    seen: dict[str, int] = {}
    addresses = []
    for host in hosts:
        port = port_base + seen.get(host, 0)
        seen[host] = seen.get(host, 0) + 1
        if not 1 <= port <= 65535:
            raise ClusterMistake(
                f"Port {port} for {host} does not exist; choose a --port_base from 1 to {65536 - seen[host]}."
            )
        addresses.append(f"{host}:{port}")
    return tuple(addresses)
