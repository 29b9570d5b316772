"""Workers on hosts of their own, a slow wire between them: the weights of one process, and a cut link is named."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import REPOSITORY, run_command
from conftest import assert_same_weights
from hosts import PORT, NotPermitted, connected_hosts

pytestmark = pytest.mark.full

RUN = ["--gin_file=configs/runs/digits_from_scratch.gin", "--gin_param=NUM_STEPS = 10"]
RUN += ["--gin_param=GLOBAL_BATCH_SIZE = 24"]  # over two and three workers
# Its own folder, under the path that all have in common: what a host writes, the others do not see.
OWN_FOLDER = 'mkdir -p "$1" "$2" && mount --bind "$1" "$2" && shift 2 && exec "$@"'


@contextlib.contextmanager
def hosts(count, **wire):
    with contextlib.ExitStack() as stack:
        try:
            there = stack.enter_context(connected_hosts(count, **wire))
        except NotPermitted as error:
            pytest.skip(f"no network namespaces of one's own: {error}")
        yield there


def start(host, index, addresses, model_dir, own_folder, *arguments):
    """Worker `index`, as someone on that host would start it."""
    tf_config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    train = [sys.executable, "-m", "launch.train", "--strategy=multi_worker", f"--model_dir={model_dir}", *arguments]
    return subprocess.Popen(
        host.command("sh", "-c", OWN_FOLDER, "sh", str(own_folder), str(model_dir), *train),
        cwd=REPOSITORY,
        env={**os.environ, "TF_CONFIG": json.dumps(tf_config)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def texts_of(workers, timeout_seconds):
    """What each of them said; none is left behind."""
    try:
        return [worker.communicate(timeout=timeout_seconds)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in one process."""
    model_dir = tmp_path_factory.mktemp("alone") / "run"
    done = run_command("launch.train", *RUN, "--strategy=one_device", f"--model_dir={model_dir}")
    assert done.returncode == 0, done.stderr
    return model_dir


@pytest.mark.parametrize("count, called_by", [(2, "name"), (3, "address")])
def test_hosts_train_over_a_slow_wire_to_the_weights_of_one_process_and_only_the_chief_writes(
    alone, tmp_path, count, called_by
):
    """By name, each host finds itself at 127.0.1.1 and the others somewhere else: no two agree on who is where."""
    model_dir, folders = tmp_path / "run", [tmp_path / f"disk-{index}" for index in range(count)]
    with hosts(count, megabits_per_second=20, delay_milliseconds=2) as there:
        addresses = [f"{getattr(host, called_by)}:{PORT}" for host in there]
        workers = [start(host, index, addresses, model_dir, folders[index], *RUN) for index, host in enumerate(there)]
        texts = texts_of(workers, timeout_seconds=600)
    assert [worker.returncode for worker in workers] == [0] * count, texts
    assert f"{count} replicas in {count} workers" in texts[0]
    assert_same_weights(folders[0], alone, num_variables=10, tolerance=1e-6)
    assert (folders[0] / "summary.json").exists()
    assert [list(folder.iterdir()) for folder in folders[1:]] == [[]] * (count - 1)
    assert not [host for host in there if Path("/run/netns", host.namespace).exists()]


def test_a_host_that_is_cut_off_in_mid_training_is_named_and_all_end_with_75_within_the_timeout(tmp_path):
    timeout_seconds = 10
    flags = [f"--worker_timeout_seconds={timeout_seconds}", "--start_timeout_seconds=60", *RUN]
    flags += [
        "--gin_param=NUM_STEPS = 100000",
        "--gin_param=Intervals.eval_every = 0",
        "--gin_param=Intervals.checkpoint_every = 10",
    ]
    folders = [tmp_path / f"disk-{index}" for index in range(3)]
    with hosts(3) as there:
        addresses = [f"{host.address}:{PORT}" for host in there]
        workers = [
            start(host, index, addresses, tmp_path / "run", folders[index], *flags) for index, host in enumerate(there)
        ]
        wait_for_a_save(folders[0], workers)
        there[2].cut_off()
        texts = texts_of(workers, timeout_seconds=600)
    assert [worker.returncode for worker in workers] == [75] * 3, texts
    for text in texts[:2]:
        assert addresses[2] in text or "worker 2" in text, text


def wait_for_a_save(folder, workers):
    deadline = time.monotonic() + 600
    while not list(folder.glob("checkpoints/ckpt-*.index")):
        if time.monotonic() > deadline or any(worker.poll() is not None for worker in workers):
            pytest.fail(f"no checkpoint was written: {texts_of(workers, timeout_seconds=10)}")
        time.sleep(0.05)
