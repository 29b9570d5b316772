"""The scripts of launch/tpu_vm, run with a `gcloud` that writes down what it is asked for."""

import json
import os
import re
import shlex
import subprocess

import pytest
from commands import REPOSITORY, run_command

from launch.cluster import find_cluster

SCRIPTS = sorted((REPOSITORY / "launch/tpu_vm").glob("*.sh"))
EVERYWHERE = {"PROJECT": "mine", "ZONE": "us-central2-b", "TPU_NAME": "tune"}
NEEDED = {
    "create": {**EVERYWHERE, "ACCELERATOR_TYPE": "v4-8", "RUNTIME_VERSION": "tpu-ubuntu2204-base"},
    "install": EVERYWHERE,
    "run": {**EVERYWHERE, "NUM_HOSTS": "1"},
    "delete": EVERYWHERE,
}
RUN = ["--gin_file=configs/runs/digits_source.gin", "--gin_param=NUM_STEPS = 8", "--model_dir=runs/digits_source"]


@pytest.fixture
def run(tmp_path):
    """Runs a script; returns the finished process and the arguments of each call of gcloud."""
    calls = tmp_path / "calls"
    fake = tmp_path / "bin/gcloud"
    fake.parent.mkdir()
    fake.write_text(
        "#!/usr/bin/env python3\nimport json, os, sys\n"
        f"open({str(calls)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "sys.exit(int(os.environ.get('GCLOUD_STATUS', 0)))\n"
    )
    fake.chmod(0o755)

    def run(name, environment, *arguments):
        done = subprocess.run(
            [REPOSITORY / f"launch/tpu_vm/{name}.sh", *arguments],
            env={"PATH": f"{fake.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), **environment},
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done, [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    return run


def test_these_are_all_the_scripts_and_bash_can_read_them():
    assert {path.stem for path in SCRIPTS} == set(NEEDED)
    for path in SCRIPTS:
        assert os.access(path, os.X_OK)
        subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize(("name", "missing"), [(name, each) for name in NEEDED for each in NEEDED[name]])
def test_a_missing_variable_is_one_message_and_nothing_is_done(run, name, missing):
    environment = {key: value for key, value in NEEDED[name].items() if key != missing}
    done, calls = run(name, environment, *(RUN if name == "run" else []))
    assert done.returncode not in (0, 75) and not calls
    assert missing in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_run_without_flags_is_one_message(run):
    done, calls = run("run", NEEDED["run"])
    assert done.returncode not in (0, 75) and not calls
    assert "flags of launch.train" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", NEEDED)
def test_every_call_names_the_tpu_its_project_and_zone(run, name):
    done, calls = run(name, NEEDED[name], *(RUN if name == "run" else []))
    assert done.returncode == 0, done.stderr
    assert len(calls) == (2 if name == "install" else 1)
    for call in calls:
        assert call[:3] == ["compute", "tpus", "tpu-vm"]
        assert {"--project=mine", "--zone=us-central2-b"} <= set(call)
        assert any(argument.split(":")[0] == "tune" for argument in call)
    assert [call[3] for call in calls] == {"install": ["scp", "ssh"], "run": ["ssh"]}.get(name, [name])


def test_create_asks_for_what_was_named_and_for_a_spot_one_if_asked(run):
    _, (call,) = run("create", NEEDED["create"])
    assert "--accelerator-type=v4-8" in call and "--version=tpu-ubuntu2204-base" in call and "--spot" not in call
    _, calls = run("create", {**NEEDED["create"], "SPOT": "1"})
    assert "--spot" in calls[-1]


def test_install_copies_to_every_host_and_installs_the_lock_with_tensorflow_for_tpus_instead(run):
    _, (copy, install) = run("install", NEEDED["install"])
    assert "--worker=all" in copy and "--worker=all" in install
    command = next(each for each in install if each.startswith("--command=")).removeprefix("--command=")
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0
    (pin,) = re.findall(r"tensorflow-tpu==\S+", command)
    assert pin in (REPOSITORY / "launch/tpu_vm/README.md").read_text()
    # The same filter on the lock that ships: TensorFlow goes, and all that a training imports stays.
    (program,) = re.findall(r"sed -E '(.+)' requirements.lock", command)
    kept = subprocess.run(
        ["sed", "-E", program, REPOSITORY / "requirements.lock"], capture_output=True, text=True, check=True
    ).stdout.split()
    names = {line.split("==")[0] for line in kept if "==" in line}
    assert not names & {"tensorflow", "tensorboard", "tf-keras"}
    assert {"tensorflow-datasets", "keras", "numpy", "gin-config", "absl-py"} <= names


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
    return set(re.findall(r"^  --(?:\[no\])?(\w+):", run_command("launch.train", "--helpfull").stdout, re.MULTILINE))


@pytest.mark.parametrize(("hosts", "tpu"), [("1", "local"), ("4", "tune")])
def test_run_starts_one_program_with_flags_of_launch_train_whole_as_they_were_given(run, known_flags, hosts, tpu):
    done, (call,) = run("run", {**NEEDED["run"], "NUM_HOSTS": hosts}, *RUN)
    assert "--worker=0" in call
    command = next(each for each in call if each.startswith("--command=")).removeprefix("--command=")
    words = shlex.split(command)
    start = words.index("launch.train")
    flags = words[start + 1 :]
    assert flags == ["--strategy=tpu", "--cluster=tpu", f"--tpu={tpu}", *RUN]
    assert "model_dir" in known_flags
    assert {flag.removeprefix("--").partition("=")[0] for flag in flags} <= known_flags
    environment = dict(re.findall(r"(\w+)=(\S+)", command.partition(" && ")[2].partition(".venv/bin/python -m")[0]))
    # Only where the chips are this program's own may it load their library.
    assert ("TPU_LOAD_LIBRARY" in environment) == (hosts != "1")
    assert ("TF_PLUGGABLE_DEVICE_LIBRARY_PATH" in environment) == (hosts == "1")
    cluster = find_cluster(environment, kind="tpu")
    assert cluster.kind == "tpu" and cluster.tf_config is None and f"TPU_NAME={tpu}" in cluster.reason


def test_the_status_of_the_training_is_that_of_the_script(run):
    assert run("run", {**NEEDED["run"], "GCLOUD_STATUS": "75"}, *RUN)[0].returncode == 75
