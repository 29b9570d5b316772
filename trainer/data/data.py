"""Examples of one split, and where they come from: memory, TFDS, or a data set of the user's own."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import gin
import numpy as np
import tensorflow as tf

from trainer.config.settings import may_change
from trainer.data.autograph import as_it_is, in_graph
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
    preprocess: batch -> batch, a vectorised TensorFlow function applied after batching, or None.
    """

    name: str
    num_examples: int
    split: str = ""
    examples: Mapping[str, np.ndarray] | None = None
    stream: Callable[[], tf.data.Dataset] | None = None
    records: Records | None = None
    preprocess: Callable | None = None
    shuffle_buffer: int = 10_000

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
            if not faults:
                raise
            raise UserError(
                f"The data {self.label} cannot be read: {'; '.join(faults)}. Bring the file back, or delete the "
                "folder and prepare the data set again."
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
        """Specs of a preprocessed batch, the batch dimension None."""
        few = self
        if self.examples is not None:  # two tell as much as all, which need not be copied for it
            examples = {key: value[:2] for key, value in self.examples.items()}
            few = dataclasses.replace(self, examples=examples, num_examples=min(self.num_examples, 2))
        return few.in_stored_order().batch(2).map(as_it_is(self.preprocessed)).element_spec

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
        with tf.device("/CPU:0"):
            return {key: tf.constant(value) for key, value in self.examples.items()}


@gin.register(module="pipeline")
def in_memory(examples, name: str = "in_memory", preprocess: Callable | None = None) -> Data:
    """Data given outright: `examples` maps feature names to equally long lists or arrays."""
    if not isinstance(examples, Mapping):
        raise UserError(f"in_memory.examples maps feature names to lists or arrays; it is {type(examples).__name__}.")
    arrays = {key: _as_array(key, value) for key, value in examples.items()}
    sizes = {key: len(value) for key, value in arrays.items()}
    if not arrays or len(set(sizes.values())) != 1 or not next(iter(sizes.values())):
        raise UserError(f"in_memory.examples needs features of one length above 0; here are {sizes}.")
    return Data(name, next(iter(sizes.values())), examples=arrays, preprocess=preprocess)


may_change("tfds_data", "download", "data_dir")


@gin.register(module="pipeline")
def tfds_data(
    tfds_name: str,
    split: str,
    data_dir: str | None = None,
    download: bool = False,
    features: list[str] | None = None,
    prepare: Callable | None = None,
    preprocess: Callable | None = None,
    memory_limit_bytes: int = 2**30,
    shuffle_buffer: int = 10_000,
) -> Data:
    """A split of a TFDS data set.

    tfds_name: as TFDS spells it, `mnist` or `handwritten_digits/rotated`.
    split: `train`, `train[:80%]`, ...
    data_dir: where it is prepared; None is TFDS' own default.
    download: whether it may be fetched over the network when it is not prepared there.
    features: which features to keep; None keeps all but strings, which no accelerator takes.
    prepare: example -> example, applied once, before caching (decode, resize to one shape).
    preprocess: batch -> batch, applied to every batch (cast, normalise).
    memory_limit_bytes: a split that is larger once decoded is streamed, in blocks of `shuffle_buffer` examples that
      come in another order each epoch, as do the examples of a block (see `Records`).

    Raises `UserError` for an unknown name (naming the nearest), an unknown split or feature, and a
    data set that is not there and would need the network.
    """
    # Here: TensorFlow Datasets takes longer to import than a small model to its first step.
    from trainer.data.tfds import in_memory_bytes, open_split

    dataset, records, num_examples, label = open_split(tfds_name, split, data_dir, download, features, prepare)
    size_bytes = in_memory_bytes(dataset, num_examples)
    if size_bytes is None:
        raise UserError(
            f"{label}: its examples have different shapes ({_show(dataset.element_spec)}) and cannot be batched. "
            "Bind tfds_data.prepare to a function that brings them to one, e.g. @resize_image."
        )
    streamed = Data(
        tfds_name, num_examples, split, stream=lambda: dataset, records=records, preprocess=preprocess,
        shuffle_buffer=shuffle_buffer,
    )  # fmt: skip
    if size_bytes > memory_limit_bytes:
        return streamed
    chunks = list(streamed.elements(dataset.batch(1024)))
    arrays = {key: np.concatenate([chunk[key].numpy() for chunk in chunks]) for key in chunks[0]}
    return Data(tfds_name, num_examples, split, arrays, preprocess=preprocess)


@gin.register(module="pipeline")
def scale_image(batch, key: str = "image"):
    """Turns uint8 pixels 0 to 255 into float32 0 to 1."""
    return {**batch, key: tf.cast(batch[key], tf.float32) / 255.0}


@gin.register(module="pipeline")
def resize_image(example, height: int, width: int, key: str = "image"):
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


def _as_array(key: str, value) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UserError(f"The feature {key!r} is not an array: its examples have different shapes.") from error
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _show(element_spec) -> str:
    return ", ".join(f"{key} {spec.dtype.name}{spec.shape}" for key, spec in element_spec.items())
