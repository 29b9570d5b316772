"""Reads the weights inside of a `.keras` archive, or of the folder that is one unpacked; its config is never run."""

import dataclasses
import os
import re
from collections.abc import Iterator

import tensorflow as tf

from trainer.restore.errors import RestoreError
from trainer.restore.layer_state import LOOKUP_CLASSES, LayerState, is_numbered
from trainer.restore.local_files import read_whole
from trainer.restore.matching.names import join, normalize
from trainer.restore.readers.archive_member import Archive
from trainer.restore.readers.config_names import LAYER_LISTS, name_groups
from trainer.restore.readers.hdf5 import Group, Hdf5File, natural_order, open_path
from trainer.restore.readers.keras_config import optimizer_words, parsed, plain
from trainer.restore.readers.keras_shards import open_shards
from trainer.restore.readers.keras_weights import MAX_TEXT_BYTES, KerasWeightsSource
from trainer.restore.readers.layer_config import configured_states
from trainer.restore.source import Node

_WEIGHTS, _INDEX = "model.weights.h5", "model.weights.json"
_ASSETS, _VOCABULARY, _INNER_VOCABULARY = "assets/", "/vocabulary.txt", "/_lookup_layer/vocabulary.txt"


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

    def layer_states(self) -> list[LayerState]:
        """Stated values are in the config, adapted vocabularies in `assets` under the layers' places in the file."""
        with self.opening():
            states = {state.place: state for state in configured_states(self._config)}
            for asset_place, words in self._vocabularies():
                found = self._state_at(asset_place)
                states[found.place] = dataclasses.replace(states.get(found.place, found), values={"vocabulary": words})
        return list(states.values())

    def _vocabularies(self) -> Iterator[tuple[str, list[str]]]:
        """(place in `assets`, words) of each vocabulary; that of TextVectorization's part is the same again."""
        for name in self._names():
            if name.startswith(_ASSETS) and name.endswith(_VOCABULARY) and not name.endswith(_INNER_VOCABULARY):
                # Not `splitlines`, which would cut a word at every kind of line's end that Unicode has.
                words = self._text(name).decode("utf8", "surrogateescape").split("\n")
                yield name.removeprefix(_ASSETS).removesuffix(_VOCABULARY), words

    def _state_at(self, asset_place: str) -> LayerState:
        """The layer at a place, which goes by class and number where its model lists it."""
        node: Node | None = self.top
        place, called, layer_class = "", "", ""
        for segment in asset_place.split("/"):
            if segment in LAYER_LISTS:
                continue
            by_class = node.by_class.get(segment) if node else None
            node = by_class or (node.children.get(normalize(segment)) if node else None)
            called = node.keras_name if node else ""
            layer_class = re.sub(r"_\d+$", "", segment if by_class else called)
            place = join(place, called if by_class and called else normalize(segment))
        layer_class = layer_class if layer_class in LOOKUP_CLASSES else ""
        return LayerState(place, "" if is_numbered(called, layer_class) else called, layer_class)

    def _names(self) -> list[str]:
        if self._archive:
            return sorted(self._archive.names, key=natural_order)
        folders = tf.io.gfile.walk(os.path.join(self.path, _ASSETS))
        files = [os.path.join(folder, name) for folder, _, names in folders for name in names]
        return sorted((os.path.relpath(file, self.path) for file in files), key=natural_order)

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
                return file.read(min(file.size_bytes, MAX_TEXT_BYTES))
        return read_whole(os.path.join(self.path, name), MAX_TEXT_BYTES)

    def _json(self, name: str) -> dict:
        return parsed(self._text(name), f"{self.path}: {name}") if self._has(name) else {}
