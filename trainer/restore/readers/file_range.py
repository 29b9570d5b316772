"""A range of bytes of an open file, as a file of its own that can seek."""

import io
import os
from typing import BinaryIO

_HEAP_START = b"GCOL\x01\0\0\0"


class FileRange(io.RawIOBase):
    """Reads whatever the system delivers in parts as one, which h5py counts on.

    start, size_bytes: of the range, in the file.  Behind its end there are zeros, as for HDF5's own way to read a file.
    """

    def __init__(self, file: BinaryIO, start: int, size_bytes: int):
        super().__init__()
        self.start, self.size_bytes = start, size_bytes
        self._file, self._place = file, 0

    def fileno(self) -> int:
        return self._file.fileno()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size_bytes}[whence]
        self._place = origin + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer) -> int:
        """Fills the buffer, and returns how much of it lay in the range."""
        wanted = memoryview(buffer).cast("B")
        within = wanted[: max(0, self.size_bytes - self._place)]
        done, place = 0, self._place
        # The system reads two gigabytes at a time at most.
        while done < len(within):
            got = os.preadv(self._file.fileno(), [within[done:]], self.start + self._place)
            if not got:
                raise OSError("the file ends before it should")
            done += got
            self._place += got
        wanted[done:] = bytes(len(wanted) - done)
        if wanted[:8] == _HEAP_START:
            size_bytes = min(int.from_bytes(wanted[8:16], "little"), self.size_bytes - place)
            # HDF5 comes for the rest of a long block in a second read.
            is_all = size_bytes <= len(wanted)
            _expect_whole_heap(wanted if is_all else os.pread(self._file.fileno(), size_bytes, self.start + place))
        return done


def _expect_whole_heap(block: memoryview | bytes) -> None:
    """Raises `OSError` for a block of HDF5's variable-length texts whose pieces do not add up.

    HDF5 1.14.6 steps from piece to piece without end over a free one of no length, or one so long
    that the sum overflows, in C, where nothing can stop it (H5HG__cache_heap_deserialize; seen in
    fuzzed copies of Keras files).
    """
    place, end = 16, min(int.from_bytes(block[8:16], "little"), len(block))
    while place + 16 <= end:
        number, taken = (
            int.from_bytes(block[place + at : place + at + size], "little") for at, size in ((0, 2), (8, 8))
        )
        step = taken if number == 0 else 16 + -(-taken // 8) * 8
        if step < 16 or place + step > end:
            raise OSError("a block of texts in it is damaged")
        place += step
