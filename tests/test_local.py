"""One command, several workers: they end together, with one status, and begin again together."""

import os
import signal
import time
from pathlib import Path

import pytest
from commands import REPOSITORY, run_command, start_command
from conftest import full
from test_faults import rows_of, saved, tensors_of, tf

from launch import local

FOR_EVER = 100_000  # seconds, in which a test is ended as hanging
RUN = ["--gin_file=tests/faults/run.gin", "--gin_param=NUM_STEPS = 100"]


def start(model_dir, log_dir, *flags, run=RUN):
    return start_command(
        "launch.local", f"--log_dir={log_dir}", *flags, "--", *run, f"--model_dir={model_dir}",
        PYTHONPATH=f"{REPOSITORY / 'tests/faults'}:{REPOSITORY}",
    )  # fmt: skip


def workers_of(process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_a_save(model_dir, process):
    deadline = time.monotonic() + 600
    while not saved(model_dir) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def last_of(model_dir):
    return tensors_of(tf.train.latest_checkpoint(str(model_dir / "checkpoints")))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """model_dir of a run of two workers that nothing hit."""
    folder = tmp_path_factory.mktemp("unbroken")
    whole = start(folder / "run", folder / "logs")
    out, error = whole.communicate(timeout=600)
    assert whole.returncode == 0, error
    assert "2 replicas in 2 workers" in out
    assert sorted(path.name for path in (folder / "logs").iterdir()) == ["worker-0.log", "worker-1.log"]
    return folder / "run"


def wait_for_state(pid, state):
    deadline = time.monotonic() + 600
    # Its first thread is a zombie before the others have ended and it can be waited for.
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != state or (
        state == "Z" and len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.full
def test_a_worker_that_is_lost_takes_all_along_and_they_resume_to_the_same_bits(tmp_path, unbroken):
    run = [*RUN, "--worker_timeout_seconds=5"]
    broken = start(tmp_path / "run", tmp_path / "logs", "--max_restarts=1", "--grace_seconds=5", run=run)
    wait_for_a_save(tmp_path / "run", broken)
    first = workers_of(broken)
    # The other worker leaves by itself before the command has looked.
    broken.send_signal(signal.SIGSTOP)
    wait_for_state(broken.pid, "T")
    os.kill(first[1], signal.SIGKILL)
    for pid in first:
        wait_for_state(pid, "Z")
    broken.send_signal(signal.SIGCONT)
    out, error = broken.communicate(timeout=600)
    assert broken.returncode == 0, error
    assert "worker 1 was ended by SIGKILL" in error + out and "restart 1 of at most 1" in error
    assert all(not Path(f"/proc/{pid}").exists() for pid in first)
    one, two = last_of(unbroken), last_of(tmp_path / "run")
    assert {name: value.tobytes() for name, value in one.items()} == {
        name: value.tobytes() for name, value in two.items()
    }
    assert rows_of(unbroken) == rows_of(tmp_path / "run")


@pytest.mark.full
def test_ctrl_c_saves_once_and_leaves_with_75(tmp_path):
    process = start(tmp_path / "run", tmp_path / "logs", "--max_restarts=3", "--pin_cpus")
    wait_for_a_save(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 75, error
    assert "preempted at" in out and "restart" not in error


@pytest.mark.full
def test_a_mistake_is_reported_once_and_ends_all(tmp_path):
    done = run_command("launch.local", "--", "--gin_file=away.gin", f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "away.gin is not there" in done.stderr and not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    for wrong in (
        ["--", "--strategy=mirrored"],
        ["--"],
        [f"--log_dir={tmp_path / 'file'}", "--", "--gin_file=any.gin"],
    ):
        done = run_command("launch.local", *wrong)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def workers_that_do(folder: Path, monkeypatch, *deeds: str) -> local.Workers:
    """Worker k does deeds[k], words of the shell, in place of training: by a `taskset` that stands in for ours."""
    cases = "".join(f"*'\"index\": {index}'*) {deed};;\n" for index, deed in enumerate(deeds))
    (folder / "taskset").write_text(f"#!/bin/bash\ncase $TF_CONFIG in\n{cases}esac\n")
    (folder / "taskset").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return local.Workers(len(deeds), [], folder, pin_cpus=True)


@pytest.mark.parametrize(
    ("deeds", "status", "said"),
    [
        (("exit 0", "exit 0"), 0, None),
        (("exit 75", "sleep 0.5; exit 75"), 75, None),
        (("exit 75", "exit 2"), 2, "worker 1 ended with status 2"),
        (("exit 75", "sleep 0.5; exit 2"), 2, "worker 1 ended with status 2"),
        (("sleep 0.5; exit 75", "exit 2"), 2, "worker 1 ended with status 2"),
        (("exit 75", "sleep 0.5; kill -KILL $$"), 75, "worker 1 was ended by SIGKILL"),
        (("exit 1", "sleep 0.5; exit 2"), 1, "worker 0 ended with status 1"),
        full(("exit 1", "trap '' TERM; exec sleep 100000"), 1, "worker 0 ended with status 1"),
        full(("exit 75", "exec sleep 100000"), 75, None),
    ],
)
def test_the_status_is_that_of_the_worker_that_was_the_cause(tmp_path, monkeypatch, capsys, deeds, status, said):
    assert workers_that_do(tmp_path, monkeypatch, *deeds).wait(grace_seconds=2, asked=[]) == status
    reported = capsys.readouterr().err
    assert reported.count("the others are ended") == (said is not None) and (said or "") in reported


@pytest.mark.full
def test_where_all_leave_with_75_already_one_that_fails_at_that_takes_no_time_from_the_others(tmp_path, monkeypatch):
    struck = tmp_path / "struck"
    saved = tmp_path / "saved"
    deeds = f"trap 'touch {struck}' TERM; sleep 7; touch {saved}; exit 75", "exit 75", "sleep 0.5; kill -ABRT $$"
    assert workers_that_do(tmp_path, monkeypatch, *deeds).wait(grace_seconds=600, asked=[]) == 75
    assert saved.exists() and not struck.exists()


def test_a_signal_that_came_before_the_workers_reaches_them(tmp_path, monkeypatch):
    # Python sees to a signal only between two steps of its own, which may be after they have started.
    workers = workers_that_do(tmp_path, monkeypatch, *2 * ["trap 'exit 75' TERM; while true; do sleep 0.1; done"])
    time.sleep(0.5)
    assert workers.wait(grace_seconds=FOR_EVER, asked=[signal.SIGTERM]) == 75


def test_asked_twice_it_waits_no_longer(tmp_path, monkeypatch):
    workers = workers_that_do(tmp_path, monkeypatch, *2 * ["trap '' TERM; exec sleep 100000"])
    time.sleep(0.5)
    assert workers.wait(grace_seconds=FOR_EVER, asked=[signal.SIGINT, signal.SIGINT]) == 75
