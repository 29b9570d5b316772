"""Restores a 1 GB model that was saved with Adam, side by side with TensorFlow's own ways, under MirroredStrategy x2.

python tests/benchmarks/restore_speed.py [--megabytes=1024] [--rounds=3]

Each way runs in turn, `rounds` times, on the same file with a warm page cache, each time in a new
process, since that is how a run restores: once. The median time counts, and what is claimed are
ratios. Memory is what the process held at its highest during a restore, above what it held before.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from trainer import restore  # noqa: E402
from trainer.restore.apply import apply_plan  # noqa: E402
from trainer.restore.matching.plan import plan_restore  # noqa: E402
from trainer.restore.matching.rules import Rules  # noqa: E402

KEYS: list[str] = []  # where the weights stand in the file; a way by TensorFlow alone needs to be given


class Block(keras.layers.Layer):
    """One weight of `megabytes`; nothing is computed with it."""

    def __init__(self, megabytes: int):
        super().__init__()
        self.megabytes = megabytes

    def build(self, shape):
        self.kernel = self.add_weight(shape=[self.megabytes, 1 << 18], initializer="zeros", name="kernel")

    def call(self, x):
        return x


def build_model(megabytes: int) -> keras.Model:
    sizes = [32] * (megabytes // 32 - 2) + [16, 16, 8, 8, 4, 4, 2, 2, 1, 1, 1, 1]
    image = keras.Input([1])
    x = image
    for size in sizes:
        x = Block(size)(x)
    return keras.Model(image, x)


def write_checkpoint(folder: str, megabytes: int) -> str:
    model = build_model(megabytes)
    random = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(random.standard_normal(weight.shape, dtype=np.float32))
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return tf.train.Checkpoint(model=model, optimizer=optimizer).write(os.path.join(folder, "ckpt"))


def verified_restore(model, path):
    report = restore.restore_weights(model, path)
    assert report.replicas_verified == 2
    assert report.optimizer_keys_read == 0
    return report


def restore_alone_seconds(model, path) -> float:
    """Until every variable is assigned; what comes after that is the comparison of the replicas."""
    started = time.perf_counter()
    source = restore.open_checkpoint(path)
    plan = plan_restore(model, source, Rules())
    assigned = []
    apply_plan(
        plan, source, lambda done, total: assigned.append(time.perf_counter()) if 3 * done <= 2 * total else None
    )
    source.close()
    return assigned[-1] - started


def one_restore_op_a_tensor(model, path):
    for weight, key in zip(model.weights, KEYS, strict=True):
        (value,) = tf.raw_ops.RestoreV2(prefix=path, tensor_names=[key], shape_and_slices=[""], dtypes=[tf.float32])
        weight.assign(value)


def whole_restore(model, path) -> float:
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    started = time.perf_counter()
    tf.train.Checkpoint(model=model, optimizer=optimizer).restore(path).expect_partial()
    return time.perf_counter() - started


def read_bytes(model, path):
    buffer = bytearray(1 << 22)
    left = sum(weight.numpy().nbytes for weight in model.weights)
    with open(path + ".data-00000-of-00001", "rb", buffering=0) as file:
        while left > 0:
            left -= file.readinto(buffer)


def resident_bytes(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def measured(way, model, path) -> tuple[float, float]:
    """(seconds, GB held at most above what was held before)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts again
    before = resident_bytes("VmRSS")
    started = time.perf_counter()
    result = way(model, path)
    seconds = result if isinstance(result, float) else time.perf_counter() - started
    return seconds, (resident_bytes("VmHWM") - before) / 1e9


WAYS = {
    "reading the bytes": read_bytes,
    "regraft: restored and verified on every replica": verified_restore,
    "regraft: restored, not yet verified": restore_alone_seconds,
    "one RestoreV2 a tensor, and an assign": one_restore_op_a_tensor,
    "tf.train.Checkpoint(model).restore": lambda m, p: (
        tf.train.Checkpoint(model=m).restore(p).expect_partial() and None
    ),
    "whole restore, Adam with it": whole_restore,
}


def measure_here(way: str, folder: str, megabytes: int) -> None:
    """Prints seconds and GB of one way."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["/CPU:0", "/CPU:1"])
    path = os.path.join(folder, "ckpt")
    with strategy.scope():
        model = build_model(megabytes)
        KEYS.extend(str(record.key) for record in restore.plan_weights(model, path).restored)
        print(*measured(WAYS[way], model, path))
    check = np.asarray(strategy.experimental_local_results(model.weights[-1].value)[1].numpy()).std()
    assert way == next(iter(WAYS)) or abs(check - 1.0) < 0.1, "nothing arrived"


def measure(way: str, folder: str, megabytes: int) -> tuple[float, float]:
    command = [sys.executable, __file__, f"--megabytes={megabytes}", f"--way={way}", f"--folder={folder}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, gigabytes = done.stdout.split()[-2:]
    return float(seconds), float(gigabytes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="measures this one alone, in --folder")
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    if arguments.way:
        measure_here(arguments.way, arguments.folder, arguments.megabytes)
        return 0
    seen: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, arguments.megabytes)
        for _ in range(arguments.rounds):
            for way, runs in seen.items():
                runs.append(measure(way, folder, arguments.megabytes))
    median = {way: (statistics.median(s for s, _ in runs), max(m for _, m in runs)) for way, runs in seen.items()}
    table = Table("way", "seconds", "GB above the model", title=f"{arguments.megabytes} MB of weights, saved with Adam")
    for way, (seconds, memory) in median.items():
        table.add_row(way, f"{seconds:.2f}", f"{memory:.2f}")
    Console(width=110).print(table)
    reading, verified, alone, per_tensor, model_only, whole = (median[way][0] for way in WAYS)
    memory = median["regraft: restored and verified on every replica"][1]
    bars = [
        ("verified / reading the bytes", verified / reading, 2.0),
        ("verified / tf.train.Checkpoint(model).restore", verified / model_only, 0.8),
        ("restored / one RestoreV2 a tensor", alone / per_tensor, 1.1),
        ("verified / whole restore", verified / whole, 0.25),
        ("GB above the model, verified", memory, 0.1),
    ]
    for what, found, limit in bars:
        print(f"{what:<46} {found:5.2f}  (at most {limit}){'' if found <= limit else '  DOES NOT HOLD'}")
    return int(any(found > limit for _, found, limit in bars))


if __name__ == "__main__":
    sys.exit(main())
