"""The manifests of launch/kubernetes: valid by the published schemas, and every pod finds its place and its flags."""

import copy
import re
from pathlib import Path

import kubernetes_validate
import pydantic
import pytest
import yaml
from commands import REPOSITORY, run_command
from kubeflow import training
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from launch.cluster import find_cluster

pytestmark = pytest.mark.full  # needs the schemas that `make test-distributed` installs

FOLDER = REPOSITORY / "launch/kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
PORT = 2222
# The first and the latest Kubernetes whose schemas are there and whose fields the manifests use.
KUBERNETES = ("1.29", "1.37")


def documents(path: Path) -> dict[str, dict]:
    return {document["kind"]: document for document in yaml.safe_load_all(path.read_text())}


def job_of(path: Path) -> dict:
    """The one document that runs something."""
    return next(document for kind, document in documents(path).items() if kind in ("Job", "JobSet", "TFJob"))


def spec_of(job: dict) -> dict:
    """Of what makes the pods: the Job, alone or in a JobSet, or the workers of a TFJob."""
    spec = job["spec"]
    if job["kind"] == "TFJob":
        return spec["tfReplicaSpecs"]["Worker"]
    return spec["replicatedJobs"][0]["template"]["spec"] if job["kind"] == "JobSet" else spec


def pod_of(job: dict) -> dict:
    return spec_of(job)["template"]["spec"]


def container_of(job: dict) -> dict:
    (container,) = pod_of(job)["containers"]
    return container


def flags_of(job: dict) -> dict[str, list[str]]:
    flags: dict[str, list[str]] = {}
    for argument in container_of(job)["command"][3:]:
        name, _, value = argument.removeprefix("--").partition("=")
        flags.setdefault(name, []).append(value)
    return flags


def check(document: dict) -> None:
    """By the schemas of Kubernetes itself, which know every field and refuse others."""
    for version in KUBERNETES:
        kubernetes_validate.validate(document, version, strict=True)


def check_jobset(document: dict) -> None:
    jobset = JobsetV1alpha2JobSet.from_dict(document)
    # The models drop what they do not know; all that was said must come back.
    assert_part_of(document["spec"], jobset.to_dict()["spec"])
    for replicated in document["spec"]["replicatedJobs"]:
        check({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]})


def assert_part_of(said, whole, path: str = "") -> None:
    if isinstance(said, dict):
        for name, each in said.items():
            assert name in whole, f"{path}.{name} is not known"
            assert_part_of(each, whole[name], f"{path}.{name}")
    elif isinstance(said, list):
        for index, (each, other) in enumerate(zip(said, whole, strict=True)):
            assert_part_of(each, other, f"{path}[{index}]")
    else:
        assert said == whole, path


def check_tfjob(document: dict) -> None:
    check_fields(document, training.KubeflowOrgV1TFJob)
    for replica in document["spec"]["tfReplicaSpecs"].values():
        pod = {"metadata": {"name": "x"}, **replica["template"]}
        check({"apiVersion": "v1", "kind": "Pod", **pod})
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    training.KubeflowOrgV1TFJobSpec(
        run_policy=document["spec"]["runPolicy"], tf_replica_specs=document["spec"]["tfReplicaSpecs"]
    )


def check_fields(value, model) -> None:
    """Every field of a manifest is one of the model's, with the type that it has there; pods are checked elsewhere."""
    known = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for name, each in value.items():
        assert name in known, f"{model.__name__} has no {name}"
        kind = known[name]
        inner = re.fullmatch(r"dict\(str, (\w+)\)", kind)
        if inner:
            for one in each.values():
                check_fields(one, getattr(training, inner[1]))
        elif kind.startswith("Kubeflow"):
            check_fields(each, getattr(training, kind))
        elif kind in ("int", "str", "bool"):
            assert type(each).__name__ == kind, f"{name}: {each!r} is no {kind}"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_valid_by_the_published_schemas(path):
    for kind, document in documents(path).items():
        {"JobSet": check_jobset, "TFJob": check_tfjob}.get(kind, check)(document)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("indexed_job.yaml", lambda job: job["spec"].update(complections=2)),
        ("indexed_job.yaml", lambda job: job["spec"].update(completions="two")),
        ("indexed_job.yaml", lambda job: job["spec"]["template"]["spec"].update(subdomian="x")),
        ("jobset.yaml", lambda job: job["spec"]["failurePolicy"].update(maxRestart=3)),
        ("jobset.yaml", lambda job: job["spec"]["failurePolicy"].update(maxRestarts="3")),
        ("jobset.yaml", lambda job: pod_of(job).update(restartpolicy="Never")),
        ("tfjob.yaml", lambda job: job["spec"].update(restartPolicy="Never")),
        ("tfjob.yaml", lambda job: job["spec"]["tfReplicaSpecs"]["Worker"].update(replicas="2")),
        ("tfjob.yaml", lambda job: job["spec"].pop("runPolicy")),
        ("tfjob.yaml", lambda job: pod_of(job).update(volume=[])),
    ],
)
def test_the_check_refuses_a_field_that_is_mistyped_or_of_the_wrong_kind(name, spoil):
    job = copy.deepcopy(job_of(FOLDER / name))
    spoil(job)
    with pytest.raises((AssertionError, KeyError, pydantic.ValidationError, kubernetes_validate.ValidationError)):
        {"JobSet": check_jobset, "TFJob": check_tfjob}.get(job["kind"], check)(job)


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
    """What `launch.train` says of itself."""
    return set(re.findall(r"^  --(?:\[no\])?(\w+):", run_command("launch.train", "--helpfull").stdout, re.MULTILINE))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_flag_is_one_of_launch_train(path, known_flags):
    job = job_of(path)
    assert container_of(job)["command"][:3] == ["python", "-m", "launch.train"]
    flags = flags_of(job)
    assert "model_dir" in known_flags
    assert set(flags) <= known_flags
    assert flags["strategy"] == ["multi_worker"] and (REPOSITORY / flags["gin_file"][0]).is_file()
    assert flags["cluster"] == ["tf_config" if job["kind"] == "TFJob" else "kubernetes"]


def environment(container: dict, labels: dict[str, str]) -> dict[str, str]:
    """What Kubernetes sets in a pod with these labels."""
    said = {}
    for variable in container["env"]:
        if "value" in variable:
            said[variable["name"]] = variable["value"]
        else:
            label = re.fullmatch(r"metadata\.labels\['(.+)'\]", variable["valueFrom"]["fieldRef"]["fieldPath"])[1]
            said[variable["name"]] = labels[label]
    return said


def pods_of_indexed_job(job: dict):
    """(host name in the service, environment) of each pod, as the Job controller makes it."""
    name, spec = job["metadata"]["name"], job["spec"]
    for index in range(spec["completions"]):
        labels = {"batch.kubernetes.io/job-name": name}
        environ = {**environment(container_of(job), labels), "JOB_COMPLETION_INDEX": str(index)}
        yield f"{name}-{index}.{spec['template']['spec']['subdomain']}", environ


def pods_of_jobset(jobset: dict):
    """The same as JobSet's controller makes it; the subdomain is the JobSet's."""
    name, subdomain = jobset["metadata"]["name"], jobset["spec"]["network"]["subdomain"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    for job in range(replicated["replicas"]):
        for index in range(replicated["template"]["spec"]["completions"]):
            labels = {
                "jobset.sigs.k8s.io/jobset-name": name,
                "jobset.sigs.k8s.io/replicatedjob-name": replicated["name"],
                "jobset.sigs.k8s.io/job-index": str(job),
            }
            environ = {**environment(container_of(jobset), labels), "JOB_COMPLETION_INDEX": str(index)}
            yield f"{name}-{replicated['name']}-{job}-{index}.{subdomain}", environ


def pods_of_tfjob(tfjob: dict):
    """The same as Kubeflow's operator makes it: a service for each replica, all of them in TF_CONFIG."""
    name, worker = tfjob["metadata"]["name"], tfjob["spec"]["tfReplicaSpecs"]["Worker"]
    assert set(tfjob["spec"]["tfReplicaSpecs"]) == {"Worker"} and container_of(tfjob)["name"] == "tensorflow"
    (port,) = [port["containerPort"] for port in container_of(tfjob)["ports"] if port["name"] == "tfjob-port"]
    hosts = [f"{name}-worker-{index}.namespace.svc" for index in range(worker["replicas"])]
    listed = ", ".join(f'"{host}:{port}"' for host in hosts)
    for index, host in enumerate(hosts):
        task = f'"task": {{"type": "worker", "index": {index}}}, "environment": "cloud"'
        tf_config = f'{{"cluster": {{"worker": [{listed}]}}, {task}}}'
        yield host, {**environment(container_of(tfjob), {}), "TF_CONFIG": tf_config}


PODS = {"Job": pods_of_indexed_job, "JobSet": pods_of_jobset, "TFJob": pods_of_tfjob}


def check_places(job: dict) -> None:
    pods = list(PODS[job["kind"]](job))
    assert len(pods) > 1
    for index, (_, environ) in enumerate(pods):
        cluster = find_cluster(environ, kind=flags_of(job)["cluster"][0])
        assert cluster.index == index
        assert list(cluster.workers) == [f"{host}:{PORT}" for host, _ in pods]
        assert find_cluster(environ) == cluster
    assert [port["containerPort"] for port in container_of(job)["ports"]] == [PORT]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_pod_finds_its_place_and_the_names_of_all(path):
    check_places(job_of(path))


def test_a_jobset_of_several_jobs_finds_them_all_too():
    jobset = copy.deepcopy(job_of(FOLDER / "jobset.yaml"))
    jobset["spec"]["replicatedJobs"][0]["replicas"] = 3
    counts = {"REGRAFT_NUM_JOBS": "3", "REGRAFT_NUM_WORKERS": "6"}
    for variable in container_of(jobset)["env"]:
        variable.update({"value": counts[variable["name"]]} if variable["name"] in counts else {})
    check_places(jobset)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_all_workers_run_at_once_on_one_volume_that_holds_the_run(path):
    job = job_of(path)
    pod = pod_of(job)
    claim = documents(path)["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (mount,) = container_of(job)["volumeMounts"]
    assert mount["name"] == volume["name"]
    flags = flags_of(job)
    init_checkpoint = re.fullmatch(r"INIT_CHECKPOINT = '(.+)'", flags["gin_param"][0])[1]
    for folder in (flags["model_dir"][0], init_checkpoint):
        assert Path(mount["mountPath"]) in Path(folder).parents
    if job["kind"] != "TFJob":
        spec = spec_of(job)
        assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"]


def test_the_names_of_pods_are_there_before_the_pods_are_ready():
    service = documents(FOLDER / "indexed_job.yaml")["Service"]
    job = job_of(FOLDER / "indexed_job.yaml")
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    network = job_of(FOLDER / "jobset.yaml")["spec"]["network"]
    assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"]


def what_happens(policy: dict, status: int) -> str:
    """What the Job controller does with a container that ended so: the first rule that matches; else it counts."""
    for rule in policy["rules"]:
        codes = rule.get("onExitCodes")
        if codes and (status in codes["values"]) == (codes["operator"] == "In"):
            return rule["action"]
    return "Count"


@pytest.mark.parametrize("name", ["indexed_job.yaml", "jobset.yaml"])
def test_75_and_a_kill_begin_again_and_a_mistake_or_a_bug_ends_the_job(name):
    job = job_of(FOLDER / name)
    spec = spec_of(job)
    policy = spec["podFailurePolicy"]
    assert [what_happens(policy, status) for status in (75, 137, 143)] == ["Count"] * 3
    assert [what_happens(policy, status) for status in (1, 2)] == ["FailJob"] * 2
    # A policy by exit status sees a container only where no one starts it again in place.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    names = {rule["onExitCodes"]["containerName"] for rule in policy["rules"] if "onExitCodes" in rule}
    assert names == {container_of(job)["name"]}
    if job["kind"] == "JobSet":
        # The Job fails by its first pod, for one of two reasons: the first ends the JobSet, any other restarts it.
        (rule,) = job["spec"]["failurePolicy"]["rules"]
        assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
        assert spec["backoffLimit"] == 0 and job["spec"]["failurePolicy"]["maxRestarts"] == 10
    else:
        assert spec["backoffLimit"] == 10 * spec["completions"]


def test_a_tfjob_begins_again_by_a_policy_that_does_not_take_75_for_permanent():
    job = job_of(FOLDER / "tfjob.yaml")
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]
    assert worker["restartPolicy"] == "OnFailure"
    assert job["spec"]["runPolicy"]["backoffLimit"] == 10 * worker["replicas"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_there_is_time_to_save_and_to_find_each_other(path):
    job = job_of(path)
    pod = pod_of(job)
    assert pod["terminationGracePeriodSeconds"] >= 60
    # Kubernetes waits up to 6 minutes before it starts a failed pod again, and the other worker waits for it.
    assert int(flags_of(job)["start_timeout_seconds"][0]) > 360
