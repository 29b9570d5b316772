"""SIGTERM and SIGINT outside the loop: one line, a status that a supervisor can act on, and nothing half-written."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import REPOSITORY, start_command
from conftest import full

from launch.local import free_ports
from trainer.run.signals import NUMBERS, StopSignals

TRAIN = ("launch.train", "--gin_file=configs/runs/digits_source.gin", "--gin_param=NUM_STEPS = 4")
EVALUATE = ("launch.evaluate", "--gin_file=configs/runs/digits_source.gin")


def start(*command, **options):
    return start_command(*command, stderr=subprocess.STDOUT, **options)


def stopped(process, number) -> tuple[int, str]:
    """Signals the process; returns its exit status and what it still said."""
    process.send_signal(number)
    text, _ = process.communicate(timeout=600)
    return process.returncode, text


def await_waiting(process) -> None:
    """Until the process says that it waits for another worker."""
    while "waiting for" not in (line := process.stdout.readline()):
        assert line, "it has ended"


@pytest.fixture
def one_of_two(monkeypatch):
    """Whatever is started waits for a worker that never comes: before the loop, nothing lasts as reliably."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}}))


@pytest.mark.parametrize("number", [signal.SIGTERM, full(signal.SIGINT)])
def test_a_training_that_still_imports_ends_with_75_and_one_line(tmp_path, number):
    process = start(*TRAIN, f"--model_dir={tmp_path / 'run'}", fresh=True)
    while "tensorflow" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    status, text = stopped(process, number)
    assert status == 75, text
    assert text == f"regraft: Stopped by {number.name} before anything was done. Run the same command again.\n"


@pytest.mark.full
def test_a_training_that_waits_for_its_workers_ends_with_75_and_one_line(tmp_path, one_of_two):
    process = start(*TRAIN, f"--model_dir={tmp_path / 'run'}")
    await_waiting(process)
    status, text = stopped(process, signal.SIGTERM)
    assert status == 75, text
    assert text == "regraft: Stopped by SIGTERM; nothing is left half-written. Run the same command again.\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_another_command_ends_with_128_and_the_signals_number(tmp_path, number, one_of_two):
    process = start(*EVALUATE, f"--model_dir={tmp_path}")
    await_waiting(process)
    status, text = stopped(process, number)
    assert status == 128 + number, text
    assert text == f"regraft: Stopped by {number.name}; nothing is left half-written.\n"


@pytest.mark.full
def test_a_sigterm_when_all_is_done_does_not_change_the_status(tmp_path):
    paths = f"{REPOSITORY / 'tests/faults'}:{REPOSITORY}"
    process = start(*TRAIN, f"--model_dir={tmp_path / 'run'}", PYTHONPATH=paths, FAULT_SLOW_EXIT="2")
    while (line := process.stdout.readline()) != "about to end\n":
        assert line, "it has ended"
    assert stopped(process, signal.SIGTERM)[0] == 0
    assert (tmp_path / "run/final.weights.h5").exists()


def test_what_one_listener_hears_the_one_around_it_knows_and_the_handlers_come_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopSignals() as outer:
        with StopSignals() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 10
            while not inner.received and time.monotonic() < deadline:
                time.sleep(0.01)
            assert inner.received and not outer.received
        assert outer.received
        with StopSignals() as later:
            assert later.received
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with StopSignals() as fresh:
        assert not fresh.received
