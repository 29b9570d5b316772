"""Takes the `.index` of a TensorFlow checkpoint apart and writes it again, right checksums and all."""

import struct
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import tensorflow as tf
from tensorflow.core.protobuf import tensor_bundle_pb2, trackable_object_graph_pb2

from trainer.restore.readers.sorted_table import read_table

GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"
Rows = list[tuple[bytes, bytes]]


def rows_of(prefix: str) -> Rows:
    return list(read_table(Path(f"{prefix}.index").read_bytes()))


def write_rows(prefix: str, rows: Rows, block: Callable[[Rows], bytes] | None = None, packing: int = 0) -> None:
    """block: makes the bytes of the one block of rows.  packing: the number that stands for Snappy or none."""
    content = (block or block_of)(rows)
    index = bytearray(_closed(content, packing))
    meta_at = len(index)
    meta = block_of([])
    index += _closed(meta)
    top_at = len(index)
    top = block_of([(rows[-1][0] if rows else b"", varint(0) + varint(len(content)))])
    index += _closed(top)
    footer = varint(meta_at) + varint(len(meta)) + varint(top_at) + varint(len(top))
    index += footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    Path(f"{prefix}.index").write_bytes(index)


def block_of(rows: Rows, restarts: list[int] | None = None, shared: int | None = None) -> bytes:
    """restarts: in place of the one at 0.  shared: what the second row says that it shares with the first."""
    content = b""
    for number, (key, value) in enumerate(rows):
        claimed = shared if shared is not None and number == 1 else 0
        content += varint(claimed) + varint(len(key)) + varint(len(value)) + key + value
    places = [0] if restarts is None else restarts
    return content + struct.pack(f"<{len(places) + 1}I", *places, len(places))


def varint(number: int) -> bytes:
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def masked(content: bytes) -> int:
    crc = google_crc32c.value(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def change_entry(prefix: str, name: bytes, change: Callable[[tensor_bundle_pb2.BundleEntryProto], None]) -> None:
    """Changes one row of the index, b"" being the header."""
    rows = []
    for key, value in rows_of(prefix):
        if key == name:
            kind = tensor_bundle_pb2.BundleEntryProto if key else tensor_bundle_pb2.BundleHeaderProto
            entry = kind.FromString(value)
            change(entry)
            value = entry.SerializeToString()
        rows.append((key, value))
    write_rows(prefix, rows)


def graph_of(prefix: str) -> trackable_object_graph_pb2.TrackableObjectGraph:
    content = tf.train.load_checkpoint(prefix).get_tensor(GRAPH.decode())
    return trackable_object_graph_pb2.TrackableObjectGraph.FromString(content)


def write_graph(prefix: str, content: bytes) -> None:
    """Puts another object graph at the end of the data, and its place into the index."""
    data = Path(f"{prefix}.data-00000-of-00001")
    length = struct.pack("<I", len(content))
    check = struct.pack("<I", masked(length))
    stored = varint(len(content)) + check + content

    def change(entry):
        entry.offset, entry.size, entry.crc32c = data.stat().st_size, len(stored), masked(length + check + content)

    change_entry(prefix, GRAPH, change)
    with open(data, "ab") as file:
        file.write(stored)


def _closed(block: bytes, packing: int = 0) -> bytes:
    return block + bytes([packing]) + struct.pack("<I", masked(block + bytes([packing])))
