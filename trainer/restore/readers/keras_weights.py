"""Reads Keras' `.weights.h5` files, in one file or in shards, alone or in a `.keras` archive; its config is never run.

Keras 3 and late Keras 2 write them. A `.weights.json` lists the shards; an archive may be unpacked into a folder.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator

import tensorflow as tf

from trainer.output.printable import printable
from trainer.restore.errors import RestoreError
from trainer.restore.layer_state import LOOKUP_CLASSES, OWN_DATASET, LayerState, is_numbered, states_from_json
from trainer.restore.local_files import read_whole
from trainer.restore.matching.names import join, normalize
from trainer.restore.readers.hdf5 import Group, Hdf5File, Hdf5Source, natural_order, open_path, walk
from trainer.restore.readers.keras_tree import LAYER_LISTS, WeightsTree, name_groups, optimizer_words, parsed, plain
from trainer.restore.readers.vocabularies import configured_states
from trainer.restore.readers.zip_archive import Archive
from trainer.restore.source import Node

_MAX_TEXT_BYTES = 256 << 20
_WEIGHTS, _INDEX = "model.weights.h5", "model.weights.json"
_ASSETS, _VOCABULARY, _INNER_VOCABULARY = "assets/", "/vocabulary.txt", "/_lookup_layer/vocabulary.txt"


class KerasWeightsSource(Hdf5Source):
    """Reads what `model.save_weights` wrote: no names of variables, only their order in each layer.

    file: the file at `path`, where it is open already.
    """

    format = "Keras weights (.weights.h5)"

    def __init__(self, path: str, file: Hdf5File | None = None):
        super().__init__(path)
        with self.opening():
            files = [file] if file else self._open()
            self._take(files)
            top = _merged(files)
            self._name_layers(top)
            self._own_states = top.entries.pop(OWN_DATASET, None)
            # Shards are cut where they are full, so the layers' order is that of the whole.
            self.entries = list(dict.fromkeys(entry for group in walk(top) for entry in group.entries.values()))
            self.top = WeightsTree(top, self.path).top
            self.writer = plain(files[0].text("", "keras_version"))
        # A model may hold optimizers of its own beside the one that it was compiled with.
        optimizers = {name: node.keras_name for name, node in self.top.children.items() if node.is_optimizer}
        name = optimizers.get("optimizer") or next(iter(optimizers.values()), "")
        self.optimizer = re.sub(r"_\d+$", "", name)  # Keras numbers them by process

    def _name_layers(self, top: Group) -> None:
        """Sets names of layers that stand beside the weights; Keras 3 writes them into the file itself."""

    def layer_states(self) -> list[LayerState]:
        """Keras writes none into these files, but beside them in an unpacked archive; our runs do."""
        if self._own_states is None:
            return self._states_beside()
        with self.opening():
            return states_from_json(self._load(self._own_states).tobytes())

    def _states_beside(self) -> list[LayerState]:
        folder, name = os.path.split(self.path)
        is_unpacked = name in ("model.weights.h5", "model.weights.json")
        if not is_unpacked or not tf.io.gfile.exists(os.path.join(folder, "config.json")):
            return []
        return KerasArchiveSource(folder).layer_states()

    def _open(self) -> list[Hdf5File]:
        if not self.path.lower().endswith(".json"):
            return [open_path(self.path)]
        index = read_whole(self.path, _MAX_TEXT_BYTES)
        folder = os.path.dirname(self.path)
        files = _open_shards(index, self.path, lambda shard: open_path(os.path.join(folder, shard)))
        self.format = f"Keras weights (.weights.json, {len(files)} files)"
        return files


class KerasArchiveSource(KerasWeightsSource):
    """Reads what `model.save("x.keras")` wrote."""

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
            return _open_shards(self._text(_INDEX), f"{self.path}: {_INDEX}", self._hdf5)
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
                return file.read(min(file.size_bytes, _MAX_TEXT_BYTES))
        return read_whole(os.path.join(self.path, name), _MAX_TEXT_BYTES)

    def _json(self, name: str) -> dict:
        return parsed(self._text(name), f"{self.path}: {name}") if self._has(name) else {}


def _open_shards(index: str | bytes, name: str, open_file: Callable[[str], Hdf5File]) -> list[Hdf5File]:
    """The files that the index names, once each and in its order; each must hold what the index says.

    name: of the index, for errors.
    open_file: opens a file that lies beside the index.
    """
    places = _places(index, name)
    files = {
        shard: open_file(shard) for shard in dict.fromkeys(shard for shards in places.values() for shard in shards)
    }
    held = {shard: {path for path, group in file.groups.items() if group.entries} for shard, file in files.items()}
    for group, shards in places.items():
        for shard in shards:
            if group not in held[shard]:
                raise RestoreError(
                    f"{name} says that variables of {printable(group)} are in {shard}, but that file holds none. "
                    "The files are not of one save; copy all of them again."
                )
    return list(files.values())


def _merged(files: list[Hdf5File]) -> Group:
    """One tree from those of the files; the variables of a layer may lie in several."""
    if len(files) == 1:
        return files[0].top
    top = Group("")
    for file in files:
        _merge(top, file.top, file.name)
    for group in walk(top):
        group.groups = _sorted(group.groups)
        group.entries = _sorted(group.entries)
    return top


def _places(index: str | bytes, name: str) -> dict[str, list[str]]:
    weight_map = parsed(index, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RestoreError(f"{name} lists no files (`weight_map`); it is no index of Keras weights, or was damaged.")
    places = {group: [shards] if isinstance(shards, str) else shards for group, shards in weight_map.items()}
    for shards in places.values():
        if not isinstance(shards, list) or not shards:
            raise RestoreError(f"{name} is damaged: it names no files where it should.")
        for shard in shards:
            if (
                not isinstance(shard, str)
                or not shard.isprintable()
                or shard in ("", ".", "..")
                or set(shard) & set("/\\:")
            ):
                raise RestoreError(f"{name} is refused: it names {shard!r}, which is no file beside it.")
    return places


def _sorted(parts: dict) -> dict:
    return {name: parts[name] for name in sorted(parts, key=natural_order)}


def _merge(into: Group, group: Group, file: str) -> None:
    into.keras_name = into.keras_name or group.keras_name
    for name, entry in group.entries.items():
        if name in into.entries:
            raise RestoreError(f"{file}: {entry.key} is in another of the files too. They are not of one save.")
        into.entries[name] = entry
    for name, part in group.groups.items():
        _merge(into.groups.setdefault(name, Group(part.path)), part, file)
