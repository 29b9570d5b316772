"""Which of the sources speaks for this process, and whether the others agree."""

from collections.abc import Mapping

from launch.cluster import kubernetes, mpi, slurm, tf_config, tpu
from launch.cluster.place import Cluster, ClusterMistake, Place

# Of several that agree the first speaks: what was set by hand, then who knows the addresses of all.
_SOURCES = {"tf_config": tf_config, "slurm": slurm, "kubernetes": kubernetes, "mpi": mpi, "tpu": tpu}
KINDS = ("auto", *_SOURCES, "none")


def find_cluster(environ: Mapping[str, str], kind: str = "auto", port_base: int | None = None) -> Cluster | None:
    """Finds this process's cluster in its environment, without asking the network; None where it is alone.

    kind: one of `KINDS`. A named source alone is asked, and must be there, with one worker if need be. `auto` takes the
      one that is there and has several workers, or TF_CONFIG, which was set on purpose, or a TPU.
    port_base: port of the first worker of every host; None for one that suits the source.
    Raises `ClusterMistake` where a source is incomplete, or two contradict each other.
    """
    if kind not in KINDS:
        raise ClusterMistake(f"There is no kind of cluster {kind!r}; choose one of {', '.join(KINDS)}.")
    if kind == "none":
        return None
    if kind != "auto":
        place = _SOURCES[kind].find_place(environ, asked=True)
        assert place is not None, "who is asked answers or raises"
        return _cluster(kind, place, environ, port_base)
    places = {}
    for source, room in _SOURCES.items():
        place = room.find_place(environ, asked=False)
        # One process of Slurm's or MPI's may hold launch.local's, or be an ordinary run on a login node.
        if place and (place.count > 1 or source in ("tf_config", "tpu")):
            places[source] = place
    if not places:
        return None
    chosen = next(iter(places))
    _check_agreement(places, chosen)
    return _cluster(chosen, places[chosen], environ, port_base)


def _check_agreement(places: dict[str, Place], chosen: str) -> None:
    first = places[chosen]
    for source, other in places.items():
        # A TPU is no party to a cluster of processes, even if the numbers are the same by chance.
        same = (other.index, other.count) == (first.index, first.count)
        if source != chosen and (source == "tpu" or not same):
            raise ClusterMistake(
                f"Two sources contradict each other. {first.said}. {other.said}. Unset the variables of one, or "
                f"choose: --cluster={chosen} or --cluster={source}; --cluster=none is one process by itself."
            )


def _cluster(kind: str, place: Place, environ: Mapping[str, str], port_base: int | None) -> Cluster:
    workers = _SOURCES[kind].addresses(environ, place, port_base)
    if kind == "tpu":
        return Cluster(kind, workers, place.index, f"{place.said}. TPUStrategy asks the TPU for its hosts.")
    at = f"this is worker {place.index} at {workers[place.index]}"
    chief = ", the chief" if place.index == 0 else f", the chief is at {workers[0]}"
    return Cluster(kind, workers, place.index, f"{place.said}; {at}{chief}.")
