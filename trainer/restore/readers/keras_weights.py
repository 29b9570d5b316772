"""Reads the `.weights.h5` files of Keras 3 and late Keras 2, in one file or in shards with a `.weights.json`."""

import os
import re

import tensorflow as tf

from trainer.restore.layer_state import OWN_DATASET, LayerState, states_from_json
from trainer.restore.local_files import read_whole
from trainer.restore.readers.hdf5 import Group, Hdf5File, open_path, walk
from trainer.restore.readers.hdf5_source import Hdf5Source
from trainer.restore.readers.keras_config import plain
from trainer.restore.readers.keras_shards import merged, open_shards
from trainer.restore.readers.keras_tree import WeightsTree

MAX_TEXT_BYTES = 256 << 20


class KerasWeightsSource(Hdf5Source):
    """What `model.save_weights` wrote: no names of variables, only their order in each layer.

    file: the file at `path`, where it is open already.
    """

    format = "Keras weights (.weights.h5)"

    def __init__(self, path: str, file: Hdf5File | None = None):
        super().__init__(path)
        with self.opening():
            files = [file] if file else self._open()
            self._take(files)
            top = merged(files)
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
        from trainer.restore.readers.keras_archive import KerasArchiveSource  # which is made from this class

        return KerasArchiveSource(folder).layer_states()

    def _open(self) -> list[Hdf5File]:
        if not self.path.lower().endswith(".json"):
            return [open_path(self.path)]
        index = read_whole(self.path, MAX_TEXT_BYTES)
        folder = os.path.dirname(self.path)
        files = open_shards(index, self.path, lambda shard: open_path(os.path.join(folder, shard)))
        self.format = f"Keras weights (.weights.json, {len(files)} files)"
        return files
