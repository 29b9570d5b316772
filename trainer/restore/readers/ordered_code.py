"""The keys under which TensorFlow's checkpoints keep the slices of a tensor.

They sort as the slices do
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/lib/strings/ordered_code.cc).
"""

from collections.abc import Sequence


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
