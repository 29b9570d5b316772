"""Reads tensors of a TensorFlow checkpoint whose bytes in the file are not those in memory: texts, slices, swapped."""

import math

import google_crc32c
import numpy as np
import tensorflow as tf

from trainer.restore.readers.byte_reader import ByteReader
from trainer.restore.readers.sorted_table import unmasked, varint
from trainer.restore.readers.tensor_bundle import Place, StoredTensor

_CRC_BYTES = 4


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
