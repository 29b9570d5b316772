"""Batches a second of four ways to feed small PNG images, interleaved, and how soon a late step's batch comes.

python tests/benchmarks/input_speed.py [--rounds=5]

Each way gives batches of 64 float images of 32 x 32 over epochs without end; nothing is trained. Only ratios
mean something. Resuming: the first batch from step 1,000,000 on beside tf.data's own shuffle and skip. Then the
same of a million small records in 16 files, beside a plain `shuffle().batch()` of them.
Exit status 1 if decoding once, as this trainer does, is slower than decoding at every step, if the images or the
records come slower than by 0.95 of the plain `shuffle().batch()` of the same, or if a late step takes 2 s.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from spread import median_and_spread  # noqa: E402

from trainer.data.batches import train_batches  # noqa: E402
from trainer.data.data import Data, in_memory  # noqa: E402
from trainer.data.order import epoch_order  # noqa: E402
from trainer.data.tfds_data import scale_image  # noqa: E402
from trainer.data.tfrecords import Records  # noqa: E402

NUM_IMAGES = 512
BATCH_SIZE = 64
STEPS_PER_LOOP = 50
STEPS_A_ROUND = 2000
LATE_STEP = 1_000_000
SKIPPED_STEPS = 2000
NUM_RECORDS = 1_000_000
RECORD_BYTES = 64
SHUFFLE_BUFFER = 10_000

TakeSteps = Callable[[int], None]


def encoded_images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, [NUM_IMAGES, 32, 32, 3], np.uint8)
    return [tf.io.encode_png(image).numpy() for image in pixels]


def decoded_every_step(images: list[bytes]) -> TakeSteps:
    """A map for each example, as tutorials write it."""
    return drained(_shuffled(tf.data.Dataset.from_tensor_slices(images)).map(_decode_and_scale, tf.data.AUTOTUNE))


def decoded_and_cached(images: list[bytes]) -> TakeSteps:
    return drained(_shuffled(tf.data.Dataset.from_tensor_slices(images).map(_decode_and_scale).cache()))


def regraft(images: list[bytes]) -> TakeSteps:
    """Decoded once as `tfds_data` does it, scaled batch by batch."""
    return drained_stacks(in_memory(examples={"image": _decoded(images)}, preprocess=scale_image))


def regraft_by_number(images: list[bytes]) -> TakeSteps:
    """Scaled beforehand, so that each step looks its batch up in memory."""
    return drained_stacks(in_memory(examples={"image": _decoded(images) / np.float32(255)}))


WAYS = {
    "decoded at every step": decoded_every_step,
    "cached after decoding": decoded_and_cached,
    "regraft": regraft,
    "regraft, no preprocess": regraft_by_number,
}


def batches_per_second(rounds: int) -> dict[str, list[float]]:
    """{way: [a figure a round]}, after a round that counts for nothing."""
    images = encoded_images()
    ways = {name: way(images) for name, way in WAYS.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, take_steps in ways.items():
            take_steps(STEPS_PER_LOOP)  # uses up what was prefetched while the others ran
            started = time.perf_counter()
            take_steps(STEPS_A_ROUND)
            found[name].append(STEPS_A_ROUND / (time.perf_counter() - started))
    return {name: values[1:] for name, values in found.items()}


def resume_seconds(rounds: int) -> dict[str, list[float]]:
    """{way: [seconds until the first batch, a round]} on a million numbers in memory."""
    data = in_memory(examples={"x": np.arange(10**6, dtype=np.int32)})
    data.tensors  # noqa: B018  a run copies them once, resumed or not
    plain = tf.data.Dataset.range(10**6).shuffle(10_000, seed=0).repeat().batch(BATCH_SIZE)
    ways: dict[str, Callable[[], object]] = {
        "regraft": lambda: _first_batch(data, 0),
        f"regraft from step {LATE_STEP:,}": lambda: _first_batch(data, LATE_STEP),
        "shuffle": lambda: next(iter(plain)),
        f"shuffle and skip to step {SKIPPED_STEPS:,}": lambda: next(iter(plain.skip(SKIPPED_STEPS))),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, first_batch in ways.items():
            epoch_order.cache_clear()  # a run that is resumed has a new process
            started = time.perf_counter()
            first_batch()
            found[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in found.items()}


def record_files(folder: str) -> list[tuple[str, int, int]]:
    """16 files of 62,500 records of 64 bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, [NUM_RECORDS, RECORD_BYTES], np.uint8)
    files = []
    for index, part in enumerate(np.split(pixels, 16)):
        path = str(Path(folder, f"records-{index:05d}-of-00016.tfrecord"))
        with tf.io.TFRecordWriter(path) as writer:
            for record in part:
                writer.write(record.tobytes())
        files.append((path, 0, len(part)))
    return files


def _decode_record(serialized):
    return {"x": tf.ensure_shape(tf.io.decode_raw(serialized, tf.uint8), [RECORD_BYTES])}


def _plain_records(files) -> tf.data.Dataset:
    paths = tf.data.Dataset.from_tensor_slices([path for path, _, _ in files])
    records = paths.interleave(tf.data.TFRecordDataset, cycle_length=16, block_length=16)
    return records.map(_decode_record, tf.data.AUTOTUNE).shuffle(SHUFFLE_BUFFER, seed=0).repeat()


def _record_data(files) -> Data:
    return Data(
        "records", NUM_RECORDS, stream=lambda: _plain_records(files).take(NUM_RECORDS),
        records=Records(files, _decode_record), shuffle_buffer=SHUFFLE_BUFFER,
    )  # fmt: skip


def records_per_second(files, rounds: int) -> dict[str, list[float]]:
    """{way: [batches of 64 a second, a round]} over epochs of a million records, more than one epoch a round."""
    ways = {
        "plain shuffle().batch()": drained(_plain_records(files).map(lambda example: example["x"])),
        "regraft": drained_stacks(_record_data(files)),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    steps = NUM_RECORDS // BATCH_SIZE + 1000
    for _ in range(rounds + 1):
        for name, take_steps in ways.items():
            take_steps(STEPS_PER_LOOP)
            started = time.perf_counter()
            take_steps(steps)
            found[name].append(steps / (time.perf_counter() - started))
    return {name: values[1:] for name, values in found.items()}


def record_resume_seconds(files, rounds: int) -> dict[str, list[float]]:
    """{way: [seconds until the first batch, a round]}."""
    data, plain = _record_data(files), _plain_records(files)
    ways: dict[str, Callable[[], object]] = {
        "regraft": lambda: _first_batch(data, 0),
        f"regraft from step {LATE_STEP:,}": lambda: _first_batch(data, LATE_STEP),
        "shuffle": lambda: next(iter(plain.batch(BATCH_SIZE))),
        f"shuffle and skip to step {SKIPPED_STEPS:,}": lambda: next(
            iter(plain.skip(SKIPPED_STEPS * BATCH_SIZE).batch(BATCH_SIZE))
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, first_batch in ways.items():
            started = time.perf_counter()
            first_batch()
            found[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in found.items()}


def show(speeds: dict[str, list[float]], resumed: dict[str, list[float]], what: str) -> None:
    print("| | batches of 64 a second | as a ratio to the first |")
    print("|---" * 3 + "|")
    first = next(iter(speeds.values()))
    for name, values in speeds.items():
        ratios = [own / other for own, other in zip(values, first, strict=True)]
        print(f"| {name} | {median_and_spread(values, ',.0f')} | {median_and_spread(ratios)} |")
    print(f"\n| 1,000,000 {what} | seconds to the first batch |")
    print("|---" * 2 + "|")
    for name, values in resumed.items():
        print(f"| {name} | {median_and_spread(values, ',.3f')} |")
    _, late, start, skipped = (statistics.median(values) for values in resumed.values())
    a_step = (skipped - start) / SKIPPED_STEPS
    print(
        f"\nA step skipped takes tf.data {1e6 * a_step:.1f} microseconds: step {LATE_STEP:,} would take it "
        f"{LATE_STEP * a_step:.1f} s, and takes regraft {late:.3f} s."
    )


def _shuffled(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.shuffle(NUM_IMAGES, seed=0).repeat()


def _decode_and_scale(image):
    return tf.cast(tf.io.decode_png(image, 3), tf.float32) / 255.0


def _decoded(images: list[bytes]) -> np.ndarray:
    return np.stack([tf.io.decode_png(image, 3).numpy() for image in images])


def drained(dataset: tf.data.Dataset) -> TakeSteps:
    iterator = iter(dataset.batch(BATCH_SIZE, drop_remainder=True).prefetch(tf.data.AUTOTUNE))

    @tf.function
    def loop(num_steps):
        touched = tf.zeros([])
        for _ in tf.range(num_steps):
            touched += _touch(_first_feature(next(iterator)))
        return touched

    def take_steps(num_steps: int) -> None:
        for first in range(0, num_steps, STEPS_PER_LOOP):
            loop(tf.constant(min(STEPS_PER_LOOP, num_steps - first)))

    return take_steps


def drained_stacks(data: Data) -> TakeSteps:
    batches = train_batches(data, BATCH_SIZE, seed=0, steps_per_loop=STEPS_PER_LOOP)

    @tf.function
    def loop(stack, first, end):
        touched = tf.zeros([])
        for step in tf.range(first, end):
            batch, _ = batches.look_up(_at(step, stack))
            touched += _touch(_first_feature(batch))
        return touched

    def take_steps(num_steps: int) -> None:
        for first in range(0, num_steps, STEPS_PER_LOOP):
            for steps in batches.take(min(STEPS_PER_LOOP, num_steps - first)):
                loop(*steps)

    return take_steps


def _first_batch(data: Data, start_step: int):
    batches = train_batches(data, BATCH_SIZE, seed=0, start_step=start_step)
    ((stack, first, _),) = batches.take(1)
    return batches.look_up(_at(first, stack))


def _at(step: tf.Tensor, stack):
    return tf.nest.map_structure(lambda value: value[step], stack)


def _first_feature(batch) -> tf.Tensor:
    return next(iter(batch.values())) if isinstance(batch, dict) else batch


def _touch(batch) -> tf.Tensor:
    return tf.cast(tf.reshape(batch, [-1])[0], tf.float32)


def _broken_bars(what: str, ours: list[float], plain: list[float], resumed: dict[str, list[float]]) -> list[str]:
    """Round by round beside the plain way, which has the same to do but cannot go to a step."""
    broken = []
    ratio = statistics.median(own / other for own, other in zip(ours, plain, strict=True))
    print(f"{what}: {ratio:.2f} of the plain shuffle().batch()")
    if ratio < 0.95:
        broken.append(f"{what} come at {ratio:.2f} of the plain way's speed, and not 0.95")
    late = statistics.median(resumed[f"regraft from step {LATE_STEP:,}"])
    if late >= 2:
        broken.append(f"the batch of step {LATE_STEP:,} of {what} takes {late:.2f} s, and not under 2")
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    speeds = batches_per_second(rounds)
    late_images = resume_seconds(rounds)
    show(speeds, late_images, "examples in memory")
    broken = _broken_bars("images", speeds["regraft, no preprocess"], speeds["cached after decoding"], late_images)
    ours, theirs = (statistics.median(speeds[name]) for name in ("regraft", "decoded at every step"))
    if ours < theirs:
        broken.append(f"{ours:.0f} batches a second, where decoding at every step gives {theirs:.0f}")
    with tempfile.TemporaryDirectory() as folder:
        files = record_files(folder)
        streamed, resumed = records_per_second(files, rounds), record_resume_seconds(files, rounds)
    print()
    show(streamed, resumed, "records in 16 files")
    broken += _broken_bars("records", streamed["regraft"], streamed["plain shuffle().batch()"], resumed)
    if broken:
        sys.exit("\nBars that do not hold: " + "; ".join(broken) + ".")


if __name__ == "__main__":
    main()
