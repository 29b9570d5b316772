"""A TPU VM, or a host of a TPU pod slice -> that it is one: there is no TF_CONFIG to make.

`TPUStrategy` asks the TPU itself which hosts and chips it has, and one program drives them all.
"""

from collections.abc import Mapping

from launch.cluster.place import ClusterMistake, Place, place_among

_SIGNS = ("TPU_NAME", "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE")


def find_place(environ: Mapping[str, str], asked: bool) -> Place | None:
    """This host's place in the slice; None where nothing speaks of a TPU.
    asked: then that is a mistake."""
    signs = {name: environ[name].strip() for name in _SIGNS if environ.get(name, "").strip()}
    if not signs:
        if asked:
            raise ClusterMistake(f"--cluster=tpu: none of {', '.join(_SIGNS)} is set: name the TPU by TPU_NAME.")
        return None
    shown = ", ".join(f"{name}={value}" for name, value in signs.items())
    hosts = _hosts(environ)
    if "TPU_WORKER_ID" in signs and hosts:
        numbers = {"TPU_WORKER_ID": signs["TPU_WORKER_ID"], "hosts in TPU_WORKER_HOSTNAMES": str(len(hosts))}
        place_among(numbers, "TPU_WORKER_ID", "hosts in TPU_WORKER_HOSTNAMES", "TPU")
    return Place(int(signs.get("TPU_WORKER_ID", 0)), max(len(hosts), 1), f"TPU: {shown}")


def addresses(environ: Mapping[str, str], place: Place, port_base: int | None) -> tuple[str, ...]:
    """The hosts' names, where they are known."""
    del place, port_base
    return _hosts(environ)


def _hosts(environ: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(host.strip() for host in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host.strip())
