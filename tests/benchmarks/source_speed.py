"""Batches a second of each source of data, beside plain tf.data that reads the same files, interleaved.

python tests/benchmarks/source_speed.py [--rounds=5]

Batches of 64 over epochs without end; nothing is trained. Files are read whenever an example is drawn: nothing is held
in memory but where a row says so. Plain tf.data shuffles and batches, and cannot go to a step or repeat an epoch.
ArrayRecord has no reader in tf.data and stands beside TFRecord. Exit status 1 where a source is slower than 0.95 of it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from input_speed import STEPS_PER_LOOP, TakeSteps, drained, drained_stacks
from spread import median_and_spread

import tensorflow as tf  # isort: skip
import trainer  # isort: skip

NUM_EXAMPLES = 2048
SIZE = 32  # of an image, in pixels
STEPS_A_ROUND = 200
FEATURES = {"image": [], "label": []}


def write_files(folder: Path) -> None:
    """The same images three times: in folders of classes, as TFRecord and as ArrayRecord."""
    from array_record.python import array_record_module

    pixels = np.random.default_rng(0).integers(0, 256, [NUM_EXAMPLES, SIZE, SIZE, 3], np.uint8)
    arrays = array_record_module.ArrayRecordWriter(str(folder / "all.array_record"), "group_size:1")
    with tf.io.TFRecordWriter(str(folder / "all.tfrecord")) as records:
        for number, image in enumerate(pixels):
            encoded = tf.io.encode_png(image).numpy()
            path = folder / f"photos/{number % 8}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded)
            example = tf.train.Example()
            example.features.feature["image"].bytes_list.value.append(encoded)
            example.features.feature["label"].int64_list.value.append(number % 8)
            records.write(example.SerializeToString())
            arrays.write(example.SerializeToString())
    arrays.close()


def decode(example):
    return {"image": tf.ensure_shape(tf.io.decode_png(example["image"], 3), [SIZE, SIZE, 3]), "label": example["label"]}


def read_image(path):
    image = tf.image.resize(tf.io.decode_png(tf.io.read_file(path), 3), [SIZE, SIZE], antialias=True)
    return {"image": tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)}


def parse(serialized):
    spec = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
    return decode(tf.io.parse_single_example(serialized, spec))


def flipped(example, seed):
    return {"image": tf.image.stateless_random_flip_left_right(example["image"], seed)}


def flipped_by_chance(example):
    return {"image": tf.image.random_flip_left_right(example["image"])}


def shuffled(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.shuffle(NUM_EXAMPLES).repeat()


def ways(folder: Path) -> dict[str, tuple[TakeSteps, TakeSteps]]:
    """{source: (Regraft, plain tf.data)}."""
    images = np.random.default_rng(0).integers(0, 256, [NUM_EXAMPLES, SIZE, SIZE, 3], np.uint8)
    one, two = {"image": images[: NUM_EXAMPLES // 2]}, {"image": images[NUM_EXAMPLES // 2 :]}
    slices = tf.data.Dataset.from_tensor_slices
    paths = sorted(map(str, folder.glob("photos/*/*.png")))
    files = dict(features=FEATURES, prepare=decode, memory_limit_bytes=0)
    plain_records = drained(
        shuffled(tf.data.TFRecordDataset(str(folder / "all.tfrecord"))).map(parse, tf.data.AUTOTUNE)
    )
    return {
        "in_memory": (
            drained_stacks(trainer.in_memory({"image": images})), drained(shuffled(slices({"image": images}))),
        ),
        "image_folder": (
            drained_stacks(trainer.image_folder(str(folder / "photos"), SIZE, SIZE, memory_limit_bytes=0)),
            drained(shuffled(slices(paths)).map(read_image, tf.data.AUTOTUNE)),
        ),
        "records": (
            drained_stacks(trainer.records(str(folder / "all.tfrecord"), shuffle_buffer=NUM_EXAMPLES, **files)),
            plain_records,
        ),
        "array_record": (
            drained_stacks(trainer.array_record(str(folder / "all.array_record"), **files)), plain_records,
        ),
        "mixture, in memory": (
            drained_stacks(trainer.mixture([trainer.in_memory(one), trainer.in_memory(two)], weights=[1.0, 3.0])),
            drained(tf.data.Dataset.sample_from_datasets([shuffled(slices(one)), shuffled(slices(two))], [0.25, 0.75])),
        ),
        "augment, in memory": (
            drained_stacks(trainer.in_memory({"image": images}, augment=flipped)),
            drained(shuffled(slices({"image": images})).map(flipped_by_chance, tf.data.AUTOTUNE)),
        ),
    }  # fmt: skip


def batches_per_second(take_steps: TakeSteps) -> float:
    take_steps(STEPS_PER_LOOP)  # uses up what was prefetched while the others ran
    started = time.perf_counter()
    take_steps(STEPS_A_ROUND)
    return STEPS_A_ROUND / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    broken = []
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        print("| source | batches of 64 a second | plain tf.data | ratio |")
        print("|---" * 4 + "|")
        for name, (regraft, plain) in ways(Path(folder)).items():
            found = [(batches_per_second(regraft), batches_per_second(plain)) for _ in range(rounds + 1)][1:]
            ours, theirs = map(list, zip(*found, strict=True))
            ratios = [own / other for own, other in found]
            print(
                f"| {name} | {median_and_spread(ours, ',.0f')} | {median_and_spread(theirs, ',.0f')} | "
                f"{median_and_spread(ratios)} |"
            )
            if statistics.median(ratios) < 0.95:
                broken.append(f"{name} at {statistics.median(ratios):.2f}")
    if broken:
        sys.exit(f"\nSlower than 0.95 of plain tf.data: {'; '.join(broken)}.")


if __name__ == "__main__":
    main()
