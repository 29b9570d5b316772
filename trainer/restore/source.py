"""Opens a checkpoint of any format as a tree of the writer's objects, each entry's kind, and tensors on demand."""

import abc
import dataclasses
import importlib
import re
from collections.abc import Iterator

import google_crc32c
import numpy as np
import tensorflow as tf

from trainer.output.printable import printable
from trainer.restore.errors import RestoreError, first_line
from trainer.restore.layer_state import LayerState
from trainer.restore.report import about_lines

KINDS = ("weight", "optimizer", "counter", "other")
# Tensors up to this size are read side by side. Larger ones would fill the memory: each is read alone, in two halves.
SIDE_BY_SIDE_BYTES = 32 << 20
_PIECE_BYTES = 1 << 20  # a tensor is checked in pieces that stay in the processor's cache
# By the ends that `find.WEIGHT_FILES` lists, in any case; whatever ends otherwise is a TensorFlow prefix. By name,
# and imported when a file needs it: the libraries behind them take longer to import than a small model to train.
_READERS = [
    (".weights.json", "keras_weights.KerasWeightsSource"),
    (".weights.h5", "keras_hdf5.open_hdf5"),
    (".keras", "keras_weights.KerasArchiveSource"),
    (".h5", "keras_hdf5.open_hdf5"),
    (".hdf5", "keras_hdf5.open_hdf5"),
    (".safetensors", "safetensors_files.SafetensorsSource"),
    (".safetensors.index.json", "safetensors_files.SafetensorsSource"),
    (".npz", "npz.NpzSource"),
]
_PREFIX_READER = "tensorflow_checkpoint.TensorFlowSource"


@dataclasses.dataclass(eq=False)
class Node:
    """One object of the writer's program: a model, a layer, a list, a variable.

    children: normalised attribute name, index or layer name -> object.
    entry: set on variables.
    spelled: the names as the file has them -> those in `children`.
    is_plain: whether it stands in a file of names alone, of which it is unknown what they are names of.
    keras_name: the layer's `name`, where the format records it.
    layers: the layers of a model in their order, where the format keeps that order.
    by_class: those known by their class only, `dense`, `dense_1`, as Keras' `.weights.h5` files call them.
    own: a layer's own variables in the order it made them, where the format records no names for them.
    flat: all variables of a layer, those of its parts too, in the order of Keras' old `.h5` files.
    """

    children: dict[str, "Node"] = dataclasses.field(default_factory=dict)
    entry: "Entry | None" = None
    is_optimizer: bool = False
    keras_name: str = ""
    layers: list["Node"] | None = None
    by_class: dict[str, "Node"] = dataclasses.field(default_factory=dict)
    own: list["Node"] = dataclasses.field(default_factory=list)
    flat: list["Node"] | None = None
    spelled: dict[str, str] = dataclasses.field(default_factory=dict)
    is_plain: bool = False

    def in_order(self) -> list["Node"]:
        """The layers of a model in their order, as Keras 3 or Keras 2 wrote them; none for what is no such model."""
        if self.layers is not None:
            return self.layers
        node = self.children.get("functional", self)
        operations = node.children.get("operations") or node.children.get("layers")
        if operations is not None:
            numbered = {int(name): child for name, child in operations.children.items() if name.isdecimal()}
        else:
            numbered = {
                int(name.rsplit("-", 1)[-1]): child
                for name, child in node.children.items()
                if re.fullmatch(r"layer_with_weights-\d+", name)
            }
        return [numbered[index] for index in sorted(numbered)]

    def parts(self) -> dict[str, "Node"]:
        """Everything directly in it, under a name that a person can write in a rule."""
        parts = dict(self.children)
        there = {id(child) for child in parts.values()}
        numbered = {str(index): variable for index, variable in enumerate(self.own)}
        for name, child in (*self.by_class.items(), *numbered.items()):
            if id(child) not in there:
                parts.setdefault(name, child)
        return parts


@dataclasses.dataclass(eq=False)
class Entry:
    """One tensor of the file.

    key: what the file calls it.
    name: normalised path from the file's top; the key may be another one, by way of an optimizer.
    kind: `weight`, `optimizer`, `counter` or `other`.
    label: the variable's full name in the writer's program, `dense/kernel`, where the file has it.
    is_torch: whether PyTorch wrote it as a layer's `weight`: a matrix is [out, in], Keras' kernels are [in, out].
    """

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: tf.DType
    kind: str = "other"
    label: str = ""
    is_torch: bool = False

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.size


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """An optimizer's state of one variable.

    name: the attribute that lists it in Keras, or the slot's name in Keras 2's legacy optimizers.
    variable: the weight that it belongs to, as the file itself says; None where it does not, and `why` not.
    """

    name: str
    entry: Entry
    variable: Entry | None
    why: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class SavedOptimizer:
    """An optimizer whose state is in a file that tells which object is which.

    place: its path.
    called: its name in the writer's program, "" where nothing tells.
    style: `Keras 3`, `Keras 2` or `Keras 2 legacy`, whose slots go by other names.
    parts: names of its attributes, empty lists too.
    steps, rate: its step count, and its rate if that was constant.
    """

    place: str
    called: str
    style: str
    parts: frozenset[str]
    slots: list[Slot]
    steps: Entry | None
    rate: Entry | None


class CheckpointSource(abc.ABC):
    """An open checkpoint. `top` is its tree; `read` and `pieces` are the only ways to a tensor, and are counted.

    Opening reads names, shapes and dtypes and no tensor. A reader of a format derives from this,
    fills `top` and `entries`, and gives `_load`.

    format: its name for a person.
    checksums: what guards the bytes, "" where nothing does.
    writer: the library that wrote it and its version, as far as the file tells.
    threads: how many may read at once.
    step: the writer's step, where it stands outside of the optimizer's state.
    optimizer: class and settings of the optimizer whose state is in the file, as far as it tells.
    optimizers: those whose slots the file lists by name; empty in formats that only number them.
    keys_read: keys of all tensors that were touched.
    bytes_read: sum over `read`.
    """

    format = ""
    checksums = ""
    threads = 1
    # What the reader's library raises for a file that is not as it was written.
    damage: tuple[type[Exception], ...] = (
        OSError, EOFError, ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError, MemoryError,
        tf.errors.OpError,
    )  # fmt: skip

    def __init__(self, path: str):
        self.path = path
        self.top = Node()
        self.entries: list[Entry] = []
        self.writer = ""
        self.step: int | None = None
        self.optimizer = ""
        self.optimizers: list[SavedOptimizer] = []
        self.keys_read: set[str] = set()
        self.bytes_read = 0

    @abc.abstractmethod
    def _load(self, entry: Entry) -> np.ndarray:
        """The tensor of one entry, of its shape and dtype; raises one of `damage`, or `RestoreError`."""

    def read(self, entry: Entry) -> np.ndarray:
        """The tensor of one entry, the caller's to keep. Raises `RestoreError` if it is damaged."""
        value = self._guarded(entry, lambda: self._load(entry))
        self._count(entry)
        return value

    def tensor(self, entry: Entry) -> tf.Tensor:
        """The same as a tensor in the host's memory."""
        return tf.convert_to_tensor(self.read(entry))

    def pieces(self, entry: Entry) -> Iterator[np.ndarray]:
        """The tensor as flat arrays one after the other, each good until the next."""
        value = self._guarded(entry, lambda: self._load(entry)).reshape(-1)
        self.keys_read.add(entry.key)
        step = max(1, _PIECE_BYTES // max(1, value.itemsize))
        for start in range(0, value.size, step):
            yield value[start : start + step]

    def crc32c(self, entry: Entry) -> int | None:
        """The CRC-32C of the tensor's bytes, if the file has one."""
        return None

    def computed_crc32c(self, entry: Entry) -> int:
        """The CRC-32C of a tensor of numbers, all of whose bytes are read."""
        checksum = 0
        for piece in self.pieces(entry):
            checksum = google_crc32c.extend(checksum, np.ascontiguousarray(piece).view(np.uint8))
        return checksum

    def layer_states(self) -> list[LayerState]:
        """Vocabularies and the like, as far as the file has them; raises `RestoreError` for damaged ones."""
        return []

    def check_file(self) -> None:  # noqa: B027  most formats have nothing to do here
        """Tests the checksums that guard the file as a whole; raises `RestoreError`."""

    def close(self) -> None:  # noqa: B027
        """Gives back open files; the source can still be read afterwards."""

    def of_kind(self, kind: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == kind]

    def _count(self, entry: Entry) -> None:
        self.keys_read.add(entry.key)
        self.bytes_read += entry.size_bytes

    def _guarded(self, entry: Entry, load) -> np.ndarray:
        try:
            value = load()
        except RestoreError:
            raise
        except self.damage as error:
            raise self.damaged(entry, first_line(error)) from error
        if value.shape != entry.shape or value.dtype != entry.dtype.as_numpy_dtype:
            raise self.damaged(entry, f"it is {value.dtype.name}{list(value.shape)} where it was announced otherwise")
        return value

    def damaged(self, entry: Entry, why: str) -> RestoreError:
        return RestoreError(
            f"{self.path}: the tensor {entry.key} is damaged or not there. "
            f"Copy the checkpoint again, or take an older one. ({why})"
        )

    def cannot_be_read(self, error: BaseException) -> RestoreError:
        """For a file whose table of contents is broken."""
        return RestoreError(
            f"The checkpoint {self.path} cannot be read; its index is damaged or of something else: {first_line(error)}"
        )


def open_checkpoint(path: str) -> CheckpointSource:
    """Opens what `find_checkpoint` gave; raises `RestoreError` if it is damaged."""
    reader = next((reader for end, reader in _READERS if path.lower().endswith(end)), _PREFIX_READER)
    if tf.io.gfile.exists(path + ".index"):  # `find_checkpoint` takes it for a prefix, too, whatever its end
        reader = _PREFIX_READER
    module, _, name = reader.partition(".")
    return getattr(importlib.import_module(f"trainer.restore.readers.{module}"), name)(path)


def is_copy_of(source: CheckpointSource, one: Entry, other: Entry) -> bool:
    """Whether two entries have one shape, one dtype and the same bytes, by their CRC-32C."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return _checksum(source, one) == _checksum(source, other)


def _checksum(source: CheckpointSource, entry: Entry) -> int:
    """The checksum of the entry's bytes; only a file that has none of it is read."""
    written = source.crc32c(entry)
    return written if written is not None else source.computed_crc32c(entry)


def describe_source(source: CheckpointSource) -> str:
    """Describes a checkpoint for a person: every weight by name, the other kinds by number and size."""
    lines = [f"{printable(source.path)}  ({source.format})", *about_lines(source)]
    for kind in KINDS:
        entries = source.of_kind(kind)
        size_bytes = sum(entry.size_bytes for entry in entries)
        lines.append(f"{kind:<10} {len(entries):>5} entries  {size_bytes:>13,} bytes")
        if kind == "weight":
            lines += [f"  {entry.name}  {entry.dtype.name}{list(entry.shape)}" for entry in entries]
    return "\n".join(lines)
