"""Reads a TensorFlow checkpoint's table of contents, its `.index`, and the tensors that need more than a copy.

A foreign file never goes to TensorFlow's own reader. That reader is C++, which ends the process at a shape, a slice or
a dtype that cannot be, and Python cannot catch it. So this module reads the format from its description
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto) and tests all of it.
Two more things follow. The index holds a CRC-32C of every tensor: a restore tests each tensor that it takes, piece by
piece, before a variable changes, and does not read the optimizer's state. And the bytes of numbers in the file are
those in memory: `byte_reader` reads them straight into the tensor whose memory the variable takes over, so there is one
copy. Only texts, slices and numbers of the other byte order need work, which `load_value` does.
"""

import dataclasses
import math
from collections.abc import Iterable

import google_crc32c
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import tensor_bundle_pb2

from trainer.restore.local_files import read_whole
from trainer.restore.matching.names import readable_name
from trainer.restore.readers.byte_reader import ByteReader
from trainer.restore.readers.sorted_table import read_table, slice_key, unmasked, varint

_VERSION = 1  # of the format, since 2016
_MAX_SHARDS = 99_999
_MAX_AXES = 254
_MAX_INDEX_BYTES = 1 << 30
_SLICE_MARK = b"\0"  # begins the key of a slice, whose rest is binary; no tensor's name begins so
_CRC_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Place:
    """file: the data shard's path.
    offset, size: in bytes.
    crc32c: of those bytes.
    """

    file: str
    offset: int
    size: int
    crc32c: int


@dataclasses.dataclass(frozen=True)
class Part:
    """A slice of a tensor that was written in several. start, shape: one number for each axis of the whole."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    place: Place

    @property
    def window(self) -> tuple[slice, ...]:
        return tuple(slice(begin, begin + length) for begin, length in zip(self.start, self.shape, strict=True))


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """place: where its bytes are in one piece.
    parts: where they are in several, which fill it exactly.
    """

    shape: tuple[int, ...]
    dtype: tf.DType
    place: Place | None
    parts: tuple[Part, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bundle:
    """tensors: by their names, which are fit to be shown.
    byte_order: `<` or `>`.
    """

    tensors: dict[str, StoredTensor]
    byte_order: str


def read_bundle(prefix: str) -> Bundle:
    """The table of a checkpoint. Reads the `.index` alone.

    Raises `ValueError`, `TypeError`, `OSError`, `DecodeError` or `tf.errors.OpError` for one that is damaged or
    that TensorFlow would not have written.
    """
    rows = read_table(read_whole(prefix + ".index", _MAX_INDEX_BYTES))
    key, value = next(rows, (None, b""))
    if key != b"":
        raise ValueError("the index has no header")
    header = tensor_bundle_pb2.BundleHeaderProto.FromString(value)
    _check_header(header)
    entries = {key: tensor_bundle_pb2.BundleEntryProto.FromString(value) for key, value in rows}
    files = [f"{prefix}.data-{shard:05d}-of-{header.num_shards:05d}" for shard in range(header.num_shards)]
    slices = {key: entry for key, entry in entries.items() if key.startswith(_SLICE_MARK)}
    tensors: dict[str, StoredTensor] = {}
    for key, entry in entries.items():
        if key in slices:
            continue
        name = readable_name(key.decode())
        if name in tensors:
            raise ValueError(f"the tensor {name} is there twice")
        tensors[name] = _tensor(name, key, entry, slices, files)
    if slices:
        raise ValueError(f"the index has {len(slices)} slices of tensors that it does not have")
    _expect_apart(tensors.values())
    return Bundle(tensors, "<" if header.endianness == tensor_bundle_pb2.BundleHeaderProto.LITTLE else ">")


def _check_header(header: tensor_bundle_pb2.BundleHeaderProto) -> None:
    if not 1 <= header.num_shards <= _MAX_SHARDS:
        raise ValueError(f"the index speaks of {header.num_shards:,} data files")
    if header.endianness not in tensor_bundle_pb2.BundleHeaderProto.Endianness.values():
        raise ValueError("the index gives no order of bytes")
    if header.version.min_consumer > _VERSION or _VERSION in header.version.bad_consumers:
        raise ValueError("it is in a later version of the format")


def _tensor(name: str, key: bytes, entry, slices: dict[bytes, tensor_bundle_pb2.BundleEntryProto], files: list[str]):
    """The tensor of an entry; takes its slices out of `slices`."""
    shape, dtype = _shape(name, entry), _dtype(name, entry)
    if not entry.slices:
        return StoredTensor(shape, dtype, _place(name, entry, shape, dtype, files))
    if not has_numbers(dtype):
        raise ValueError(f"{name} is of dtype {dtype.name} and in slices")
    parts = []
    for proto in entry.slices:
        extents = [(extent.start, extent.length if extent.HasField("length") else -1) for extent in proto.extent]
        part = slices.pop(slice_key(key, extents), None)
        if part is None:
            raise ValueError(f"a slice of {name} is not in the index, or is there twice")
        starts, lengths = _resolved(name, extents, shape)
        if part.slices or _shape(name, part) != lengths or _dtype(name, part) != dtype:
            raise ValueError(f"a slice of {name} has another shape or dtype than it is said to have")
        parts.append(Part(starts, lengths, _place(name, part, lengths, dtype, files)))
    if sum(math.prod(part.shape) for part in parts) != math.prod(shape):
        raise ValueError(f"the slices of {name} do not fill it")
    return StoredTensor(shape, dtype, None, tuple(parts))


def _resolved(name: str, extents, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(starts, lengths) of a slice; a length of -1 stands for the whole axis."""
    found = [(0, size) if extent == (0, -1) else extent for extent, size in zip(extents, shape, strict=False)]
    fits = all(
        start >= 0 and length >= 0 and start + length <= size
        for (start, length), size in zip(found, shape, strict=False)
    )
    if len(extents) != len(shape) or not fits:
        raise ValueError(f"a slice of {name} lies outside of it")
    return tuple(start for start, _ in found), tuple(length for _, length in found)


def _shape(name: str, entry) -> tuple[int, ...]:
    shape = tuple(dim.size for dim in entry.shape.dim)
    if entry.shape.unknown_rank or len(shape) > _MAX_AXES or min(shape, default=0) < 0:
        raise ValueError(f"{name} has the shape {str(list(shape))[:80]}, which is impossible")
    # Without the zeros: the other axes are multiplied before one is seen.
    if math.prod(size or 1 for size in shape) >= 2**63:
        raise ValueError(f"{name} has the shape {str(list(shape))[:80]}, which is impossible")
    return shape


def _dtype(name: str, entry) -> tf.DType:
    try:
        dtype = tf.as_dtype(entry.dtype)
    except TypeError as error:
        raise ValueError(f"{name} is of a dtype, {entry.dtype}, that TensorFlow does not have") from error
    if dtype != dtype.base_dtype:
        raise ValueError(f"{name} is of dtype {dtype.name}, which no file can hold")
    return dtype


def has_numbers(dtype: tf.DType) -> bool:
    """Whether a tensor's bytes in the file are those of an array."""
    return dtype.is_numpy_compatible and dtype != tf.string


def _place(name: str, entry, shape: tuple[int, ...], dtype: tf.DType, files: list[str]) -> Place:
    if not 0 <= entry.shard_id < len(files):
        raise ValueError(f"{name} is in data file {entry.shard_id} of {len(files)}")
    if entry.offset < 0 or entry.size < 0:
        raise ValueError(f"{name} has {entry.size} bytes from {entry.offset} on")
    needed = math.prod(shape) * dtype.size
    if has_numbers(dtype) and entry.size != needed:
        raise ValueError(f"{name} has {entry.size:,} bytes where its shape needs {needed:,}")
    return Place(files[entry.shard_id], entry.offset, entry.size, unmasked(entry.crc32c))


def _expect_apart(tensors: Iterable[StoredTensor]) -> None:
    """Raises `ValueError` where two tensors share bytes: together they could claim any multiple of a file."""
    places = [place for tensor in tensors for place in (tensor.place, *(part.place for part in tensor.parts)) if place]
    ends: dict[str, int] = {}
    for place in sorted((place for place in places if place.size), key=lambda place: (place.file, place.offset)):
        if place.offset < ends.get(place.file, 0):
            raise ValueError("two tensors in it share bytes")
        ends[place.file] = place.offset + place.size


def load_value(stored: StoredTensor, byte_order: str, reader: ByteReader) -> np.ndarray:
    """The tensor, its checksum tested. Raises `ValueError`, or what `ByteReader` raises."""
    if stored.dtype == tf.string and stored.place:
        return _texts(stored.place, stored.shape, byte_order, reader)
    if not stored.dtype.is_numpy_compatible:
        raise ValueError(f"it is a {stored.dtype.name}, which no variable of Keras can take")
    if stored.place:
        return _numbers(stored.place, stored.shape, stored.dtype, byte_order, reader)
    whole = np.empty(stored.shape, stored.dtype.as_numpy_dtype)
    filled = np.zeros(stored.shape, bool)
    for part in stored.parts:
        # Read first: what the file does not hold must not take memory.
        value = _numbers(part.place, part.shape, stored.dtype, byte_order, reader)
        if filled[part.window].any():
            raise ValueError("its slices overlap")
        filled[part.window], whole[part.window] = True, value
    return whole


def _numbers(place: Place, shape, dtype: tf.DType, byte_order: str, reader: ByteReader) -> np.ndarray:
    content = reader.read(place.file, place.offset, place.size)
    _check(content, place.crc32c)
    if byte_order == ">":
        item_bytes = dtype.size // 2 if dtype.is_complex else dtype.size
        content = np.ascontiguousarray(content.reshape(-1, item_bytes)[:, ::-1]).reshape(-1)
    return content.view(dtype.as_numpy_dtype).reshape(shape)


def _texts(place: Place, shape: tuple[int, ...], byte_order: str, reader: ByteReader) -> np.ndarray:
    """The lengths of all elements, a checksum of these, then the elements one after the other.

    The checksums are of the lengths in four bytes each, or eight for more than 4 GB.
    """
    raw = reader.read(place.file, place.offset, place.size).tobytes()
    count, at = math.prod(shape), 0
    lengths: list[int] = []
    while len(lengths) < count:
        length, at = varint(raw, at)
        lengths.append(length)
    start = at + _CRC_BYTES
    if start + sum(lengths) != len(raw):
        raise ValueError("the texts in it do not fill their place")
    numbers = b"".join(np.array(length, f"{byte_order}u{8 if length >> 32 else 4}").tobytes() for length in lengths)
    _check(numbers, unmasked(int(np.frombuffer(raw[at:start], f"{byte_order}u4")[0])))
    _check(numbers + raw[at:], place.crc32c)
    found = np.empty(count, object)
    for index, length in enumerate(lengths):
        found[index] = raw[start : start + length]
        start += length
    return found.reshape(shape)


def _check(content: np.ndarray | bytes, checksum: int) -> None:
    if google_crc32c.value(content) != checksum:
        raise ValueError("its checksum does not fit")
