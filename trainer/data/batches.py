"""A split -> this worker's batches: deterministic, and a pure function of (seed, step)."""

import functools
import itertools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from trainer.data.augment import augmented, draw_seeds
from trainer.data.autograph import as_it_is
from trainer.data.data import Data
from trainer.data.order import numbers_in_blocks
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
    part = worker_rows(global_batch_size, num_workers, worker_index, accumulation_steps)
    if not data.is_indexed:
        dataset = _streamed_batches(data, global_batch_size, seed, start_step)
        if len(part) < global_batch_size:
            dataset = dataset.map(as_it_is(lambda batch: tf.nest.map_structure(lambda x: tf.gather(x, part), batch)))
        if data.records is not None:
            # After the part is taken: no worker decodes what is another's.
            dataset = dataset.map(as_it_is(data.records.decoder()), tf.data.AUTOTUNE, deterministic=True)
        if data.augment is not None:
            seeds = _seeds_of_streamed(data, global_batch_size, seed, start_step, part)
            change = as_it_is(functools.partial(augmented, data.augment))
            dataset = tf.data.Dataset.zip(dataset, seeds).map(change, tf.data.AUTOTUNE, deterministic=True)
        steps = _steps_per_stack(dataset.element_spec, len(part), steps_per_loop)
        if data.preprocess is not None:
            steps = min(steps, _steps_per_stack(data.batch_spec, len(part), steps_per_loop))
        # A copy less where a stack is one step.
        dataset = dataset.batch(steps, drop_remainder=True) if steps > 1 else dataset.map(as_it_is(_as_stack))
    else:
        by_number = data.preprocess is None and data.augment is None and data.examples is not None
        if by_number:
            steps = _steps_per_stack({"number": tf.TensorSpec([None], tf.int64)}, len(part), _MAX_STEPS_PER_STACK)
        else:
            steps = _steps_per_stack(data.batch_spec, len(part), steps_per_loop)

        def draw(step) -> tuple[np.ndarray, np.ndarray]:
            """This worker's part of the draws: numbers and times, [steps, part]."""
            drawn = data.draw(seed, int(step), steps, global_batch_size)
            # Not by subscript, which leaves the rows lying across: TensorFlow would turn them while a step waits.
            numbers, times = (each.reshape(steps, global_batch_size).take(part, axis=1) for each in drawn)
            return numbers, times

        spec = tf.TensorSpec([steps, len(part)], tf.int64)
        if by_number:
            tensors = data.tensors
            stacks = DrawnAhead(lambda step: draw(step)[0], spec, itertools.count(start_step, steps))
            return StackedBatches(stacks, lambda numbers: (_look_up(tensors, numbers), None))

        needs_seeds = data.augment is not None or data.read is not None

        def draw_with_seeds(step) -> tuple[np.ndarray, ...]:
            numbers, times = draw(step)
            return (numbers, draw_seeds(seed, numbers, times)) if needs_seeds else (numbers,)

        def look_up(step):
            dtypes = [tf.int64, tf.int64] if needs_seeds else [tf.int64]
            numbers, *seeds = tf.numpy_function(draw_with_seeds, [step], dtypes, stateful=False)
            seeds = [tf.ensure_shape(each, spec.shape.concatenate([2])) for each in seeds]
            return data.look_up(tf.ensure_shape(numbers, spec.shape), *seeds)

        dataset = tf.data.Dataset.counter(start_step, steps, dtype=tf.int64)
        # What is in memory is looked up sooner than another thread is woken.
        at_a_time = None if data.examples is not None and data.augment is None else tf.data.AUTOTUNE
        dataset = dataset.map(as_it_is(look_up), at_a_time, deterministic=True if at_a_time else None)
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


def _seeds_of_streamed(data: Data, batch_size: int, seed: int, start_step: int, part) -> tf.data.Dataset:
    """[len(part), 2] int64 of each batch from `start_step` on: the seeds by which its examples are augmented."""

    def seeds_of(step, numbers=None) -> np.ndarray:
        positions = int(step) * batch_size + np.arange(batch_size)
        if numbers is None:
            numbers = batch_numbers(data, batch_size, seed, int(step))
        return draw_seeds(seed, numbers, positions // data.num_examples)[part]

    def as_tensor(*given):
        return tf.ensure_shape(tf.numpy_function(seeds_of, given, tf.int64, stateful=False), [len(part), 2])

    steps = tf.data.Dataset.counter(start_step, dtype=tf.int64)
    if data.records is None:
        # Shuffled as the examples are, beside them: to begin again at each step would read over all before it.
        numbers = _shuffled(tf.data.Dataset.range(data.num_examples), data, seed).skip(start_step * batch_size)
        return tf.data.Dataset.zip(steps, numbers.batch(batch_size)).map(as_it_is(as_tensor))
    return steps.map(as_it_is(as_tensor))


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
    part = worker_rows(batch_size, num_workers, worker_index)
    steps = -(-data.num_examples // batch_size)
    if not data.is_indexed:
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
        at_a_time = None if data.examples is not None else tf.data.AUTOTUNE
        batches = tf.data.Dataset.from_tensor_slices(indices).map(as_it_is(data.look_up), at_a_time)
        dataset = tf.data.Dataset.zip(batches, weights)
    if data.preprocess is not None:
        preprocess = as_it_is(lambda batch, weight: (data.preprocessed(batch), weight))
        dataset = dataset.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def batch_numbers(data: Data, global_batch_size: int, seed: int, batch: int) -> np.ndarray:
    """[global_batch_size] int64: which examples, in stored order, make up a global batch; none of them is read."""
    start = batch * global_batch_size
    if data.is_indexed:
        return data.draw(seed, batch, 1, global_batch_size)[0]
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


def worker_rows(batch_size: int, num_workers: int, worker_index: int, accumulation_steps: int = 1) -> np.ndarray:
    """Which rows of a global batch a worker takes: its part of each micro-batch."""
    return np.arange(batch_size).reshape(accumulation_steps, num_workers, -1)[:, worker_index].ravel()
