"""Reads byte ranges of files, large ones with two threads, and into the memory of a tensor, with one copy.

Files may lie on any file system that TensorFlow knows.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from trainer.restore.local_files import expect_regular
from trainer.restore.source import SIDE_BY_SIDE_BYTES

_THREADS = 2  # one copies out of the page cache while the other does; more bring nothing
_PIECE_BYTES = 2 << 20  # long enough that threads seldom wait for each other, and small beside a tensor
_WORTHWHILE_BYTES = 1 << 20


class ByteReader:
    """Keeps the files open that it read from, until `close`. Several threads may read at once."""

    def __init__(self):
        self._local: dict[str, int] = {}
        self._remote: dict[str, tf.io.gfile.GFile] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, size: int) -> np.ndarray:
        """A flat uint8 array of a range of the file; raises as `fill` does."""
        self._expect_there(path, offset + size)
        content = np.empty(size, np.uint8)
        self.fill(path, offset, content)
        return content

    def fill(self, path: str, offset: int, buffer: np.ndarray) -> None:
        """Fills a flat uint8 buffer from `offset` on. Raises `OSError`, `tf.errors.OpError` or `EOFError`."""
        if "://" in path or buffer.size <= SIDE_BY_SIDE_BYTES:
            self._fill(path, offset, buffer)
            return
        half = buffer.size // _THREADS
        self._open(path)
        other = self._pool().submit(self._fill, path, offset + half, buffer[half:])
        try:
            self._fill(path, offset, buffer[:half])
        finally:
            other.result()

    def pieces(self, path: str, offset: int, size: int) -> Iterator[np.ndarray]:
        """The range in flat uint8 arrays one after the other, each good until the next."""
        self._expect_there(path, offset + size)
        buffer = np.empty(min(size, _PIECE_BYTES), np.uint8)
        for start in range(0, size, _PIECE_BYTES):
            piece = buffer[: min(_PIECE_BYTES, size - start)]
            self._fill(path, offset + start, piece)
            yield piece

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        for descriptor in self._local.values():
            os.close(descriptor)
        for file in self._remote.values():
            file.close()
        self._local.clear()
        self._remote.clear()

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS - 1, thread_name_prefix="regraft-read")
        return self._threads

    def _open(self, path: str) -> int:
        with self._lock:
            if path not in self._local:
                expect_regular(path)
                self._local[path] = os.open(path, os.O_RDONLY)
            return self._local[path]

    def _expect_there(self, path: str, end: int) -> None:
        """Before memory is set aside for what an index announces."""
        size = tf.io.gfile.stat(path).length if "://" in path else os.fstat(self._open(path)).st_size
        if size < end:
            raise EOFError("the data file is cut off")

    def _fill(self, path: str, offset: int, buffer: np.ndarray) -> None:
        filled = 0
        while filled < buffer.size:
            count = self._read(path, offset + filled, buffer[filled:])
            if not count:
                raise EOFError("the data file is cut off")
            filled += count

    def _read(self, path: str, offset: int, buffer: np.ndarray) -> int:
        if "://" not in path:
            return os.preadv(self._open(path), [buffer.data], offset)
        with self._lock:
            if path not in self._remote:
                self._remote[path] = tf.io.gfile.GFile(path, "rb")
            self._remote[path].seek(offset)
            content = self._remote[path].read(buffer.size)
        buffer[: len(content)] = np.frombuffer(content, np.uint8)
        return len(content)


def is_worthwhile(size_bytes: int, dtype: tf.DType) -> bool:
    """Whether a copy that is saved is worth more than the way around it."""
    return size_bytes >= _WORTHWHILE_BYTES and dtype.is_numpy_compatible and dtype != tf.string


def unfilled_tensor(shape: tuple[int, ...], dtype: tf.DType) -> tuple[tf.Tensor, np.ndarray]:
    """A tensor in the host's memory, and its bytes as a flat uint8 array to be written once, before it is used.

    The array is good for as long as the tensor is referenced.

    TensorFlow allocates: a variable that the tensor is assigned to takes the memory over, and gives
    back its old one for the next tensor. Memory of NumPy's would be taken over as well, but the old
    one would be kept beside it.
    """
    with tf.device("/CPU:0"):
        tensor = tf.raw_ops.Empty(shape=shape, dtype=dtype, init=False)
    view = np.asarray(tensor)  # shares the memory, for reading
    memory = (ctypes.c_uint8 * view.nbytes).from_address(view.__array_interface__["data"][0])
    return tensor, np.ctypeslib.as_array(memory)
