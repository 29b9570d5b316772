"""A real Slurm runs the shipped template: at its time limit a job is requeued, and ends as if there were no limit."""

import os
import sys
import time
from pathlib import Path

import pytest
from commands import REPOSITORY
from slurm.daemons import Slurm, why_not
from test_faults import difference, run, saved

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

NUM_STEPS = 120  # of 0.3 seconds in the first try, so that it is not done before a look at the limit
FLAGS = ["--gin_file=tests/faults/run.gin", "--gin_file=tests/slurm/brake.gin"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


def submit(slurm, log: Path, *words, options=(), python=Path(sys.executable)) -> str:
    """Two workers by the template.  words: flags of launch.train.  options: of sbatch."""
    return slurm.submit(
        f"--output={log}", f"--chdir={REPOSITORY}", "--nodes=1", "--ntasks-per-node=2", *options,
        REPOSITORY / "launch/slurm/finetune.sbatch", *words,
        PATH=f"{python.parent}:{os.environ['PATH']}", PYTHONPATH=str(REPOSITORY),
    )  # fmt: skip


def stand_in(folder: Path, statuses, at_signal=False) -> Path:
    """A `python` that shows its arguments and ends with a status by task, at once or 2 seconds after SIGTERM."""
    waits = "trap 'sleep 2; echo saved; exit $status' TERM; echo begun; while :; do sleep 0.1; done"
    (folder / "python").write_text(
        "#!/bin/bash\n"
        f'echo "$*"; statuses=({" ".join(map(str, statuses))}); status=${{statuses[$SLURM_PROCID]}}\n'
        f"{waits if at_signal else 'exit $status'}\n"
    )
    (folder / "python").chmod(0o755)
    return folder / "python"


def test_at_the_time_limit_all_save_and_the_requeued_job_ends_with_the_bits_of_an_unbroken_run(slurm, tmp_path):
    model_dir, log = tmp_path / "run", tmp_path / "finetune.log"
    job = submit(
        slurm, log, *FLAGS, f"--gin_param=NUM_STEPS = {NUM_STEPS}", f"--model_dir={model_dir}",
        options=["--time=10", "--signal=TERM@65"],
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not saved(model_dir):
        assert slurm.job(job)["JobState"] in ("PENDING", "RUNNING") and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    addresses = slurm.listeners()
    assert set(addresses) >= {"slurmctld", "slurmd", "srun"}
    assert set().union(*addresses.values()) == {"127.0.0.1"}
    # Limits are whole minutes, looked at every 30 seconds. With 35 to 95 seconds left, the next look is in time.
    _, minutes, seconds = map(int, slurm.job(job)["RunTime"].split(":"))
    slurm.command("scontrol", "update", f"JobId={job}", f"TimeLimit={(60 * minutes + seconds + 35) // 60 + 1}")
    slurm.wait_for(job, 100, Restarts="1")
    slurm.command("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    first_try = log.read_text()
    assert "0: preempted at" in first_try and f"requeueing job {job}" in first_try, first_try
    assert "DUE TO TIME LIMIT" not in first_try, "it was the signal before the limit, not the limit"

    run(tmp_path / "whole", NUM_STEPS, "two workers", *FLAGS)
    slurm.wait_for(job, 250, JobState="COMPLETED", Restarts="1", ExitCode="0:0")
    second_try = log.read_text().removeprefix(first_try)
    assert "0: resumed" in second_try and "1: cluster" in second_try, second_try
    assert difference(model_dir, tmp_path / "whole") == 0


def test_a_mistake_is_not_requeued(slurm, tmp_path):
    log = tmp_path / "finetune.log"
    job = submit(slurm, log, "--gin_file=away.gin", f"--model_dir={tmp_path / 'run'}")
    slurm.wait_for(job, 200, JobState="FAILED", ExitCode="2:0", Restarts="0")
    text = log.read_text()
    assert "0: regraft: " in text and "1: regraft: " in text and "away.gin is not there" in text, text
    assert "requeueing" not in text


@pytest.mark.parametrize(
    "of_workers, state, status",
    [
        ((0, 0), "COMPLETED", 0),
        ((75, 2), "FAILED", 2),  # one has not found its data; the other has lost it
        ((1, 75), "FAILED", 1),
        ((75, 137), "FAILED", 137),
    ],
    ids=str,
)
def test_only_where_all_say_run_it_again_it_is_requeued(slurm, tmp_path, of_workers, state, status):
    python = stand_in(tmp_path, of_workers)
    job = submit(slurm, tmp_path / "finetune.log", "--a_flag=with two words", python=python)
    slurm.wait_for(job, 60, JobState=state, ExitCode=f"{status}:0", Restarts="0")
    text = (tmp_path / "finetune.log").read_text()
    given = "--cluster=slurm --strategy=multi_worker --gin_param=Limits.grace_seconds = 170 --a_flag=with two words"
    assert text.count(f"-m launch.train {given}\n") == 2, text


def test_scancel_lets_all_save_and_does_not_requeue(slurm, tmp_path):
    python, log = stand_in(tmp_path, (75, 75), at_signal=True), tmp_path / "finetune.log"
    job = submit(slurm, log, python=python)
    while not log.exists() or log.read_text().count("begun") < 2:
        time.sleep(0.1)
    slurm.command("scancel", job)
    slurm.wait_for(job, 60, JobState="CANCELLED", Restarts="0")
    text = log.read_text()
    assert text.count("saved") == 2 and "requeueing" not in text, text
