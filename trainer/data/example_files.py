"""`tf.train.Example` in files of the user's own: TFRecord, read in blocks, and ArrayRecord, read by number."""

import functools
import glob
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence

import gin
import numpy as np
import tensorflow as tf

from trainer.data.autograph import in_graph
from trainer.data.data import Data, loaded
from trainer.data.tfrecords import Records
from trainer.errors import UserError
from trainer.suggest import nearest

_LOOKED_AT = 100  # examples by which the features are inferred
_FRAME_BYTES = 16  # of a record beside its data: length, its checksum, the data's checksum
_DTYPES = {"bytes_list": tf.string, "int64_list": tf.int64, "float_list": tf.float32}


@gin.register(module="pipeline")
def records(
    path: str | Sequence[str],
    features: Mapping[str, Sequence[int]] | None = None,
    prepare: Callable | None = None,
    preprocess: Callable | None = None,
    augment: Callable | None = None,
    memory_limit_bytes: int = 2**30,
    shuffle_buffer: int = 10_000,
) -> Data:
    """Examples in TFRecord files, each a `tf.train.Example`.

    path: a file, a pattern such as 'data/train-*.tfrecord', or a list of them; in the order of their names.
    features: the shape of each feature to keep, {'x': [28, 28], 'label': []}. None infers them from the first
      examples: a single number is a scalar, and so on. A feature holds int64, float32 or strings, as it was written.
    prepare: example -> example, applied to each as it is read: decodes an image, say.
    preprocess, augment: as `tfds_data` has them.
    memory_limit_bytes: what is larger once decoded is streamed, in blocks of `shuffle_buffer` examples, see `Records`.

    Raises `UserError` that names the file, record and feature where records are no `tf.train.Example` or have different
    features.
    """
    files = _files("records.path", path)
    counts = [_count_records(file) for file in files]
    segments = [(file, 0, count) for file, count in zip(files, counts, strict=True) if count]
    if not segments:
        raise UserError(f"records.path: {files[0]}{' and others' * (len(files) > 1)} hold no records.")
    first = [record.numpy() for record in tf.data.TFRecordDataset(segments[0][0]).take(_LOOKED_AT)]
    decode = _decoder(segments[0][0], first, features, prepare)
    held = Records(segments, decode)

    def stream() -> tf.data.Dataset:
        dataset = tf.data.TFRecordDataset([file for file, _, _ in segments])
        dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return dataset.apply(tf.data.experimental.assert_cardinality(sum(counts)))

    data = Data(
        os.path.basename(files[0]) + " and others" * (len(files) > 1), sum(counts), stream=stream, records=held,
        preprocess=preprocess, augment=augment, shuffle_buffer=shuffle_buffer,
    )  # fmt: skip
    return loaded(data, memory_limit_bytes)


@gin.register(module="pipeline")
def array_record(
    path: str | Sequence[str],
    features: Mapping[str, Sequence[int]] | None = None,
    prepare: Callable | None = None,
    preprocess: Callable | None = None,
    augment: Callable | None = None,
    memory_limit_bytes: int = 2**30,
) -> Data:
    """Examples in ArrayRecord files, each a `tf.train.Example`; any of them is read by its number.

    So examples of files that fit into no memory are shuffled as a whole, and a run is resumed at once.
    path, features, prepare, preprocess, augment: as `records` has them.
    memory_limit_bytes: what is larger once decoded is read from the files whenever it is drawn.

    Raises `UserError` as `records` does, and where the package array_record is missing, which has no wheel for Windows.
    """
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise UserError("array_record needs the package of that name: pip install array_record.") from error
    files = _files("array_record.path", path)
    readers = [array_record_module.ArrayRecordReader(file) for file in files]
    ends = np.cumsum([reader.num_records() for reader in readers])
    if not ends[-1]:
        raise UserError(f"array_record.path: {files[0]} holds no records.")

    def read_records(numbers) -> np.ndarray:
        found = np.empty(len(numbers), object)
        places = np.searchsorted(ends, numbers, side="right")
        for place in np.unique(places):
            rows = np.flatnonzero(places == place)
            start = ends[place - 1] if place else 0
            found[rows] = readers[place].read([int(number - start) for number in numbers[rows]])
        return found

    first = list(read_records(np.arange(min(_LOOKED_AT, ends[-1]))))
    decode = _decoder(files[0], first, features, prepare)
    spec = tf.data.Dataset.from_tensors(first[0]).map(decode).element_spec

    def read(numbers, seeds):
        del seeds
        serialized = tf.numpy_function(read_records, [numbers], tf.string, stateful=False)
        return tf.map_fn(decode, tf.ensure_shape(serialized, numbers.shape), fn_output_signature=spec)

    sizes = [(os.path.basename(file), os.path.getsize(file)) for file in files]
    data = Data(
        sizes[0][0] + " and others" * (len(files) > 1), int(ends[-1]), read=read, preprocess=preprocess,
        augment=augment, contents=repr(sizes),
    )  # fmt: skip
    return loaded(data, memory_limit_bytes)


def _files(parameter: str, path: str | Sequence[str]) -> list[str]:
    patterns = [path] if isinstance(path, str) else list(path)
    found = [file for pattern in patterns for file in sorted(glob.glob(os.path.expanduser(pattern)))]
    if not found:
        raise UserError(f"{parameter}: there is no file {', '.join(patterns) or '(the list is empty)'}.")
    return found


def _count_records(file: str) -> int:
    """The number of records, by their lengths alone; none is read."""
    count, position, size = 0, 0, os.path.getsize(file)
    with open(file, "rb") as opened:
        while position < size:
            opened.seek(position)
            header = opened.read(8)
            if len(header) < 8:
                break
            position += struct.unpack("<Q", header)[0] + _FRAME_BYTES
            count += 1
    if position != size:
        raise UserError(
            f"{file} is no whole TFRecord file: record {max(count - 1, 0)} goes beyond its end. It was cut off, is "
            "compressed, or is of another kind."
        )
    return count


def _decoder(file: str, first: Sequence[bytes], shapes: Mapping | None, prepare: Callable | None) -> Callable:
    """Returns a function from a serialized example to its features."""
    kinds: dict[str, str] = {}
    lengths: dict[str, set[int]] = {}
    for number, serialized in enumerate(first):
        for name, kind, length in _features_of(file, number, serialized):
            if kinds.setdefault(name, kind) != kind:
                raise UserError(f"{file}, record {number}: the feature {name!r} is {kind}, and {kinds[name]} before.")
            lengths.setdefault(name, set()).add(length)
    if shapes is None:
        varying = [name for name, seen in lengths.items() if len(seen) > 1]
        if varying:
            raise UserError(
                f"{file}: the feature {varying[0]!r} holds {min(lengths[varying[0]])} to {max(lengths[varying[0]])} "
                "values. Name the features to keep, with one shape each, by `features`."
            )
        shapes = {name: [] if seen == {1} else [max(seen)] for name, seen in lengths.items()}
    unknown = [name for name in shapes if name not in kinds]
    if unknown:
        raise UserError(
            f"{file} has no feature {unknown[0]!r}; it has {', '.join(sorted(kinds))}.{nearest(unknown[0], kinds)}"
        )
    for name, shape in shapes.items():
        wanted = int(np.prod(shape, dtype=np.int64))
        if lengths[name] != {wanted}:
            raise UserError(
                f"{file}: the feature {name!r} holds {', '.join(map(str, sorted(lengths[name])))} values, and "
                f"`features` gives it the shape {list(shape)}, of {wanted}."
            )
    parsed = {name: tf.io.FixedLenFeature(shape, _DTYPES[kinds[name]]) for name, shape in shapes.items()}
    return functools.partial(_decode, parsed, prepare)


def _decode(parsed: Mapping, prepare: Callable | None, serialized):
    example = tf.io.parse_single_example(serialized, dict(parsed))
    return example if prepare is None else in_graph(prepare)(example)


def _features_of(file: str, number: int, serialized: bytes) -> Iterator[tuple[str, str, int]]:
    """(name, kind, number of values) of each feature."""
    try:
        example = tf.train.Example.FromString(serialized)
    except Exception as error:  # noqa: BLE001  protobuf's own error, whose module differs by version
        raise UserError(f"{file}, record {number}, is no tf.train.Example.") from error
    for name, feature in sorted(example.features.feature.items()):
        kind = feature.WhichOneof("kind")
        if kind is not None:
            yield name, kind, len(getattr(feature, kind).value)
