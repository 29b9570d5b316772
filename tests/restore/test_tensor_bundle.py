"""What TensorFlow writes into a checkpoint is read as TensorFlow reads it."""

import os
import struct
from pathlib import Path

import bundles
import numpy as np
import pytest
import tensorflow as tf
from conftest import full
from tensorflow.core.protobuf import tensor_bundle_pb2

import trainer
from trainer.restore import open_checkpoint
from trainer.restore.readers.sorted_table import slice_key

DTYPES = [
    "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "bool", "complex64", "complex128", "float8_e5m2", "float8_e4m3fn", "int4", "uint4",
]  # fmt: skip
SHAPES = [[], [0], [3, 0, 2], [5], [2, 3, 4]]


def write(folder: Path, tensors: dict, slices: dict[str, str] | None = None) -> str:
    slices = slices or {}
    prefix = str(folder / "m-1")
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=list(tensors), shape_and_slices=[slices.get(name, "") for name in tensors],
        tensors=list(tensors.values()),
    )  # fmt: skip
    return prefix


def assert_read_as_tensorflow_reads_it(prefix: str, count: int) -> None:
    reader, source = tf.train.load_checkpoint(prefix), open_checkpoint(prefix)
    shapes = reader.get_variable_to_shape_map()
    assert {entry.key: list(entry.shape) for entry in source.entries} == shapes and len(shapes) == count
    for entry in source.entries:
        dtype = reader.get_variable_to_dtype_map()[entry.key]
        theirs = np.asarray(reader.get_tensor(entry.key), object if dtype == tf.string else None)
        ours = source.read(entry)
        assert entry.dtype == dtype
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.tolist() == theirs.tolist() if entry.dtype == tf.string else ours.tobytes() == theirs.tobytes()


def test_every_dtype_and_shape_is_read(tmp_path):
    random = np.random.default_rng(0)
    tensors = {
        f"{name}/{'x'.join(map(str, shape))}_": tf.constant(
            np.asarray(random.integers(0, 2, shape)).astype(tf.as_dtype(name).as_numpy_dtype)
        )
        for name in DTYPES
        for shape in SHAPES
    }
    assert_read_as_tensorflow_reads_it(write(tmp_path, tensors), len(DTYPES) * len(SHAPES))


def test_texts_are_read(tmp_path):
    texts = [b"", b"a", b"\0\xff" * 100, "é漢".encode(), b"x" * 70_000, b"last"]
    tensors = {"one": tf.constant(b"text"), "none": tf.zeros([0], tf.string), "some": tf.constant(texts, shape=[2, 3])}
    assert_read_as_tensorflow_reads_it(write(tmp_path, tensors), 3)


def partitioned(folder: Path, rows: int, at: list[int], name: str = "table") -> str:
    """A checkpoint of one tensor [rows, 3] in slices that begin at `at`."""
    whole = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    ends = [*at[1:], rows]
    prefix = str(folder / "m-1")
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=[name] * len(at),
        shape_and_slices=[f"{rows} 3 {begin},{end - begin}:-" for begin, end in zip(at, ends, strict=True)],
        tensors=[whole[begin:end] for begin, end in zip(at, ends, strict=True)],
    )  # fmt: skip
    return prefix


@pytest.mark.parametrize(
    ("rows", "at"), [(10, [0, 4]), (200, [0, 63, 64, 128]), full(20_000, [0, 8_191, 8_192, 16_384])]
)
def test_slices_are_put_together(rows, at, tmp_path):
    prefix = partitioned(tmp_path, rows, at, "scope/table é")
    assert_read_as_tensorflow_reads_it(prefix, 1)
    (entry,) = open_checkpoint(prefix).entries
    assert open_checkpoint(prefix).read(entry).ravel().tolist() == list(range(rows * 3))


def test_a_file_of_the_other_order_of_bytes_is_read(tmp_path):
    """As TensorFlow writes it on a mainframe."""
    number, text = np.array([1.5, -2.0, 3e30], ">f4"), b"hello"
    length = struct.pack(">I", len(text))
    check = struct.pack(">I", bundles.masked(length))
    data = number.tobytes() + bytes([len(text)]) + check + text
    Path(tmp_path / "m-1.data-00000-of-00001").write_bytes(data)
    rows = [(b"", header(endianness=1))]
    rows.append((b"number", entry_bytes([3], tf.float32, 0, 12, bundles.masked(data[:12]))))
    rows.append((b"text", entry_bytes([], tf.string, 12, len(data) - 12, bundles.masked(length + check + text))))
    bundles.write_rows(str(tmp_path / "m-1"), rows)
    assert_read_as_tensorflow_reads_it(str(tmp_path / "m-1"), 2)


def header(**fields) -> bytes:
    found = tensor_bundle_pb2.BundleHeaderProto(num_shards=1, **fields)
    found.version.producer = 1
    return found.SerializeToString()


def entry_bytes(shape, dtype, offset: int, size: int, crc32c: int) -> bytes:
    entry = tensor_bundle_pb2.BundleEntryProto(dtype=dtype.as_datatype_enum, offset=offset, size=size, crc32c=crc32c)
    for length in shape:
        entry.shape.dim.add().size = length
    return entry.SerializeToString()


def packed(block: bytes) -> bytes:
    """By Snappy: what stood in the block before is copied."""
    out, at, seen = bundles.varint(len(block)), 0, {}
    while at < len(block):
        piece = block[at : at + 4]
        back = at - seen.get(piece, at)
        seen[piece] = at
        length = len(os.path.commonprefix([block[at : at + 60], (block[at - back : at] * 60)[:60]])) if back else 0
        if length > 11 or (length >= 4 and back >= 2048):
            out += bytes([(length - 1) << 2 | 2]) + struct.pack("<H", back)
        elif length >= 4:
            out += bytes([(length - 4) << 2 | (back >> 8) << 5 | 1, back & 0xFF])
        else:
            length, out = 1, out + bytes([0, block[at]])
        at += length
    return out


def test_a_packed_table_is_read(tmp_path):
    prefix = write(tmp_path, {f"layer_{index}/kernel": tf.fill([2, 3], float(index)) for index in range(40)})
    rows = bundles.rows_of(prefix)
    plain = bundles.block_of(rows)
    bundles.write_rows(prefix, rows, lambda rows: packed(bundles.block_of(rows)), packing=1)
    assert len(packed(plain)) < 0.8 * len(plain)
    assert_read_as_tensorflow_reads_it(prefix, 40)


def test_a_table_in_several_blocks_is_read(tmp_path):
    names = [f"some/layer/of/a/long/name/{index:05}/kernel" for index in range(3_000)]
    prefix = write(tmp_path, {name: tf.constant(0.0) for name in names})
    assert Path(f"{prefix}.index").stat().st_size > 20_000
    assert sorted(entry.key for entry in open_checkpoint(prefix).entries) == names


def test_slices_that_overlap_are_refused(tmp_path):
    """Of right sizes in all, one twice and one row never."""
    prefix = partitioned(tmp_path, 10, [0, 4])

    def change(entry):
        entry.slices[1].extent[0].start, entry.slices[1].extent[0].length = 3, 6

    bundles.change_entry(prefix, b"table", change)
    rows = bundles.rows_of(prefix)
    moved = {slice_key(b"table", [(4, 6), (0, -1)]): slice_key(b"table", [(3, 6), (0, -1)])}
    bundles.write_rows(prefix, sorted((moved.get(key, key), value) for key, value in rows))
    (entry,) = open_checkpoint(prefix).entries
    with pytest.raises(trainer.RestoreError, match="its slices overlap"):
        open_checkpoint(prefix).read(entry)
