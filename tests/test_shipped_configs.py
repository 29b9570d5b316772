"""Every shipped config parses, builds and dry-runs, and says with which command."""

import shutil
import subprocess
from pathlib import Path

import gin
import pytest
from commands import REPOSITORY
from conftest import full, make_strategy

import trainer  # noqa: F401  registers what configs bind
from trainer.comparison.process import Devices
from trainer.config import parse_config, register_keras

RUNS = sorted((REPOSITORY / "configs/runs").glob("*.gin"))
COMPARISONS = [path for path in RUNS if "compare.members" in path.read_text()]
PARTS = sorted(path for path in (REPOSITORY / "configs").rglob("*.gin") if path.parent.name != "runs")


def shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def start(config: str, *gin_params: str, **arguments):
    """One run of a config in this process, on one replica."""
    gin.clear_config()
    register_keras()
    parse_config([config], gin_params)
    return gin.get_configurable("experiment.train")(strategy=make_strategy(1), **arguments)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """name -> the checkpoints of the source config of that name, run once for a single step."""
    folder = tmp_path_factory.mktemp("sources")

    def train_source(name: str) -> Path:
        if not (folder / name).exists():
            start(f"configs/runs/{name}.gin", "NUM_STEPS = 1", model_dir=folder / name)
        return folder / name / "checkpoints"

    return train_source


def test_there_are_shipped_configs():
    assert len(RUNS) >= 8


# `make test` trains or compares in their way elsewhere.
SLOW = (
    "style_transfer_vgg19", "style_transfer_network", "style_transfer_source", "compare_digits",
    "conv_adam_to_sgd_cosine", "custom_step_adam_to_rmsprop",
)  # fmt: skip


@pytest.mark.parametrize("path", [full(path) if path.stem in SLOW else path for path in RUNS], ids=shown)
def test_a_run_config_parses_builds_and_dry_runs(path, source, tmp_path, capsys):
    register_keras()
    parse_config([shown(path)], [])
    start_from = None if gin.query_parameter("train.restore") is None else gin.query_parameter("%INIT_CHECKPOINT")
    given = []
    if start_from is not None:
        where, name, last = Path(start_from).parts
        assert (where, last) == ("runs", "checkpoints"), "a config starts from what another shipped config wrote"
        given = [f"INIT_CHECKPOINT = '{source(name)}'"]
    capsys.readouterr()
    start(shown(path), *given, model_dir=tmp_path / "run", invocation=trainer.Invocation(dry_run=True))
    page = capsys.readouterr().out
    for word in ("strategy", "trained", "frozen", "learning rate", "memory a replica"):
        assert word in page
    assert ("from scratch" in page) == (start_from is None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", RUNS, ids=shown)
def test_the_header_of_a_run_config_gives_the_command_with_its_own_path(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = "launch.compare" if path in COMPARISONS else "launch.train"
    assert f"python -m {command} --gin_file={shown(path)} --model_dir=runs/{path.stem}" in "\n".join(header)


@pytest.mark.full
@pytest.mark.parametrize("path", COMPARISONS, ids=shown)
def test_the_members_of_a_comparison_build_and_start_alike(path, source, tmp_path, capsys):
    register_keras()
    parse_config([shown(path)], [])
    start_from = source(Path(gin.query_parameter("%INIT_CHECKPOINT")).parts[1])
    gin.clear_config()
    parse_config([shown(path)], [f"INIT_CHECKPOINT = '{start_from}'"])
    capsys.readouterr()
    compare = gin.get_configurable("comparison.compare")
    assert compare(model_dir=tmp_path / "out", devices=Devices("one_device"), source_data=None, dry_run=True) == 0
    page = capsys.readouterr().out
    assert "same start " in page and "0 of 9 are done" in page and not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", PARTS, ids=shown)
def test_a_part_says_what_it_is_for_and_goes_together_with_a_run(path):
    assert path.read_text().startswith("# ")
    register_keras()
    run = "configs/runs/digits_source.gin"
    parse_config([shown(path), run] if path.name == "base.gin" else [run, shown(path)], [])


@pytest.mark.skipif(
    shutil.which("git") is None or not (REPOSITORY / ".git").exists(), reason="needs git and a checkout of the project"
)
def test_git_keeps_every_shipped_config():
    paths = [shown(path) for path in [*RUNS, *PARTS]]
    ignored = subprocess.run(
        ["git", "check-ignore", *paths], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout.split()
    assert ignored == [], "a clean clone would lack these; see .gitignore"


OPTIMIZERS = sorted((REPOSITORY / "configs/optimizers").glob("*.gin"))


@pytest.mark.parametrize(
    "path", [full(path) if index % 3 else path for index, path in enumerate(OPTIMIZERS)], ids=shown
)
def test_an_optimizer_goes_with_the_shipped_run_without_a_warning(path, source, tmp_path, capsys):
    """As its header says: the run's config, then the optimizer's."""
    given = [f"INIT_CHECKPOINT = '{source('digits_source')}'"]
    gin.clear_config()  # the source's, where it was trained just now
    register_keras()
    parse_config(["configs/runs/digits_adam_to_sgd.gin", shown(path)], given)
    gin.get_configurable("experiment.train")(strategy=make_strategy(1), invocation=trainer.Invocation(dry_run=True))
    page = capsys.readouterr().out
    assert "WARNING" not in page and "is new: iterations 0" in page
