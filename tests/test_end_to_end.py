"""The main job, shrunk: through the real command, killed, resumed, and compared bit for bit."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import tensorflow as tf
from commands import run_command, start_command
from conftest import assert_same_weights
from test_metric_writer import points

from trainer.output.metric_writer import read_rows

STEPS = 300


@pytest.fixture(scope="module")
def command(digits_source):
    """The main job with little to wait for, and many moments to be killed in."""
    return [
        "launch.train",
        "--gin_file=configs/runs/digits_adam_to_sgd.gin",
        f"--gin_param=INIT_CHECKPOINT = '{digits_source}/checkpoints'",
        f"--gin_param=NUM_STEPS = {STEPS}",
        "--gin_param=Intervals.eval_every = 100",
        "--gin_param=Intervals.checkpoint_every = 50",
        "--gin_param=Intervals.steps_per_loop = 5",
        "--strategy=mirrored",
        "--virtual_devices=2",
    ]


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("unbroken") / "run"
    done = run_command(*command, f"--model_dir={model_dir}")
    assert done.returncode == 0, done.stderr
    return model_dir, done.stdout


def tensors_of(model_dir) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, optimizer and step included."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(model_dir / "checkpoints")))
    return {
        name: np.asarray(reader.get_tensor(name)).tobytes()
        for name in reader.get_variable_to_shape_map()
        if not name.startswith(("_CHECKPOINTABLE", "save_counter"))  # how often was saved is not the run's state
    }


def rows_of(model_dir) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name != "examples_per_second"}
        for row in read_rows(model_dir / "metrics.jsonl")
    ]


def start_and_signal(command, model_dir, number, at_step):
    """Starts the run and signals it once the checkpoint of `at_step` is there; returns its exit status and text."""
    process = start_command(*command, f"--model_dir={model_dir}", stderr=subprocess.STDOUT)
    index = model_dir / "checkpoints" / f"ckpt-{at_step}.index"
    deadline = time.monotonic() + 600
    while not index.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, number)
    text, _ = process.communicate(timeout=600)
    return process.returncode, text


def test_the_run_prints_report_proof_accuracies_and_where_its_files_are(unbroken):
    model_dir, out = unbroken
    for expected in (
        "MirroredStrategy, 2 replicas",
        "restored       10  conv1/** (2), conv2/** (2)",
        "verified         10 variables on 2 replicas",
        "SGD is new: iterations 0, 10 slots all zero, learning rate 0.01 as configured",
        "step 0           loss",
        f"step {STEPS}",
        str(model_dir / "summary.png"),
    ):
        assert expected in out


def test_the_model_dir_holds_what_the_contract_lists(unbroken):
    model_dir, _ = unbroken
    for name in (
        "checkpoints", "operative_config.gin", "restore_report.json", "restore_report.txt", "metrics.jsonl",
        "final.weights.h5", "summary.json", "summary.png",
    ):  # fmt: skip
        assert (model_dir / name).exists(), name
    assert list((model_dir / "train").glob("events.*")) and list((model_dir / "eval").glob("events.*"))
    report = json.loads((model_dir / "restore_report.json").read_text())
    assert report["counts"]["restored"] == 10
    assert report["optimizer_proof"]["iterations"] == report["optimizer_proof"]["checkpoint_keys_read"] == 0
    rows = read_rows(model_dir / "metrics.jsonl")
    assert {"step", "loss", "learning_rate", "grad_norm", "examples_per_second"} <= rows[1].keys()
    assert [row["step"] for row in rows if "split" in row] == list(range(0, STEPS + 1, 100))
    assert "CosineDecay.decay_steps = %NUM_STEPS" in (model_dir / "operative_config.gin").read_text()


def test_tuning_improves_on_the_restored_start(unbroken):
    summary = json.loads((unbroken[0] / "summary.json").read_text())
    assert summary["final_metrics"]["accuracy"] > summary["initial_metrics"]["accuracy"] + 0.1


@pytest.mark.full
def test_tuning_beats_the_same_budget_from_random_weights(digits_source, tmp_path):
    accuracies = {}
    for config, start in (
        ("digits_adam_to_sgd", f"INIT_CHECKPOINT = '{digits_source}'"),
        ("digits_from_scratch", "SEED = 0"),
    ):
        done = run_command(
            "launch.train",
            f"--gin_file=configs/runs/{config}.gin",
            f"--gin_param={start}",
            f"--model_dir={tmp_path / config}",
        )
        assert done.returncode == 0, done.stderr
        accuracies[config] = json.loads((tmp_path / config / "summary.json").read_text())["final_metrics"]["accuracy"]
    assert accuracies["digits_adam_to_sgd"] > accuracies["digits_from_scratch"] + 0.03


def test_killed_and_started_again_it_ends_with_the_same_bits(command, unbroken, tmp_path):
    status, text = start_and_signal(command, tmp_path / "run", signal.SIGKILL, at_step=150)
    assert status == -signal.SIGKILL, text
    again = run_command(*command, f"--model_dir={tmp_path / 'run'}")
    assert again.returncode == 0, again.stderr
    assert "resumed          this run's own checkpoint of step" in again.stdout
    assert tensors_of(tmp_path / "run") == tensors_of(unbroken[0])
    assert rows_of(tmp_path / "run") == rows_of(unbroken[0])
    for name, tag in (("train", "loss"), ("eval", "eval/loss")):
        logged = [row["step"] for row in rows_of(tmp_path / "run") if ("split" in row) == (name == "eval")]
        assert [step for step, _ in points(tmp_path / "run" / name, tag)] == logged, "in TensorBoard, each once"


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_exits_75_and_the_same_command_continues_to_the_same_bits(command, unbroken, tmp_path, number):
    status, text = start_and_signal(command, tmp_path / "run", number, 100)
    assert status == 75, text
    assert ("preempted at" if number == signal.SIGTERM else "interrupted at") in text
    again = run_command(*command, f"--model_dir={tmp_path / 'run'}")
    assert again.returncode == 0, again.stderr
    assert tensors_of(tmp_path / "run") == tensors_of(unbroken[0])
    assert rows_of(tmp_path / "run") == rows_of(unbroken[0])


@pytest.mark.full
def test_a_finished_run_started_again_changes_nothing_and_is_done(command, unbroken):
    before = tensors_of(unbroken[0]), rows_of(unbroken[0])
    again = run_command(*command, f"--model_dir={unbroken[0]}")
    assert again.returncode == 0, again.stderr
    assert (tensors_of(unbroken[0]), rows_of(unbroken[0])) == before


@pytest.mark.full
def test_one_replica_reaches_the_weights_of_two_within_1e_5(command, unbroken, tmp_path):
    flags = [flag for flag in command if flag not in ("--strategy=mirrored", "--virtual_devices=2")]
    steps = "--gin_param=NUM_STEPS = 100"
    for name, strategy in (
        ("one", ["--strategy=one_device"]),
        ("two", ["--strategy=mirrored", "--virtual_devices=2"]),
    ):
        done = run_command(*flags, steps, *strategy, f"--model_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    assert_same_weights(tmp_path / "one", tmp_path / "two", num_variables=10)


@pytest.mark.full
def test_the_evaluate_command_agrees_with_the_runs_last_evaluation(command, unbroken):
    done = run_command("launch.evaluate", command[1], f"--model_dir={unbroken[0]}")
    assert done.returncode == 0, done.stderr
    last = [row for row in rows_of(unbroken[0]) if "split" in row][-1]
    printed = json.loads(done.stdout)
    assert printed["accuracy"] == pytest.approx(last["accuracy"], abs=1e-6)
    assert printed["loss"] == pytest.approx(last["loss"], rel=1e-5)
