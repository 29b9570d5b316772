"""Sets up three logical CPU devices once, and what several tests start from."""

import fcntl
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Before TensorFlow and TFDS are imported: a hermetic data folder, for the commands that tests start too. One for
# each of pytest's processes, which would prepare the same data set at once.
_PROCESS = f"{os.getuid()}-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
os.environ.setdefault("TFDS_DATA_DIR", os.path.join(tempfile.gettempdir(), f"regraft-tests-tfds-{_PROCESS}"))

import numpy as np  # noqa: E402, I001
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402
from commands import REPOSITORY, end_server, run_command  # noqa: E402


pytest.register_assert_rewrite("parity.suite")


# Files that begin first, those that mostly compute and those that mostly wait in turn.
_LONGEST = ("test_faults.py", "test_worker_failures.py", "test_comparison.py", "test_slurm.py", "test_local.py")


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="runs everything, also what is marked `full`")
    parser.addoption("--parity-table", action="store_true", help="prints how far each row is from one replica")
    parser.addoption("--fault-table", action="store_true", help="prints what was done about each fault, and kills more")
    parser.addoption("--zoo-table", action="store_true", help="prints what became of every model from every writer")


def pytest_ignore_collect(collection_path, config):
    # It imports the schemas, which `make test-all` installs.
    return True if collection_path.name == "test_kubernetes.py" and not config.getoption("--full") else None


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        deselected = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=deselected)
    # Of processes side by side none should be left alone with a file of minutes.
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))


def pytest_configure():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)


def pytest_sessionfinish():
    end_server()


def full(*values):
    """A case of a parametrised test that only `make test-all` runs."""
    return pytest.param(*values, marks=pytest.mark.full)


@functools.cache  # TensorFlow counts collectives by strategy: one for a set of devices in a process
def make_strategy(replicas: int) -> tf.distribute.Strategy:
    """One replica on one device, or several on logical CPU devices."""
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("/CPU:0")
    # Groups of two and of three devices would get one key; this is TensorFlow's own way out in its tests.
    tf.distribute.MirroredStrategy._collective_key_base = 100_000 * replicas
    return tf.distribute.MirroredStrategy([f"/CPU:{index}" for index in range(replicas)])


@pytest.fixture(params=[full(1), 2], ids=["one replica", "two replicas"])
def strategy(request):
    return make_strategy(request.param)


@pytest.fixture(autouse=True)
def clean_gin():
    """Every test starts and ends without bindings."""
    import gin

    gin.clear_config()
    yield
    with gin.unlock_config():
        gin.clear_config()


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of its own with 1 MB, or the module's DISK_SIZE."""
    place = tmp_path / "disk"
    place.mkdir()
    size = getattr(request.module, "DISK_SIZE", "1m")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        # The table promises a row for every fault.
        leave_out = pytest.fail if request.config.getoption("--fault-table") else pytest.skip
        leave_out(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def assert_same_weights(first_model_dir, second_model_dir, num_variables: int, tolerance: float = 1e-5) -> None:
    """Compares the model's variables in the last checkpoints of two runs, read by TensorFlow alone."""
    first, second = (
        tf.train.load_checkpoint(str(path / "checkpoints")) for path in (first_model_dir, second_model_dir)
    )
    names = [name for name in first.get_variable_to_shape_map() if name.startswith("model/")]
    assert len(names) == num_variables
    for name in names:
        np.testing.assert_allclose(
            first.get_tensor(name), second.get_tensor(name), atol=tolerance, rtol=0, err_msg=name
        )


def made_once(tmp_path_factory, name: str, make) -> Path:
    """The folder `name`, filled by `make(folder)` in whichever of pytest's processes comes first."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(base / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.made").exists():
            make(base / name)
            (base / f"{name}.made").touch()
    return base / name


@pytest.fixture(scope="session")
def digits_source(tmp_path_factory) -> Path:
    """The model_dir of the embedded source task, trained by the real command, shortened. Only to be read."""

    def make(model_dir):
        config = ("--gin_file=configs/runs/digits_source.gin", "--gin_param=NUM_STEPS = 60")
        done = run_command("launch.train", *config, f"--model_dir={model_dir}")
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "digits_source", make)


@pytest.fixture(scope="session")
def written_by_keras_2(tmp_path_factory, request) -> Path:
    """The folder that `write_with_keras_2.py` fills. Only to be read."""
    pytest.importorskip("tf_keras", reason="Keras 2 is no dependency of ours")

    def make(folder):
        environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, REPOSITORY / "tests/restore/write_with_keras_2.py", folder]
        command += ["--full"] * request.config.getoption("--full")
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "keras_2", make)


_CELLS: dict[tuple[str, str], str] = {}
_DIFFERENCES: dict[str, dict[str, float]] = {}
_FAULTS: dict[str, tuple[str, float]] = {}


@pytest.fixture(scope="session")
def fault_cell():
    """Notes what was done about a fault, and how far the run ended from an unbroken one."""
    return lambda fault, done, largest: _FAULTS.update({fault: (done, largest)})


@pytest.fixture
def parity_cell():
    """Notes a row's largest difference from one replica; `--parity-table` prints them all."""
    return lambda row, column, difference: _DIFFERENCES.setdefault(row, {}).update({column: difference})


@pytest.fixture
def zoo_cell():
    """Notes what became of a kind of model from a writer; `--zoo-table` prints them all."""
    return lambda writer, kind, outcome: _CELLS.update({(writer, kind): outcome})


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--zoo-table") and _CELLS:
        _print_zoo(terminalreporter.write_line)
    if config.getoption("--fault-table") and _FAULTS:
        terminalreporter.write_line("\n| fault | what was done | max \\|difference\\| |\n|---|---|---|")
        for fault, (done, largest) in _FAULTS.items():
            terminalreporter.write_line(f"| {fault} | {done} | {largest:g} |")
    if config.getoption("--parity-table") and _DIFFERENCES:
        columns = list(dict.fromkeys(column for row in _DIFFERENCES.values() for column in row))
        terminalreporter.write_line("\n| largest difference from one replica | " + " | ".join(columns) + " |")
        terminalreporter.write_line("|---" * (len(columns) + 1) + "|")
        for row, found in _DIFFERENCES.items():
            shown = " | ".join(f"{found[column]:.1e}" if column in found else "-" for column in columns)
            terminalreporter.write_line(f"| {row} | {shown} |")


def _print_zoo(write) -> None:
    writers = list(dict.fromkeys(writer for writer, _ in _CELLS))
    kinds = list(dict.fromkeys(kind for _, kind in _CELLS))
    outcomes = list(_CELLS.values())
    write("")
    write("| writer | " + " | ".join(kinds) + " |")
    write("|---" * (len(kinds) + 1) + "|")
    for writer in writers:
        write(f"| {writer} | " + " | ".join(_CELLS.get((writer, kind), "-") for kind in kinds) + " |")
    write("")
    write(
        f"{len(outcomes)} cells: {outcomes.count('whole')} whole, bit for bit; {outcomes.count('order')} whole by "
        f"`match = 'order'` and refused without it; {outcomes.count('refused')} refused, as was meant."
    )
