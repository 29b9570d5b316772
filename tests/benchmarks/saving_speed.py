"""How long a save holds the training up: in the background, at once, and by TensorFlow's CheckpointManager.

python tests/benchmarks/saving_speed.py [--rounds=7] [--megabytes=100]

A state of so many megabytes (weights, Adam's slots) is trained for 0.5 s before a save, and for 0.5 s after it or
until the background has nothing left to do: `held up` is what a save call takes, `slowed down` what it and the
steps after it lose of time beside the steps before it; `whole` is when the checkpoint was whole.
Exit status 1 if a checkpoint a minute costs more than 5 % of the minute.
"""

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from trainer.checkpoints.manager import Checkpoints  # noqa: E402
from trainer.checkpoints.train_state import new_train_state  # noqa: E402
from trainer.data.batches import train_batches  # noqa: E402
from trainer.data.data import in_memory  # noqa: E402
from trainer.optimizers.build import build_optimizer  # noqa: E402
from trainer.step.train_step import build_train_loop  # noqa: E402
from trainer.tasks.supervised import supervised  # noqa: E402

WINDOW_SECONDS = 0.5


def new_run(megabytes: int):
    """(state, take_steps): an embedding holds the megabytes, a small part of which a step uses."""
    rows = megabytes * 2**20 // (3 * 4 * 256)
    model = keras.Sequential([keras.layers.Embedding(rows, 256), keras.layers.Flatten(), keras.layers.Dense(10)])
    random = np.random.default_rng(0)
    data = in_memory(
        examples={"x": random.integers(0, rows, [256, 4]).astype(np.int32), "y": random.integers(0, 10, 256)}
    )
    model(np.zeros([1, 4], np.int32))
    optimizer = build_optimizer(lambda: keras.optimizers.Adam(1e-3), model.trainable_variables)
    state = new_train_state(model, optimizer)
    task = supervised(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="y")
    batches = train_batches(data, 32, seed=0)
    loop = build_train_loop(tf.distribute.get_strategy(), state, task, model.trainable_variables, 32, batches)
    take_steps = functools.partial(batches.run, loop)
    take_steps(1)
    return state, take_steps


def steps_in(seconds: float, take_steps, finished: Future | None = None) -> tuple[int, float]:
    """(steps, how long they really took): for so many seconds, and until `finished` is done."""
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or not (finished is None or finished.done()):
        take_steps(1)
        steps += 1
    return steps, time.perf_counter() - started


def measure(megabytes: int, rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """{way: [(seconds held up, seconds lost, seconds until the checkpoint is whole), a round]}."""
    state, take_steps = new_run(megabytes)
    found: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as waits:
        background = Checkpoints(state, Path(folder, "background"), keep=1, in_background=True)
        at_once = Checkpoints(state, Path(folder, "at_once"), keep=1)
        plain = tf.train.CheckpointManager(state.as_checkpoint(), Path(folder, "plain"), max_to_keep=1)
        ways = {"in the background": background.save, "at once": at_once.save, "CheckpointManager": plain.save}
        for counted in range(rounds + 1):
            for name, save in ways.items():
                steps, seconds = steps_in(WINDOW_SECONDS, take_steps)
                seconds_a_step = seconds / steps
                started = time.perf_counter()
                save()
                held_up = time.perf_counter() - started
                whole = waits.submit(lambda: (background.wait(), time.perf_counter())[1])
                steps, seconds = steps_in(WINDOW_SECONDS, take_steps, whole)
                lost = held_up + max(0.0, seconds - steps * seconds_a_step)
                if counted:
                    found.setdefault(name, []).append((held_up, lost, whole.result() - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=100)
    arguments = parser.parse_args()
    found, size = measure(arguments.megabytes, arguments.rounds), f"{arguments.megabytes} MB"
    print(f"| a state of {size} | held up, ms | held up and slowed down, ms | of a minute | whole, ms |")
    print("|---" * 5 + "|")
    shares = {}
    for name, values in found.items():
        held, lost, whole = (statistics.median(each) for each in zip(*values, strict=True))
        shares[name] = lost / 60
        print(f"| {name} | {1e3 * held:.0f} | {1e3 * lost:.0f} | {100 * shares[name]:.2f} % | {1e3 * whole:.0f} |")
    if shares["in the background"] > 0.05:
        sys.exit("\nThe bar does not hold: a checkpoint a minute costs more than 5 % of it.")


if __name__ == "__main__":
    main()
