"""Commands that do not compute, and mistakes in flags, end before TensorFlow is imported."""

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
        ("report", ["--model_dir=nowhere"], 2, "holds no finished run"),
    ],
)
def test_a_command_that_computes_nothing_imports_no_tensorflow(module, arguments, status, said):
    found_status, text, imported = watched(module, *arguments)
    assert found_status == status and said in text, text
    assert text.count("imported False") == 1 and not imported


def test_every_strategy_of_the_flag_is_one_that_is_built():
    from launch import command_line
    from trainer.cluster import strategy

    assert command_line.STRATEGIES == strategy.STRATEGIES
