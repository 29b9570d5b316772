"""A task of a Slurm job step (`srun`) -> its place, and the addresses of all tasks.

https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
"""

from collections.abc import Mapping

from launch.cluster.host_lists import expand_counts, expand_hosts
from launch.cluster.place import ClusterMistake, Place, numbered, place_among, require, whole_number

# Between the ports that services have by custom and those that Linux gives to outgoing connections.
_FIRST_PORT, _LAST_PORT = 20000, 32767
_PORTS_OF_A_STEP = 16
_SPECIAL_STEPS = 0xFFFFFFF0  # batch script, `salloc`'s shell, pending: numbers from here on are none of srun's
_WANTED = "srun sets it for every task; start the training with `srun python -m launch.train ...`."


def find_place(environ: Mapping[str, str], asked: bool) -> Place | None:
    """This task's place in its step; None outside of one.
    asked: then that is a mistake."""
    if not _in_a_step(environ):
        if asked:
            where = "in a batch script, outside of srun" if environ.get("SLURM_JOB_ID") else "not in a Slurm job"
            raise ClusterMistake(f"--cluster=slurm: this is {where} (no SLURM_STEP_ID): {_WANTED}")
        return None
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        require(environ, name, _WANTED)
    step = f"Slurm, job {environ['SLURM_JOB_ID']} step {environ['SLURM_STEP_ID']}"
    return place_among(environ, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", step)


def addresses(environ: Mapping[str, str], place: Place, port_base: int | None) -> tuple[str, ...]:
    """'host:port' by task; tasks of one node get ports of their own.

    port_base: where it is None, it follows from the numbers of job and step, so that two of them that share a node do
      not meet; every task comes to the same.
    """
    for name in ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE"):
        require(environ, name, _WANTED)
    nodes = expand_hosts(environ["SLURM_STEP_NODELIST"], "SLURM_STEP_NODELIST")
    counts = expand_counts(environ["SLURM_STEP_TASKS_PER_NODE"], "SLURM_STEP_TASKS_PER_NODE")
    if len(counts) != len(nodes) or sum(counts) != place.count:
        raise ClusterMistake(
            f"SLURM_STEP_NODELIST={environ['SLURM_STEP_NODELIST']!r} has {len(nodes)} nodes, "
            f"SLURM_STEP_TASKS_PER_NODE={environ['SLURM_STEP_TASKS_PER_NODE']!r} has {len(counts)} with "
            f"{sum(counts)} tasks, and SLURM_STEP_NUM_TASKS={place.count}: these are not of one srun."
        )
    node_of = _distribute(counts, environ.get("SLURM_DISTRIBUTION", "block"))
    _check_own_node(environ, node_of, nodes, place)
    if port_base is None:
        port_base = _port_of_step(
            whole_number(environ, "SLURM_JOB_ID"), whole_number(environ, "SLURM_STEP_ID"), max(counts)
        )
    return numbered([nodes[node] for node in node_of], port_base)


def _in_a_step(environ: Mapping[str, str]) -> bool:
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID", "")).strip()
    return step.isascii() and step.isdigit() and int(step) < _SPECIAL_STEPS


def _distribute(counts: list[int], distribution: str) -> list[int]:
    """The node of every task: filled one after the other (block, Slurm's default), or dealt out (cyclic)."""
    across_nodes = distribution.partition(":")[0].partition(",")[0].lower()
    if across_nodes in ("block", "*", ""):
        return [node for node, count in enumerate(counts) for _ in range(count)]
    if across_nodes == "cyclic":
        return [node for turn in range(max(counts)) for node, count in enumerate(counts) if turn < count]
    raise ClusterMistake(
        f"SLURM_DISTRIBUTION={distribution!r}: which task runs on which node is known for block and cyclic; "
        "use srun --distribution=block."
    )


def _check_own_node(environ: Mapping[str, str], node_of: list[int], nodes: list[str], place: Place) -> None:
    node = node_of[place.index]
    expected = {
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(node_of[: place.index].count(node)),
        "SLURMD_NODENAME": nodes[node],
    }
    for name, value in expected.items():
        if environ.get(name, value) != value:
            raise ClusterMistake(
                f"{name}={environ[name]!r}, but task {place.index} should be {value!r} there by "
                "SLURM_STEP_NODELIST and SLURM_STEP_TASKS_PER_NODE; use srun --distribution=block."
            )


def _port_of_step(job: int, step: int, tasks_of_a_node: int) -> int:
    size = max(_PORTS_OF_A_STEP, tasks_of_a_node)
    # Neighbours in number are the likely neighbours on a node; steps of one job lie far from the next job's.
    return _FIRST_PORT + size * ((job + 101 * step) % ((_LAST_PORT + 1 - _FIRST_PORT) // size))
