"""Every worker has a part of its own, and no example is seen twice or lost: counted, wherever the examples lie."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import full
from test_pipeline import take

import trainer
from trainer.data.batches import eval_batches, train_batches
from trainer.data.data import Data
from trainer.data.given import as_data
from trainer.data.tfrecords import Records

SIZE, BATCH_SIZE = 37, 12  # no epoch ends with a batch
KINDS = ["in memory", "record files", "tf.data.Dataset"]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """kind, size -> data of the numbers 0 to size - 1."""
    folder = tmp_path_factory.mktemp("tfds")

    def make(kind: str, size: int) -> Data:
        if kind == "in memory":
            return as_data({"x": np.arange(size)}, "numbers")
        dataset = tf.data.Dataset.from_tensor_slices({"x": np.arange(size)})
        if kind == "tf.data.Dataset":
            return as_data(dataset, "numbers")
        if not (folder / "numbers" / f"{size}").exists():
            tfds.dataset_builders.store_as_tfds_dataset(
                name="numbers",
                config=str(size),
                version="1.0.0",
                data_dir=folder,
                split_datasets={"train": dataset},
                features=tfds.features.FeaturesDict({"x": np.int64}),
                download_config=tfds.download.DownloadConfig(num_shards=min(size, 3)),
            )
        data = trainer.tfds_data(
            tfds_name=f"numbers/{size}", split="train", data_dir=str(folder), memory_limit_bytes=1, shuffle_buffer=10
        )
        assert data.records is not None and len(data.records.segments) == min(size, 3)
        return data

    return make


def training_parts(data, num_workers, accumulation_steps, steps):
    """[worker][step] -> the numbers that it sees."""
    return [
        take(train_batches(data, BATCH_SIZE, 1, 0, num_workers, index, accumulation_steps), steps)
        for index in range(num_workers)
    ]


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("num_workers", [full(1), 2, full(3)])
@pytest.mark.parametrize("kind", KINDS)
def test_in_training_the_workers_see_every_example_once_an_epoch_between_them(
    numbers, kind, num_workers, accumulation_steps
):
    data = numbers(kind, SIZE)
    steps = 3 * SIZE // BATCH_SIZE  # a little less than three epochs
    whole = training_parts(data, 1, 1, steps)[0]
    parts = training_parts(data, num_workers, accumulation_steps, steps)
    together = [sum(step, []) for step in zip(*parts, strict=True)]
    assert [sorted(batch) for batch in together] == [sorted(batch) for batch in whole], "other global batches"
    assert all(len(batch) == BATCH_SIZE // num_workers for part in parts for batch in part)

    counted = np.bincount(np.concatenate(together), minlength=SIZE)
    in_the_third_epoch = sum(whole, [])[2 * SIZE :]
    assert counted.tolist() == [2 + (number in in_the_third_epoch) for number in range(SIZE)]
    for epoch in range(2):
        assert sorted(sum(whole, [])[epoch * SIZE : (epoch + 1) * SIZE]) == list(range(SIZE))


@pytest.mark.parametrize("num_workers", [full(1), full(2), 3])
@pytest.mark.parametrize("size", [1, full(12), 17, full(SIZE)])
@pytest.mark.parametrize("kind", KINDS)
def test_in_evaluation_the_workers_see_every_example_once_between_them(numbers, kind, size, num_workers):
    """Also where a worker has nothing but filling in the last batch; and all have as many batches, of one shape."""
    data = numbers(kind, size)
    seen, shapes = [], []
    for index in range(num_workers):
        batches = list(eval_batches(data, BATCH_SIZE, num_workers, index).as_numpy_iterator())
        shapes.append([(batch["x"].shape, weight.shape) for batch, weight in batches])
        seen += [number for batch, weight in batches for number in batch["x"][weight > 0].tolist()]
    assert sorted(seen) == list(range(size))
    rows = (BATCH_SIZE // num_workers,)
    assert shapes == [[(rows, rows)] * -(-size // BATCH_SIZE)] * num_workers


def test_in_evaluation_a_worker_decodes_its_part_alone(numbers):
    decoded = []

    def decode_and_tell(serialized):
        def tell(record):
            decoded.append(int(tf.io.parse_single_example(record, {"x": tf.io.FixedLenFeature([], tf.int64)})["x"]))
            return np.int64(decoded[-1])

        return {"x": tf.ensure_shape(tf.numpy_function(tell, [serialized], tf.int64), [])}

    segments = numbers("record files", SIZE).records.segments
    data = Data("numbers", SIZE, records=Records(segments, decode_and_tell))
    seen = [batch["x"].tolist() for batch, _ in eval_batches(data, BATCH_SIZE, 3, 1).as_numpy_iterator()]
    assert sorted(decoded) == sorted(sum(seen, [])) and len(decoded) == 4 * 4


def test_in_evaluation_a_file_that_was_cut_off_is_named(tmp_path):
    path = str(tmp_path / "numbers.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for number in range(5):
            writer.write(str(number).encode())
    data = Data("numbers", 6, records=Records([(path, 0, 6)], lambda record: {"x": tf.strings.to_number(record)}))
    with pytest.raises(trainer.UserError, match=f"{path}, record 5"):
        list(data.elements(eval_batches(data, 4)))
