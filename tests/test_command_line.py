"""Every command from its flags to its exit status, as a user calls it."""

import json

import pytest
from commands import REPOSITORY, run_command

COMMANDS = sorted(
    [path.stem for path in (REPOSITORY / "launch").glob("[!_]*.py")]
    + [path.parent.name for path in (REPOSITORY / "launch").glob("*/__main__.py")]
)

CONFIG_FLAGS = ("gin_file", "gin_param", "gin_bindings", "gin_search_path")
STRATEGY_FLAGS = ("strategy", "tpu", "virtual_devices")
FLAGS = {
    "train": (*CONFIG_FLAGS, *STRATEGY_FLAGS, "model_dir", "workdir", "dry_run"),
    "evaluate": (*CONFIG_FLAGS, *STRATEGY_FLAGS, "model_dir", "checkpoint"),
    "inspect": (*CONFIG_FLAGS, "checkpoint"),
    "report": ("model_dir", "metric"),
    "configurables": CONFIG_FLAGS,
    "cluster": ("cluster", "port_base", "json"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_flags_and_exits_with_0(command):
    done = run_command(f"launch.{command}", "--help")
    assert done.returncode == 0
    for flag in FLAGS.get(command, ()):
        assert f"--{flag}:" in done.stdout or f"--[no]{flag}:" in done.stdout, done.stdout


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(digits_source, tmp_path):
    done = run_command(
        "launch.train",
        "--gin_file=configs/runs/digits_adam_to_sgd.gin",
        f"--gin_param=INIT_CHECKPOINT = '{digits_source}'",
        "--gin_param=Finetune.frozen = ['^conv1/']",
        f"--model_dir={tmp_path / 'run'}",
        "--strategy=mirrored",
        "--virtual_devices=2",
        "--dry_run",
    )
    assert done.returncode == 0, done.stderr
    lines = {line[:16].strip(): line[17:] for line in done.stdout.splitlines()}
    assert lines["strategy"] == "MirroredStrategy, 2 replicas on CPU:0, CPU:1"
    assert lines["batch"] == "20 examples a step, 10 a replica"
    assert lines["model"].startswith("small_cnn: 47,530 weights in 10 variables")
    assert lines["trained"].startswith("47,370 weights in 8 variables")
    assert lines["frozen"].startswith("160 weights in 2 variables: ")
    assert "restored       10" in done.stdout
    # Cosine from 0.01 over 100 steps: 0.005 (1 + cos(pi t / 100)).
    assert (
        lines["learning rate"]
        == "step 0: 0.01, step 24: 0.00864, step 49: 0.00516, step 74: 0.00158, step 99: 2.47e-06"
    )
    assert lines["steps"] == "100, at 5.0 an epoch 20.0 epochs"
    assert lines["memory a replica"].startswith("about ")
    assert "optimizer        SGD is new: iterations 0" in done.stdout
    assert not (tmp_path / "run").exists()


def test_evaluate_prints_the_metrics_that_the_run_ended_with(digits_source):
    done = run_command("launch.evaluate", "--gin_file=configs/runs/digits_source.gin", f"--workdir={digits_source}")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    rows = [json.loads(line) for line in (digits_source / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row.get("split")][-1]
    assert printed["split"].endswith(last["split"])
    assert printed["checkpoint"].startswith(str(digits_source))
    for name in ("loss", "accuracy"):
        assert printed[name] == pytest.approx(last[name], abs=1e-6)


def test_inspect_lists_a_checkpoint_weights_apart_from_the_rest(digits_source):
    done = run_command("launch.inspect", f"--checkpoint={digits_source}")
    assert done.returncode == 0, done.stderr
    assert "conv1/kernel" in done.stdout and "[3, 3, 1, 16]" in done.stdout
    assert "optimizer" in done.stdout
    assert "restored" not in done.stdout


@pytest.mark.full
def test_inspect_with_a_config_shows_how_it_would_be_restored(digits_source):
    given = [f"--checkpoint={digits_source}", "--gin_file=configs/runs/digits_adam_to_sgd.gin"]
    done = run_command("launch.inspect", *given)
    assert done.returncode == 0, done.stderr
    assert "restored       10" in done.stdout
    refused = run_command("launch.inspect", *given, "--gin_param=small_cnn.num_classes = 3")
    assert refused.returncode == 2
    assert refused.stderr.startswith("regraft: ") and "head/kernel" in refused.stderr


def test_configurables_lists_names_with_their_defaults_and_takes_words():
    done = run_command("launch.configurables", "sgd", "tfds_data")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and lines[1] == "    Gradient descent (with momentum) optimizer."
    assert lines[0].startswith("keras.optimizers.SGD(learning_rate=0.01, momentum=0.0, nesterov=False")
    assert lines[2].startswith("pipeline.tfds_data(tfds_name, split, ") and "download=False" in lines[2]
    assert lines[3] == "    A split of a TFDS data set."


def test_configurables_lists_what_a_config_imports_and_the_nearest_of_an_unknown_word():
    done = run_command("launch.configurables", "two_dense", "--gin_file=configs/runs/custom_step_source.gin")
    assert done.stdout == "custom_step.two_dense()\n"
    unknown = run_command("launch.configurables", "RMSpop")
    assert unknown.returncode == 2
    assert unknown.stderr == "regraft: Nothing that can be bound has 'RMSpop' in its name. Did you mean 'RMSprop'?\n"


def test_report_shows_what_a_run_reached(digits_source):
    done = run_command("launch.report", f"--model_dir={digits_source}")
    assert done.returncode == 0, done.stderr
    for word in ("digits_source", "random weights", "Adam", "60"):
        assert word in done.stdout
    unknown = run_command("launch.report", f"--model_dir={digits_source}", "--metric=acuracy")
    assert unknown.returncode == 2
    assert "Did you mean 'accuracy'?" in unknown.stderr


def test_the_flags_of_other_gin_projects_work_from_any_folder(digits_source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/less.gin").write_text("NUM_STEPS = 8\n")
    (tmp_path / "here").mkdir()
    done = run_command(
        "launch.train",
        "--gin_file=configs/runs/digits_adam_to_sgd.gin",
        "--gin_file=less.gin",
        f"--gin_search_path={tmp_path / 'mine'}",
        f"--gin_bindings=INIT_CHECKPOINT = '{digits_source}'",
        "--gin_bindings=GLOBAL_BATCH_SIZE = 50",
        "--workdir=run",
        cwd=tmp_path / "here",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "here/run/summary.json").read_text())
    assert (summary["step"], summary["global_batch_size"]) == (8, 50)
