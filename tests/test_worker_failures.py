"""Whatever becomes of one worker, the others end in time and say who it was; no one waits for ever."""

import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from commands import REPOSITORY, start_command

from launch.local import free_ports

pytestmark = pytest.mark.full

WORKER_TIMEOUT_SECONDS = 5


class Workers:
    """Real processes of launch.train on the loopback; each may have flags and an environment of its own."""

    def __init__(self, folder: Path, num_workers: int, missing=(), flags=None, environment=None, given=()):
        self.model_dir = folder / "run"
        self.addresses = [f"127.0.0.1:{port}" for port in free_ports(num_workers)]
        self.processes: dict = {}
        for index in set(range(num_workers)) - set(missing):
            task = {"cluster": {"worker": self.addresses}, "task": {"type": "worker", "index": index}}
            paths = f"{REPOSITORY / 'tests/faults'}:{REPOSITORY}"
            own = {"TF_CONFIG": json.dumps(task), "PYTHONPATH": paths, **(environment or {}).get(index, {})}
            self.processes[index] = start_command(
                "launch.train", "--gin_file=tests/faults/run.gin", "--strategy=multi_worker",
                "--gin_param=NUM_STEPS = 100000", f"--gin_param=GLOBAL_BATCH_SIZE = {num_workers * 12}",
                f"--model_dir={self.model_dir}", f"--worker_timeout_seconds={WORKER_TIMEOUT_SECONDS}",
                *given, *(flags or {}).get(index, []), stderr=subprocess.STDOUT, **own,
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for process in self.processes.values():
            process.kill()
            process.communicate()

    def name(self, index: int) -> str:
        return f"worker {index} ({self.addresses[index]})"

    def step(self) -> int:
        """That of the newest checkpoint."""
        return max((int(path.stem[5:]) for path in self.model_dir.glob("checkpoints/ckpt-*.index")), default=0)

    def wait_until_they_train(self) -> None:
        deadline = time.monotonic() + 600
        while self.step() < 5:
            assert time.monotonic() < deadline and all(each.poll() is None for each in self.processes.values())
            time.sleep(0.01)

    def ends(self, *indices: int) -> dict[int, tuple[int, list[str]]]:
        """Exit status and complaints of each."""
        found = {}
        for index in indices or self.processes:
            text, _ = self.processes[index].communicate(timeout=600)
            assert "Traceback" not in text, text
            # Where they start far apart, they say so first.
            text = re.sub(r"regraft: waiting for .*\n", "", text)
            found[index] = (self.processes[index].returncode, text.partition("regraft: ")[2].strip().splitlines())
        return found


def took(record_property, start: float) -> None:
    """Tells the reader; it is no part of the test, which the machine may hold up."""
    seconds = time.monotonic() - start
    record_property("seconds", seconds)
    print(f"ended after {seconds:.1f} s")


@pytest.mark.parametrize("struck", [0, 1, 2])
def test_a_worker_is_killed(tmp_path, struck, record_property):
    # Not by the timeout: that is an hour here.
    with Workers(tmp_path, 3, given=["--worker_timeout_seconds=3600"]) as workers:
        workers.wait_until_they_train()
        start = time.monotonic()
        workers.processes[struck].send_signal(signal.SIGKILL)
        others = {0, 1, 2} - {struck}
        said = (
            f"{workers.name(struck)} is gone: its process has ended, or its host. "
            "Run the same command again to resume from the last checkpoint."
        )
        assert workers.ends(*others) == {index: (75, [said]) for index in others}
        took(record_property, start)


@pytest.mark.parametrize("struck", [0, 1])
def test_a_worker_hangs(tmp_path, struck, record_property):
    with Workers(tmp_path, 2) as workers:
        workers.wait_until_they_train()
        start = time.monotonic()
        workers.processes[struck].send_signal(signal.SIGSTOP)
        (status, (said,)) = workers.ends(1 - struck)[1 - struck]
        assert status == 75
        assert said.startswith(f"{workers.name(struck)} has not been heard of for {WORKER_TIMEOUT_SECONDS} s.")
        took(record_property, start)
        workers.processes[struck].send_signal(signal.SIGCONT)
        assert workers.ends(struck)[struck][0] == 75, "and it ends too, when it wakes up"


def test_a_worker_that_stands_still_for_less_than_the_timeout_is_a_reason_to_run_again_and_no_bug(tmp_path):
    """TensorFlow's own watch has given it up by then, and the exchange cannot be taken up again."""
    with Workers(tmp_path, 2, given=["--worker_timeout_seconds=30"]) as workers:
        workers.wait_until_they_train()
        workers.processes[1].send_signal(signal.SIGSTOP)
        time.sleep(15)
        workers.processes[1].send_signal(signal.SIGCONT)
        found = workers.ends()
        assert {status for status, _ in found.values()} == {75}, found
        assert all("heartbeats did not come" in lines[0] for _, lines in found.values()), found


def test_a_worker_never_starts(tmp_path, record_property):
    """40 s, because the two that do start may import TensorFlow so far apart on a busy machine."""
    start = time.monotonic()
    with Workers(tmp_path, 3, missing=[2], given=["--start_timeout_seconds=40"]) as workers:
        said = f"{workers.name(2)} did not come within 40 s."
        found = workers.ends()
        assert {status for status, _ in found.values()} == {75}
        assert all(lines[-1].endswith(said) for _, lines in found.values()), found
        took(record_property, start)
        assert not workers.model_dir.exists()


def stopped_before_the_first_step(workers: Workers, *expected: str) -> None:
    for status, lines in workers.ends().values():
        text = "\n".join(lines)
        assert status == 2 and text.count("The workers are not alike") == 1, text
        assert all(each in text for each in expected), text
    assert not workers.model_dir.exists()


def test_different_configs(tmp_path):
    with Workers(tmp_path, 2, flags={1: ["--gin_param=SGD.momentum = 0.5"]}) as workers:
        zero, one = (f"the config of {workers.name(index)}: SGD.momentum = " for index in range(2))
        stopped_before_the_first_step(workers, f"{zero}0.9", f"{one}0.5")


def test_different_code(tmp_path):
    (tmp_path / "fault_model.py").write_text((REPOSITORY / "tests/faults/fault_model.py").read_text() + "\n# newer\n")
    paths = f"{tmp_path}:{REPOSITORY / 'tests/faults'}:{REPOSITORY}"
    with Workers(tmp_path, 2, environment={1: {"PYTHONPATH": paths}}) as workers:
        what = "the code that the config imports of"
        stopped_before_the_first_step(
            workers, f"{what} {workers.name(0)}: fault_model ", f"{what} {workers.name(1)}: fault_model "
        )


def test_different_data(tmp_path):
    given = ["--gin_param=import own_data\nTRAIN_DATA = @own_data()\nEVAL_DATA = None\nSaving.best_metric = None"]
    with Workers(tmp_path, 2, environment={1: {"OWN_DATA": "1"}}, given=given) as workers:
        reported = [f"the training data of worker {index}: in_memory, 64 examples, CRC-32C " for index in range(2)]
        stopped_before_the_first_step(workers, *reported)


def test_a_port_that_is_taken(tmp_path, record_property):
    start = time.monotonic()
    with Workers(tmp_path, 2, missing=[0, 1]) as workers:
        free, taken = workers.addresses
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(taken.rpartition(":")[2])))
        other.listen()
        task = {"cluster": {"worker": [free, taken]}, "task": {"type": "worker", "index": 1}}
        with Workers(tmp_path, 1, environment={0: {"TF_CONFIG": json.dumps(task)}}) as alone:
            status, lines = alone.ends()[0]
    assert status == 2 and "cannot use its port: Address already in use." in lines[0]
    took(record_property, start)


def test_the_chiefs_own_mistake_ends_the_others_with_it(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with Workers(tmp_path, 2) as workers:
        found = workers.ends()
        assert found[0][0] == found[1][0] == 2
        assert found[0][1][0].startswith(f"model_dir {workers.model_dir} cannot be made")
        assert found[1][1][0].startswith(f"{workers.name(0)} stopped: model_dir {workers.model_dir} cannot be made")


def test_every_worker_says_which_it_is(tmp_path):
    with Workers(tmp_path, 2, given=["--gin_param=NUM_STEPS = 5", "--gin_param=Intervals.eval_every = 0"]) as workers:
        texts = {index: process.communicate(timeout=600)[0] for index, process in workers.processes.items()}
        assert [process.returncode for process in workers.processes.values()] == [0, 0], texts
        assert f"worker           0 ({workers.addresses[0]}) of 2\n" in texts[0]
        assert f"worker           1 ({workers.addresses[1]}) of 2; the chief is {workers.name(0)}\n" in texts[1]


def test_several_workers_may_be_one(tmp_path):
    with Workers(tmp_path, 1, given=["--gin_param=NUM_STEPS = 5"]) as workers:
        text, _ = workers.processes[0].communicate(timeout=600)
        assert workers.processes[0].returncode == 0, text
