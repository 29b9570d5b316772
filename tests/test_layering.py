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
        "scaled_gradients", "stop_signals", "one_trace", "printable", "regular_files", "pattern_paths",
    },
    {"worker_watch"},
    {"roll_call"},
    {"strategy"},
    {"agreement"},
    {
        "model_dir", "schedules", "models", "records", "metric_writer", "progress",
        "restore", "config", "summary_plot", "ema", "random_numbers", "stacked_batches", "manifest", "deadline",
        "loss_terms", "example_weights",
    },
    {"datasets", "parameter_groups", "grouped_optimizer", "phased_optimizer", "phases"},
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
    {"names", "report", "tensor_memory", "keras_paths", "casts"},
    {"live"},
    {"layer_state"},
    {"source", "find", "homes", "rows", "show", "all_workers"},
    {"rules", "numbered_lists", "keras_names"},
    {"readers", "build", "order", "layer_pairs", "flat_layers", "renames", "torch_layout", "state_pairs"},
    {"formats", "trials", "tables"},
    {"walk", "suffixes"},
    {"match", "proposals"},
    {"full_names"},
    {"plan", "explain"},
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


def not_lower(paths, package: str, floors, room_of=lambda path: path.stem) -> list[str]:
    """Each import of a room that does not stand on a lower floor than the file's own."""
    return [
        f"{path.relative_to(REPOSITORY)} imports {other}"
        for path in paths
        for other in sorted(rooms_imported(path, package) - {room_of(path)})
        if floor_of(other, floors) >= floor_of(room_of(path), floors)
    ]


TRAINER_FILES = sorted(
    path for path in (REPOSITORY / "trainer").rglob("*.py") if path.parent.name != "trainer" or path.stem != "__init__"
)


def test_a_room_imports_only_from_lower_floors():
    def room_of(path):
        return path.relative_to(REPOSITORY / "trainer").parts[0].removesuffix(".py")

    assert len(TRAINER_FILES) > 100
    assert not_lower(TRAINER_FILES, "trainer", FLOORS, room_of) == []


@pytest.mark.parametrize(("package", "floors"), [("restore", RESTORE_FLOORS), ("comparison", COMPARISON_FLOORS)])
def test_the_rooms_of_a_package_have_floors_too(package, floors):
    paths = sorted((REPOSITORY / "trainer" / package).glob("[!_]*.py"))
    assert paths and not_lower(paths, f"trainer.{package}", floors) == []


LAUNCH_FILES = sorted((REPOSITORY / "launch").rglob("*.py"))
CLUSTER_FLOORS = [
    {"place"},
    {"host_lists"},
    {"tf_config", "slurm", "kubernetes", "mpi", "tpu"},
    {"choice"},
    {"command_flags"},
    {"__main__"},
]


def test_commands_do_not_import_each_other_but_may_stand_on_cluster():
    for path in LAUNCH_FILES:
        room = path.relative_to(REPOSITORY / "launch").parts[0].removesuffix(".py")
        others = rooms_imported(path, "launch") - {room, "_plain_command"}
        assert others <= ({"cluster"} if path.parent.name == "launch" else set()), path


def test_cluster_stands_on_nothing_of_the_library_nor_on_tensorflow_and_its_rooms_have_floors():
    paths = sorted((REPOSITORY / "launch/cluster").glob("*.py"))
    for path in paths:
        found = {name.split(".")[0] for name in imported_modules(path)}
        assert not found & {"trainer", "tensorflow", "keras", "numpy"}, path
    rooms = [path for path in paths if path.stem != "__init__"]
    assert rooms and not_lower(rooms, "launch.cluster", CLUSTER_FLOORS) == []


def test_a_module_opens_with_one_sentence_and_has_a_telling_name():
    for path in TRAINER_FILES:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring and docstring.splitlines()[0].endswith((".", "?")), f"{path}: the first line says the one job"
        assert not any(word in path.stem for word in ("utils", "common", "manager")), path
