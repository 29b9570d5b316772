"""Opens an HDF5 file that may be damaged or hostile, and gives its datasets as entries, none of them read."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator

import h5py
import numpy as np
import tensorflow as tf

from trainer.restore.errors import RestoreError
from trainer.restore.local_files import local_copy
from trainer.restore.matching.names import expect_bearable, readable_name
from trainer.restore.name_tree import tree_of_names
from trainer.restore.readers.flat_names import mark_named_slots
from trainer.restore.readers.hdf5_probe import FLOOR_BYTES, LARGEST_RATIO, FileRange, try_out
from trainer.restore.source import CheckpointSource, Entry

UNREADABLE = tf.variant  # stands for text, references and records, which no variable can take
_DEEPEST = 100  # groups inside of groups; Keras nests a dozen for models inside of models


@dataclasses.dataclass(eq=False)
class Group:
    """One group of an HDF5 file; `keras_name` is its attribute `name`, which Keras 3 sets on `vars` groups."""

    path: str
    keras_name: str = ""
    groups: dict[str, "Group"] = dataclasses.field(default_factory=dict)
    entries: dict[str, Entry] = dataclasses.field(default_factory=dict)


class Hdf5File:
    """An open file, looked over once. `top`: its tree of groups.
    groups: each by its path, "" for the top.

    entries: each dataset once.

    name: what errors call it.  Raises what h5py raises for a damaged file, and `RestoreError` for one that is not to be
      trusted.
    """

    def __init__(self, content: FileRange, name: str):
        self.name = name
        self._size_bytes = content.size_bytes
        _expect_usual_numbers(content)
        try_out(content)
        # HDF5 takes two openings of one path for one file, and would give what it knew of a file
        # that was replaced since. It does not so with a file object.
        self._file = h5py.File(content, "r")
        self.entries: list[Entry] = []
        self.groups: dict[str, Group] = {}
        self._without_checksum = 0
        self._groups_seen: set[int] = set()
        self._entry_at: dict[int, Entry] = {}
        self.top = self._group(self._file["/"], "", 0)

    @property
    def checksums(self) -> str:
        return "Fletcher-32" if self.entries and not self._without_checksum else ""

    def load(self, entry: Entry) -> np.ndarray:
        if entry.dtype == UNREADABLE:
            raise RestoreError(f"{self.name}: {entry.key} holds text, references or records, no tensor.")
        # h5py has no bfloat16: it keeps the two bytes and forgets what they are.
        stored = np.dtype("V2") if entry.dtype == tf.bfloat16 else np.dtype(entry.dtype.as_numpy_dtype)
        value = np.empty(entry.shape, stored)
        if value.size:
            self._file[entry.key].read_direct(value)
        return value.view(entry.dtype.as_numpy_dtype)

    def texts(self, path: str, attribute: str) -> list[str] | None:
        """An attribute that holds one text or several, or None where there is none of that name."""
        attributes = self._file[path or "/"].attrs
        if attribute not in attributes:
            return None
        described = attributes.get_id(attribute)
        size_bytes = described.get_space().get_simple_extent_npoints() * described.get_type().get_size()
        if size_bytes > self._size_bytes:
            raise self._refusal(f"{path or '/'}.{attribute}", "announces more bytes than the file has")
        value = attributes[attribute]
        if isinstance(value, h5py.Empty):
            return []
        return [_text(item) for item in np.asarray(value, dtype=object).reshape(-1)]

    def text(self, path: str, attribute: str) -> str:
        return "".join((self.texts(path, attribute) or [""])[:1])

    def _group(self, group: h5py.Group, path: str, depth: int) -> Group:
        address = h5py.h5o.get_info(group.id).addr
        if address in self._groups_seen:
            raise self._refusal(path, "is a group with two places in the file; its links may go in a circle")
        if depth > _DEEPEST:
            raise self._refusal(path, f"lies more than {_DEEPEST} groups deep")
        self._groups_seen.add(address)
        found = self.groups[path] = Group(path, keras_name=readable_name(self.text(path, "name")))
        names = list(group)
        for name in names:
            # h5py gives what is no UTF-8 as bytes.
            if isinstance(name, bytes) or not name.isprintable():
                raise self._refusal(f"{path}/{name!a}", "has a name that is no text")
        for name in sorted(names, key=natural_order):
            where = f"{path}/{name}"
            expect_bearable(where, depth)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise self._refusal(where, "is a link to another place, perhaps outside of the file")
            child = group[name]
            if isinstance(child, h5py.Group):
                found.groups[name] = self._group(child, where, depth + 1)
            elif isinstance(child, h5py.Dataset):
                found.entries[name] = self._entry(child, where)
        return found

    def _entry(self, dataset: h5py.Dataset, key: str) -> Entry:
        address = h5py.h5o.get_info(dataset.id).addr
        if address not in self._entry_at:
            dtype = _tensor_dtype(dataset)
            self._refuse_if_untrusted(dataset, key)
            # A dataset without a shape is HDF5's way to say "none".
            no_tensor = dataset.shape is None or not dtype
            shape = () if dataset.shape is None else tuple(int(size) for size in dataset.shape)
            self._entry_at[address] = Entry(key, key.strip("/"), shape, UNREADABLE if no_tensor else dtype)
            self.entries.append(self._entry_at[address])
            self._without_checksum += not dataset.fletcher32
        return self._entry_at[address]

    def _refuse_if_untrusted(self, dataset: h5py.Dataset, key: str) -> None:
        layout = dataset.id.get_create_plist()
        if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
            raise self._refusal(key, "keeps its data in other files")
        item_bytes = dataset.id.get_type().get_size()
        announced, stored = math.prod(dataset.shape or ()) * item_bytes, dataset.id.get_storage_size()
        if dataset.shape is None or not announced:
            return
        if layout.get_layout() == h5py.h5d.CHUNKED:
            # One chunk is unpacked as a whole, however little of it the shape takes.
            announced = max(announced, math.prod(layout.get_chunk()) * item_bytes)
            lies = not stored or (announced > FLOOR_BYTES and announced > stored * LARGEST_RATIO)
        else:
            lies = announced > stored or (dataset.id.get_offset() or 0) + announced > self._size_bytes
        if lies or stored > self._size_bytes:
            raise self._refusal(key, f"announces {announced:,} bytes, but the file cannot hold them")

    def _refusal(self, key: str, why: str) -> RestoreError:
        return RestoreError(
            f"The checkpoint {self.name} is refused: {key} {why}; Keras writes no such files. "
            f"Copy it again, or ask who made it for another one."
        )


def open_path(path: str) -> Hdf5File:
    near = local_copy(path)
    content = open(near, "rb")  # noqa: SIM115  it is read from until nothing asks for it any more
    return Hdf5File(FileRange(content, 0, os.path.getsize(near)), path)


def _expect_usual_numbers(content: FileRange) -> None:
    """Raises `OSError` for a file that counts its bytes in other than 8 of them, which `FileRange` looks for."""
    head = bytearray(16)
    content.seek(0)
    content.readinto(head)
    if head[:8] != b"\x89HDF\r\n\x1a\n":
        raise OSError("it does not begin as an HDF5 file")
    sizes = head[13:15] if head[8] < 2 else head[9:11]
    if sizes != b"\x08\x08":
        raise OSError("its numbers are of an unusual size")


def walk(group: Group) -> Iterator[Group]:
    yield group
    for child in group.groups.values():
        yield from walk(child)


def natural_order(name: str) -> list[str | int]:
    """Sorts `dense_2` before `dense_10`, and `dense` before both."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]


def _tensor_dtype(dataset: h5py.Dataset) -> tf.DType | None:
    try:
        dtype = dataset.dtype
    except TypeError:  # a number format that numpy has no word for
        return None
    if dtype == np.dtype("V2"):
        return tf.bfloat16
    if dtype.kind not in "biufc":
        return None
    try:
        return tf.as_dtype(dtype.newbyteorder("="))
    except TypeError:
        return None


def _text(item: object) -> str:
    text = item.decode("utf8", "replace") if isinstance(item, bytes) else str(item)
    return text.encode("utf8", "replace").decode("utf8")


class Hdf5Source(CheckpointSource):
    """A source whose entries lie in one or several HDF5 files."""

    def __init__(self, path: str):
        super().__init__(path)
        self._file_of: dict[str, Hdf5File] = {}

    def _load(self, entry: Entry) -> np.ndarray:
        return self._file_of[entry.key].load(entry)

    def _take(self, files: list[Hdf5File]) -> None:
        self._file_of = {entry.key: file for file in files for entry in file.entries}
        self.entries = [entry for file in files for entry in file.entries]
        if all(file.checksums for file in files):
            self.checksums = files[0].checksums

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Turns what goes wrong while the file is looked over into a fault of the file."""
        try:
            yield
        except RestoreError:
            raise
        except self.damage as error:
            raise self.cannot_be_read(error) from error


class NamedDatasetsSource(Hdf5Source):
    """An HDF5 file that is none of Keras': its datasets by their paths. `file` is the open file."""

    format = "HDF5, datasets by name"

    def __init__(self, path: str):
        super().__init__(path)
        with self.opening():
            self.file = open_path(path)
        for entry in self.file.entries:
            kind = "other" if entry.dtype == UNREADABLE else "weight"
            self.entries.append(dataclasses.replace(entry, key=entry.key.strip("/"), kind=kind))
        self._file_of = {entry.key: self.file for entry in self.entries}
        self.checksums = self.file.checksums
        self.top = tree_of_names(self.entries)
        mark_named_slots(self.top, self.entries)
