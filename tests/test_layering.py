"""A module imports only from lower floors, never from its own."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

FLOORS = [
    {"errors"},
    # the ground: what every room may stand on
    {
        "replicas", "nearest", "user_functions", "files", "data_order", "worker_link", "likeness", "tf_config", "tpu",
        "scaled_gradients", "stop_signals", "one_trace",
    },
    {"worker_watch"},
    {"roll_call"},
    {
        "model_dir", "strategy", "schedules", "models", "records", "metric_writer", "progress",
        "restore", "config", "summary_plot", "ema", "random_numbers", "stacked_batches", "manifest", "deadline",
        "loss_terms", "example_weights",
    },
    {"datasets", "agreement", "parameter_groups", "grouped_optimizer", "phased_optimizer", "phases"},
    {"data", "tasks", "optimizers", "train_state", "batch_parts", "micro_batches", "handover", "lora"},
    {
        "pipeline", "replica_update", "saving", "run_parts", "assembly", "preemption", "worker_card", "start_checks",
        "neural_style",
    },
    {"checkpoints", "train_step", "evaluation", "group_description", "phase_watch"},
    {"loop", "description", "throughput", "run_files", "run_identity", "inspection", "xla_fitness", "resuming"},
    {"nan_recovery"},
    {"running"},
    {"experiment"},
    {"comparison"},
    {"command_line"},
]  # fmt: skip

RESTORE_FLOORS = [
    {"names", "report", "tensor_memory", "keras_paths"},
    {"source", "live", "find", "explain", "rows", "show"},
    {"readers", "build", "rules", "order", "layer_pairs", "flat_layers"},
    {"formats"},
    {"walk"},
    {"match"},
    {"plan"},
    {"apply"},
]


COMPARISON_FLOORS = [
    {"folder", "plan", "memory", "session", "signals", "page"},
    {"record", "source_task"},
    {"results", "one_run", "display"},
    {"spread", "in_turn", "in_parallel", "picture", "same_start"},
    {"table"},
    {"report"},
]


def floor_of(room: str, floors) -> int:
    found = [level for level, rooms in enumerate(floors) if room in rooms]
    assert found, f"{room} has no floor; give it one in tests/test_layering.py"
    return found[0]


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def rooms_imported(path: Path, package: str) -> set[str]:
    """Names of the modules or packages directly in `package` that the file imports."""
    folder = REPOSITORY / package.replace(".", "/")
    rooms = {
        name.removeprefix(package + ".").split(".")[0]
        for name in imported_modules(path)
        if name.startswith(package + ".")
    }
    return {room for room in rooms if (folder / f"{room}.py").exists() or (folder / room).is_dir()}


TRAINER_FILES = sorted(
    path for path in (REPOSITORY / "trainer").rglob("*.py") if path.parent.name != "trainer" or path.stem != "__init__"
)


@pytest.mark.parametrize("path", TRAINER_FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_room_imports_only_from_lower_floors(path):
    inside = path.relative_to(REPOSITORY / "trainer").parts
    room = inside[0].removesuffix(".py")
    for other in rooms_imported(path, "trainer") - {room}:
        assert floor_of(other, FLOORS) < floor_of(room, FLOORS), f"{room} imports {other}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "trainer/restore").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_the_rooms_of_restore_have_floors_too(path):
    for other in rooms_imported(path, "trainer.restore") - {path.stem}:
        assert floor_of(other, RESTORE_FLOORS) < floor_of(path.stem, RESTORE_FLOORS), f"{path.stem} imports {other}"


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "trainer/comparison").glob("[!_]*.py")), ids=lambda path: path.stem
)
def test_the_rooms_of_comparison_have_floors_too(path):
    for other in rooms_imported(path, "trainer.comparison") - {path.stem}:
        assert floor_of(other, COMPARISON_FLOORS) < floor_of(path.stem, COMPARISON_FLOORS), (
            f"{path.stem} imports {other}"
        )


LAUNCH_FILES = sorted((REPOSITORY / "launch").rglob("*.py"))
CLUSTER_FLOORS = [
    {"place"},
    {"host_lists"},
    {"tf_config", "slurm", "kubernetes", "mpi", "tpu"},
    {"choice"},
    {"command_flags"},
    {"__main__"},
]


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_commands_do_not_import_each_other_but_may_stand_on_cluster(path):
    room = path.relative_to(REPOSITORY / "launch").parts[0].removesuffix(".py")
    others = rooms_imported(path, "launch") - {room, "_plain_command"}
    assert others <= ({"cluster"} if path.parent.name == "launch" else set())


@pytest.mark.parametrize("path", sorted((REPOSITORY / "launch/cluster").glob("*.py")), ids=lambda path: path.stem)
def test_cluster_stands_on_nothing_of_the_library_nor_on_tensorflow_and_its_rooms_have_floors(path):
    assert not {name.split(".")[0] for name in imported_modules(path)} & {"trainer", "tensorflow", "keras", "numpy"}
    for other in rooms_imported(path, "launch.cluster") - {path.stem}:
        if path.stem != "__init__":
            assert floor_of(other, CLUSTER_FLOORS) < floor_of(path.stem, CLUSTER_FLOORS), f"{path.stem} imports {other}"


@pytest.mark.parametrize("path", TRAINER_FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_module_opens_with_one_sentence_and_has_a_telling_name(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring and docstring.splitlines()[0].endswith((".", "?")), "the first line says the one job"
    assert not any(word in path.stem for word in ("utils", "common", "manager"))
