"""TF_CONFIG as a person, launch.local or Kubeflow's TFJob set it -> place and addresses.

https://www.tensorflow.org/guide/distributed_training#TF_CONFIG
"""

import json
import re
from collections import Counter
from collections.abc import Mapping

from launch.cluster.place import ClusterMistake, Place

_TRAINERS = ("chief", "master", "worker")  # a chief, or TFJob's older master, comes first: it is worker 0
_FORM = """{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}"""


def find_place(environ: Mapping[str, str], asked: bool) -> Place | None:
    """This process's place among chief and workers; None where TF_CONFIG has no cluster.
    asked: then a mistake."""
    jobs, task = _read(environ)
    if not jobs:
        if asked:
            raise ClusterMistake(f"--cluster=tf_config: TF_CONFIG has no cluster; set it to {_FORM}.")
        return None
    count = sum(len(listed) for listed in jobs.values())
    kind, index = str(task.get("type")), task.get("index")
    if isinstance(index, str) and index.isdigit():
        index = int(index)
    if kind not in jobs or not isinstance(index, int) or not 0 <= index < len(jobs[kind]):
        here = " and ".join(f"{len(listed)} {job}" for job, listed in jobs.items())
        raise ClusterMistake(
            f"TF_CONFIG: its task is {json.dumps(task)}, its cluster has {here}; name one of these, from index 0."
        )
    before = sum(len(listed) for job, listed in jobs.items() if _TRAINERS.index(job) < _TRAINERS.index(kind))
    return Place(before + index, count, f"TF_CONFIG: {before + index} of {count}, {kind} {index}")


def addresses(environ: Mapping[str, str], place: Place, port_base: int | None) -> tuple[str, ...]:
    """'host:port' by worker, as TF_CONFIG has them: ports are given there."""
    del place, port_base
    jobs, _ = _read(environ)
    return tuple(address for listed in jobs.values() for address in listed)


def _read(environ: Mapping[str, str]) -> tuple[dict[str, list[str]], dict]:
    """Addresses by job, chief first, and the task."""
    text = environ.get("TF_CONFIG", "").strip()
    if not text:
        return {}, {}
    try:
        tf_config = json.loads(text)
    except ValueError as error:
        raise ClusterMistake(f"TF_CONFIG={text!r} is no JSON ({error}); it must be {_FORM}.") from error
    if not isinstance(tf_config, dict):
        raise ClusterMistake(f"TF_CONFIG={text!r} must be {_FORM}.")
    cluster, task = tf_config.get("cluster") or {}, tf_config.get("task") or {}
    sparse = tf_config.get("sparseCluster")
    if sparse:
        raise ClusterMistake(
            "TF_CONFIG has a sparseCluster, which does not name the other workers: TFJob sets it with "
            "enableDynamicWorker: true, for parameter servers; leave that out of the manifest."
        )
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise ClusterMistake(f"TF_CONFIG={text!r} must be {_FORM}.")
    _refuse_other_jobs(cluster, task)
    jobs = {job: cluster[job] for job in _TRAINERS if cluster.get(job)}
    for job, listed in jobs.items():
        if not isinstance(listed, list) or not all(re.fullmatch(r"\S+:[0-9]{1,5}", str(each)) for each in listed):
            raise ClusterMistake(f"TF_CONFIG: cluster.{job} is {json.dumps(listed)}, no list of 'host:port'.")
    twice = [address for address, times in Counter(sum(jobs.values(), [])).items() if times > 1]
    if twice:
        raise ClusterMistake(f"TF_CONFIG: {twice[0]} is listed twice; every worker needs an address of its own.")
    return jobs, task


def _refuse_other_jobs(cluster: dict, task: dict) -> None:
    if cluster.get("ps") or task.get("type") == "ps":
        raise ClusterMistake(
            "TF_CONFIG has parameter servers (ps), and this is synchronous training without them; "
            "leave the replica type PS out of the TFJob, and ps out of the cluster."
        )
    if task.get("type") == "evaluator":
        raise ClusterMistake(
            "TF_CONFIG: this task is an evaluator, and the workers evaluate themselves; leave the replica type "
            "Evaluator out of the TFJob, or run `python -m launch.evaluate --continuous` beside the workers."
        )
    other = sorted(set(cluster) - {*_TRAINERS, "ps", "evaluator"})
    if other:
        raise ClusterMistake(f"TF_CONFIG: cluster has the job {other[0]!r}; known are chief and worker.")
