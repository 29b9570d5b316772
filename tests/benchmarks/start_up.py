"""Seconds to the first finished step and peak memory of `trainer.train` beside Keras fit, each in new processes.

python tests/benchmarks/start_up.py [--workload=mlp]... [--strategy=mirrored]... [--rounds=5]

The two ways take turns, and only ratios inside a row mean something. A row whose seconds are above the bar is
measured on, for twice as many rounds again, all of which count; it says how many they are. Peak memory is what the
process had of the machine at its highest, together with what its heap had free but kept. Where that is above the bar,
the row is measured again with a heap that gives back at once what is freed: that is what was held, and what is judged
then.
Besides: by how much memory grows over 2,000 further steps of the mlp, and how often the device loop is traced where
the last loop is shorter than the others. Exit status 1, and a line for each, if a bar does not hold.
"""

import argparse
import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from spread import median_and_spread

HERE = Path(__file__).resolve().parent
WORKLOADS = ("mlp", "cnn", "mobilenet", "transformer")
STRATEGIES = ("none", "mirrored")
WAYS = ("regraft", "fit")
RESULT = "result: "

RATIO_BAR = 1.0
RATIO_NOISE = 0.05  # left to the clock and to what else the machine does
GROWTH_BAR_MIB = 5.0

# glibc: each block from 128 kB on is a mapping of its own, and none of it stays when it is freed. Fixed, for else the
# first such block that is freed moves the bound up to its size. Page faults make it slower: only memory is measured so.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def train_by_regraft(workload, strategy, num_steps: int) -> None:
    from peers import task
    from workloads import optimizer

    import trainer

    trainer.train(
        model=workload.build,
        train_data=workload.arrays(),
        task=task(),
        optimizer=optimizer,
        global_batch_size=workload.batch_size,
        num_steps=num_steps,
        restore=None,
        strategy=strategy,
    )


def train_by_fit(workload, strategy, num_steps: int) -> None:
    import keras
    import tensorflow as tf
    from workloads import optimizer

    arrays = workload.arrays()
    dataset = tf.data.Dataset.from_tensor_slices((arrays["x"], arrays["y"])).repeat()
    dataset = dataset.batch(workload.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    with strategy.scope():
        model = workload.build()
        model.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(dataset, steps_per_epoch=num_steps, epochs=1, verbose=0)
    assert "trainer" not in sys.modules, "fit would be charged for imports that it does not need"


def first_step(way: str, workload, strategy) -> str:
    """The moment counts: the parent notes when the line arrives."""
    {"regraft": train_by_regraft, "fit": train_by_fit}[way](workload, strategy, 1)
    return "1"


def peak_memory(way: str, workload, strategy) -> str:
    """MiB that the process had at its highest, over 50 steps; `growth` is about what comes later."""
    {"regraft": train_by_regraft, "fit": train_by_fit}[way](workload, strategy, 50)
    return str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def growth(way: str, workload, strategy) -> str:
    """MiB held after 2,500 steps above what was held after 500."""
    from peers import PEERS

    take_steps = PEERS[way](workload, strategy)
    take_steps(500)
    before = _resident_bytes()
    take_steps(2000)
    return str((_resident_bytes() - before) / 2**20)


def traces(way: str, workload, strategy) -> str:
    """Of the device loop, over 120 steps by 50."""
    from peers import task
    from workloads import optimizer

    from trainer.checkpoints.train_state import new_train_state
    from trainer.data.batches import train_batches
    from trainer.data.data import in_memory
    from trainer.optimizers.build import build_optimizer
    from trainer.step.train_step import build_train_loop

    with strategy.scope():
        model = workload.build()
        state = new_train_state(model, build_optimizer(optimizer, model.trainable_variables))
    batches = train_batches(in_memory(examples=workload.arrays()), workload.batch_size, seed=0)
    train_loop = build_train_loop(strategy, state, task(), model.trainable_variables, workload.batch_size, batches)
    for num_steps in (50, 50, 20):
        for steps in batches.take(num_steps):
            train_loop(*steps)
    return str(train_loop.function.experimental_get_tracing_count())


MEASUREMENTS = {each.__name__: each for each in (first_step, peak_memory, growth, traces)}


def measure_here(measurement: str, way: str, workload: str, strategy: str) -> None:
    if way == "regraft":
        sys.path.append(str(HERE.parents[1]))
    from workloads import WORKLOADS as workloads

    found = MEASUREMENTS[measurement](way, workloads[workload], _strategy(strategy))
    print(RESULT + found, flush=True)


def in_new_process(measurement: str, way: str, workload: str, strategy: str, **variables: str) -> tuple[float, float]:
    """(seconds from the start of the process until it has its result, the result); variables: of its environment."""
    command = [sys.executable, __file__, f"--measurement={measurement}", f"--way={way}"]
    command += [f"--workload={workload}", f"--strategy={strategy}"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", **variables}
    # Keras' modules were compiled when it was installed, those of a checkout by the first run that may write them.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        reported = [(time.perf_counter() - started, line) for line in process.stdout if line.startswith(RESULT)]
        if process.wait():
            errors.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{errors.read()[-3000:]}")
    seconds, line = reported[-1]
    return seconds, float(line.removeprefix(RESULT))


def side_by_side(workload: str, strategy: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """{'seconds', 'MiB' or 'MiB held': {way: [a figure a round]}}; who goes first changes from round to round.

    Where the seconds are above the bar, three times as many rounds count. 'MiB held' is there only where 'MiB' is
    above it.
    """

    def take_turns(count: int, measurement: str, **variables: str) -> dict[str, list[tuple[float, float]]]:
        taken: dict = {way: [] for way in WAYS}
        for order in _orders(count):
            for way in order:
                taken[way].append(in_new_process(measurement, way, workload, strategy, **variables))
        return taken

    def seconds(count: int) -> dict[str, list[float]]:
        return {way: [each for each, _ in taken] for way, taken in take_turns(count, "first_step").items()}

    def peaks(**variables: str) -> dict[str, list[float]]:
        taken = take_turns(rounds, "peak_memory", **variables)
        return {way: [peak for _, peak in each] for way, each in taken.items()}

    found = {"seconds": seconds(rounds), "MiB": peaks()}
    if _is_above(_ratios(found["seconds"])):  # what else the machine did may have been in so few
        more = seconds(2 * rounds)
        found["seconds"] = {way: found["seconds"][way] + more[way] for way in WAYS}
    if _is_above(_ratios(found["MiB"])):
        found["MiB held"] = peaks(**GIVES_BACK)
    return found


def _orders(rounds: int) -> list[tuple[str, ...]]:
    return [WAYS if index % 2 else WAYS[::-1] for index in range(rounds)]


def _ratios(figures: dict[str, list[float]]) -> list[float]:
    return [ours / theirs for ours, theirs in zip(*(figures[way] for way in WAYS), strict=True)]


def _is_above(ratios: list[float]) -> bool:
    return statistics.median(ratios) > RATIO_BAR + RATIO_NOISE


def show(found: dict[str, dict[str, list[float]]], name: str) -> list[str]:
    """Prints a row of the table; returns a line for each of its bars that does not hold."""
    cells, failed = [name, str(len(found["seconds"]["regraft"]))], []
    judged = {"seconds", "MiB held" if "MiB held" in found else "MiB"}
    for unit, form in (("seconds", ".2f"), ("MiB", ".0f"), ("MiB held", ".0f")):
        if unit not in found:
            cells += ["", "", ""]
            continue
        ratios = _ratios(found[unit])
        cells += [median_and_spread(found[unit][way], form) for way in WAYS] + [median_and_spread(ratios)]
        if unit in judged and _is_above(ratios):
            ratio = statistics.median(ratios)
            failed.append(f"{name}: {ratio:.2f} times fit's {unit}; the bar is {RATIO_BAR} + {RATIO_NOISE}.")
    print("| " + " | ".join(cells) + " |", flush=True)
    return failed


def show_growth_and_traces(strategies: list[str]) -> list[str]:
    """Prints and returns the like for what concerns this trainer alone."""
    print("\n| mlp | growth over 2,000 steps, MiB | traces of the device loop, 120 steps by 50 |")
    print("|---" * 3 + "|")
    failed = []
    for strategy in strategies:
        _, grown = in_new_process("growth", "regraft", "mlp", strategy)
        _, traced = in_new_process("traces", "regraft", "mlp", strategy)
        print(f"| {strategy} | {grown:.2f} | {traced:.0f} |", flush=True)
        if grown >= GROWTH_BAR_MIB:
            failed.append(f"mlp, {strategy}: memory grew by {grown:.1f} MiB; the bar is {GROWTH_BAR_MIB} MiB.")
        if traced != 1:
            failed.append(f"mlp, {strategy}: the device loop was traced {traced:.0f} times; the bar is once.")
    return failed


def _strategy(name: str):
    import tensorflow as tf

    if name == "none":
        return tf.distribute.get_strategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["/CPU:0", "/CPU:1"])


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=WORKLOADS)
    parser.add_argument("--strategy", action="append", choices=STRATEGIES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measurement", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more.")
    if arguments.measurement:
        measure_here(arguments.measurement, arguments.way, arguments.workload[0], arguments.strategy[0])
        return
    strategies = arguments.strategy or STRATEGIES
    for way in WAYS:
        # Compiles modules, and reads the libraries into the page cache.
        in_new_process("first_step", way, "mlp", "none")
    print("\nTo the first finished step in so many rounds, and peak memory; in brackets the quartiles:\n")
    units = ("s", "MiB", "MiB held")
    print("| | rounds | " + " | ".join(f"regraft, {unit} | fit, {unit} | regraft / fit" for unit in units) + " |")
    print("|---" * 11 + "|", flush=True)
    failed = []
    for workload in arguments.workload or WORKLOADS:
        for strategy in strategies:
            failed += show(side_by_side(workload, strategy, arguments.rounds), f"{workload}, {strategy}")
    failed += show_growth_and_traces(strategies)
    sys.exit("\nThese bars do not hold:\n" + "\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
