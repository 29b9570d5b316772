"""What a process's environment says about its cluster, place by place, and each contradiction in one message."""

import dataclasses
import itertools
import json
import os

import pytest
from commands import run_command

from launch.cluster import KINDS, Cluster, ClusterMistake, find_cluster
from launch.cluster.host_lists import expand_counts, expand_hosts


def slurm(index, nodes="gpu[001-003]", tasks="2,1(x2)", count=4, **other):
    return {
        "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(index), "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": tasks, **other,
    }  # fmt: skip


def tf_config(index=0, kind="worker", **jobs):
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})}


def open_mpi(index, count, local_index=None, local_count=None, **other):
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    values = (index, count, local_index, local_count)
    said = {
        f"OMPI_COMM_WORLD_{name}": str(value) for name, value in zip(names, values, strict=True) if value is not None
    }
    return {**said, **other}


def hydra(index, count):
    return {"PMI_RANK": str(index), "PMI_SIZE": str(count)}


def indexed_job(index, count=2, **other):
    names = {"REGRAFT_JOB_NAME": "finetune", "REGRAFT_SERVICE": "workers"}
    return {"JOB_COMPLETION_INDEX": str(index), "REGRAFT_NUM_WORKERS": str(count), **names, **other}


def jobset(job, pod, count=2, jobs=1, **other):
    names = {"JOBSET_NAME": "tune", "REPLICATED_JOB_NAME": "worker", "REGRAFT_SERVICE": "tune"}
    numbers = {"JOB_INDEX": job, "JOB_COMPLETION_INDEX": pod, "REGRAFT_NUM_WORKERS": count, "REGRAFT_NUM_JOBS": jobs}
    return {**names, **{name: str(number) for name, number in numbers.items()}, **other}


SLICE = {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1", "TPU_ACCELERATOR_TYPE": "v4-16"}
BOTH = ["a:1", "b:2"]

FOUND = {
    "TF_CONFIG": (tf_config(1, worker=BOTH), "tf_config", BOTH, 1),
    "TF_CONFIG of one worker, which someone set": (tf_config(0, worker=["a:1"]), "tf_config", ["a:1"], 0),
    "TFJob's chief comes first": (
        tf_config(0, "worker", worker=["w0.ns.svc:2222"], chief=["c0.ns.svc:2222"]),
        "tf_config",
        ["c0.ns.svc:2222", "w0.ns.svc:2222"],
        1,
    ),
    "the chief itself": (
        tf_config(0, "chief", worker=["w0:1", "w1:1"], chief=["c:1"]),
        "tf_config",
        ["c:1", "w0:1", "w1:1"],
        0,
    ),
    "TFJob's older master": (tf_config(0, "master", worker=["w:1"], master=["m:1"]), "tf_config", ["m:1", "w:1"], 0),
    "an evaluator beside us is none of us": (tf_config(1, worker=BOTH, evaluator=["e:1"]), "tf_config", BOTH, 1),
    # Job 77: 20000 + 16 * (77 modulo the 798 groups of 16 ports from 20000 to 32767) = 21232.
    "srun": (slurm(2), "slurm", ["gpu001:21232", "gpu001:21233", "gpu002:21232", "gpu003:21232"], 2),
    "srun, dealt out": (
        slurm(3, "a,b", "2(x2)", SLURM_DISTRIBUTION="cyclic:block", SLURM_NODEID="1", SLURM_LOCALID="1"),
        "slurm",
        ["a:21232", "b:21232", "a:21233", "b:21233"],
        3,
    ),
    # Node 2 has no second task: 0 1 2, then 0 1.
    "srun, dealt out unevenly": (
        slurm(4, "a,b,c", "2(x2),1", 5, SLURM_DISTRIBUTION="cyclic", SLURM_NODEID="1", SLURM_LOCALID="1"),
        "slurm",
        ["a:21232", "b:21232", "c:21232", "a:21233", "b:21233"],
        4,
    ),
    "srun with what Slurm says of this node": (
        slurm(1, SLURM_NODEID="0", SLURM_LOCALID="1", SLURMD_NODENAME="gpu001"),
        "slurm",
        ["gpu001:21232", "gpu001:21233", "gpu002:21232", "gpu003:21232"],
        1,
    ),
    # Step 2: 20000 + 16 * (77 + 2 * 101).
    "a later step": (slurm(0, "a", "2", 2, SLURM_STEP_ID="2"), "slurm", ["a:24464", "a:24465"], 0),
    "Indexed Job": (indexed_job(1), "kubernetes", ["finetune-0.workers:2222", "finetune-1.workers:2222"], 1),
    "JobSet": (jobset(0, 1), "kubernetes", ["tune-worker-0-0.tune:2222", "tune-worker-0-1.tune:2222"], 1),
    "JobSet of two jobs": (
        jobset(1, 0, count=4, jobs=2),
        "kubernetes",
        [f"tune-worker-{job}-{pod}.tune:2222" for job in (0, 1) for pod in (0, 1)],
        2,
    ),
    "mpirun on one machine": (open_mpi(1, 2, 1, 2), "mpi", ["127.0.0.1:2222", "127.0.0.1:2223"], 1),
    "mpirun, a host a rank": (open_mpi(1, 2, 0, 1, REGRAFT_HOSTS="a,b"), "mpi", ["a:2222", "b:2222"], 1),
    "mpirun, hosts with equal shares": (
        open_mpi(3, 4, 1, 2, REGRAFT_HOSTS="n[1-2]"),
        "mpi",
        ["n1:2222", "n1:2223", "n2:2222", "n2:2223"],
        3,
    ),
    "mpirun, ranks dealt out": (
        open_mpi(2, 4, 1, 2, REGRAFT_HOSTS="a,b,a,b"),
        "mpi",
        ["a:2222", "b:2222", "a:2223", "b:2223"],
        2,
    ),
    "mpiexec": ({**hydra(0, 2), "REGRAFT_HOSTS": "a,b"}, "mpi", ["a:2222", "b:2222"], 0),
    "TPU pod slice": (SLICE, "tpu", ["t0", "t1"], 1),
    "TPU VM": ({"TPU_NAME": "local"}, "tpu", [], 0),
    # What stands side by side in real clusters.
    "OpenMPI started by srun": (
        {**slurm(2), **open_mpi(2, 4)},
        "slurm",
        ["gpu001:21232", "gpu001:21233", "gpu002:21232", "gpu003:21232"],
        2,
    ),
    "srun --mpi=pmi2": ({**slurm(0, "a,b", "1(x2)", 2), **hydra(0, 2)}, "slurm", ["a:21232", "b:21232"], 0),
    "TF_CONFIG that agrees with srun": (
        {**slurm(1, "a,b", "1(x2)", 2), **tf_config(1, worker=BOTH)},
        "tf_config",
        BOTH,
        1,
    ),
    "launch.local in an srun of one task": (
        {**slurm(0, "a", "1", 1), **tf_config(1, worker=BOTH)},
        "tf_config",
        BOTH,
        1,
    ),
    "launch.local in a batch script": (
        {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", **tf_config(1, worker=BOTH)},
        "tf_config",
        BOTH,
        1,
    ),
    "mpirun in an srun of one task": (
        {**slurm(0, "a", "1", 1), **open_mpi(1, 2, 1, 2)},
        "mpi",
        ["127.0.0.1:2222", "127.0.0.1:2223"],
        1,
    ),
    "a TPU pod of a JobSet that does not ask for workers": (
        {**SLICE, "JOB_COMPLETION_INDEX": "1"},
        "tpu",
        ["t0", "t1"],
        1,
    ),
}


@pytest.mark.parametrize(("environ", "kind", "workers", "index"), FOUND.values(), ids=FOUND)
def test_a_cluster_is_found_and_reported_in_one_line(environ, kind, workers, index):
    cluster = find_cluster(environ)
    assert (cluster.kind, list(cluster.workers), cluster.index) == (kind, workers, index)
    assert "\n" not in cluster.reason
    if kind == "tpu":
        assert cluster.tf_config is None and "TPUStrategy" in cluster.reason
    else:
        assert cluster.workers[index] in cluster.reason
        assert cluster.tf_config == json.loads(cluster.tf_config_json)
        assert cluster.tf_config == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}


@pytest.mark.parametrize("name", [name for name, row in FOUND.items() if row[1] != "tpu"])
def test_what_was_found_is_found_again_in_the_tf_config_it_made(name):
    cluster = find_cluster(FOUND[name][0])
    again = find_cluster({"TF_CONFIG": cluster.tf_config_json})
    assert (again.workers, again.index) == (cluster.workers, cluster.index)


ALONE = {
    "nothing": {},
    "an empty TF_CONFIG": {"TF_CONFIG": " "},
    "a TF_CONFIG without a cluster": {"TF_CONFIG": "{}"},
    "a batch script": {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NODELIST": "a,b"},
    "salloc's shell": slurm(0, "a", "1", 1, SLURM_STEP_ID="4294967290"),
    "srun of one task": slurm(0, "a", "1", 1),
    "an Indexed Job whose pods are runs of their own": {"JOB_COMPLETION_INDEX": "3"},
    "one pod": indexed_job(0, 1),
    "mpirun of one": open_mpi(0, 1, 0, 1),
}


@pytest.mark.parametrize("environ", ALONE.values(), ids=ALONE)
def test_one_process_is_no_cluster_unless_somebody_asks(environ):
    assert find_cluster(environ) is None


@pytest.mark.parametrize(
    ("kind", "environ", "worker"),
    [
        ("slurm", slurm(0, "a", "1", 1), "a:21232"),
        ("kubernetes", indexed_job(0, 1), "finetune-0.workers:2222"),
        ("mpi", open_mpi(0, 1, 0, 1), "127.0.0.1:2222"),
        ("tf_config", tf_config(worker=["a:1"]), "a:1"),
    ],
)
def test_who_asks_by_name_gets_a_cluster_of_one(kind, environ, worker):
    assert find_cluster(environ, kind).workers == (worker,)


def test_a_name_chooses_one_of_two_and_none_chooses_none():
    both = {**slurm(2), **tf_config(1, worker=BOTH)}
    assert find_cluster(both, "tf_config").workers == tuple(BOTH)
    assert find_cluster(both, "slurm").index == 2
    assert find_cluster(both, "none") is None
    # A broken one that was not asked does not matter.
    assert find_cluster({**slurm(2), "TF_CONFIG": "{"}, "slurm").index == 2


def test_the_port_can_be_chosen():
    for environ in (slurm(0), indexed_job(0), jobset(0, 0), open_mpi(0, 2, 0, 2)):
        assert find_cluster(environ, port_base=5000).workers[0].endswith(":5000")
    assert find_cluster(tf_config(worker=BOTH), port_base=5000).workers == tuple(BOTH)


def test_jobs_that_share_a_node_get_ports_of_their_own_below_those_of_outgoing_connections():
    ports: dict[tuple, set] = {}
    for job, step in itertools.product(range(1000, 1100), range(4)):
        environ = slurm(0, "a", "8", 8, SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step))
        ports[job, step] = {int(worker.split(":")[1]) for worker in find_cluster(environ).workers}
    assert all(20000 <= port < 32768 for each in ports.values() for port in each)
    assert sum(len(each) for each in ports.values()) == len(set().union(*ports.values())) == 100 * 4 * 8


@pytest.mark.parametrize("tasks", [1, 16, 17, 100, 1000])
def test_every_task_of_a_step_comes_to_the_same_addresses(tasks):
    per_node = f"{tasks}(x3)"
    found = [
        find_cluster(slurm(index, "n[1-3]", per_node, 3 * tasks, SLURM_LOCALID=str(index % tasks)))
        for index in range(0, 3 * tasks, max(1, tasks // 4))
    ]
    assert len({cluster.workers for cluster in found}) == 1
    assert len(set(found[0].workers)) == 3 * tasks
    assert all(int(worker.split(":")[1]) < 32768 for worker in found[0].workers)


def without(environ, name):
    return {key: value for key, value in environ.items() if key != name}


MISTAKES = {
    "TF_CONFIG against srun": (
        {**slurm(0, "a[1-4]", "1(x4)"), **tf_config(1, worker=BOTH)},
        "auto",
        "TF_CONFIG: 1 of 2.*Slurm, job 77 step 0: 0 of 4.*--cluster=tf_config or --cluster=slurm",
    ),
    "one worker against srun": ({**slurm(0), **tf_config(worker=["a:1"])}, "auto", "TF_CONFIG: 0 of 1.*Slurm"),
    "OpenMPI's daemons under srun": (
        {**slurm(0, "a,b", "1(x2)", 2), **open_mpi(3, 4)},
        "auto",
        "Slurm.* 0 of 2.*MPI: 3 of 4",
    ),
    "a TPU and a cluster": (
        {**SLICE, **tf_config(1, worker=BOTH)},
        "auto",
        "TF_CONFIG: 1 of 2.*TPU_WORKER_ID=1.*--cluster=tpu",
    ),
    "a TPU and pods": ({"TPU_NAME": "x", **indexed_job(0)}, "auto", "JOB_COMPLETION_INDEX.*TPU_NAME=x"),
    "no JSON": ({"TF_CONFIG": "{broken"}, "auto", "TF_CONFIG='{broken' is no JSON.*host:port"),
    "a list": ({"TF_CONFIG": "[1]"}, "auto", r"TF_CONFIG='\[1\]' must be"),
    "cluster is a list": ({"TF_CONFIG": '{"cluster": ["a:1"]}'}, "auto", "must be"),
    "no task": (
        {"TF_CONFIG": json.dumps({"cluster": {"worker": BOTH}})},
        "auto",
        "its task is {}, its cluster has 2 worker",
    ),
    "index too high": (tf_config(2, worker=BOTH), "auto", "its task is .*2.*its cluster has 2 worker"),
    "index below 0": (tf_config(-1, worker=BOTH), "auto", "from index 0"),
    "no such job": (tf_config(0, "chief", worker=BOTH), "auto", "its cluster has 2 worker"),
    "one address": (tf_config(worker="a:1"), "auto", "cluster.worker is \"a:1\", no list of 'host:port'"),
    "no port": (tf_config(worker=["a", "b:1"]), "auto", "no list of 'host:port'"),
    "an address twice": (tf_config(worker=["a:1", "a:1"]), "auto", "a:1 is listed twice"),
    "a parameter server": (
        tf_config(0, "ps", worker=BOTH, ps=["p:1"]),
        "auto",
        "parameter servers.*leave the replica type PS out",
    ),
    "a worker beside parameter servers": (tf_config(0, worker=BOTH, ps=["p:1"]), "auto", "parameter servers"),
    "an evaluator": (tf_config(0, "evaluator", worker=BOTH), "auto", "evaluator.*launch.evaluate --continuous"),
    "another job": (tf_config(0, worker=BOTH, gardener=["g:1"]), "auto", "the job 'gardener'"),
    "TFJob's sparse cluster": (
        {
            "TF_CONFIG": json.dumps(
                {"sparseCluster": {"worker": {"1": "w1:2222"}, "ps": []}, "task": {"type": "worker", "index": 1}}
            )
        },
        "auto",
        "sparseCluster.*enableDynamicWorker",
    ),
    "a rank too high": (slurm(4), "auto", "SLURM_PROCID=4 is not below SLURM_STEP_NUM_TASKS=4"),
    "a rank that is no number": (
        {**slurm(0), "SLURM_PROCID": "one"},
        "auto",
        "SLURM_PROCID='one' must be a whole number",
    ),
    "no node list": (without(slurm(0), "SLURM_STEP_NODELIST"), "auto", "SLURM_STEP_NODELIST is not set"),
    "no rank": (without(slurm(0), "SLURM_PROCID"), "auto", "SLURM_PROCID is not set"),
    "fewer nodes": (slurm(0, "gpu[001-002]"), "auto", "has 2 nodes.*has 3 with 4 tasks"),
    "fewer tasks": (slurm(0, count=5), "auto", "SLURM_STEP_NUM_TASKS=5.*not of one srun"),
    "another node": (
        slurm(2, SLURM_NODEID="2"),
        "auto",
        "SLURM_NODEID='2', but task 2 should be '1'.*--distribution=block",
    ),
    "another node's name": (
        slurm(2, SLURMD_NODENAME="gpu003"),
        "auto",
        "SLURMD_NODENAME='gpu003', but task 2 should be 'gpu002'",
    ),
    "another place on the node": (slurm(1, SLURM_LOCALID="0"), "auto", "SLURM_LOCALID='0'.*'1'"),
    "a distribution that cannot be followed": (
        slurm(0, SLURM_DISTRIBUTION="plane=2"),
        "auto",
        "plane=2.*--distribution=block",
    ),
    "a batch script that is asked": (ALONE["a batch script"], "slurm", "outside of srun.*srun python -m launch.train"),
    "no Slurm": ({}, "slurm", "not in a Slurm job"),
    "no TF_CONFIG": ({}, "tf_config", "TF_CONFIG has no cluster"),
    "no MPI": ({}, "mpi", "mpirun python -m launch.train"),
    "no TPU": ({}, "tpu", "TPU_NAME"),
    "no Kubernetes": ({"JOB_COMPLETION_INDEX": "0"}, "kubernetes", "REGRAFT_NUM_WORKERS.*launch/kubernetes"),
    "a job that is not indexed": (without(indexed_job(0), "JOB_COMPLETION_INDEX"), "auto", "completionMode: Indexed"),
    "more pods than workers": (indexed_job(2), "auto", "JOB_COMPLETION_INDEX=2 is not below 2, REGRAFT_NUM_WORKERS=2"),
    "no service": (without(indexed_job(0), "REGRAFT_SERVICE"), "auto", "REGRAFT_SERVICE is not set"),
    "no name of the job": (without(indexed_job(0), "REGRAFT_JOB_NAME"), "auto", "REGRAFT_JOB_NAME is not set"),
    "no workers": (indexed_job(0, 0), "auto", "REGRAFT_NUM_WORKERS='0' must be a whole number, 1 or more"),
    "several jobs without a JobSet": (indexed_job(0, REGRAFT_NUM_JOBS="2"), "auto", "JOBSET_NAME is not set"),
    "no JOB_INDEX": (without(jobset(0, 0), "JOB_INDEX"), "auto", "JOB_INDEX is not set.*jobset.sigs.k8s.io/job-index"),
    "no name of the replicated job": (
        without(jobset(0, 0), "REPLICATED_JOB_NAME"),
        "auto",
        "REPLICATED_JOB_NAME is not",
    ),
    "no name of the JobSet": (without(jobset(0, 0), "JOBSET_NAME"), "auto", "JOBSET_NAME is not set"),
    "a job too many": (
        without(jobset(1, 0), "REGRAFT_NUM_JOBS"),
        "auto",
        r"JOB_INDEX=1 is not below REGRAFT_NUM_JOBS=1 \(not set\)",
    ),
    "pods that do not divide": (jobset(0, 0, count=3, jobs=2), "auto", "3 pods do not divide over REGRAFT_NUM_JOBS=2"),
    "ranks on other machines": (open_mpi(1, 4, 1, 2), "auto", "not all on this machine.*REGRAFT_HOSTS=host1,host2"),
    "mpiexec that does not say": (hydra(0, 2), "auto", "PMI_RANK=0 of PMI_SIZE=2.*REGRAFT_HOSTS"),
    "three hosts for four": (
        open_mpi(1, 4, REGRAFT_HOSTS="a,b,c"),
        "auto",
        "REGRAFT_HOSTS has 3 hosts for OMPI_COMM_WORLD_SIZE=4",
    ),
    "ranks in another order": (
        open_mpi(1, 4, 0, 2, REGRAFT_HOSTS="a,b"),
        "auto",
        "LOCAL_RANK=0, but REGRAFT_HOSTS puts 1",
    ),
    "a host with a port": (open_mpi(0, 2, REGRAFT_HOSTS="a:1,b:1"), "auto", "names hosts only.*--port_base"),
    "a TPU host too many": ({**SLICE, "TPU_WORKER_ID": "2"}, "auto", "TPU_WORKER_ID=2 is not below"),
    "no such kind": ({}, "slum", "no kind of cluster 'slum'.*tf_config"),
}


@pytest.mark.parametrize(("environ", "kind", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_wrong_is_said_in_one_line_with_names_and_values(environ, kind, message):
    with pytest.raises(ClusterMistake, match=message) as caught:
        find_cluster(environ, kind)
    assert "\n" not in str(caught.value)


def test_ports_end_at_65535():
    with pytest.raises(ClusterMistake, match="Port 65536 for a.*--port_base from 1 to 65534"):
        find_cluster(slurm(0, "a", "2", 2), port_base=65535)


HOST_LISTS = {
    "login": ["login"],
    "gpu[001-003,7],login": ["gpu001", "gpu002", "gpu003", "gpu7", "login"],
    "a[1-2]b[01-03]": ["a1b01", "a1b02", "a1b03", "a2b01", "a2b02", "a2b03"],
    "n[9-11]": ["n9", "n10", "n11"],
    "n[08-10]": ["n08", "n09", "n10"],
    "n[098-101]": ["n098", "n099", "n100", "n101"],
    "n[1-2]-ib,x": ["n1-ib", "n2-ib", "x"],
    "[1-2]": ["1", "2"],
    "n[3]": ["n3"],
    "b,a,b": ["b", "a", "b"],
    "n1.example.org,n[2-3].example.org": ["n1.example.org", "n2.example.org", "n3.example.org"],
}


@pytest.mark.parametrize(("text", "hosts"), HOST_LISTS.items(), ids=HOST_LISTS)
def test_a_host_list_expands_as_scontrol_shows_it(text, hosts):
    assert expand_hosts(text) == hosts


def compressed(prefix, low, high, digits):
    """One range as Slurm writes it."""
    return prefix + "[" + format(low, f"0{digits}d") + "-" + format(high, f"0{digits}d") + "]"


@pytest.mark.parametrize("digits", [1, 2, 4])
def test_any_range_expands_to_names_of_its_numbers_in_order(digits):
    for low, length in itertools.product((0, 1, 8, 95, 996), (0, 1, 7)):
        names = [f"n{'0' * (digits - len(str(number)))}{number}" for number in range(low, low + length + 1)]
        assert expand_hosts(compressed("n", low, low + length, digits)) == names
        twice = f"first,{compressed('n', low, low + length, digits)},{compressed('m', 1, 2, 1)}"
        assert expand_hosts(twice) == ["first", *names, "m1", "m2"]


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,", "a[", "a]", "a[1", "a[[1]]", "a[1]]", "a[]", "a[1-]", "a[-1]", "a[3-1]", "a[x]", "a[1,,2]", "a b",
     "a[0-65536]", "a[1-999999999999]", "a[1-300]b[1-300]"],
)  # fmt: skip
def test_a_host_list_that_is_none_is_refused_with_its_name(text):
    with pytest.raises(ClusterMistake, match="SLURM_STEP_NODELIST"):
        expand_hosts(text, "SLURM_STEP_NODELIST")


def test_counts_expand():
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    assert expand_counts("4") == [4]
    for wrong in ("", "2x3", "2(x)", "(x3)", "2,", "-1", "two"):
        with pytest.raises(ClusterMistake, match="TASKS"):
            expand_counts(wrong, "TASKS")


def test_a_cluster_cannot_be_changed():
    cluster = Cluster("slurm", ("a:1",), 0, "said")
    with pytest.raises(dataclasses.FrozenInstanceError):
        cluster.index = 1
    assert set(KINDS) == {"auto", "tf_config", "slurm", "kubernetes", "mpi", "tpu", "none"}


def command(*flags, **environ):
    sources = ("TF_CONFIG", "SLURM_", "JOB", "REGRAFT_", "OMPI_", "PMI_", "TPU_")
    clean = {name: "" for name in os.environ if name.startswith(sources)}
    return run_command("launch.cluster", *flags, **{**clean, **environ})


def test_the_command_prints_what_a_training_would_find():
    done = command(**slurm(2))
    assert done.returncode == 0, done.stderr
    reason, said = done.stdout.splitlines()
    assert "worker 2 at gpu002:21232" in reason
    assert json.loads(said.removeprefix("TF_CONFIG="))["task"] == {"type": "worker", "index": 2}
    as_json = json.loads(command("--json", "--port_base=5000", **slurm(2)).stdout)
    assert as_json["workers"] == ["gpu001:5000", "gpu001:5001", "gpu002:5000", "gpu003:5000"]


@pytest.mark.parametrize(("flag", "tf_config"), [("--cluster=slum", ""), ("--cluster=auto", "{")])
def test_the_command_ends_with_2_and_one_message(flag, tf_config):
    done = command(flag, TF_CONFIG=tf_config)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("regraft: ") and done.stderr.count("\n") == 1, done.stderr
