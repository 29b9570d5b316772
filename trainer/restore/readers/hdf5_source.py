"""The base of all sources of HDF5 files, and the source of a file that is none of Keras'."""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

from trainer.restore.errors import RestoreError
from trainer.restore.readers.hdf5 import UNREADABLE, Hdf5File, open_path
from trainer.restore.readers.named_slots import mark_named_slots
from trainer.restore.source import CheckpointSource, Entry, tree_of_names


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
