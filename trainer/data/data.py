"""Examples of one split, and where they come from: memory, TFDS, or a data set of the user's own."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import gin
import google_crc32c
import numpy as np
import tensorflow as tf

from trainer.data.augment import augmented
from trainer.data.autograph import as_it_is, in_graph
from trainer.data.features import flat
from trainer.data.order import Order, Shuffled
from trainer.data.repeatable import check_repeatable, check_same_each_time
from trainer.data.tfrecords import Records, unreadable
from trainer.errors import UserError

# What a file raises that is damaged or gone, and what tf.data says of one that was cut off: it just ends.
_FILE_ERRORS = (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.PermissionDeniedError)
_CUT_OFF = "Input dataset was expected to contain"


@dataclasses.dataclass(frozen=True)
class Data:
    """Examples of one split, and how they become batches.

    split: as TFDS spells it, "" for data of another kind.
    examples: feature name -> [num_examples, ...] in memory, or None if they are streamed.
    stream: makes a fresh `tf.data.Dataset` over one epoch of single examples in stored order, or None.
    records: of a stream that is made of record files: the same examples, from anywhere on; else None.
    read: (numbers, seeds) -> examples: reads them by number, in a graph, where they are not in memory. numbers is
      [rows] int64, seeds as `look_up` has them; returns feature -> [rows, ...]. Else None.
    preprocess: batch -> batch, a vectorised TensorFlow function applied after batching, or None.
    augment: (example, seed) -> example, applied to each example that is drawn for training, or None; see
      `trainer.data.augment`.
    order: of the draws of training, where it is not `Shuffled`.
    contents: a text by which the same data are recognised, where they are read by number.
    note: what was done to the data as they came in, for people; "" for nothing.
    find_faults: returns a clause for each file that cannot be read, for people; None where no file is read.
    """

    name: str
    num_examples: int
    split: str = ""
    examples: Mapping[str, np.ndarray] | None = None
    stream: Callable[[], tf.data.Dataset] | None = None
    records: Records | None = None
    read: Callable | None = None
    preprocess: Callable | None = None
    augment: Callable | None = None
    order: Order | None = None
    contents: str = ""
    note: str = ""
    find_faults: Callable[[], list[str]] | None = None
    shuffle_buffer: int = 10_000

    @property
    def is_indexed(self) -> bool:
        """Whether any example is reached by its number, in memory or by `read`."""
        return self.examples is not None or self.read is not None

    def draw(self, seed: int, step: int, steps: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of `steps` global batches of indexed data from `step` on, see `Order.draw`."""
        order = self.order or Shuffled(self.num_examples)
        return order.draw(seed, step * batch_size, steps * batch_size, batch_size)

    def look_up(self, numbers, seeds=None) -> dict[str, tf.Tensor]:
        """Indexed examples by number, not preprocessed: feature -> [*numbers.shape, ...].

        numbers: int64 of a static rank.
        seeds: [*numbers.shape, 2] int64, by which each example is augmented; None for the examples as they are.
        """
        outer = tf.shape(numbers, tf.int64)
        rows, seeds = tf.reshape(numbers, [-1]), None if seeds is None else tf.reshape(seeds, [-1, 2])
        if self.examples is not None:
            batch = {key: tf.gather(value, rows) for key, value in self.tensors.items()}
        else:
            assert self.read is not None
            batch = self.read(rows, seeds)
        if seeds is not None and self.augment is not None:
            batch = augmented(self.augment, batch, seeds)

        def in_shape(value):
            whole = tf.reshape(value, tf.concat([outer, tf.shape(value, tf.int64)[1:]], axis=0))
            return tf.ensure_shape(whole, numbers.shape.concatenate(value.shape[1:]))

        return batch if numbers.shape.rank == 1 else {key: in_shape(value) for key, value in batch.items()}

    @property
    def label(self) -> str:
        """Name and split, for people."""
        return f"{self.name} {self.split}".strip()

    @property
    def split_label(self) -> str:
        """The label of its metrics: the split, or the name of data that has none."""
        return self.split or self.name

    def preprocessed(self, batch):
        """A batch, feature -> [batch, ...], as the task sees it."""
        return batch if self.preprocess is None else in_graph(self.preprocess)(batch)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Wraps what waits for examples, and nothing else: raises a `UserError` that names the damaged or lost file.

        To find it, all files are read, which may take as long as an epoch.
        """
        try:
            yield
        except tf.errors.OpError as error:
            suspected = isinstance(error, _FILE_ERRORS) or _CUT_OFF in error.message
            faults = unreadable(self.records.segments) if suspected and self.records is not None else []
            if self.find_faults is not None:
                faults = self.find_faults()
            if not faults:
                raise
            raise UserError(
                f"The data {self.label} cannot be read: {'; '.join(faults[:8])}. "
                + (
                    "Mend or remove it."
                    if self.records is None
                    else "Bring the file back, or delete the folder and prepare the data set again."
                )
            ) from error

    def elements(self, dataset: Iterable) -> Iterator:
        """The elements of a data set made of these data, see `reading`."""
        iterator = iter(dataset)
        while True:
            with self.reading():
                element = next(iterator, None)
            if element is None:
                return
            yield element

    @functools.cached_property
    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        """Specs of a batch of training, augmented and preprocessed, the batch dimension None."""
        few = self
        if self.examples is not None:  # two tell as much as all, which need not be copied for it
            examples = {key: value[:2] for key, value in self.examples.items()}
            few = dataclasses.replace(self, examples=examples, num_examples=min(self.num_examples, 2))
        if few.read is not None:
            batches = tf.data.Dataset.range(2).batch(2).map(as_it_is(few.look_up))
        else:
            batches = few.in_stored_order().batch(2)

        def as_trained(batch):
            if self.augment is not None:
                rows = tf.shape(tf.nest.flatten(batch)[0])[0]
                batch = augmented(self.augment, batch, tf.zeros([rows, 2], tf.int64))
            return self.preprocessed(batch)

        def make() -> tf.data.Dataset:
            return batches.map(as_it_is(as_trained))

        mapped = make()
        check_repeatable(mapped, self.label)
        if self.preprocess is not None or self.augment is not None:
            check_same_each_time(make, self.label)
        return mapped.element_spec

    @functools.cached_property
    def fingerprint(self) -> str:
        """Name and size, and a checksum of what is in memory, or of names and sizes of the files."""
        if self.examples is not None:
            total = google_crc32c.Checksum()
            for key, values in sorted(self.examples.items()):
                total.update(f"{key} {values.dtype} {values.shape}".encode())
                as_object = values.dtype == object
                total.update(repr(values.tolist()).encode() if as_object else np.ascontiguousarray(values).tobytes())
            seen = f"CRC-32C {total.hexdigest().decode()}"
        elif self.read is not None:
            seen = self.contents
        elif self.records is not None:
            seen = self.records.fingerprint()
        else:
            seen = f"{self.batch_spec}".replace("\n", " ")
        order = f", {self.order}" if self.order is not None else ""
        return f"{self.label}, {self.num_examples} examples, {seen}{order}"

    def in_stored_order(self) -> tf.data.Dataset:
        """One epoch of single examples, not preprocessed."""
        if self.examples is not None:
            return tf.data.Dataset.from_tensor_slices(dict(self.examples))
        assert self.stream is not None
        return self.stream()

    @functools.cached_property
    def tensors(self) -> dict[str, tf.Tensor]:
        """`examples` on the host, copied once: every evaluation gathers from them."""
        assert self.examples is not None
        # Out of the graph that may be traced here: the tensors are kept, the graph is not.
        with tf.init_scope(), tf.device("/CPU:0"):
            return {key: tf.constant(value) for key, value in self.examples.items()}


@gin.register(module="pipeline")
def in_memory(
    examples,
    name: str = "in_memory",
    prepare: Callable | None = None,
    preprocess: Callable | None = None,
    augment: Callable | None = None,
) -> Data:
    """Data given outright.

    examples: feature name -> list or array, [num_examples, ...]; nested dicts are named by path, `objects/box`.
      A feature may hold lists of different lengths, which `prepare` pads: @pad_to.
    name: for people.
    prepare: example -> example, applied once to each.
    preprocess: batch -> batch, applied to every batch.
    augment: (example, seed) -> example, applied to each example that training draws; see `trainer.data.augment`.
    """
    if not isinstance(examples, Mapping):
        raise UserError(f"in_memory.examples maps feature names to lists or arrays; it is {type(examples).__name__}.")
    arrays = {key: _as_array(key, value, prepare is not None) for key, value in flat(examples).items()}
    sizes = {key: int(value.shape[0]) for key, value in arrays.items()}
    if not arrays or len(set(sizes.values())) != 1 or not next(iter(sizes.values())):
        raise UserError(f"in_memory.examples needs features of one length above 0; here are {sizes}.")
    data = Data(name, next(iter(sizes.values())), examples=arrays, preprocess=preprocess, augment=augment)
    return data if prepare is None else prepared(data, prepare)


def loaded(data: Data, memory_limit_bytes: int) -> Data:
    """The same data in memory, or as they are where they take more than the limit or have no one shape."""
    if data.read is not None:
        batches = tf.data.Dataset.range(data.num_examples).batch(256)
        batches = batches.map(as_it_is(data.look_up), tf.data.AUTOTUNE, deterministic=True)
        example: Any = {key: tf.TensorSpec(spec.shape[1:], spec.dtype) for key, spec in batches.element_spec.items()}
    else:
        assert data.stream is not None
        example, batches = data.stream().element_spec, data.stream().batch(1024)
    check_repeatable(batches, data.label)
    size_bytes = in_memory_bytes(example, data.num_examples)
    if size_bytes is None or size_bytes > memory_limit_bytes:
        return data
    chunks = list(data.elements(batches))
    arrays = {key: np.concatenate([chunk[key].numpy() for chunk in chunks]) for key in chunks[0]}
    return Data(
        data.name, data.num_examples, data.split, arrays, preprocess=data.preprocess, augment=data.augment,
        order=data.order,
    )  # fmt: skip


def prepared(data: Data, prepare: Callable) -> Data:
    """Data in memory, each example changed once by `prepare`: example -> example."""

    def stream() -> tf.data.Dataset:
        return data.in_stored_order().map(as_it_is(in_graph(prepare)), tf.data.AUTOTUNE, deterministic=True)

    made = loaded(dataclasses.replace(data, examples=None, stream=stream), sys.maxsize)
    if made.examples is None:
        shapes = ", ".join(f"{name} {spec.shape}" for name, spec in stream().element_spec.items())
        raise UserError(f"{data.label}: prepare must bring examples to one shape, see pad_to; it returned {shapes}.")
    return made


def in_memory_bytes(element_spec, num_examples: int) -> int | None:
    """Decoded size of all examples, or None if their shapes differ."""
    size = 0
    for spec in tf.nest.flatten(element_spec):
        if not isinstance(spec, tf.TensorSpec) or not spec.shape.is_fully_defined():
            return None
        size += spec.shape.num_elements() * spec.dtype.size
    return size * num_examples


def _as_array(key: str, value, may_be_ragged: bool):
    """An array, or a `tf.RaggedTensor` where the examples have different lengths and may have them."""
    try:
        array = value if isinstance(value, tf.RaggedTensor) else np.asarray(value)
    except ValueError:
        array = tf.ragged.constant([list(each) for each in value])
    if isinstance(array, tf.RaggedTensor):
        if not may_be_ragged:
            raise UserError(
                f"The feature {key!r} is not an array: its examples have different shapes. Pad them by "
                f"in_memory.prepare = @pad_to and pad_to.lengths = {{{key!r}: 128}}, say."
            )
        return array
    return array.astype(np.float32) if array.dtype == np.float64 else array
