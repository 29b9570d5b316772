"""Reads weights from NumPy's `.npz`, or from several that are numbered `-00000-of-00003.npz`."""

import dataclasses
import io
import os
import re
import tokenize

import numpy as np
import tensorflow as tf

from trainer.restore.errors import RestoreError, first_line
from trainer.restore.matching.names import readable_name
from trainer.restore.readers.flat_names import all_there, bytes_of, tree_of_flat_names
from trainer.restore.readers.zip_archive import Archive
from trainer.restore.source import CheckpointSource, Entry

_MAX_HEADER_BYTES = 10_000  # NumPy's own limit: Python's parser, which it uses, is not safe beyond
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}  # of the field before a header, by version of the format


@dataclasses.dataclass(frozen=True)
class _Member:
    """One array in a zip archive, as its header describes it."""

    archive: Archive
    name: str
    header_bytes: int
    shape: tuple[int, ...]
    in_columns: bool
    dtype: np.dtype


class NpzSource(CheckpointSource):
    """Arrays by name, as `np.savez` and `np.savez_compressed` write them.

    Two-byte void is what NumPy makes of bfloat16, and is read as that. Text, structured arrays,
    dates and other void are listed as tf.string, an element its bytes, and are no weights; nor are
    complex numbers. A pickle is refused, for reading it runs what it says.
    """

    format = "NumPy .npz"
    checksums = "CRC-32 of the zip archive"
    damage = (*CheckpointSource.damage, *Archive.damage, tokenize.TokenError, SyntaxError)

    def __init__(self, path: str):
        super().__init__(path)
        self._members: dict[str, _Member] = {}
        self._archives: list[Archive] = []
        for shard in _shards(path):
            try:
                self._open(shard)
            except RestoreError:
                raise
            except self.damage as error:
                if shard == path:
                    raise self.cannot_be_read(error) from error
                raise self.cannot_be_read(ValueError(f"{os.path.basename(shard)}: {first_line(error)}")) from error
        self.top = tree_of_flat_names(self.entries)
        for entry in self.entries:
            if entry.kind == "weight" and (entry.dtype == tf.string or entry.dtype.is_complex):
                entry.kind = "other"

    def _open(self, path: str) -> None:
        archive = Archive(path)
        self._archives.append(archive)
        for name in archive.names:
            key = readable_name(name.removesuffix(".npy"))
            if not name.endswith(".npy"):
                raise RestoreError(f"{path}: {key!r} in it is no array of NumPy's (.npy). Write the file without it.")
            if key in self._members:
                raise ValueError(f"the array {key} is there twice")
            try:
                member = _read_header(archive, name)
            except self.damage as error:
                raise ValueError(f"the header of {name}: {first_line(error)}") from error
            self._members[key] = member
            self.entries.append(Entry(key, key, member.shape, self._dtype(key, member)))

    def damaged(self, entry: Entry, why: str) -> RestoreError:
        file = os.path.basename(self._members[entry.key].archive.path)
        return super().damaged(entry, why if self.path.endswith(file) else f"{file}: {why}")

    def close(self) -> None:
        for archive in self._archives:
            archive.close()

    def _dtype(self, key: str, member: _Member) -> tf.DType:
        dtype = member.dtype
        if dtype.hasobject:
            raise RestoreError(
                f"{self.path}: the array {key} holds Python objects, which NumPy stores as a pickle, and reading a "
                "pickle runs whatever code is in it. Write the file without this array, or with numbers in it."
            )
        size_bytes = member.archive.size_bytes(member.name) - member.header_bytes
        if bytes_of(key, member.shape, dtype.itemsize) != size_bytes:
            raise ValueError(
                f"the array {key} says that it is {dtype}{list(member.shape)}, and the archive that it takes "
                f"{size_bytes} bytes"
            )
        if issubclass(dtype.type, (np.void, np.character, np.datetime64, np.timedelta64)):
            return tf.string
        try:
            return tf.as_dtype(dtype.newbyteorder("="))
        except TypeError as error:
            raise RestoreError(
                f"{self.path}: the array {key} is of dtype {dtype}, which TensorFlow has not. "
                "Write the file again with this array as float32 or float64."
            ) from error

    def _load(self, entry: Entry) -> np.ndarray:
        member = self._members[entry.key]
        raw = member.archive.read(member.name, member.header_bytes)
        if entry.dtype == tf.string:
            flat = _elements_as_bytes(raw, member.dtype)
        else:
            flat = raw.view(member.dtype).astype(entry.dtype.as_numpy_dtype, copy=False)
        return flat.reshape(entry.shape, order="F" if member.in_columns else "C")


def _shards(path: str) -> list[str]:
    """The path, or where it is one of several numbered files, all of them; raises `RestoreError` if one is missing."""
    folder, name = path.removesuffix(os.path.basename(path)), os.path.basename(path)
    numbered = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.npz", name, re.DOTALL | re.IGNORECASE)
    if not numbered:
        return [path]
    stem, count = numbered[1], int(numbered[2])
    parts = [f"{stem}-{index:05}-of-{count:05}.npz" for index in range(count)]
    if name not in parts:
        raise RestoreError(f"{path} is not one of {count} files; they are numbered from 00000.")
    try:
        present = tf.io.gfile.listdir(folder or ".")
    except tf.errors.OpError as error:
        raise RestoreError(f"The folder of {path} cannot be read: {first_line(error)}") from error
    all_there(path, parts, present)
    return [folder + part for part in parts]


def _read_header(archive: Archive, name: str) -> _Member:
    with archive.beginning(name) as stream:
        start = stream.read(np.lib.format.MAGIC_LEN)
        version = np.lib.format.read_magic(io.BytesIO(start))
        if version not in _LENGTH_BYTES:
            raise ValueError(f"its version is {version[0]}.{version[1]}")
        width = _LENGTH_BYTES[version]
        # NumPy would read a header of gigabytes before it finds that too long.
        length = stream.read(width)
        header_bytes = int.from_bytes(length, "little")
        if header_bytes > _MAX_HEADER_BYTES:
            raise ValueError(f"it is said to be {header_bytes:,} bytes long")
        text = io.BytesIO(length + stream.read(header_bytes))
    # Version 3 is version 2 with other letters in the names of a structure's fields, which do not matter here.
    parse = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    shape, in_columns, dtype = parse(text, max_header_size=_MAX_HEADER_BYTES)
    if not dtype.itemsize:
        raise ValueError("its elements take no bytes")
    if dtype.kind == "V" and dtype.itemsize == 2 and not dtype.names and not dtype.subdtype:
        dtype = tf.bfloat16.as_numpy_dtype
    return _Member(
        archive, name, len(start) + width + header_bytes, tuple(map(int, shape)), in_columns, np.dtype(dtype)
    )


def _elements_as_bytes(raw: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array for which TensorFlow has no number type, one `bytes` an element; text in UTF-8."""
    if dtype.kind in "US":
        texts = raw.view(dtype).tolist()
        elements = [text.encode() if isinstance(text, str) else text for text in texts]
    else:
        elements = [item.tobytes() for item in raw.reshape(-1, dtype.itemsize)]
    found = np.empty(len(elements), object)
    found[:] = elements
    return found
