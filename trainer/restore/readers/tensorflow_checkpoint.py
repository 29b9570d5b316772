"""Reads TensorFlow's checkpoints: those with an object graph, of any writer, and those of TF1 with names."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import trackable_object_graph_pb2

from trainer.restore.errors import RestoreError, first_line
from trainer.restore.layer_state import LayerState
from trainer.restore.matching.names import normalize, normalize_siblings
from trainer.restore.name_tree import tree_of_names
from trainer.restore.readers.byte_reader import ByteReader, is_worthwhile, unfilled_tensor
from trainer.restore.readers.object_graph import classify, name_layers, parse_graph
from trainer.restore.readers.saved_optimizers import (
    looks_like_optimizer,
    optimizer_by_slots,
    plain_optimizers,
    saved_optimizers,
)
from trainer.restore.readers.tensor_bundle import Place, has_numbers, load_value, read_bundle
from trainer.restore.readers.vocabularies import checkpoint_states
from trainer.restore.source import CheckpointSource, Entry, Node

_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


class TensorFlowSource(CheckpointSource):
    """A checkpoint at a prefix (`.../ckpt-7`), whose `.index` and `.data-*` files are all there."""

    checksums = "CRC-32C of every tensor"
    damage = (*CheckpointSource.damage, DecodeError)
    threads = 2  # one copies out of the page cache while the other tests

    def __init__(self, path: str):
        super().__init__(path)
        self._bytes = ByteReader()
        try:
            bundle = read_bundle(path)
            self._stored, self._byte_order = bundle.tensors, bundle.byte_order
            has_graph = _GRAPH_KEY in self._stored
            slots: list[Node] = []
            if has_graph:
                self.top, slots = self._read_graph()
            else:
                self.top = tree_of_names(self._entry(key) for key in self._stored)
        except RestoreError:
            raise
        except self.damage as error:
            raise self.cannot_be_read(error) from error
        self.format = "TensorFlow object checkpoint" if has_graph else "TensorFlow name-based checkpoint"
        self.entries = classify(self, slots)
        self._tell_step()

    def pieces(self, entry: Entry) -> Iterator[np.ndarray]:
        place = self._place(entry)
        if place is None:
            yield from super().pieces(entry)
            return
        self.keys_read.add(entry.key)
        try:
            for piece in self._bytes.pieces(place.file, place.offset, place.size):
                yield piece.view(entry.dtype.as_numpy_dtype)
        except self.damage as error:
            raise self.damaged(entry, first_line(error)) from error

    def tensor(self, entry: Entry) -> tf.Tensor:
        place = self._place(entry)
        if place is None or not is_worthwhile(place.size, entry.dtype):
            return super().tensor(entry)
        tensor, memory = unfilled_tensor(entry.shape, entry.dtype)
        try:
            self._bytes.fill(place.file, place.offset, memory)
        except self.damage as error:
            raise self.damaged(entry, first_line(error)) from error
        self._count(entry)
        return tensor

    def crc32c(self, entry: Entry) -> int | None:
        place = self._place(entry)
        return place.crc32c if place else None

    def layer_states(self) -> list[LayerState]:
        try:
            return checkpoint_states(self.path, self._stored, self._tested)
        except self.damage as error:
            raise self.cannot_be_read(error) from error

    def close(self) -> None:
        self._bytes.close()

    def _place(self, entry: Entry) -> Place | None:
        """Where the tensor's bytes lie as they lie in memory, if they do."""
        stored = self._stored[entry.key]
        return stored.place if self._byte_order == "<" and has_numbers(stored.dtype) else None

    def _load(self, entry: Entry) -> np.ndarray:
        place = self._place(entry)
        if place is None:
            return self._tested(entry.key)
        content = self._bytes.read(place.file, place.offset, place.size)
        return content.view(entry.dtype.as_numpy_dtype).reshape(entry.shape)

    def _tested(self, key: str) -> np.ndarray:
        """The tensor, its checksum compared already."""
        return load_value(self._stored[key], self._byte_order, self._bytes)

    def _read_graph(self) -> tuple[Node, list[Node]]:
        graph = parse_graph(self._tested(_GRAPH_KEY).item())
        nodes = [Node() for _ in graph.nodes]
        slots = []
        for node, proto in zip(nodes, graph.nodes, strict=True):
            spelled = node.spelled = normalize_siblings(child.local_name for child in proto.children)
            node.children = {spelled[child.local_name]: nodes[child.node_id] for child in proto.children}
            slots += [nodes[slot.slot_variable_node_id] for slot in proto.slot_variables]
            for attribute in proto.attributes:
                if attribute.name == "VARIABLE_VALUE":
                    node.entry = self._entry(attribute.checkpoint_key)
                    node.entry.label = attribute.full_name
        for node, proto in zip(nodes, graph.nodes, strict=True):
            node.is_optimizer = bool(proto.slot_variables) or looks_like_optimizer(node.children)
            if node.is_optimizer:
                slot_names = sorted({slot.slot_name for slot in proto.slot_variables})
                self.optimizer = self.optimizer or optimizer_by_slots(node, slot_names)
        self.optimizers = saved_optimizers(graph, nodes)
        for node in plain_optimizers(nodes, slots):
            node.is_optimizer = True
            self.optimizer = self.optimizer or optimizer_by_slots(node, [])
        name_layers(nodes)
        self.writer = _writer(graph)
        return nodes[0], slots

    def _entry(self, key: str) -> Entry:
        if key not in self._stored:
            raise RestoreError(f"{self.path}: the object graph names {key}, but the file holds no such tensor.")
        name = "/".join(normalize(part) for part in key.removesuffix(_SUFFIX).split("/"))
        return Entry(key, name, self._stored[key].shape, self._stored[key].dtype)

    def _tell_step(self) -> None:
        steps = [entry for entry in self.of_kind("counter") if entry.name.split("/")[-1] in ("step", "global_step")]
        if steps and not steps[0].shape and steps[0].dtype.is_integer:
            self.step = int(self._guarded(steps[0], lambda: self._tested(steps[0].key)))


def _writer(graph: trackable_object_graph_pb2.TrackableObjectGraph) -> str:
    """By the spellings that only one of them uses; no version is written into these files."""
    names = {child.local_name for node in graph.nodes for child in node.children}
    if names & {"_operations", "_kernel", "_trainable_variables_indices", "_seed_generators"}:
        return "Keras 3"
    if "keras_api" in names or any(name.startswith("layer_with_weights-") for name in names):
        return "Keras 2"
    return ""
