"""Reads a sorted string table of LevelDB's format, tests everything in it, and makes the keys of a tensor's slices.

TensorFlow's checkpoints have one as their `.index`
(https://github.com/google/leveldb/blob/main/doc/table_format.md). TensorFlow's own reader believes
it, and ends the process where it should not have. The keys of slices sort as the slices do
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/lib/strings/ordered_code.cc).
"""

import struct
from collections.abc import Iterator, Sequence

import google_crc32c

_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER_BYTES = 5  # one byte for the compression, four for the checksum
_PLAIN, _SNAPPY = 0, 1
_MAX_TIMES = 22  # as long as it was packed: Snappy copies at most 64 bytes by three


def read_table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every entry, keys in ascending order. Raises `ValueError` for a table that is damaged."""
    if len(content) < _FOOTER_BYTES or struct.unpack("<Q", content[-8:])[0] != _MAGIC:
        raise ValueError("the index does not end as an index does")
    footer = content[-_FOOTER_BYTES:]
    _, at = _handle(footer, 0)  # of the meta index, which is empty
    handle, _ = _handle(footer, at)
    last: bytes | None = None
    for until, place in _block(content, *handle):
        for key, value in _block(content, *_handle(place, 0)[0]):
            if last is not None and key <= last:
                raise ValueError("the index is not in order")
            last = key
            yield key, value
        if last is not None and last > until:
            raise ValueError("the index is not in order")


def unmasked(crc: int) -> int:
    """LevelDB stores checksums rotated and offset, since a checksum of checksums is a weak one."""
    rotated = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def varint(content: bytes, at: int) -> tuple[int, int]:
    """(an unsigned number of up to 64 bits, the place after it). Raises `ValueError` where there is none."""
    value = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number in it is cut off or too long")


def _handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = varint(content, at)
    size, at = varint(content, at)
    return (offset, size), at


def _block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block, trailer = content[offset : offset + size], content[offset + size : offset + size + _TRAILER_BYTES]
    if len(block) < size or len(trailer) < _TRAILER_BYTES:
        raise ValueError("the index is cut off")
    if google_crc32c.value(block + trailer[:1]) != unmasked(struct.unpack("<I", trailer[1:])[0]):
        raise ValueError("the index's checksum does not fit")
    if trailer[0] not in (_PLAIN, _SNAPPY):
        raise ValueError(f"the index is packed in a way ({trailer[0]}) that TensorFlow does not write")
    yield from _entries(_unpacked(block) if trailer[0] == _SNAPPY else block)


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A key is stored as the number of bytes that it shares with the one before, and the rest."""
    count = struct.unpack("<I", block[-4:])[0] if len(block) >= 4 else 0
    end = len(block) - 4 * (count + 1)
    if count < 1 or end < 0:
        raise ValueError("a block of the index has no end")
    restarts = set(struct.unpack(f"<{count}I", block[end:-4]))
    at, key = 0, b""
    while at < end:
        begins = at in restarts
        restarts.discard(at)
        shared, at = varint(block, at)
        unshared, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or (begins and shared) or at + unshared + length > end:
            raise ValueError("a block of the index is not made as it should be")
        key = key[:shared] + block[at : at + unshared]
        yield key, block[at + unshared : at + unshared + length]
        at += unshared + length
    if restarts - {0}:  # an empty block has one at 0
        raise ValueError("a block of the index leads to places that are none")


def _unpacked(block: bytes) -> bytes:
    """Undoes Snappy (https://github.com/google/snappy/blob/main/format_description.txt)."""
    size, at = varint(block, 0)
    if size > _MAX_TIMES * len(block):
        raise ValueError("a packed block of the index is said to be too long")
    out = bytearray()
    while at < len(block) and len(out) <= size:
        kind, rest = block[at] & 3, block[at] >> 2
        wide = (max(0, rest - 59), 1, 2, 4)[kind]  # bytes of the number that follows
        number = int.from_bytes(block[at + 1 : at + 1 + wide], "little")
        at += 1 + wide
        if kind == 0:
            length = (number if wide else rest) + 1
            out += block[at : at + length]
            at += length
            continue
        length, back = (rest % 8 + 4, rest // 8 << 8 | number) if kind == 1 else (rest + 1, number)
        start = len(out) - back
        if back < 1 or start < 0:
            raise ValueError("a packed block of the index is damaged")
        piece = out[start : start + length]
        out += (piece * (length // back + 1))[:length]  # it may reach into what it makes
    if len(out) != size or at != len(block):
        raise ValueError("a packed block of the index is damaged")
    return bytes(out)


def slice_key(name: bytes, extents: Sequence[tuple[int, int]]) -> bytes:
    """extents: (start, length) for each axis, a length of -1 for all of it; numbers of 64 bits."""
    numbers = [_signed(number) for extent in extents for number in extent]
    return _unsigned(0) + _text(name) + _unsigned(len(extents)) + b"".join(numbers)


def _unsigned(number: int) -> bytes:
    digits = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def _text(text: bytes) -> bytes:
    # Two at once: what one replaces must not be found by the other.
    escaped = b"".join({0: b"\0\xff", 255: b"\xff\0"}.get(byte, bytes([byte])) for byte in text)
    return escaped + b"\0\1"


def _signed(number: int) -> bytes:
    """As many leading ones as bytes, then the number, all inverted for a negative one."""
    length = (number if number >= 0 else ~number).bit_length() // 7 + 1
    header = (1 << 8 * length) - (1 << 7 * length)
    bits = (number & ((1 << 8 * length) - 1)) ^ header
    return bits.to_bytes(length, "big")
