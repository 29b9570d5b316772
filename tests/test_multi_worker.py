"""Two real processes of MultiWorkerMirroredStrategy on the loopback make the steps of one replica."""

import json
import shutil
import signal
import subprocess
import time

import pytest
import tensorflow as tf
from commands import REPOSITORY, run_command, start_command
from conftest import assert_same_weights

from launch.local import free_ports

KERNEL = "model/conv1/_kernel/.ATTRIBUTES/VARIABLE_VALUE"


def run_workers(
    count, *arguments, timeout_seconds=600, while_running=lambda processes: None, folders=None, **environment
):
    """Starts the command in `count` workers; returns their exit statuses and texts. folders: where each works."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    processes = []
    for index in range(count):
        tf_config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            start_command(
                *arguments,
                cwd=(folders or [REPOSITORY] * count)[index],
                stderr=subprocess.STDOUT,
                TF_CONFIG=json.dumps(tf_config),
                **environment,
            )
        )
    try:
        while_running(processes)
        texts = [process.communicate(timeout=timeout_seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], texts


def test_two_workers_train_to_the_weights_of_one_process_and_only_the_chief_writes(digits_source, tmp_path):
    command = (
        "launch.train",
        "--gin_file=configs/runs/digits_adam_to_sgd.gin",
        f"--gin_param=INIT_CHECKPOINT = '{digits_source}'",
        "--gin_param=NUM_STEPS = 20",
    )
    statuses, texts = run_workers(2, *command, "--strategy=multi_worker", f"--model_dir={tmp_path / 'workers'}")
    assert statuses == [0, 0], texts
    assert "MultiWorkerMirroredStrategy, 2 replicas in 2 workers" in texts[0] and "SGD is new" in texts[0]
    assert "SGD is new" not in texts[1], "only the chief reports"
    assert "verified         10 variables on 2 replicas of 2 workers" in texts[0]

    alone = run_command(*command, "--strategy=one_device", f"--model_dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    assert_same_weights(tmp_path / "workers", tmp_path / "alone", num_variables=10)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("workers", "alone")]
    assert summaries[0]["final_metrics"] == pytest.approx(summaries[1]["final_metrics"], abs=1e-5)


@pytest.mark.full
def test_two_workers_with_two_files_of_one_name_stop(digits_source, tmp_path):
    """As where each worker has its own disk."""
    for index in range(2):
        shutil.copytree(digits_source, tmp_path / str(index) / "source")
    data = tmp_path / "1/source/checkpoints/ckpt-60.data-00000-of-00001"
    content = data.read_bytes()
    place = content.index(tf.train.load_checkpoint(str(digits_source / "checkpoints")).get_tensor(KERNEL).tobytes())
    data.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    statuses, texts = run_workers(
        2,
        "launch.train",
        f"--gin_file={REPOSITORY / 'configs/runs/digits_adam_to_sgd.gin'}",
        "--gin_param=INIT_CHECKPOINT = 'source'",
        "--strategy=multi_worker",
        f"--model_dir={tmp_path / 'run'}",
        folders=[tmp_path / "0", tmp_path / "1"],
    )
    assert statuses == [2, 2], texts
    assert "1 of 2 workers could not read the checkpoint, and no variable was changed" in texts[0]
    assert "No variable was changed" in texts[1] and "its checksum does not fit" in texts[1]


@pytest.mark.full
def test_what_two_workers_began_one_process_ends(digits_source, tmp_path):
    def command(num_steps):
        return (
            "launch.train",
            "--gin_file=configs/runs/digits_adam_to_sgd.gin",
            f"--gin_param=INIT_CHECKPOINT = '{digits_source}'",
            f"--gin_param=NUM_STEPS = {num_steps}",
            "--gin_param=SGD.learning_rate = 0.01",  # no schedule, which would end with the first part
        )

    statuses, texts = run_workers(2, *command(10), "--strategy=multi_worker", f"--model_dir={tmp_path / 'parts'}")
    assert statuses == [0, 0], texts
    for name in ("parts", "alone"):
        done = run_command(*command(20), "--strategy=one_device", f"--model_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    assert_same_weights(tmp_path / "parts", tmp_path / "alone", num_variables=10, tolerance=1e-6)


@pytest.mark.full
def test_sigterm_to_one_worker_stops_both_with_one_checkpoint_and_75(digits_source, tmp_path):
    def terminate_the_second(processes):
        index = tmp_path / "run/checkpoints/ckpt-10.index"
        deadline = time.monotonic() + 600
        while not index.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        processes[1].send_signal(signal.SIGTERM)

    statuses, texts = run_workers(
        2,
        "launch.train",
        "--gin_file=configs/runs/digits_adam_to_sgd.gin",
        f"--gin_param=INIT_CHECKPOINT = '{digits_source}'",
        "--gin_param=NUM_STEPS = 100000",
        "--gin_param=Intervals.checkpoint_every = 10",
        "--gin_param=Intervals.eval_every = 0",
        "--strategy=multi_worker",
        f"--model_dir={tmp_path / 'run'}",
        while_running=terminate_the_second,
    )
    assert statuses == [75, 75], texts
    assert "preempted at" in texts[0]
    step = json.loads((tmp_path / "run/summary.json").read_text())["step"]
    assert tf.train.latest_checkpoint(str(tmp_path / "run/checkpoints")).endswith(f"ckpt-{step}")


@pytest.mark.full
def test_sigterm_to_one_worker_in_an_evaluation_leaves_it_on_both(tmp_path):
    def terminate_the_second(processes):
        deadline = time.monotonic() + 600
        while not (tmp_path / "slow").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        processes[1].send_signal(signal.SIGTERM)

    statuses, texts = run_workers(
        2,
        "launch.train",
        "--gin_file=tests/faults/run.gin",
        "--strategy=multi_worker",
        f"--model_dir={tmp_path / 'run'}",
        while_running=terminate_the_second,
        FAULT_SLOW=f"evaluation 5 {tmp_path / 'slow'}",
        PYTHONPATH=f"{REPOSITORY / 'tests/faults'}:{REPOSITORY}",
    )
    assert statuses == [75, 75] and "preempted at 0" in texts[0], texts
    assert (tmp_path / "slow").stat().st_size < 2 * 5, "of ten batches on each of two workers"
    assert tf.train.latest_checkpoint(str(tmp_path / "run/checkpoints")).endswith("ckpt-0")
