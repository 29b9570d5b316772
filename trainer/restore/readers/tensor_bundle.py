"""Where TensorFlow's checkpoint files keep each tensor's bytes, and the checksum that they were written with.

The `.index` file is a sorted string table of LevelDB's format, whose values are `BundleEntryProto`s
(https://github.com/google/leveldb/blob/main/doc/table_format.md,
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto).
TensorFlow's own reader gives no offsets; with them a tensor's checksum is tested without making the
tensor, and its bytes go from the file into a buffer that is used again.
"""

import dataclasses
import struct
from collections.abc import Iterator

import google_crc32c
import tensorflow as tf
from tensorflow.core.protobuf import tensor_bundle_pb2

_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER_BYTES = 5  # one byte for the compression, four for the checksum
_LITTLE_ENDIAN = 0
_SLICE_MARK = b"\0"  # begins the key of a slice, whose rest is binary; no tensor's name begins so


@dataclasses.dataclass(frozen=True)
class Place:
    """file: the data shard's path.  offset, size: in bytes.  crc32c: of those bytes."""

    file: str
    offset: int
    size: int
    crc32c: int


def tensor_places(prefix: str) -> dict[str, Place]:
    """{key: place} of every tensor that lies in one piece, as its bytes stand in memory.

    Strings and tensors that were written in slices are left out, and so is everything in a file of
    the other byte order or with compressed blocks: those are for TensorFlow's own reader.
    Raises ValueError, IndexError or `struct.error` for an index that is damaged.
    """
    with tf.io.gfile.GFile(prefix + ".index", "rb") as file:
        index = file.read()
    header = None
    places = {}
    for key, value in _table(index):
        if not key:
            header = tensor_bundle_pb2.BundleHeaderProto.FromString(value)
            if header.endianness != _LITTLE_ENDIAN:
                return {}
            continue
        if key.startswith(_SLICE_MARK):
            continue
        if header is None:
            raise ValueError("the index has no header")
        entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
        dtype = tf.as_dtype(entry.dtype)
        if entry.slices or not dtype.is_numpy_compatible or dtype in (tf.string, tf.resource, tf.variant):
            continue
        shard = f"{prefix}.data-{entry.shard_id:05d}-of-{header.num_shards:05d}"
        places[key.decode()] = Place(shard, entry.offset, entry.size, _unmasked(entry.crc32c))
    return places


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(content) < _FOOTER_BYTES or struct.unpack("<Q", content[-8:])[0] != _MAGIC:
        raise ValueError("the index does not end as an index does")
    footer = content[-_FOOTER_BYTES:]
    _, at = _handle(footer, 0)  # of the meta index, which is empty
    (offset, size), _ = _handle(footer, at)
    for _, handle in _block(content, offset, size):
        (offset, size), _ = _handle(handle, 0)
        yield from _block(content, offset, size)


def _block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block, trailer = content[offset : offset + size], content[offset + size : offset + size + _TRAILER_BYTES]
    if len(block) < size or len(trailer) < _TRAILER_BYTES:
        raise ValueError("the index is cut off")
    if google_crc32c.value(block + trailer[:1]) != _unmasked(struct.unpack("<I", trailer[1:])[0]):
        raise ValueError("the index's checksum does not fit")
    if trailer[0]:
        return
    (restarts,) = struct.unpack("<I", block[-4:])
    end = size - 4 * (restarts + 1)
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def _handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(content, at)
    size, at = _varint(content, at)
    return (offset, size), at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _unmasked(crc: int) -> int:
    """LevelDB stores checksums rotated and offset, since a checksum of checksums is a weak one."""
    rotated = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF
