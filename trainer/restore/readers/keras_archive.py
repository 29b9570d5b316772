"""Reads the weights inside of a `.keras` archive, or of the folder that is one unpacked; its config is never run."""

import os

import tensorflow as tf

from trainer.regular_files import read_whole
from trainer.restore.readers.archive_member import Archive
from trainer.restore.readers.config_names import name_groups
from trainer.restore.readers.hdf5 import Group, Hdf5File, open_path
from trainer.restore.readers.keras_config import optimizer_words, parsed, plain
from trainer.restore.readers.keras_shards import open_shards
from trainer.restore.readers.keras_weights import MOST_TEXT_BYTES, KerasWeightsSource
from trainer.restore.report import RestoreError

_WEIGHTS, _INDEX = "model.weights.h5", "model.weights.json"


class KerasArchiveSource(KerasWeightsSource):
    """What `model.save("x.keras")` wrote."""

    format = "Keras archive (.keras)"
    damage = (*KerasWeightsSource.damage, *Archive.damage)

    def __init__(self, path: str):
        self._archive: Archive | None = None
        super().__init__(path)
        with self.opening():
            metadata = self._json("metadata.json")
        if self._archive:
            self.checksums = "CRC-32 of the zip archive"
        version, date = metadata.get("keras_version"), metadata.get("date_saved")
        self.writer = plain(f"Keras {version}" + (f", {date}" if date else "")) if version else ""
        compiled = self._config.get("compile_config")
        words = optimizer_words(compiled.get("optimizer")) if isinstance(compiled, dict) else ""
        self.optimizer = words or self.optimizer

    def _name_layers(self, top: Group) -> None:
        self._config = self._json("config.json")
        name_groups(top, self._config)

    def check_file(self) -> None:
        if self._archive is None:
            return
        for name in self._archive.names_read:
            try:
                self._archive.check(name)
            except self.damage as error:
                raise self.cannot_be_read(error) from error

    def _open(self) -> list[Hdf5File]:
        if tf.io.gfile.isdir(self.path):
            self.format = "Keras archive, unpacked"
        else:
            self._archive = Archive(self.path)
        if self._has(_WEIGHTS):
            return [self._hdf5(_WEIGHTS)]
        if self._has(_INDEX):
            return open_shards(self._text(_INDEX), f"{self.path}: {_INDEX}", self._hdf5)
        if self._has("model.weights.npz"):
            raise RestoreError(
                f"{self.path} keeps its weights as a pickled .npz, which could run anything when it is read. "
                "Save the model again with weights_format='h5', as Keras does by itself."
            )
        raise RestoreError(f"{self.path} holds no {_WEIGHTS}; it is no Keras archive, or was damaged.")

    def _has(self, name: str) -> bool:
        if self._archive:
            return name in self._archive
        return tf.io.gfile.exists(os.path.join(self.path, name))

    def _hdf5(self, name: str) -> Hdf5File:
        if self._archive:
            return Hdf5File(self._archive.open(name), f"{self.path}: {name}")
        return open_path(os.path.join(self.path, name))

    def _text(self, name: str) -> bytes:
        if self._archive:
            with self._archive.open(name) as file:
                return file.read(min(file.size_bytes, MOST_TEXT_BYTES))
        return read_whole(os.path.join(self.path, name), MOST_TEXT_BYTES)

    def _json(self, name: str) -> dict:
        return parsed(self._text(name), f"{self.path}: {name}") if self._has(name) else {}
