"""TFDS name and split -> this worker's batches: deterministic, and a pure function of (seed, step)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import gin
import numpy as np
import tensorflow as tf

from trainer.datasets.read import in_memory_bytes, open_split
from trainer.errors import UserError

# Steps whose example indices are drawn by one host call; amortises it below a microsecond a step.
_STEPS_PER_INDEX_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Data:
    """Examples of one split, and how they become batches.

    split: as TFDS spells it, "" for data of another kind.
    examples: feature name -> [num_examples, ...] in memory, or None if they are streamed.
    stream: makes a fresh `tf.data.Dataset` over one epoch of single examples in stored order, or None.
    preprocess: batch -> batch, a vectorised TensorFlow function applied after batching, or None.
    """

    name: str
    num_examples: int
    split: str = ""
    examples: Mapping[str, np.ndarray] | None = None
    stream: Callable[[], tf.data.Dataset] | None = None
    preprocess: Callable | None = None
    shuffle_buffer: int = 10_000

    @property
    def label(self) -> str:
        """Name and split, for people."""
        return f"{self.name} {self.split}".strip()

    @property
    def split_label(self) -> str:
        """What metrics call it: the split, or the name of data that has none."""
        return self.split or self.name

    @functools.cached_property
    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        """Specs of a preprocessed batch, the batch dimension None."""
        few = self
        if self.examples is not None:  # two tell as much as all, which need not be copied for it
            examples = {key: value[:2] for key, value in self.examples.items()}
            few = dataclasses.replace(self, examples=examples, num_examples=min(self.num_examples, 2))
        return eval_batches(few, batch_size=2).unbatch().batch(2).element_spec[0]

    @functools.cached_property
    def tensors(self) -> dict[str, tf.Tensor]:
        """`examples` on the host, copied once: every evaluation gathers from them."""
        assert self.examples is not None
        with tf.device("/CPU:0"):
            return {key: tf.constant(value) for key, value in self.examples.items()}


@gin.register(module="pipeline")
def in_memory(examples=gin.REQUIRED, name: str = "in_memory", preprocess: Callable | None = None) -> Data:
    """Data given outright: `examples` maps feature names to equally long lists or arrays."""
    if not isinstance(examples, Mapping):
        raise UserError(f"in_memory.examples maps feature names to lists or arrays; it is {type(examples).__name__}.")
    arrays = {key: _as_array(key, value) for key, value in examples.items()}
    sizes = {key: len(value) for key, value in arrays.items()}
    if not arrays or len(set(sizes.values())) != 1 or not next(iter(sizes.values())):
        raise UserError(f"in_memory.examples needs features of one length above 0; here are {sizes}.")
    return Data(name, next(iter(sizes.values())), examples=arrays, preprocess=preprocess)


@gin.register(module="pipeline")
def tfds_data(
    tfds_name: str = gin.REQUIRED,
    split: str = gin.REQUIRED,
    data_dir: str | None = None,
    download: bool = False,
    features: list[str] | None = None,
    prepare: Callable | None = None,
    preprocess: Callable | None = None,
    memory_limit_bytes: int = 2**30,
    shuffle_buffer: int = 10_000,
) -> Data:
    """A split of a TFDS data set.

    tfds_name: as TFDS spells it, `mnist` or `handwritten_digits/rotated`.  split: `train`, `train[:80%]`, ...
    data_dir: where it is prepared; None is TFDS' own default.
    download: whether it may be fetched over the network when it is not prepared there.
    features: which features to keep; None keeps all but strings, which no accelerator takes.
    prepare: example -> example, applied once, before caching (decode, resize to one shape).
    preprocess: batch -> batch, applied to every batch (cast, normalise).
    memory_limit_bytes: a split that is larger once decoded is streamed through a shuffle buffer of
      `shuffle_buffer` examples; resuming it then reads up to its position again.

    Raises `UserError` for an unknown name (naming the nearest), an unknown split or feature, and a
    data set that is not there and would need the network.
    """
    dataset, num_examples, label = open_split(tfds_name, split, data_dir, download, features, prepare)
    size_bytes = in_memory_bytes(dataset, num_examples)
    if size_bytes is None:
        raise UserError(
            f"{label}: its examples have different shapes ({_show(dataset.element_spec)}) and cannot be batched. "
            "Bind tfds_data.prepare to a function that brings them to one, e.g. @resize_image."
        )
    if size_bytes > memory_limit_bytes:
        return Data(
            tfds_name, num_examples, split, stream=lambda: dataset, preprocess=preprocess, shuffle_buffer=shuffle_buffer
        )
    chunks = list(dataset.batch(1024).as_numpy_iterator())
    arrays = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
    return Data(tfds_name, num_examples, split, arrays, preprocess=preprocess)


@gin.register(module="pipeline")
def scale_image(batch, key: str = "image"):
    """Turns uint8 pixels 0 to 255 into float32 0 to 1."""
    return {**batch, key: tf.cast(batch[key], tf.float32) / 255.0}


@gin.register(module="pipeline")
def resize_image(example, height: int = gin.REQUIRED, width: int = gin.REQUIRED, key: str = "image"):
    """Brings an image to one size, as uint8; for `tfds_data.prepare`."""
    image = tf.image.resize(example[key], [height, width], antialias=True)
    return {**example, key: tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)}


def as_data(data, what: str) -> Data:
    """`Data` from what users hold: `Data` itself, a dict of arrays, or a `tf.data.Dataset` of examples (dicts)."""
    if isinstance(data, Data):
        return data
    if isinstance(data, Mapping):
        return in_memory(examples=data, name=what)
    if isinstance(data, tf.data.Dataset):
        if not isinstance(data.element_spec, Mapping):
            raise UserError(f"{what}: a tf.data.Dataset must yield single examples as dicts, not {data.element_spec}.")
        size = int(data.cardinality())
        if size <= 0:
            raise UserError(
                f"{what}: the size of the tf.data.Dataset must be known and above 0, and is {size}; "
                "use assert_cardinality, not repeat."
            )
        nested = [key for key, spec in data.element_spec.items() if not isinstance(spec, tf.TensorSpec)]
        if nested:
            raise UserError(f"{what}: the feature {nested[0]!r} is not a tensor; features must not be nested.")
        return Data(what, size, stream=lambda: data)
    raise UserError(
        f"{what} must be a dict of arrays, a tf.data.Dataset of dicts, or made by tfds_data(); "
        f"it is {type(data).__name__}."
    )


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
) -> tf.data.Dataset:
    """This worker's part of every global batch from `start_step` on, without end.

    Yields (batch, weight): feature -> [global_batch_size / num_workers, ...], and [same] float32 ones.

    Epochs follow one another without a gap, each in an order of its own: a batch may hold the end
    of one and the beginning of the next, every example comes exactly once an epoch, and no batch
    is short. In memory, the order is NumPy's Philox permutation keyed by (seed, epoch), so that any
    step is reached at once; the same global batches come out for any number of workers, and the
    same micro-batches: each worker has its part of every one of `accumulation_steps`.
    """
    part = _part(global_batch_size, num_workers, worker_index, accumulation_steps)
    if data.examples is None:
        assert data.stream is not None
        dataset = data.stream().shuffle(data.shuffle_buffer, seed=seed, reshuffle_each_iteration=True).repeat()
        # Before any map: what is skipped need not be computed.
        dataset = dataset.skip(start_step * global_batch_size).batch(global_batch_size, drop_remainder=True)
        dataset = dataset.map(lambda batch: tf.nest.map_structure(lambda x: tf.gather(x, part), batch))
    else:
        draw = functools.partial(_index_block, data.num_examples, global_batch_size, seed)
        blocks = tf.data.Dataset.counter(start_step, _STEPS_PER_INDEX_BLOCK, dtype=tf.int64).map(
            lambda step: tf.ensure_shape(
                tf.numpy_function(lambda s: draw(int(s))[:, part], [step], tf.int64, stateful=False),
                [_STEPS_PER_INDEX_BLOCK, len(part)],
            )
        )
        dataset = _gather(data, blocks.flat_map(tf.data.Dataset.from_tensor_slices))
    weight = tf.ones([len(part)])
    return _finish(dataset.map(lambda batch: (batch, weight)), data)


def eval_batches(data: Data, batch_size: int, num_workers: int = 1, worker_index: int = 0) -> tf.data.Dataset:
    """This worker's part of one pass in stored order, every example exactly once.

    Yields (batch, weight) as `train_batches` does; the last batch is filled up to `batch_size` with
    copies of its first example, whose weight is 0, so that every batch has one shape.
    """
    part = _part(batch_size, num_workers, worker_index)
    steps = -(-data.num_examples // batch_size)
    if data.examples is None:
        assert data.stream is not None
        filled = data.stream().batch(batch_size).map(functools.partial(_fill_up, batch_size))
        dataset = filled.map(lambda *pair: tf.nest.map_structure(lambda x: tf.gather(x, part), pair))
    else:
        positions = np.arange(steps * batch_size).reshape(steps, batch_size)
        real = (positions < data.num_examples).astype(np.float32)
        indices = np.where(real > 0, positions, positions[:, :1])[:, part]
        weights = tf.data.Dataset.from_tensor_slices(real[:, part])
        dataset = tf.data.Dataset.zip(_gather(data, tf.data.Dataset.from_tensor_slices(indices)), weights)
    return _finish(dataset, data)


@functools.lru_cache(maxsize=4)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """[num_examples] int64: the order of the examples in one epoch (Salmon et al. 2011, Philox)."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return generator.permutation(num_examples)


def _index_block(num_examples: int, global_batch_size: int, seed: int, first_step: int) -> np.ndarray:
    """[_STEPS_PER_INDEX_BLOCK, global_batch_size] int64: which examples the steps from `first_step` on take."""
    start = first_step * global_batch_size
    positions = np.arange(start, start + _STEPS_PER_INDEX_BLOCK * global_batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(positions, num_examples)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = epoch_order(num_examples, seed, int(epoch))[offsets[here]]
    return indices.reshape(_STEPS_PER_INDEX_BLOCK, global_batch_size)


def _gather(data: Data, indices: tf.data.Dataset) -> tf.data.Dataset:
    tensors = data.tensors
    return indices.map(lambda chosen: {key: tf.gather(value, chosen) for key, value in tensors.items()})


def _finish(dataset: tf.data.Dataset, data: Data) -> tf.data.Dataset:
    if data.preprocess is not None:
        preprocess = data.preprocess
        dataset = dataset.map(lambda batch, weight: (preprocess(batch), weight), num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _fill_up(batch_size: int, batch):
    size = tf.shape(next(iter(batch.values())))[0]
    chosen = tf.where(tf.range(batch_size) < size, tf.range(batch_size), 0)
    return {key: tf.gather(value, chosen) for key, value in batch.items()}, tf.cast(
        tf.range(batch_size) < size, tf.float32
    )


def _part(batch_size: int, num_workers: int, worker_index: int, accumulation_steps: int = 1) -> np.ndarray:
    """Which rows of a global batch a worker takes: its part of each micro-batch."""
    return np.arange(batch_size).reshape(accumulation_steps, num_workers, -1)[:, worker_index].ravel()


def _as_array(key: str, value) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UserError(f"The feature {key!r} is not an array: its examples have different shapes.") from error
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _show(element_spec) -> str:
    return ", ".join(f"{key} {spec.dtype.name}{spec.shape}" for key, spec in element_spec.items())
