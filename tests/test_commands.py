"""A command that the tests fork does what `python -m` does: the same text, files, status, signals and surroundings."""

import re
import signal
import subprocess

import h5py
import pytest
from commands import run_command, start_command

LINEAR = "--gin_file=configs/runs/linear_source.gin"
RUN = [LINEAR, "--model_dir=run"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two working folders with a finished run each: of a fork, and of a new interpreter. And how the two ended."""
    folders = {fresh: tmp_path_factory.mktemp("fresh" if fresh else "forked") for fresh in (False, True)}
    ended = {fresh: run_command("launch.train", *RUN, cwd=folder, fresh=fresh) for fresh, folder in folders.items()}
    return folders, ended


def of(done: subprocess.CompletedProcess) -> tuple[int, str, str]:
    """Status and texts, without what is measured."""
    texts = (re.sub(r"[0-9.,]+ (?=steps/s|examples/s|s\b|MiB)", "", text) for text in (done.stdout, done.stderr))
    return (done.returncode, *texts)


def weights_in(folder) -> dict[str, bytes]:
    found = {}
    with h5py.File(folder / "run/final.weights.h5") as file:
        file.visititems(lambda name, item: found.update({name: item[()].tobytes()} if hasattr(item, "dtype") else {}))
    assert found
    return found


@pytest.mark.full
def test_a_training_ends_with_the_same_text_and_weights(both):
    folders, ended = both
    assert of(ended[False]) == of(ended[True]) and ended[True].returncode == 0

    assert weights_in(folders[False]) == weights_in(folders[True])


@pytest.mark.full
@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", *RUN),
        ("inspect", "--checkpoint=run", LINEAR),
        ("report", "--model_dir=run", "--metric=loss"),
        ("configurables", "CosineDecay"),
        ("compare", "--gin_file=configs/runs/compare_digits.gin", "--dry_run", "--gin_param=INIT_CHECKPOINT = None"),
        ("cluster", "--json"),
        ("local", "--", "--strategy=mirrored"),
        ("train", *RUN, "--gin_param=NUM_STEP = 3"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_every_other_command_too(command, both):
    folders, _ = both
    name, *arguments = command
    forked, real = (
        run_command(f"launch.{name}", *arguments, cwd=folder, fresh=fresh) for fresh, folder in folders.items()
    )
    assert of(forked) == of(real) and (real.stdout or real.stderr)


@pytest.mark.full
def test_a_fork_has_its_own_folder_environment_and_start(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('customized')\n")
    (tmp_path / "show.py").write_text(
        "import os, random, sys, launch, time\n"
        "print(os.getcwd(), sys.path[:2], sys.argv, sys.orig_argv[1:], os.environ['OF_OURS'], sep='\\n')\n"
        "print(0 <= time.monotonic() - launch.STARTED_AT < 600, os.getpid(), random.random())\n"
        "print('an error', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    (tmp_path / "here").mkdir()
    given = dict(cwd=tmp_path / "here", PYTHONPATH=str(tmp_path), OF_OURS="x")
    first, second = (start_command("show", "--a", "b c", **given) for _ in range(2))
    texts = [process.communicate()[0].splitlines() for process in (first, second)]
    assert (first.returncode, second.returncode) == (7, 7)
    here = str(tmp_path / "here")
    expected = [
        "customized", here, str([here, str(tmp_path)]), str([str(tmp_path / "show.py"), "--a", "b c"]),
        str(["-m", "show", "--a", "b c"]), "x",
    ]  # fmt: skip
    assert texts[0][:6] == texts[1][:6] == expected
    started, pid, number = texts[0][6].split()
    assert started == "True" and pid == str(first.pid) and number != texts[1][6].split()[2]
    done = run_command("show", fresh=True, **given)
    assert done.returncode == 7 and done.stderr == "an error\n", "and a new interpreter has the same"
    assert done.stdout.splitlines()[1:3] == expected[1:3]


@pytest.mark.full
def test_a_fork_gets_signals_and_reports_by_which_it_ended(tmp_path):
    (tmp_path / "wait.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(100_000)\n")

    def ended_by(number):
        process = start_command("wait", PYTHONPATH=str(tmp_path))
        assert process.stdout.readline() == "ready\n" and process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
        process.send_signal(number)
        assert process.wait(timeout=600) == process.poll() == process.returncode
        return process.returncode

    assert ended_by(signal.SIGKILL) == -signal.SIGKILL
    assert ended_by(signal.SIGTERM) == 128 + signal.SIGTERM, "by the handler that a command has at its start"


def test_a_fork_leaves_a_traceback_and_1(tmp_path):
    (tmp_path / "fails.py").write_text("raise ValueError('of its own')\n")
    done = run_command("fails", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and done.stderr.rstrip().endswith("ValueError: of its own")
    missing = run_command("launch.no_such_command")
    assert missing.returncode == 1 and "No module named launch.no_such_command" in missing.stderr


def test_what_is_read_at_the_start_of_a_process_starts_a_new_interpreter(tmp_path):
    (tmp_path / "show.py").write_text("import sys\nprint('launch' in sys.modules)\n")
    path = str(tmp_path)
    assert run_command("show", PYTHONPATH=path).stdout == "True\n", "a fork of what has imported it"
    assert run_command("show", PYTHONPATH=path, TF_ENABLE_ONEDNN_OPTS="0").stdout == "False\n"
    assert run_command("show", PYTHONPATH=path, PYTHONHASHSEED="1").stdout == "False\n"
    assert run_command("show", PYTHONPATH=path, TF_CONFIG="").stdout == "True\n"
