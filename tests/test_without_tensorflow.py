"""Commands that do not compute, and mistakes in flags, end before TensorFlow is imported."""

import json
import subprocess
import sys

import pytest
from commands import REPOSITORY
from conftest import full

# Runs a command as `python -m` does, and prints on stderr whether it imported TensorFlow.
WATCHED = """
import runpy, sys
sys.argv = ["-m", *sys.argv[2:]]
try:
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
finally:
    print("\\nimported", "tensorflow" in sys.modules, file=sys.stderr)
"""


def watched(module: str, *arguments: str) -> tuple[int, str, bool]:
    """(status, text, whether TensorFlow was imported) of a command in a new interpreter."""
    command = [sys.executable, "-c", f"MODULE = 'launch.{module}'{WATCHED}", "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    return done.returncode, done.stdout + done.stderr, done.stderr.endswith("imported True\n")


@pytest.mark.parametrize(
    ("module", "arguments", "status", "said"),
    [
        ("train", ["--help"], 0, "launch.train"),
        *(full(module, ["--help"], 0, module) for module in ("evaluate", "inspect", "compare", "configurables")),
        ("train", ["--gin_fil=x"], 2, "Did you mean"),
        ("compare", ["--paralel=2"], 2, "Did you mean"),
        ("evaluate", ["a word"], 2, "every option is a flag"),
        ("cluster", [], 0, "No cluster"),
        ("local", ["--", "--strategy=tpu"], 2, "launch.local sets"),
        ("report", [], 2, "--model_dir is missing"),
        ("report", ["--model_dir=nowhere"], 2, "holds no run that has ended"),
    ],
)
def test_a_command_that_computes_nothing_imports_no_tensorflow(module, arguments, status, said):
    found_status, text, imported = watched(module, *arguments)
    assert found_status == status and said in text, text
    assert text.count("imported False") == 1 and not imported


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"initial_metrics": 3, "final_metrics": {}}'])
def test_a_file_that_is_no_summary_is_one_message(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    status, said, _ = watched("report", f"--model_dir={tmp_path}")
    assert status == 2 and f"{tmp_path}/summary.json is not the summary of a run: " in said and "Traceback" not in said


def test_a_metric_that_is_mistyped_is_named_whatever_its_case(tmp_path):
    metrics = {"initial_metrics": {"loss": 1.0}, "final_metrics": {"loss": 0.5}}
    summary = {"init_checkpoint": None, "optimizer": "SGD", "step": 3, "num_steps": 3, "finished": True, **metrics}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    status, said, _ = watched("report", f"--model_dir={tmp_path}", "--metric=LOSS")
    assert status == 2 and "Did you mean 'loss'?" in said


def test_every_strategy_of_the_flag_is_one_that_is_built():
    from launch import command_line
    from trainer.cluster import strategy

    assert command_line.STRATEGIES == strategy.STRATEGIES
