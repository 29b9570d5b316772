"""A process of `mpirun` or `mpiexec` (OpenMPI, MPICH, Intel MPI) -> its place, and the hosts of all.

MPI's launchers tell a process its rank and how many there are. Where the others run they do not tell: on one
machine that is known, for several set REGRAFT_HOSTS=host1,host2 or host[1-2], in the order of the ranks, to one
host each or to the hosts that take equal shares of the ranks.
"""

from collections.abc import Mapping

from launch.cluster.host_lists import expand_hosts
from launch.cluster.place import PORT_BASE, ClusterMistake, Place, numbered, place_among, whole_number

# (rank, size, rank on this machine, size on this machine) as OpenMPI, and as MPICH's Hydra and Intel MPI have it.
_OPEN_MPI = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
_HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def find_place(environ: Mapping[str, str], asked: bool) -> Place | None:
    """This rank's place; None where no launcher of MPI's started it.
    asked: then that is a mistake."""
    names = _names(environ)
    if names is None:
        if asked:
            raise ClusterMistake(
                "--cluster=mpi: neither OMPI_COMM_WORLD_RANK and _SIZE nor PMI_RANK and PMI_SIZE are set; "
                "start the training with `mpirun python -m launch.train ...`."
            )
        return None
    return place_among(environ, names[0], names[1], "MPI")


def addresses(environ: Mapping[str, str], place: Place, port_base: int | None) -> tuple[str, ...]:
    """'host:port' by rank."""
    names = _names(environ)
    assert names is not None, "there is no place without a launcher"
    local = [whole_number(environ, name) if environ.get(name, "").strip() else None for name in names[2:]]
    text = environ.get("REGRAFT_HOSTS", "").strip()
    hosts = expand_hosts(text, "REGRAFT_HOSTS") if text else []
    if any(":" in host for host in hosts):
        raise ClusterMistake(f"REGRAFT_HOSTS={text!r} names hosts only; the port is --port_base.")
    if not hosts and local[1] != place.count:
        raise ClusterMistake(
            f"{names[0]}={place.index} of {names[1]}={place.count}, which are not all on this machine: MPI does "
            "not tell where the others run. Set REGRAFT_HOSTS=host1,host2,... for all of them, e.g. "
            "`mpirun -x REGRAFT_HOSTS=host1,host2` (MPICH: `-genv REGRAFT_HOSTS host1,host2`)."
        )
    hosts = hosts or ["127.0.0.1"]
    if place.count % len(hosts):
        raise ClusterMistake(
            f"REGRAFT_HOSTS has {len(hosts)} hosts for {names[1]}={place.count} ranks: list one for each rank, "
            "or hosts that take equal shares."
        )
    by_rank = [host for host in hosts for _ in range(place.count // len(hosts))]
    position = by_rank[: place.index].count(by_rank[place.index])
    if local[0] not in (None, position):
        raise ClusterMistake(
            f"{names[2]}={local[0]}, but REGRAFT_HOSTS puts {position} rank(s) on {by_rank[place.index]} before "
            f"rank {place.index}: list one host for each rank, in the order of the ranks."
        )
    return numbered(by_rank, PORT_BASE if port_base is None else port_base)


def _names(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    return next((names for names in (_OPEN_MPI, _HYDRA) if names[0] in environ and names[1] in environ), None)
