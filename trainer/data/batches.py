"""A split -> this worker's batches: deterministic, and a pure function of (seed, step)."""

import functools
import itertools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from trainer.data.autograph import as_it_is
from trainer.data.data import Data
from trainer.data.order import index_stack, numbers_in_blocks
from trainer.data.step_batches import DrawnAhead, StackedBatches
from trainer.errors import UserError

# A stack is drawn by one host call and handed over by another, for as many steps as keep it small. Numbers of
# examples come at once.
_MAX_STEPS_PER_STACK = 512
_STACK_BYTES = 4 * 2**20


def replica_batch_size(global_batch_size: int, num_replicas: int, accumulation_steps: int = 1) -> int:
    """Examples that one replica sees in one micro-batch; raises `UserError` where the division has a remainder."""
    parts = num_replicas * accumulation_steps
    if global_batch_size < 1 or accumulation_steps < 1:
        raise UserError(
            f"global_batch_size {global_batch_size} and accumulation_steps {accumulation_steps} must both be 1 or more."
        )
    if global_batch_size % parts:
        lower, upper = global_batch_size // parts * parts, -(-global_batch_size // parts) * parts
        nearest = lower if lower and global_batch_size - lower <= upper - global_batch_size else upper
        micro = f" x {accumulation_steps} micro-batches" if accumulation_steps > 1 else ""
        raise UserError(
            f"global_batch_size {global_batch_size} does not divide over {num_replicas} replicas{micro}; "
            f"the nearest that does is {nearest}."
        )
    return global_batch_size // parts


def train_batches(
    data: Data,
    global_batch_size: int,
    seed: int,
    start_step: int = 0,
    num_workers: int = 1,
    worker_index: int = 0,
    accumulation_steps: int = 1,
    steps_per_loop: int = 10,
) -> StackedBatches:
    """This worker's part of every global batch from `start_step` on, without end.

    A batch maps features to [global_batch_size / num_workers, ...]; no example weighs more than another.

    Epochs follow one another without a gap, each in an order of its own: a batch may hold the end
    of one and the beginning of the next, every example comes exactly once an epoch, and no batch
    is short. In memory, the order is NumPy's Philox permutation keyed by (seed, epoch), so that any
    step is reached at once; the same global batches come out for any number of workers, and the
    same micro-batches: each worker has its part of every one of `accumulation_steps`. What is read from
    record files comes block by block, see `Records`; of a `tf.data.Dataset`, what was used is read over.

    What needs no preprocessing is looked up in memory by the step itself: the pipeline hands it the
    examples' numbers. Else a stack holds the batches themselves: of `steps_per_loop` steps, for which the
    device waits, or fewer where that were above 4 MB; one step where shapes vary.
    """
    part = _part(global_batch_size, num_workers, worker_index, accumulation_steps)
    if data.examples is None:
        dataset = _streamed_batches(data, global_batch_size, seed, start_step)
        if len(part) < global_batch_size:
            dataset = dataset.map(as_it_is(lambda batch: tf.nest.map_structure(lambda x: tf.gather(x, part), batch)))
        if data.records is not None:
            # After the part is taken: no worker decodes what is another's.
            dataset = dataset.map(as_it_is(data.records.decoder()), tf.data.AUTOTUNE, deterministic=True)
        steps = _steps_per_stack(dataset.element_spec, len(part), steps_per_loop)
        if data.preprocess is not None:
            steps = min(steps, _steps_per_stack(data.batch_spec, len(part), steps_per_loop))
        # A copy less where a stack is one step.
        dataset = dataset.batch(steps, drop_remainder=True) if steps > 1 else dataset.map(as_it_is(_as_stack))
    else:
        tensors = data.tensors
        by_number = data.preprocess is None
        if by_number:
            steps = _steps_per_stack({"number": tf.TensorSpec([None], tf.int64)}, len(part), _MAX_STEPS_PER_STACK)
        else:
            steps = _steps_per_stack(data.batch_spec, len(part), steps_per_loop)

        def numbers_from(step) -> np.ndarray:
            # Not by subscript, which leaves the rows lying across: TensorFlow would turn them while a step waits.
            return index_stack(data.num_examples, global_batch_size, seed, steps, int(step)).take(part, axis=1)

        spec = tf.TensorSpec([steps, len(part)], tf.int64)
        if by_number:
            stacks = DrawnAhead(numbers_from, spec, itertools.count(start_step, steps))
            return StackedBatches(stacks, lambda numbers: (_look_up(tensors, numbers), None))

        def look_up(step):
            numbers = tf.numpy_function(numbers_from, [step], tf.int64, stateful=False)
            return _look_up(tensors, tf.ensure_shape(numbers, spec.shape))

        dataset = tf.data.Dataset.counter(start_step, steps, dtype=tf.int64).map(as_it_is(look_up))
    if data.preprocess is not None:
        preprocess = as_it_is(functools.partial(_preprocess_stack, data, steps))
        dataset = dataset.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE)
    return StackedBatches(dataset.prefetch(tf.data.AUTOTUNE), reading=data.reading)


def _streamed_batches(data: Data, batch_size: int, seed: int, start_step: int) -> tf.data.Dataset:
    """Global batches of what does not fit into memory, from `start_step` on; of records, not yet decoded."""
    if data.records is not None:
        return data.records.shuffled_batches(batch_size, data.shuffle_buffer, seed, start_step * batch_size)
    assert data.stream is not None
    dataset = _shuffled(data.stream(), data, seed)
    # Before any map: what is skipped need not be computed.
    return dataset.skip(start_step * batch_size).batch(batch_size, drop_remainder=True)


def _shuffled(dataset: tf.data.Dataset, data: Data, seed: int) -> tf.data.Dataset:
    return dataset.shuffle(data.shuffle_buffer, seed=seed, reshuffle_each_iteration=True).repeat()


def _stored_batches(data: Data, batch_size: int) -> tf.data.Dataset:
    """One pass over what does not fit into memory, in stored order; of records, not yet decoded."""
    if data.records is not None:
        return data.records.batches_in_order(batch_size)
    assert data.stream is not None
    return data.stream().batch(batch_size)


def eval_batches(data: Data, batch_size: int, num_workers: int = 1, worker_index: int = 0) -> tf.data.Dataset:
    """This worker's part of one pass in stored order, every example exactly once.

    Yields (batch, weight): feature -> [batch_size / num_workers, ...], and [same] float32. The last batch
    is filled up to `batch_size` with copies of its first example, whose weight is 0, so that every batch has one shape.
    """
    part = _part(batch_size, num_workers, worker_index)
    steps = -(-data.num_examples // batch_size)
    if data.examples is None:
        filled = _stored_batches(data, batch_size).map(as_it_is(functools.partial(_fill_up, batch_size)))
        dataset = filled.map(as_it_is(lambda *pair: tf.nest.map_structure(lambda x: tf.gather(x, part), pair)))
        if data.records is not None:
            decode = data.records.decoder()
            # After the part is taken: no worker decodes what is another's.
            decode_part = as_it_is(lambda records, weight: (decode(records), weight))
            dataset = dataset.map(decode_part, tf.data.AUTOTUNE, deterministic=True)
    else:
        positions = np.arange(steps * batch_size).reshape(steps, batch_size)
        real = (positions < data.num_examples).astype(np.float32)
        indices = np.where(real > 0, positions, positions[:, :1])[:, part]
        weights = tf.data.Dataset.from_tensor_slices(real[:, part])
        batches = tf.data.Dataset.from_tensor_slices(indices).map(as_it_is(functools.partial(_look_up, data.tensors)))
        dataset = tf.data.Dataset.zip(batches, weights)
    if data.preprocess is not None:
        preprocess = as_it_is(lambda batch, weight: (data.preprocessed(batch), weight))
        dataset = dataset.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def batch_numbers(data: Data, global_batch_size: int, seed: int, batch: int) -> np.ndarray:
    """[global_batch_size] int64: which examples, in stored order, make up a global batch; none of them is read."""
    start = batch * global_batch_size
    if data.examples is not None:
        return index_stack(data.num_examples, global_batch_size, seed, 1, batch)[0]
    if data.records is not None:
        return numbers_in_blocks(data.num_examples, data.shuffle_buffer, seed, start, global_batch_size)
    # Shuffling looks at no element: numbers in their place come in the same order.
    numbers = _shuffled(tf.data.Dataset.range(data.num_examples), data, seed).skip(start).take(global_batch_size)
    return np.array(list(numbers.as_numpy_iterator()))


def _steps_per_stack(batch_spec: Mapping, batch_size: int, most: int) -> int:
    specs = tf.nest.flatten(dict(batch_spec))
    if not all(isinstance(spec, tf.TensorSpec) and spec.shape[1:].is_fully_defined() for spec in specs):
        return 1  # batches of different shapes make no stack
    step_bytes = sum(batch_size * spec.shape[1:].num_elements() * max(spec.dtype.size, 1) for spec in specs)
    return int(np.clip(_STACK_BYTES // max(step_bytes, 1), 1, most))


def _as_stack(batch):
    return tf.nest.map_structure(lambda value: tf.expand_dims(value, 0), batch)


def _preprocess_stack(data: Data, steps: int, stack):
    """Batch by batch: what `preprocess` mixes or draws, it mixes and draws within a batch."""
    size = tf.nest.flatten(stack)[0].shape[1]
    if steps == 1:
        batch = data.preprocessed(tf.nest.map_structure(lambda value: value[0], stack))
        return _as_stack(tf.nest.map_structure(functools.partial(_with_rows, size), batch))
    spec = {key: tf.TensorSpec([size, *spec.shape[1:]], spec.dtype) for key, spec in data.batch_spec.items()}
    return tf.map_fn(data.preprocessed, stack, fn_output_signature=spec)


def _with_rows(size: int, value):
    """The same, its number of rows known to what traces it."""
    if isinstance(value, tf.Tensor):
        return tf.ensure_shape(value, tf.TensorShape([size]).concatenate(value.shape[1:]))
    return value


def _look_up(tensors: Mapping, numbers):
    """The examples of these numbers: feature -> [*numbers.shape, ...]."""
    return {key: tf.gather(value, numbers) for key, value in tensors.items()}


def _fill_up(batch_size: int, batch):
    real = tf.range(batch_size) < tf.shape(tf.nest.flatten(batch)[0])[0]
    chosen = tf.where(real, tf.range(batch_size), 0)
    return tf.nest.map_structure(lambda value: tf.gather(value, chosen), batch), tf.cast(real, tf.float32)


def _part(batch_size: int, num_workers: int, worker_index: int, accumulation_steps: int = 1) -> np.ndarray:
    """Which rows of a global batch a worker takes: its part of each micro-batch."""
    return np.arange(batch_size).reshape(accumulation_steps, num_workers, -1)[:, worker_index].ravel()
