"""Batches are a pure function of (seed, step): every example once an epoch, for any number of workers."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from trainer import UserError
from trainer.data.batches import eval_batches, replica_batch_size, train_batches
from trainer.data.data import in_memory
from trainer.data.given import as_data


def numbers(size):
    return in_memory(examples={"x": np.arange(size)})


def take(batches, count):
    """The feature x of the first batches."""
    if isinstance(batches, tf.data.Dataset):
        return [batch["x"].tolist() for batch, _ in batches.take(count).as_numpy_iterator()]
    seen = []
    for stack, first, end in batches.take(count):
        for step in range(int(first), int(end)):
            part = tf.nest.map_structure(lambda value, step=step: value[step], stack)
            seen.append(batches.look_up(part)[0]["x"].numpy().tolist())
    return seen


def test_every_example_comes_exactly_once_an_epoch_and_no_batch_is_short():
    batches = take(train_batches(numbers(10), global_batch_size=4, seed=1), 5)
    flat = [x for batch in batches for x in batch]
    assert all(len(batch) == 4 for batch in batches)
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:], "each epoch has an order of its own"


def test_starting_at_a_step_gives_what_an_unbroken_run_sees_there():
    unbroken = take(train_batches(numbers(10), 4, seed=1), 200)
    for start in (1, 7, 100):
        assert take(train_batches(numbers(10), 4, seed=1, start_step=start), 100) == unbroken[start : start + 100]


def test_who_takes_a_batch_stays_on_the_device_it_was_on():
    batches = train_batches(numbers(10), 4, seed=1)
    with tf.device("/CPU:1"):
        list(batches.take(1))
        assert tf.constant([1.0]).device.endswith("CPU:1")


def test_another_seed_is_another_order():
    assert take(train_batches(numbers(50), 10, seed=1), 5) != take(train_batches(numbers(50), 10, seed=2), 5)


@pytest.mark.parametrize("num_workers", [2, 4])
def test_the_workers_parts_together_are_the_global_batches(num_workers):
    whole = take(train_batches(numbers(10), 8, seed=3), 9)
    parts = [take(train_batches(numbers(10), 8, 3, 0, num_workers, index), 9) for index in range(num_workers)]
    assert [sum(step, []) for step in zip(*parts, strict=True)] == whole


def test_the_workers_parts_together_are_the_same_micro_batches():
    whole = take(train_batches(numbers(24), 8, seed=3), 3)
    parts = [take(train_batches(numbers(24), 8, 3, 0, 2, index, accumulation_steps=2), 3) for index in range(2)]
    for step, first, second in zip(whole, *parts, strict=True):
        assert step == first[:2] + second[:2] + first[2:] + second[2:]


def test_a_batch_may_be_larger_than_the_data():
    assert sorted(take(train_batches(numbers(3), 6, seed=0), 1)[0]) == [0, 0, 1, 1, 2, 2]


def streamed(size):
    return as_data(tf.data.Dataset.from_tensor_slices({"x": np.arange(size)}), "stream")


def test_a_streamed_data_set_is_as_repeatable_and_resumable():
    unbroken = take(train_batches(streamed(10), 4, seed=1), 10)
    assert take(train_batches(streamed(10), 4, seed=1), 10) == unbroken
    assert take(train_batches(streamed(10), 4, seed=1, start_step=3), 7) == unbroken[3:]
    assert sorted(sum(unbroken, [])[:10]) == list(range(10))


def padded(batch):
    """As far as the longest in the batch goes."""
    return {"x": batch["x"][:, : tf.reduce_max(batch["length"])]}


def ragged(batch):
    return {"x": tf.RaggedTensor.from_tensor(batch["x"], lengths=batch["length"])}


def sentences(is_streamed, preprocess):
    examples = {"x": np.arange(1, 121).reshape(12, 10), "length": np.arange(12) % 6 + 1}
    data = as_data(tf.data.Dataset.from_tensor_slices(examples) if is_streamed else examples, "sentences")
    return dataclasses.replace(data, preprocess=preprocess)


@pytest.mark.parametrize("preprocess", [padded, ragged])
@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "in memory"])
def test_batches_may_be_of_different_shapes(is_streamed, preprocess):
    batches = train_batches(sentences(is_streamed, preprocess), 3, seed=1)
    seen = []
    seen += [stack["x"][0] for stack, _, _ in batches.take(4)]
    lengths = [max(x.row_lengths()) if isinstance(x, tf.RaggedTensor) else x.shape[1] for x in seen]
    assert len(set(map(int, lengths))) > 1, "else this shows nothing"
    rows = [[int(value) for value in row] for x in seen for row in x]
    assert sorted(row[0] for row in rows) == list(range(1, 121, 10)), "each comes once an epoch"


@pytest.mark.parametrize("make", [numbers, streamed], ids=["in memory", "streamed"])
def test_a_stack_is_as_small_as_its_preprocessed_batches_ask_for(make):
    """Of 8-byte numbers ten steps would fit in; preprocessed, each of 4 examples becomes 512 KB: 2 MB a step."""
    data = make(10)
    wide = lambda batch: {"x": tf.tile(tf.cast(batch["x"], tf.float32)[:, None], [1, 2**17])}  # noqa: E731
    assert tf.nest.flatten(train_batches(data, 4, seed=1, steps_per_loop=10).spec)[0].shape[0] >= 10
    batches = train_batches(dataclasses.replace(data, preprocess=wide), 4, seed=1, steps_per_loop=10)
    assert batches.spec["x"].shape == [2, 4, 2**17]


@pytest.mark.parametrize("make", [numbers, streamed], ids=["in memory", "streamed"])
@pytest.mark.parametrize("size", [1, 3, 8, 9, 13])
def test_evaluation_sees_every_example_exactly_once_in_batches_of_one_shape(make, size):
    seen = []
    for batch, weight in eval_batches(make(size), batch_size=4).as_numpy_iterator():
        assert batch["x"].shape == weight.shape == (4,)
        seen += batch["x"][weight > 0].tolist()
    assert seen == list(range(size))


def test_evaluation_workers_see_every_example_once_between_them():
    seen = []
    for index in range(2):
        for batch, weight in eval_batches(numbers(9), 4, num_workers=2, worker_index=index).as_numpy_iterator():
            seen += batch["x"][weight > 0].tolist()
    assert sorted(seen) == list(range(9))


def test_preprocessing_is_applied_to_whole_batches():
    data = in_memory(examples={"x": np.arange(6)}, preprocess=lambda batch: {"x": batch["x"] * 2})
    assert take(eval_batches(data, 3), 2) == [[0, 2, 4], [6, 8, 10]]
    assert data.batch_spec["x"].shape.as_list() == [None]


def test_python_floats_become_float32():
    assert in_memory(examples={"x": [1.0, 2.0]}).batch_spec["x"].dtype == tf.float32


def test_replica_batch_size_names_the_nearest_that_divides():
    assert replica_batch_size(12, 2, 3) == 2
    with pytest.raises(UserError, match="63 does not divide over 2 replicas; the nearest that does is 62"):
        replica_batch_size(63, 2)
    with pytest.raises(UserError, match="nearest that does is 2"):
        replica_batch_size(1, 2)
    with pytest.raises(UserError, match="nearest that does is 8"):
        replica_batch_size(9, 2, 2)
    with pytest.raises(UserError, match="1 or more"):
        replica_batch_size(0, 2)


def test_data_that_cannot_be_used_is_refused_by_name():
    with pytest.raises(UserError, match="one length"):
        in_memory(examples={"x": [1, 2], "y": [1]})
    with pytest.raises(UserError, match="eval_data must be"):
        as_data([1, 2], "eval_data")
    with pytest.raises(UserError, match="is endless"):
        as_data(tf.data.Dataset.from_tensors({"x": 1}).repeat(), "train_data")
    with pytest.raises(UserError, match="is empty"):
        as_data(tf.data.Dataset.from_tensors({"x": 1}).take(0), "train_data")
    with pytest.raises(UserError, match="the feature 'x/y' .RaggedTensorSpec. has no one shape"):
        as_data(tf.data.Dataset.from_tensors({"x": {"y": tf.ragged.constant([[1]])}}), "train_data")
    with pytest.raises(UserError, match="maps feature names"):
        in_memory(examples=[[1, 2]])
    with pytest.raises(UserError, match="different shapes"):
        in_memory(examples={"x": [[1], [1, 2]]})
    with pytest.raises(UserError, match="as dicts"):
        as_data(tf.data.Dataset.range(3), "train_data")
