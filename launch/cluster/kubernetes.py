"""A pod of an Indexed Job or a JobSet -> its place, and the pods' names in a headless service.

Kubernetes tells a pod its own index and no more: how many there are and what they are called is written into
the manifest, as those of launch/kubernetes do it.

  JOB_COMPLETION_INDEX   set by Kubernetes: which pod of its job
  REGRAFT_NUM_WORKERS    pods in all; without it pods of an Indexed Job are runs of their own
  REGRAFT_SERVICE        the headless service (the pods' `subdomain`)
  REGRAFT_JOB_NAME       name of the Job, whose pods are <job>-<index>.<service>
or, of a JobSet, whose pods are <jobset>-<replicated job>-<job>-<index>.<service>:
  JOBSET_NAME, REPLICATED_JOB_NAME, JOB_INDEX   by the downward API, from the labels that JobSet gives its pods
  REGRAFT_NUM_JOBS       `replicas` of the replicated job, where they are several
"""

from collections.abc import Mapping

from launch.cluster.place import PORT_BASE, ClusterMistake, Place, numbered, require, whole_number

_MANIFESTS = "copy it from a manifest in launch/kubernetes."


def find_place(environ: Mapping[str, str], asked: bool) -> Place | None:
    """This pod's place; None where REGRAFT_NUM_WORKERS is not set.
    asked: then that is a mistake."""
    if not environ.get("REGRAFT_NUM_WORKERS", "").strip():
        if asked:
            raise ClusterMistake(f"--cluster=kubernetes: REGRAFT_NUM_WORKERS, how many pods, is not set; {_MANIFESTS}")
        return None
    require(environ, "JOB_COMPLETION_INDEX", "Kubernetes sets it in jobs with completionMode: Indexed; use one.")
    count = whole_number(environ, "REGRAFT_NUM_WORKERS", at_least=1)
    jobs, job = _jobs(environ)
    if count % jobs:
        raise ClusterMistake(f"REGRAFT_NUM_WORKERS={count} pods do not divide over REGRAFT_NUM_JOBS={jobs}.")
    pod = whole_number(environ, "JOB_COMPLETION_INDEX")
    if pod >= count // jobs:
        raise ClusterMistake(
            f"JOB_COMPLETION_INDEX={pod} is not below {count // jobs}, REGRAFT_NUM_WORKERS={count} over {jobs} "
            "job(s): set it to completions of the job, times replicas of the replicated job."
        )
    index = job * (count // jobs) + pod
    said = f"Kubernetes: {index} of {count} by JOB_COMPLETION_INDEX={pod}"
    return Place(index, count, said + (f", JOB_INDEX={job}" if jobs > 1 else "") + ", REGRAFT_NUM_WORKERS")


def addresses(environ: Mapping[str, str], place: Place, port_base: int | None) -> tuple[str, ...]:
    """'host:port' by pod; the names are those that the service gives, whether a pod is there yet or not."""
    service = require(environ, "REGRAFT_SERVICE", f"name of the pods' headless service; {_MANIFESTS}")
    jobs, _ = _jobs(environ)
    if _in_a_jobset(environ):
        jobset = require(environ, "JOBSET_NAME", f"the label jobset.sigs.k8s.io/jobset-name; {_MANIFESTS}")
        name = require(environ, "REPLICATED_JOB_NAME", f"the label jobset.sigs.k8s.io/replicatedjob-name; {_MANIFESTS}")
        names = [f"{jobset}-{name}-{job}" for job in range(jobs)]
    else:
        names = [require(environ, "REGRAFT_JOB_NAME", f"name of the Job that the pods belong to; {_MANIFESTS}")]
    hosts = [f"{name}-{pod}.{service}" for name in names for pod in range(place.count // jobs)]
    return numbered(hosts, PORT_BASE if port_base is None else port_base)


def _in_a_jobset(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name, "").strip() for name in ("JOBSET_NAME", "REPLICATED_JOB_NAME"))


def _jobs(environ: Mapping[str, str]) -> tuple[int, int]:
    """How many jobs the pods belong to, and which of them is this pod's."""
    several = bool(environ.get("REGRAFT_NUM_JOBS", "").strip())
    jobs = whole_number(environ, "REGRAFT_NUM_JOBS", at_least=1) if several else 1
    if not _in_a_jobset(environ):
        if jobs > 1:
            raise ClusterMistake(f"REGRAFT_NUM_JOBS={jobs} is for a JobSet, and JOBSET_NAME is not set; {_MANIFESTS}")
        return 1, 0
    require(environ, "JOB_INDEX", f"the label jobset.sigs.k8s.io/job-index; {_MANIFESTS}")
    job = whole_number(environ, "JOB_INDEX")
    if job >= jobs:
        raise ClusterMistake(
            f"JOB_INDEX={job} is not below REGRAFT_NUM_JOBS={jobs}{'' if several else ' (not set)'}: "
            "set it to replicas of the replicated job."
        )
    return jobs, job
