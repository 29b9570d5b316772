"""Whatever hits a run, the same command again ends with the bits of a run that nothing hit.

`make test-resume` (--fault-table) prints what was done and the largest difference; it kills at 20 moments, not 2,
and runs more cases.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import REPOSITORY, start_command

from launch.local import free_ports
from trainer.output.metric_writer import read_rows

pytestmark = pytest.mark.full

SETUPS = {
    "one replica": ["--strategy=one_device"],
    "two replicas": ["--strategy=mirrored", "--virtual_devices=2"],
    "two workers": ["--strategy=multi_worker"],
}


@pytest.fixture(scope="module")
def moments(request) -> int:
    """How often each kind of run is killed before its end."""
    return 20 if request.config.getoption("--fault-table") else 2


@pytest.fixture(scope="module")
def num_steps() -> int:
    """Of a run that is hit once."""
    return 100


def start(model_dir, num_steps, setup="one replica", *flags, **environment) -> list:
    """The command in one process, or in two workers."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2 if setup == "two workers" else 1):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        config = {"TF_CONFIG": json.dumps(cluster)} if setup == "two workers" else {}
        paths = f"{REPOSITORY / 'tests/faults'}:{REPOSITORY}"
        processes.append(
            start_command(
                "launch.train", "--gin_file=tests/faults/run.gin", *SETUPS[setup],
                f"--model_dir={model_dir}", f"--gin_param=NUM_STEPS = {num_steps}", *flags,
                stderr=subprocess.STDOUT, **{"PYTHONPATH": paths, **config, **environment},
            )
        )  # fmt: skip
    return processes


def finish(processes) -> tuple[int, str]:
    """Exit status and text of the first; all of them are gone afterwards."""
    try:
        text, _ = processes[0].communicate(timeout=600)
        for process in processes[1:]:
            process.communicate(timeout=600)
    finally:
        for process in processes:
            process.kill()
    return processes[0].returncode, text


def run(*arguments, status=0, **environment) -> str:
    returned, text = finish(start(*arguments, **environment))
    assert returned == status, text
    assert "Traceback" not in text, text
    return text


def saved(model_dir) -> list[str]:
    return sorted(path.name for path in Path(model_dir, "checkpoints").glob("ckpt-*.index"))


def steps_saved(model_dir) -> list[int]:
    return [int(name.removeprefix("ckpt-").removesuffix(".index")) for name in saved(model_dir)]


def wait_for_a_save(model_dir, processes, before) -> None:
    deadline = time.monotonic() + 600
    while saved(model_dir) == before and processes[0].poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, num_steps):
    """model_dir of a run that nothing hit, by setup, number of steps and flags."""
    made: dict[tuple, Path] = {}

    def of(setup, num_steps=num_steps, *flags) -> Path:
        key = (setup, num_steps, *flags)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("unbroken") / "run"
            run(made[key], num_steps, setup, *flags)
        return made[key]

    return of


def tensors_of(prefix: str) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(prefix)
    names = reader.get_variable_to_shape_map()
    return {name: np.asarray(reader.get_tensor(name)) for name in names if not name.startswith("_CHECKPOINTABLE")}


def final_weights(model_dir) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(Path(model_dir, "final.weights.h5")) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    assert found
    return found


def rows_of(model_dir) -> list[dict]:
    rows = read_rows(Path(model_dir, "metrics.jsonl"))
    return [{name: value for name, value in row.items() if name != "examples_per_second"} for row in rows]


def difference(model_dir, other) -> float:
    """The largest of all tensors of the last and the best checkpoint and of the weights that the run leaves behind.

    Everything else must be the same too.
    """
    largest = 0.0
    last, best = (
        [tensors_of(tf.train.latest_checkpoint(str(Path(path, folder)))) for path in (model_dir, other)]
        for folder in ("checkpoints", "checkpoints/best")
    )
    for one, two in (last, best, [final_weights(path) for path in (model_dir, other)]):
        assert one.keys() == two.keys()
        for name in one:
            if one[name].tobytes() != two[name].tobytes():
                apart = np.abs(one[name].astype(np.float64) - two[name].astype(np.float64)).max()
                largest = max(largest, float(apart), np.finfo(np.float64).tiny)
    assert rows_of(model_dir) == rows_of(other), "another history is on record"
    infos = [Path(path, "checkpoints/best/info.json").read_text() for path in (model_dir, other)]
    assert infos[0] == infos[1]
    one, two = (json.loads(Path(path, "summary.json").read_text()) for path in (model_dir, other))
    for name in ("step", "finished", "initial_metrics", "final_metrics"):
        assert one[name] == two[name], name
    assert not list(Path(model_dir).rglob("*_temp")) and not list(Path(model_dir).glob(".tmp*"))
    return largest


@pytest.fixture
def same_bits(unbroken, fault_cell):
    """Compares a finished run with the unbroken one and notes it in the table."""

    def compare(fault, done, model_dir, *of):
        largest = difference(model_dir, unbroken(*(of or ["one replica"])))
        fault_cell(fault, done, largest)
        assert largest == 0.0

    return compare


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("setup", list(SETUPS))
def test_killed_at_any_moment(tmp_path, setup, moments, same_bits):
    """In turn: at any time of a start, after a save, in the middle of one; and then at its very end."""
    num_steps = 90 + 30 * moments  # each with a save; not to be through before the last kill
    chance, kills, in_starting, in_saving, start_seconds = random.Random(setup), 0, 0, 0, 4.0
    model_dir = tmp_path / "run"
    for moment in range(moments):
        before, began = saved(model_dir), time.monotonic()
        processes = start(model_dir, num_steps, setup)
        if moment % 3 == 0:  # before it has got anywhere, most often: in an import, the resume, the first evaluation
            time.sleep(chance.uniform(0, start_seconds))
        else:  # so that the run gets on
            wait_for_a_save(model_dir, processes, before)
            start_seconds = time.monotonic() - began
            time.sleep(chance.uniform(0, 0.5))
        while moment % 3 == 2 and not in_a_save(model_dir) and processes[0].poll() is None:
            time.sleep(0.001)
        kills += kill(processes, chance)
        in_starting += saved(model_dir) == before
        in_saving += in_a_save(model_dir)
    assert kills == moments, "it was through before"
    assert in_starting and in_saving or moments < 20

    processes = start(model_dir, num_steps, setup, FAULT_SLOW_WEIGHTS="2")
    weights = model_dir / ".tmp.final.weights.h5"
    while not weights.exists() and processes[0].poll() is None:
        time.sleep(0.001)
    assert kill(processes, chance), "it was through before"
    processes = start(model_dir, num_steps, setup)  # which has nothing to do but to leave the weights behind
    time.sleep(chance.uniform(0, start_seconds))
    kills += 1 + kill(processes, chance)

    run(model_dir, num_steps, setup)
    done = f"the same command; {in_starting} times it had been killed in starting, {in_saving} in saving, 1 at its end"
    same_bits(f"kill -9 at {kills} moments, {setup}", done, model_dir, setup, num_steps)


def in_a_save(model_dir) -> bool:
    return bool(list(model_dir.glob("checkpoints/ckpt-*_temp")))


def kill(processes, chance) -> bool:
    """Kills one of them, then what is left; returns whether the first, which writes, was there to be killed."""
    was_there = processes[0].poll() is None
    chance.choice(processes).send_signal(signal.SIGKILL)
    time.sleep(0.1)
    for process in processes:
        process.kill()
        process.communicate()
    return was_there


def test_a_lock_that_a_dead_process_left_is_taken_over(tmp_path, num_steps, same_bits):
    processes = start(tmp_path / "run", num_steps)
    wait_for_a_save(tmp_path / "run", processes, [])
    processes[0].kill()
    processes[0].communicate()
    assert str(processes[0].pid) in (tmp_path / "run/.lock").read_text(), "it stands there still"
    run(tmp_path / "run", num_steps)
    same_bits("a stale lock", "taken over", tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal(tmp_path, number, num_steps, same_bits):
    processes = start(tmp_path / "run", num_steps)
    wait_for_a_save(tmp_path / "run", processes, [])
    processes[0].send_signal(number)
    status, text = finish(processes)
    assert status == 75 and "Run the same command again" in text, text
    run(tmp_path / "run", num_steps)
    same_bits(signal.Signals(number).name, "saved, exit 75; the same command", tmp_path / "run")


def wait_until_slow(path, processes, times=3) -> None:
    """Until the model has dawdled so often, as FAULT_SLOW asks."""
    deadline = time.monotonic() + 600
    while not path.exists() or path.stat().st_size < times:
        assert time.monotonic() < deadline and processes[0].poll() is None, finish(processes)
        time.sleep(0.02)


def test_a_second_signal_leaves_at_once_from_inside_a_device_loop(tmp_path, half, num_steps, same_bits):
    numbers = signal.SIGTERM, signal.SIGINT
    shutil.copytree(half, tmp_path / "run")
    before = saved(tmp_path / "run")
    one_loop = [f"--gin_param=Intervals.{name} = 0" for name in ("log_every", "eval_every", "checkpoint_every")]
    one_loop += ["--gin_param=Intervals.steps_per_loop = 1000", "--gin_param=Limits.grace_seconds = 0"]
    slow = {"FAULT_SLOW": f"training 2 {tmp_path / 'slow'}"}
    processes = start(tmp_path / "run", num_steps, "one replica", *one_loop, **slow)
    wait_until_slow(tmp_path / "slow", processes)
    processes[0].send_signal(numbers[0])
    time.sleep(0.5)
    assert processes[0].poll() is None, "the first one waits for the end of the loop, in minutes"
    processes[0].send_signal(numbers[1])
    status, text = finish(processes)
    assert status == -numbers[1], (status, text)  # 75 where it had waited for the end of the loop
    assert saved(tmp_path / "run") == before
    run(tmp_path / "run", num_steps)
    names = " and ".join(signal.Signals(number).name for number in numbers)
    same_bits(f"{names} in a device loop", "left at once; the same command", tmp_path / "run")


def test_a_signal_in_an_evaluation(tmp_path, half, num_steps, same_bits):
    shutil.copytree(half, tmp_path / "run")
    slow = {"FAULT_SLOW": f"evaluation 5 {tmp_path / 'slow'}"}
    for _ in range(2):  # the second time in the one that is made up for
        processes = start(tmp_path / "run", num_steps, **slow)
        wait_until_slow(tmp_path / "slow", processes, 1)
        processes[0].send_signal(signal.SIGTERM)
        status, text = finish(processes)
        assert status == 75 and "preempted at" in text, text
        assert (tmp_path / "slow").stat().st_size < 5, "of ten batches"
        step = int(newest(tmp_path / "run", ".index").stem.removeprefix("ckpt-"))
        assert step % 50 == 0, "saved where the evaluation was due"
        assert [row["step"] for row in rows_of(tmp_path / "run") if "split" in row][-1] == step - 50
        (tmp_path / "slow").unlink()
    run(tmp_path / "run", num_steps)
    same_bits("SIGTERM in an evaluation", "saved, exit 75; made up for by the same command", tmp_path / "run")


def test_a_signal_in_a_save(tmp_path, num_steps, same_bits):
    processes = start(tmp_path / "run", num_steps, FAULT_SLOW_DISK="0.5")
    wait_for_a_save(tmp_path / "run", processes, [])
    while not list(tmp_path.glob("run/checkpoints/ckpt-*_temp")):
        time.sleep(0.005)
    processes[0].send_signal(signal.SIGTERM)
    status, text = finish(processes)
    assert status == 75 and "preempted at" in text, text
    run(tmp_path / "run", num_steps)
    same_bits("SIGTERM in a save", "saved, exit 75; the same command", tmp_path / "run")


@pytest.mark.parametrize("where", ["device loop", "save"])
def test_the_end_of_the_grace_time(tmp_path, half, where, num_steps, same_bits):
    shutil.copytree(half, tmp_path / "run")
    before = saved(half)
    last = newest(half, ".index").stem
    slow = {
        "device loop": {"FAULT_SLOW": f"training 100000 {tmp_path / 'slow'}"},
        "save": {"FAULT_SLOW_DISK": "100000"},
    }[where]
    processes = start(tmp_path / "run", num_steps, "one replica", "--gin_param=Limits.grace_seconds = 2", **slow)
    while not (tmp_path / "slow").exists() and not list(tmp_path.glob("run/checkpoints/ckpt-*_temp")):
        assert processes[0].poll() is None, finish(processes)
        time.sleep(0.02)
    processes[0].send_signal(signal.SIGTERM)
    status, text = finish(processes)
    assert status == 75, text
    assert f"{last} is whole" in text and saved(tmp_path / "run") == before
    run(tmp_path / "run", num_steps)
    same_bits(f"no end of a {where} in the grace time", "left, exit 75; the same command", tmp_path / "run")


@pytest.mark.timeout(900)
def test_the_end_of_its_time(tmp_path, same_bits):
    num_steps = 400  # of 0.2 s: it is not through before a try has ended within a loop
    loops = [f"--gin_param=Intervals.{name} = 10" for name in ("checkpoint_every", "steps_per_loop")]
    # A loop takes 2 s then, and a save next to nothing: the end comes within a loop.
    slow = {"FAULT_SLOW": f"training 0.2 {tmp_path / 'slow'}"}

    def reached(seconds) -> int:
        limit = f"--gin_param=Limits.max_seconds = {seconds}"
        run(tmp_path / "run", num_steps, "one replica", *loops, limit, status=75, **slow)
        return json.loads((tmp_path / "run/summary.json").read_text())["step"]

    assert reached(1.5) == 0, "it counts from the start of the process, and TensorFlow is not there before"
    step = 0
    for seconds in (20, 33, 47, 61, 75):  # until it has got under way, and not ended between two loops by chance
        step = step if step > 10 and step % 10 else reached(seconds)
    assert step > 10 and step % 10, "no loop was shortened"
    run(tmp_path / "run", num_steps, "one replica", *loops)
    done = f"saved at step {step}, within a loop of 10, exit 75; the same command"
    same_bits("max_seconds", done, tmp_path / "run", "one replica", num_steps, *loops)


ALL_ARE_KEPT = "--gin_param=Saving.keep_every = 1"


@pytest.mark.parametrize("on_save_error", ["stop", "continue"])
def test_a_full_disk(tmp_path, small_disk, num_steps, same_bits, on_save_error):
    flags = (ALL_ARE_KEPT, f"--gin_param=Saving.on_error = '{on_save_error}'")
    text = run(small_disk / "run", num_steps, "one replica", *flags, status=2)
    assert "cannot be written" in text and "No space left on device" in text
    assert ("The run continues without" in text) == (on_save_error == "continue")
    whole = saved(small_disk / "run")
    assert whole
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    run(small_disk / "run", num_steps, "one replica", *flags)
    assert set(whole) < set(saved(small_disk / "run"))
    done = {"stop": "exit 2", "continue": "trained on without saving"}[on_save_error]
    same_bits(f"disk full in a save, {on_save_error}", f"{done}; with more room the same command", small_disk / "run")


def test_a_folder_that_becomes_read_only(small_disk, num_steps, same_bits):
    """Covered by another, read-only file system: one that has files open for writing cannot be made so."""
    model_dir = small_disk / "run"
    processes = start(model_dir, num_steps, "one replica", "--gin_param=Intervals.checkpoint_every = 50")
    state_file = model_dir / "checkpoints/checkpoint"
    while not state_file.exists() or '"ckpt-50"' not in state_file.read_text():  # the last that a save writes
        assert processes[0].poll() is None, finish(processes)
        time.sleep(0.01)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", model_dir / "checkpoints"], check=True)
    status, text = finish(processes)
    subprocess.run(["umount", model_dir / "checkpoints"], check=True)
    assert status == 2 and "Read-only file system" in text and "Traceback" not in text, text
    run(model_dir, num_steps)
    same_bits("the checkpoints become read-only", "exit 2; writable again, the same command", model_dir)


def test_two_processes_on_one_model_dir(tmp_path, num_steps, same_bits):
    first = start(tmp_path / "run", num_steps)
    wait_for_a_save(tmp_path / "run", first, [])
    first[0].send_signal(signal.SIGSTOP)
    text = run(tmp_path / "run", num_steps, status=2)
    assert f"is being written by process {first[0].pid}" in text
    first[0].send_signal(signal.SIGCONT)
    assert finish(first)[0] == 0
    same_bits("two processes on one model_dir", "the second reported who holds it, exit 2", tmp_path / "run")


def newest(model_dir, suffix) -> Path:
    prefix = tf.train.latest_checkpoint(str(Path(model_dir, "checkpoints")))
    return next(Path(prefix).parent.glob(f"{Path(prefix).name}{suffix}"))


def cut(model_dir):
    path = newest(model_dir, ".data-*")
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_shard(model_dir):
    newest(model_dir, ".data-*").unlink()


def lose_the_index(model_dir):
    newest(model_dir, ".index").unlink()


def flip_a_bit(model_dir):
    path = newest(model_dir, ".data-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def break_the_manifest(model_dir):
    newest(model_dir, ".manifest.json").write_text("{")


DAMAGES = {
    "is cut short": cut, "lost a shard": lose_a_shard, "lost its index": lose_the_index, "has a wrong bit": flip_a_bit,
    "has a broken manifest": break_the_manifest,
}  # fmt: skip


@pytest.fixture(scope="module")
def half(tmp_path_factory, num_steps):
    """model_dir of a run that stopped before its half, and before the first evaluation."""
    model_dir = tmp_path_factory.mktemp("half") / "run"
    processes = start(model_dir, num_steps)
    while not any(step >= 35 for step in steps_saved(model_dir)):
        wait_for_a_save(model_dir, processes, saved(model_dir))
    processes[0].send_signal(signal.SIGTERM)
    assert finish(processes)[0] == 75
    return model_dir


@pytest.mark.parametrize(
    "damage",
    DAMAGES,
)
def test_a_newest_checkpoint_that_is_damaged(tmp_path, half, damage, num_steps, same_bits):
    shutil.copytree(half, tmp_path / "run")
    DAMAGES[damage](tmp_path / "run")
    text = run(tmp_path / "run", num_steps)
    assert "is not whole" in text and "is used instead" in text, text
    same_bits(f"the newest checkpoint {damage}", "the one before it is used, and it is said", tmp_path / "run")


def test_clocks_that_jump(tmp_path, half, num_steps, same_bits):
    shutil.copytree(half, tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        seconds = random.Random(path.name).choice([0, 4_000_000_000])  # 1970 and 2096
        os.utime(path, (seconds, seconds))
    run(tmp_path / "run", num_steps, FAULT_CLOCK="1")
    same_bits("the clock jumps by years, to and fro", "nothing depends on it", tmp_path / "run")


def test_a_damaged_shard_of_the_data(tmp_path, half, num_steps, same_bits):
    shutil.copytree(half, tmp_path / "run")
    shutil.copytree(Path(os.environ["TFDS_DATA_DIR"], "handwritten_digits"), tmp_path / "tfds/handwritten_digits")
    path = next((tmp_path / "tfds").rglob("*upright*/**/*-train.tfrecord*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    text = run(tmp_path / "run", num_steps, status=2, TFDS_DATA_DIR=str(tmp_path / "tfds"))
    assert f"{path}, record" in text
    path.write_bytes(whole)
    run(tmp_path / "run", num_steps, TFDS_DATA_DIR=str(tmp_path / "tfds"))
    same_bits("a TFDS shard is cut short", "file and record named, exit 2; mended, the same command", tmp_path / "run")


def test_a_loss_that_turns_nan(tmp_path, fault_cell):
    from test_nan import run as run_to_nan

    def bits(name, *parts):
        for num_steps in (*parts, 20):
            run_to_nan(tmp_path / name, on_nan="rollback", num_steps=num_steps)
        return tensors_of(tf.train.latest_checkpoint(str(tmp_path / name / "checkpoints")))

    keras.utils.set_random_seed(0)
    one, two = bits("whole"), bits("parts", 3, 11)
    largest = max(float(np.abs(one[name].astype(np.float64) - two[name]).max()) for name in one)
    fault_cell("the loss turns NaN, on_nan = 'rollback'", "step and examples named, the batch left out", largest)
    assert largest == 0.0 and all(np.isfinite(value).all() for value in one.values())
