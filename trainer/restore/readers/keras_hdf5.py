"""Reads the old `.h5` of Keras: whole models and weights, with the names and the order of layers and variables."""

import re

from trainer.restore.errors import RestoreError
from trainer.restore.layer_state import LayerState
from trainer.restore.matching.names import join, normalize, readable_name
from trainer.restore.readers.hdf5 import Hdf5File, Hdf5Source, NamedDatasetsSource, open_path
from trainer.restore.readers.keras_tree import is_seed_name, optimizer_words, parsed, plain, variable_kind
from trainer.restore.readers.keras_weights import KerasWeightsSource
from trainer.restore.readers.vocabularies import configured_states
from trainer.restore.source import CheckpointSource, Entry, Node

_MODEL, _OPTIMIZER = "/model_weights", "/optimizer_weights"
_OWN_WEIGHTS = "top_level_model_weights"  # those that the model holds beside its layers


def open_hdf5(path: str) -> CheckpointSource:
    """The source of an `.h5` or `.hdf5` file, whichever of the three kinds it is."""
    source = NamedDatasetsSource(path)
    with source.opening():
        is_old = _is_old(source.file)
    if is_old:
        return KerasLegacySource(path, source.file)
    is_new = any(group.endswith("/vars") for group in source.file.groups)
    return KerasWeightsSource(path, source.file) if is_new else source


class KerasLegacySource(Hdf5Source):
    """Reads what Keras 1 and 2 wrote, and what `model.save("x.h5")` still writes.

    `top.layers` are the layers that hold weights; `top.own` are the model's own variables.
    file: the file at `path`, where it is open already.
    """

    format = "Keras HDF5 (legacy .h5)"

    def __init__(self, path: str, file: Hdf5File | None = None):
        super().__init__(path)
        with self.opening():
            self._file = file or open_path(path)
            self._take([self._file])
            self._entry_at = {entry.key: entry for entry in self.entries}
            self._model = "" if _names(self._file, "", "layer_names") is not None else _MODEL
            self._build()
            self._describe()

    def layer_states(self) -> list[LayerState]:
        """A whole model has them in its config, unless they were adapted."""
        config = self._file.text("", "model_config")
        return configured_states(parsed(config, f"{self.path}: model_config")) if config else []

    def _build(self) -> None:
        if not _is_old(self._file):
            raise RestoreError(f"{self.path} names no layers (`layer_names`); it is no weights file of Keras 1 or 2.")
        self.top.layers = []
        for layer in _names(self._file, self._model, "layer_names") or []:
            node = self._layer(layer)
            if node.flat:
                self.top.layers.append(node)
                self.top.children[layer] = node
        if f"{self._model}/{_OWN_WEIGHTS}" in self._file.groups:
            self._own_weights()
        self._others()

    def _layer(self, layer: str) -> Node:
        node = Node(keras_name=layer, flat=[])
        for weight, entry in self._weights(layer):
            path = _inside(layer, weight)
            entry.name = join(layer, "/".join(path))
            entry.kind = variable_kind(entry, any(is_seed_name(part) for part in path))
            node.flat.append(_put(node, path, entry))  # type: ignore[union-attr]
        return node

    def _own_weights(self) -> None:
        for weight, entry in self._weights(_OWN_WEIGHTS):
            path = _segments(weight)[-1:]  # Keras 3 puts the model's name before it
            entry.name, entry.kind = path[0], variable_kind(entry)
            self.top.own.append(_put(self.top, path, entry))

    def _weights(self, layer: str) -> list[tuple[str, Entry]]:
        group = _joined(self._model, layer)
        if group not in self._file.groups:
            raise RestoreError(f"{self.path}: the layer {layer!r} is announced, but not in the file. {_COPY_AGAIN}")
        weights = []
        for weight in _names(self._file, group, "weight_names") or []:
            entry = self._entry_at.get(_joined(group, weight))
            if entry is None:
                raise RestoreError(
                    f"{self.path}: the tensor {weight!r} of the layer {layer!r} is announced, but not in the file. "
                    f"{_COPY_AGAIN}"
                )
            weights.append((weight, entry))
        return weights

    def _others(self) -> None:
        """The optimizer's entries, and datasets that no layer announces."""
        if _OPTIMIZER in self._file.groups:
            self.top.children[_OPTIMIZER[1:]] = Node(is_optimizer=True)
        for entry in self.entries:
            if entry.key.startswith(f"{_OPTIMIZER}/"):
                path = _segments(entry.key)
                entry.name, entry.kind = "/".join(path), "optimizer"
                _put(self.top, path, entry)

    def _describe(self) -> None:
        version, backend = (self._file.text(self._model, name) for name in ("keras_version", "backend"))
        self.writer = plain(f"Keras {version}" + (f" ({backend})" if backend else "")) if version else ""
        training = self._file.text("", "training_config")
        if training:
            described = parsed(training, f"{self.path}: training_config")
            self.optimizer = optimizer_words(described.get("optimizer_config"))


_COPY_AGAIN = "Copy the checkpoint again, or take another one."


def _is_old(file: Hdf5File) -> bool:
    return any(_names(file, path, "layer_names") is not None for path in ("", _MODEL) if path in file.groups)


def _names(file: Hdf5File, path: str, attribute: str) -> list[str] | None:
    """A list of names, which Keras cuts into several attributes where it is long; None where there is none."""
    names = file.texts(path, attribute)
    if names is not None:
        return [readable_name(name) for name in names]
    parts: list[list[str]] = []
    while (part := file.texts(path, f"{attribute}{len(parts)}")) is not None:
        parts.append(part)
    return [readable_name(name) for part in parts for name in part] if parts else None


def _joined(group: str, name: str) -> str:
    """HDF5's own way to read a path: empty segments and dots count for nothing."""
    return "/".join([group, *(segment for segment in name.split("/") if segment not in ("", "."))])


def _segments(name: str) -> list[str]:
    """`dense/kernel:0` as `dense`, `kernel`; the number is that of an output of TensorFlow's graph."""
    return [normalize(segment) for segment in re.sub(r":\d+$", "", name).split("/") if segment] or [name]


def _inside(layer: str, weight: str) -> list[str]:
    """The path of a weight below its layer; the segments before the layer's name are those of models around it."""
    segments = _segments(weight)
    place = segments.index(normalize(layer)) if normalize(layer) in segments else -1
    return segments[place + 1 :] or segments


def _put(node: Node, path: list[str], entry: Entry) -> Node:
    """Hangs a variable below `node`; one that meets another at its place gets a number, in its name too."""
    for segment in path[:-1]:
        node = node.children.setdefault(segment, Node())
    last, number = path[-1], 0
    while last in node.children and node.children[last].entry is not None:
        number += 1
        last = f"{path[-1]}_{number}"
    if number:
        entry.name += f"_{number}"
    variable = node.children.setdefault(last, Node())
    variable.entry = entry
    return variable
