"""`make help` shows every target, and `make clean` takes only what the targets have made."""

import os
import re
import shutil
import subprocess

import pytest
from commands import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text()


@pytest.fixture
def make(tmp_path):
    """Runs a target of a copy of the Makefile, in a folder that holds nothing else."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("configs", "launch", "tests", "trainer"):
        (tmp_path / name).mkdir()

    # As a person would start it, not as a part of the `make` that runs the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def run(*arguments) -> str:
        done = subprocess.run(["make", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_help_has_a_line_for_every_target(make):
    (targets,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    lines = [re.fullmatch(r"(\S+) +(\S.*)", line) for line in make("help").splitlines()]
    assert all(lines) and sorted(line[1] for line in lines) == sorted(targets.split())


def test_help_shows_a_text_whole_whatever_is_in_it(make, tmp_path):
    text = "make odd CONFIG=my.gin: one, two: ## three | 100% \\ $ 'four'"
    with open(tmp_path / "Makefile", "a") as file:
        file.write(f"\nodd: help another-one  ## {text}\n")
    lines = dict(line.split(maxsplit=1) for line in make("help").splitlines())
    assert lines["odd"] == text


def test_clean_removes_the_runs_that_the_targets_made_and_never_a_users(make, tmp_path):
    recipes = re.findall(r"--model_dir=(runs/\S+)", MAKEFILE)
    assert set(recipes) == set(re.findall(r"call MARK,(runs/\S+?)\)", MAKEFILE)) and len(recipes) > 5
    for name in ("mine", "digits_source"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    make("-f", "Makefile", "--eval=mark:\n\t$(call MARK,runs/digits_source)\n\t$(call MARK,runs/made)", "mark")
    assert (tmp_path / "runs/made").is_dir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / "trainer/__pycache__").mkdir()
    make("clean")
    # What stood there before `make` came to it is the user's, whatever its name.
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits_source", "mine"]
    assert not (tmp_path / ".venv").exists() and not (tmp_path / "trainer/__pycache__").exists()
    make("clean")
