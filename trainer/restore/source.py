"""Reads a TensorFlow checkpoint: its object graph as a tree, each entry's kind, and tensors on demand."""

import dataclasses
import re

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import trackable_object_graph_pb2

from trainer.restore.names import join, normalize, normalize_siblings
from trainer.restore.report import RestoreError

_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# What TensorFlow raises for a file that is not as it was written, from the index's bytes up to the graph's numbers.
_DAMAGE = (tf.errors.OpError, DecodeError, ValueError, TypeError, RuntimeError, IndexError, MemoryError)


@dataclasses.dataclass(eq=False)
class Node:
    """One object of the writer's program: a model, a layer, a list, a variable.

    children: normalised attribute name (or index) -> object.  entry: set on variables.
    """

    children: dict[str, "Node"] = dataclasses.field(default_factory=dict)
    entry: "Entry | None" = None
    is_optimizer: bool = False


@dataclasses.dataclass(eq=False)
class Entry:
    """One tensor of the file.

    name: normalised path from the file's top; the key may be another one, by way of an optimizer.
    kind: `weight`, `optimizer`, `counter` or `other`.
    """

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: tf.DType
    kind: str = "other"


class CheckpointSource:
    """An open checkpoint. `top` is its tree; `read` is the only way to a tensor, and is counted."""

    def __init__(self, prefix: str):
        self.path = prefix
        try:
            self._reader = tf.train.load_checkpoint(prefix)
            self._shapes = self._reader.get_variable_to_shape_map()
            self._dtypes = self._reader.get_variable_to_dtype_map()
            has_graph = _GRAPH_KEY in self._shapes
            self.top, slots = self._read_graph() if has_graph else (self._tree_of_names(), [])
        except RestoreError:
            raise
        except _DAMAGE as error:
            raise RestoreError(
                f"The checkpoint {prefix} cannot be read; its index is damaged or of something else: "
                f"{_first_line(error)}"
            ) from error
        self.format = "TensorFlow object checkpoint" if has_graph else "TensorFlow name-based checkpoint"
        self.entries: list[Entry] = []
        self.keys_read: list[str] = []
        self.bytes_read = 0
        self._classify(slots)

    def read(self, entry: Entry) -> np.ndarray:
        """The tensor of one entry, its checksum tested. Raises `RestoreError` if it is damaged."""
        try:
            value = self._reader.get_tensor(entry.key)
        except _DAMAGE as error:
            raise RestoreError(
                f"{self.path}: the tensor {entry.key} is damaged or not there; no variable was changed. "
                f"Copy the checkpoint again, or take an older one. ({_first_line(error)})"
            ) from error
        self.keys_read.append(entry.key)
        self.bytes_read += value.nbytes
        return value

    def of_kind(self, kind: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == kind]

    def _read_graph(self):
        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        graph.ParseFromString(self._reader.get_tensor(_GRAPH_KEY))
        nodes = [Node() for _ in graph.nodes]
        slots = []
        for node, proto in zip(nodes, graph.nodes, strict=True):
            spelled = normalize_siblings(child.local_name for child in proto.children)
            node.children = {spelled[child.local_name]: nodes[child.node_id] for child in proto.children}
            slots += [nodes[slot.slot_variable_node_id] for slot in proto.slot_variables]
            for attribute in proto.attributes:
                if attribute.name == "VARIABLE_VALUE":
                    node.entry = self._entry(attribute.checkpoint_key)
        for node, proto in zip(nodes, graph.nodes, strict=True):
            node.is_optimizer = bool(proto.slot_variables) or _looks_like_optimizer(node.children)
        return nodes[0], slots

    def _tree_of_names(self) -> Node:
        top = Node()
        for key in sorted(self._shapes):
            node = top
            for segment in key.split("/"):
                node = node.children.setdefault(normalize(segment), Node())
            node.entry = self._entry(key)
        return top

    def _entry(self, key: str) -> Entry:
        if key not in self._shapes:
            raise RestoreError(f"{self.path}: the object graph names {key}, but the file holds no such tensor.")
        name = "/".join(normalize(part) for part in key.removesuffix(_SUFFIX).split("/"))
        return Entry(key, name, tuple(self._shapes[key]), tf.as_dtype(self._dtypes[key]))

    def _classify(self, slots: list[Node]) -> None:
        """Weights are what is reached without passing an optimizer, or as an optimizer's own variables list.

        The second case matters: TensorFlow names a tensor by its *shortest* path, so that a model's
        weights may stand in the file as `optimizer/_trainable_variables/N` only.
        """
        slot_ids = {id(node) for node in slots}
        seen: set[int] = set()
        optimizers: list[tuple[str, Node]] = []

        def walk(top: Node, path: str, kind: str) -> None:
            queue = [(top, path, kind)]
            for node, path, kind in queue:
                if id(node) in seen or id(node) in slot_ids:
                    continue
                if node.is_optimizer and kind != "optimizer":
                    optimizers.append((path, node))
                    continue
                seen.add(id(node))
                if node.entry:
                    node.entry.name = path
                    node.entry.kind = _kind(node.entry, path, kind)
                    self.entries.append(node.entry)
                for name, child in node.children.items():
                    queue.append((child, join(path, name), "other" if _is_bookkeeping(name) else kind))

        walk(self.top, "", "weight")
        for path, optimizer in _with_inner(optimizers):
            variables = optimizer.children.get("trainable_variables")
            if variables is not None:
                walk(variables, join(path, "trainable_variables"), "weight")
        for path, optimizer in optimizers:
            walk(optimizer, path, "optimizer")
        for node in slots:
            if node.entry:
                node.entry.kind = "optimizer"
                self.entries.append(node.entry)
        if not optimizers:
            for entry in self.entries:  # a name-based file has no objects to tell an optimizer by
                if re.search(r"(^|/)(Adam(_1)?|Momentum|RMSProp(_1)?|beta[12]_power)$", entry.name):
                    entry.kind = "optimizer"


def open_checkpoint(prefix: str) -> CheckpointSource:
    """Opens the checkpoint at a prefix, as `find_checkpoint` gives it; raises `RestoreError` if it is damaged."""
    return CheckpointSource(prefix)


def describe_source(source: CheckpointSource) -> str:
    """What is in a checkpoint, for a person: every weight by name, the other kinds by number and size."""
    lines = [f"{source.path}  ({source.format})"]
    for kind in ("weight", "optimizer", "counter", "other"):
        entries = source.of_kind(kind)
        size_bytes = sum(int(np.prod(entry.shape)) * entry.dtype.size for entry in entries)
        lines.append(f"{kind:<10} {len(entries):>5} entries  {size_bytes:>13,} bytes")
        if kind == "weight":
            lines += [f"  {entry.name}  {entry.dtype.name}{list(entry.shape)}" for entry in entries]
    return "\n".join(lines)


def _with_inner(optimizers: list[tuple[str, Node]]) -> list[tuple[str, Node]]:
    """The optimizers, each followed by the one that it wraps (loss scaling, averaging)."""
    found = list(optimizers)
    for path, optimizer in found:
        found += [
            (join(path, name), child)
            for name, child in optimizer.children.items()
            if child.is_optimizer and all(child is not known for _, known in found)
        ]
    return found


def _looks_like_optimizer(children: dict[str, Node]) -> bool:
    """Whether an object has a step counter and a rate, and nothing but variables and flat lists of them.

    The names alone would take a user's Checkpoint(model=..., iter=..., learning_rate=...) for one.
    """
    names = set(children)
    if names & {"inner_optimizer", "base_optimizer"}:
        return True
    return bool(
        names & {"iterations", "iter"}
        and names & {"learning_rate", "variables", "current_learning_rate", "decay"}
        # The lists go by number; tf_keras keeps the parts of a loss scale by name.
        and all(
            name.isdigit() and not part.children
            for key, child in children.items()
            if key != "loss_scale"
            for name, part in child.children.items()
        )
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _is_bookkeeping(name: str) -> bool:
    return name in (
        "loss_tracker",
        "compile_metrics",
        "metrics",
        "keras_api",
        "seed_generators",
        "seed_generator",
    )


def _kind(entry: Entry, path: str, kind: str) -> str:
    if kind != "weight":
        return kind
    if entry.name.endswith("seed_generator_state"):
        return "other"
    counts = not entry.shape and entry.dtype.is_integer
    return "counter" if counts or path.split("/")[-1] in ("save_counter", "global_step") else "weight"
