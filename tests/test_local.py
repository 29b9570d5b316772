"""One command, several workers: they end together, with one status, and begin again together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, run_command
from test_faults import rows_of, saved, tensors_of, tf

pytestmark = pytest.mark.slow

RUN = ["--gin_file=tests/faults/run.gin", "--gin_param=NUM_STEPS = 300"]


def start(model_dir, log_dir, *flags, run=RUN):
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'tests/faults'}:{REPOSITORY}"}
    command = [sys.executable, "-m", "launch.local", f"--log_dir={log_dir}", *flags, "--", *run]
    return subprocess.Popen(
        [*command, f"--model_dir={model_dir}"], cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def workers_of(process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_a_save(model_dir, process):
    deadline = time.monotonic() + 120
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
    out, error = whole.communicate(timeout=200)
    assert whole.returncode == 0, error
    assert "2 replicas in 2 workers" in out
    assert sorted(path.name for path in (folder / "logs").iterdir()) == ["worker-0.log", "worker-1.log"]
    return folder / "run"


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("struck", "number", "said"),
    [
        (1, signal.SIGKILL, "worker 1 was ended by SIGKILL"),
        (0, signal.SIGKILL, "worker 0 was ended by SIGKILL"),
        (1, signal.SIGSTOP, "has not been heard of for 5 s"),
    ],
)
def test_a_worker_that_is_lost_takes_all_along_and_they_go_on_to_the_same_bits(
    tmp_path, unbroken, struck, number, said
):
    run = [*RUN, "--worker_timeout_seconds=5"]
    broken = start(tmp_path / "run", tmp_path / "logs", "--max_restarts=1", "--grace_seconds=5", run=run)
    wait_for_a_save(tmp_path / "run", broken)
    first = workers_of(broken)
    os.kill(first[struck], number)
    out, error = broken.communicate(timeout=200)
    assert broken.returncode == 0, error
    assert said in error + out and "restart 1 of at most 1" in error
    assert all(not Path(f"/proc/{pid}").exists() for pid in first)
    one, two = last_of(unbroken), last_of(tmp_path / "run")
    assert {name: value.tobytes() for name, value in one.items()} == {
        name: value.tobytes() for name, value in two.items()
    }
    assert rows_of(unbroken) == rows_of(tmp_path / "run")


def test_ctrl_c_saves_once_and_leaves_with_75(tmp_path):
    process = start(tmp_path / "run", tmp_path / "logs", "--max_restarts=3", "--pin_cpus")
    wait_for_a_save(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=100)
    assert process.returncode == 75, error
    assert "preempted at" in out and "restart" not in error


def test_a_mistake_is_told_once_and_ends_all(tmp_path):
    done = run_command("launch.local", "--", "--gin_file=away.gin", f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "away.gin is not there" in done.stderr and not (tmp_path / "run").exists()
    for wrong in (["--strategy=mirrored"], []):
        done = run_command("launch.local", "--", *wrong)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
