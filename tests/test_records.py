"""Data that are read from files, block by block: any position at once, every example once, damage named."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from commands import run_command
from conftest import full, make_strategy
from test_experiment import train

import trainer
from trainer.data.batches import train_batches
from trainer.data.data import Data
from trainer.data.tfrecords import Records, unreadable

SIZES = (5, 1, 7, 12)  # of four files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, number = tmp_path_factory.mktemp("records"), 0
    for index, size in enumerate(SIZES):
        with tf.io.TFRecordWriter(str(folder / f"{index}.tfrecord")) as writer:
            for _ in range(size):
                writer.write(str(number).encode())
                number += 1
    return [(str(folder / f"{index}.tfrecord"), 0, size) for index, size in enumerate(SIZES)]


def decode(serialized):
    return {"x": tf.strings.to_number(serialized, tf.int64)}


def examples(segments, count, block_size=4, seed=1, start=0) -> list[int]:
    found: list[int] = []
    for batch in Records(segments, decode).shuffled_batches(3, block_size, seed, start).as_numpy_iterator():
        found += [int(record) for record in batch]
        if len(found) >= count:
            return found[:count]
    raise AssertionError("the batches came to an end")


@pytest.mark.parametrize("block_size", [1, 4, 25, 100])
def test_every_epoch_holds_every_example_once_in_an_order_of_its_own(files, block_size):
    found = examples(files, 75, block_size)
    epochs = [found[:25], found[25:50], found[50:]]
    assert all(sorted(epoch) == list(range(25)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3 and tuple(range(25)) not in {tuple(epoch) for epoch in epochs}
    assert examples(files, 75, block_size) == found and examples(files, 75, block_size, seed=2) != found


@pytest.mark.full
@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_any_position_is_resumed(files, block_size):
    unbroken = examples(files, 140, block_size)
    for start in (*range(9), *range(9, 51, 5), 24, 25, 26, 50, 99):  # around a block, an epoch, and two
        assert examples(files, 40, block_size, start=start) == unbroken[start : start + 40], start


def test_parts_of_files_are_parts(files):
    segments = [(files[3][0], 2, 5), (files[0][0], 1, 3)]
    assert sorted(examples(segments, 8, 3)) == [1, 2, 3, 15, 16, 17, 18, 19]


def test_only_the_block_in_question_is_read(files, tmp_path):
    """A million examples on, no other file is opened: the others may as well be away."""
    position = 25 * 40_000
    blocks = examples(files, 25, 25, start=position)
    assert sorted(blocks) == list(range(25))
    first_block = examples(files, 5, 5, start=position)
    assert len(first_block) == 5
    missing = [(path if any(n in first_block for n in held(files, i)) else str(tmp_path / "away"), skip, take)
               for i, (path, skip, take) in enumerate(files)]  # fmt: skip
    assert any("away" in path for path, *_ in missing)
    found = next(iter(Records(missing, decode).shuffled_batches(5, 5, 1, position)))
    assert [int(record) for record in found.numpy()] == first_block


def held(files, index):
    before = sum(SIZES[:index])
    return range(before, before + files[index][2])


def watched(files, seen, **options):
    """Data of the numbers in the files; a number that is decoded is put down in `seen`."""

    def decode_and_tell(serialized):
        def tell(record):
            seen.append(int(record))
            return np.int64(record)

        return {"x": tf.ensure_shape(tf.numpy_function(tell, [serialized], tf.int64), [])}

    return Data("numbers", 25, records=Records(files, decode_and_tell), stream=lambda: None, **options)


def test_of_a_block_only_what_is_about_to_be_used_is_decoded(tmp_path):
    path, seen = str(tmp_path / "many.tfrecord"), []
    with tf.io.TFRecordWriter(path) as writer:
        for number in range(5000):
            writer.write(str(number).encode())
    data = watched([(path, 0, 5000)], seen, shuffle_buffer=5000)
    batches = train_batches(data, 2, 1, steps_per_loop=1)
    list(batches.take(1))
    assert 2 <= len(seen) < 2500


def test_a_worker_decodes_its_part_alone(files):
    epochs = examples(files, 100)
    seen, taken = [], []
    batches = train_batches(watched(files, seen, shuffle_buffer=4), 10, 1, num_workers=2, worker_index=1,
                            accumulation_steps=1, steps_per_loop=1)  # fmt: skip
    for stack, _, _ in batches.take(2):
        taken.extend(stack["x"].numpy().ravel().tolist())
    assert taken == epochs[5:10] + epochs[15:20]
    in_parts = [number for begin in range(5, 100, 10) for number in epochs[begin : begin + 5]]
    assert sorted(seen) == sorted(in_parts[: len(seen)]), "decoded are the next of its own, and nothing else"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Handwritten digits in a folder of their own."""
    import trainer.data.handwritten_digits  # noqa: F401  registers them

    folder = tmp_path_factory.mktemp("tfds")
    tfds.builder("handwritten_digits/upright", data_dir=folder, try_gcs=False).download_and_prepare()
    return folder


def streamed(folder, split="train", **options):
    return trainer.tfds_data(
        tfds_name="handwritten_digits/upright", split=split, data_dir=str(folder), memory_limit_bytes=1,
        shuffle_buffer=100, preprocess=trainer.scale_image, **options,
    )  # fmt: skip


def test_a_streamed_split_holds_what_one_in_memory_does(prepared):
    small = trainer.tfds_data(
        tfds_name="handwritten_digits/upright", split="train[10%:]+test[:50]", data_dir=str(prepared)
    )
    large = streamed(prepared, "train[10%:]+test[:50]")
    assert large.examples is None and large.num_examples == small.num_examples
    seen = np.concatenate(batches_of(large, 10, -(-large.num_examples // 10)))
    rows = {image.tobytes() for image in (small.examples["image"] / np.float32(255)).astype(np.float32)}
    assert {image.tobytes() for image in seen[: large.num_examples]} == rows


def batches_of(data, size, count, start_step=0, **options):
    batches, found = train_batches(data, size, 3, start_step, **options), []
    for stack, first, end in batches.take(count):
        found.extend(stack["image"].numpy()[int(first) : int(end)])
    return found


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_workers_share_the_global_batches_of_a_stream(prepared, accumulation_steps):
    data = streamed(prepared)
    whole = batches_of(data, 12, 5, accumulation_steps=accumulation_steps)
    parts = [
        batches_of(data, 12, 5, num_workers=2, worker_index=index, accumulation_steps=accumulation_steps)
        for index in range(2)
    ]
    for step, batch in enumerate(whole):
        halves = [part[step].reshape(accumulation_steps, -1, 8, 8, 1) for part in parts]
        np.testing.assert_array_equal(np.concatenate(halves, axis=1).reshape(batch.shape), batch)


def test_a_stream_is_resumed_at_once(prepared):
    data = streamed(prepared)
    unbroken = batches_of(data, 64, 60)
    for start in (1, 17, 18, 41):
        np.testing.assert_array_equal(batches_of(data, 64, 5, start), unbroken[start : start + 5])


def net():
    import keras

    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])


def options(folder, **more):
    import keras

    task = trainer.supervised(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return dict(
        model=net, task=task, train_data=streamed(folder), eval_data=streamed(folder, "test"), global_batch_size=64,
        num_steps=40, checkpoint_every=7, eval_every=20,
    ) | more  # fmt: skip


@pytest.mark.full
def test_a_run_on_a_stream_in_two_parts_ends_with_the_bits_of_an_unbroken_one(prepared, tmp_path):
    whole = train(model_dir=tmp_path / "whole", **options(prepared))
    train(model_dir=tmp_path / "run", **options(prepared, num_steps=23))
    parts = train(model_dir=tmp_path / "run", strategy=make_strategy(2), **options(prepared))
    for one, two in zip(whole.model.get_weights(), parts.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    again = train(model_dir=tmp_path / "one", **options(prepared, num_steps=23))
    again = train(model_dir=tmp_path / "one", **options(prepared))
    for one, two in zip(whole.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("left", [0, 1, 3.5], ids=["empty", "a record", "half a record more"])
def test_a_file_that_was_cut_off_is_named_and_nothing_is_left_out(files, tmp_path, left):
    """It just ends: without a count, a block would be short or missing, and no one would know."""
    whole = Path(files[2][0]).read_bytes()
    path = tmp_path / "cut.tfrecord"
    path.write_bytes(whole[: int(len(whole) / 7 * left)])
    segments = [*files[:2], (str(path), 0, 7), files[3]]
    data = Data("numbers", 25, records=Records(segments, decode), stream=lambda: None, shuffle_buffer=7)
    batches = train_batches(data, 5, 1, steps_per_loop=1)
    with pytest.raises(trainer.UserError, match=f"{path}, record {int(left)}"):
        list(batches.take(10))
    assert unreadable(files) == []


def faults(monkeypatch):
    """The scans of all files that were started."""
    scans: list[int] = []
    faults = ["one.tfrecord"]
    monkeypatch.setattr("trainer.data.data.unreadable", lambda segments: scans.append(len(segments)) or faults)
    return scans


@pytest.mark.parametrize("error", [tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.PermissionDeniedError])
def test_an_error_of_a_file_starts_the_search_for_it(files, monkeypatch, error):
    scans = faults(monkeypatch)
    with pytest.raises(trainer.UserError, match="one.tfrecord"), watched(files, []).reading():
        raise error(None, None, "said")
    assert scans == [4]


@pytest.mark.parametrize(
    "error", [tf.errors.InvalidArgumentError, tf.errors.UnavailableError, tf.errors.FailedPreconditionError]
)
def test_any_other_error_reads_no_file(files, monkeypatch, error):
    scans = faults(monkeypatch)
    with pytest.raises(error), watched(files, []).reading():
        raise error(None, None, "said")
    assert scans == []


def damage(folder, split):
    path = next(folder.rglob(f"*-{split}.tfrecord*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("split", ["train", full("test")])
@pytest.mark.parametrize("memory_limit_bytes", [1, full(2**30)], ids=["streamed", "in memory"])
def test_a_damaged_file_is_named(tmp_path, prepared, split, memory_limit_bytes):
    import shutil

    shutil.copytree(prepared, tmp_path / "tfds")
    path = damage(tmp_path / "tfds", split)
    bindings = [
        f"tfds_data.data_dir = '{tmp_path / 'tfds'}'", f"tfds_data.memory_limit_bytes = {memory_limit_bytes}",
        "NUM_STEPS = 30",
    ]  # fmt: skip
    done = run_command(
        "launch.train", "--gin_file=configs/runs/digits_source.gin", f"--model_dir={tmp_path / 'run'}",
        *(f"--gin_param={binding}" for binding in bindings),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    reported = done.stderr.strip().splitlines()[-1]
    assert f"{path}, record" in reported and "cannot be read" in reported and "Traceback" not in done.stderr
