"""Reads weights from a `.safetensors` file, or from several through their `.safetensors.index.json`."""

import dataclasses
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError, safe_open

from trainer.restore.errors import RestoreError, first_line
from trainer.restore.local_files import local_copy, read_whole
from trainer.restore.matching.names import readable_name
from trainer.restore.name_tree import is_named_weight
from trainer.restore.readers.flat_names import all_there, bytes_of, tree_of_flat_names
from trainer.restore.source import CheckpointSource, Entry

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_MAX_INDEX_BYTES = 1 << 30
# What the libraries put down as `format` in `__metadata__`; three of them write a matrix as [in, out].
_KERAS_LAYOUT = ("tf", "flax", "jax")
_WRITERS = {"pt": "PyTorch", "tf": "TensorFlow", "np": "NumPy", "flax": "Flax", "jax": "JAX", "mlx": "MLX"}


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are: in a local file, from a byte on."""

    file: str
    start: int


class SafetensorsSource(CheckpointSource):
    """Weights by name. The package tests the header; the bytes are then read here, without it.

    The package itself cannot give float8 to NumPy, and it maps the file into memory, where a file
    that shrinks meanwhile ends the process.
    """

    format = "safetensors"
    damage = (*CheckpointSource.damage, SafetensorError)

    def __init__(self, path: str):
        super().__init__(path)
        self._places: dict[str, _Place] = {}
        self._formats: dict[str, str] = {}  # of a tensor's file, where its `__metadata__` tells
        try:
            if path.lower().endswith(".index.json"):
                self._open_index()
            else:
                self._open_file(path)
        except RestoreError:
            raise
        except self.damage as error:
            raise self.cannot_be_read(error) from error
        self.top = tree_of_flat_names(self.entries)
        for entry in self.entries:
            written_as = self._formats[entry.key]
            if written_as in ("pt", *_KERAS_LAYOUT):
                entry.is_torch = written_as == "pt" and is_named_weight(entry.label)

    def _open_index(self) -> None:
        weight_map = _weight_map(self.path)
        shards = sorted(set(weight_map.values()))
        # Not by os.path: `ram://` has a folder of no name.
        folder = self.path.removesuffix(os.path.basename(self.path))
        all_there(self.path, shards, [shard for shard in shards if tf.io.gfile.exists(folder + shard)])
        for shard in shards:
            try:
                held = self._open_file(folder + shard)
            except self.damage as error:
                raise ValueError(f"{shard}: {first_line(error)}") from error
            listed = (name for name, file in weight_map.items() if file == shard)
            # TensorFlow models of Hugging Face have their own name before each in the index, and not in the files.
            absent = next((name for name in listed if not held & {name, name.partition("/")[2]}), None)
            if absent is not None:
                raise ValueError(f"it says that {absent} is in {shard}, which does not hold it")

    def _open_file(self, path: str) -> set[str]:
        """Adds the entries of one file; returns their keys."""
        near = local_copy(path)
        header, data_start = _read_header(near)
        about = header.pop("__metadata__", None) or {}
        self.writer = self.writer or _writer(about)
        for key, item in header.items():
            if key in self._places:
                raise ValueError(f"the tensor {key} is there twice")
            begin, end = _offsets(key, item)
            entry = Entry(key, key, tuple(item["shape"]), self._dtype(key, item["dtype"]))
            if bytes_of(key, entry.shape, entry.dtype.size) != end - begin:
                raise ValueError(f"the tensor {key} does not fill the bytes that are set aside for it")
            self._places[key] = _Place(near, data_start + begin)
            self._formats[key] = about.get("format", "")
            self.entries.append(entry)
        return set(header)

    def _dtype(self, key: str, name: str) -> tf.DType:
        try:
            return tf.as_dtype(_DTYPES[name])
        except (KeyError, TypeError) as error:
            raise RestoreError(
                f"{self.path}: the tensor {key} is of dtype {name}, which no variable of TensorFlow can have. "
                "Write the file again with this tensor as float32 or bfloat16."
            ) from error

    def damaged(self, entry: Entry, why: str) -> RestoreError:
        file = os.path.basename(self._places[entry.key].file)
        return super().damaged(entry, why if self.path.endswith(file) else f"{file}: {why}")

    def _load(self, entry: Entry) -> np.ndarray:
        place = self._places[entry.key]
        raw = np.fromfile(place.file, np.uint8, count=entry.size_bytes, offset=place.start)
        if raw.nbytes != entry.size_bytes:
            raise EOFError("the file ends before it does")
        if entry.dtype == tf.bool and raw.max(initial=0) > 1:
            raise ValueError("it is of dtype bool, and holds more than zeros and ones")
        return raw.view(entry.dtype.as_numpy_dtype).reshape(entry.shape)


def _weight_map(path: str) -> dict[str, str]:
    """{tensor: name of its file} of an index; raises `ValueError` where it is not that."""
    text = read_whole(path, _MAX_INDEX_BYTES).decode()
    index = json.loads(text, object_pairs_hook=_without_duplicates)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("it has no `weight_map` of tensor names to file names")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise ValueError(f"its `weight_map` gives no file name for {name}")
        if not shard or not shard.isprintable() or "\\" in shard or "://" in shard or "" in shard.split("/"):
            raise ValueError(f"{shard!r}, the file it gives for {name}, is no file name")
        if ".." in shard.split("/"):
            raise ValueError(f"{shard!r}, the file it gives for {name}, is outside of its folder")
    return weight_map


def _read_header(near: str) -> tuple[dict[str, Any], int]:
    """The header's JSON object, and where the tensors' bytes start."""
    # Tests that offsets have neither gaps nor overlaps and end with the file, and that the header is in the file.
    with safe_open(near, framework="np"):
        pass
    with open(near, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # The package takes the last of two tensors of one name.
        return json.loads(file.read(length).decode(), object_pairs_hook=_without_duplicates), 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The names are fit to be shown from here on."""
    found: dict[str, Any] = {}
    for name, value in ((readable_name(name), value) for name, value in pairs):
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = value
    return found


def _offsets(key: str, item: Any) -> tuple[int, int]:
    # The package takes a list of the three, too, which the format does not have.
    if not isinstance(item, dict):
        raise ValueError(f"the tensor {key} is described by {type(item).__name__} instead of by dtype, shape, offsets")
    begin, end = item["data_offsets"]
    return begin, end


def _writer(about: dict[str, str]) -> str:
    """Who wrote the file, of its `__metadata__`, which may hold anything."""
    text = about.get("writer") or _WRITERS.get(about.get("format", ""), "")
    return "".join(letter for letter in text if letter.isprintable())[:80]
