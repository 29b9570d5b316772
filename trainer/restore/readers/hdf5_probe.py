"""Tries an HDF5 file out in another process, which may crash, hang or run out of memory without harm.

HDF5's library believes what a file says. On damaged files it was seen to crash, to loop without end and to ask for
any amount of memory, all of it in C, where no `except` and no signal handler of Python's gets a turn: a training job
would end without a message, or never. So a file is handed to another process first, which has a limit on its memory
and on its time, and touches every structure there that a reader will touch here. `hdf5.Hdf5File` opens a file only
when that process has answered that it survived. The process is this file, run as a script, so it imports neither
TensorFlow nor the rest of the project and starts in a fraction of a second; it lives on for the next file. A request
is a line of JSON with an open file beside it, through the socket that is its standard input; the answer is a line of
JSON: "" if all is well, else what is wrong.
"""

import atexit
import io
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from typing import BinaryIO

import h5py

FLOOR_BYTES = 100 << 20  # a dataset that unpacks to less is no bomb
LARGEST_RATIO = 1100  # deflate reaches 1032:1 on zeros, which is what untrained slots are
_ROOM_BYTES = 2 << 30  # beside the file itself; HDF5 believes lengths in a damaged file and asks for that much
_PATIENCE_SECONDS = 60.0  # an undamaged file of 2,000 layers takes one
_SLOWEST_BYTES_PER_SECOND = 5 << 20  # compressed data on a network disk
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


def try_out(content: FileRange) -> None:
    """Raises `OSError` for a file that HDF5 can't read to its end, and for one that it does not survive."""
    answer = _PROBE.ask(content)
    if answer:
        raise OSError(answer)


class _Probe:
    """The other process; it is started at the first file, and again after one that it did not survive."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._requests: socket.socket | None = None

    def ask(self, content: FileRange) -> str:
        request = json.dumps({"start": content.start, "size_bytes": content.size_bytes}).encode()
        with self._lock:
            requests = self._started()
            patience_seconds = _PATIENCE_SECONDS + content.size_bytes / _SLOWEST_BYTES_PER_SECOND
            requests.settimeout(patience_seconds)
            try:
                socket.send_fds(requests, [request], [content.fileno()])
                answer = requests.makefile("rb").readline()
            except TimeoutError:
                self.stop()
                return f"HDF5's library was not done with it after {patience_seconds:.0f} seconds"
            except OSError as error:
                self.stop()
                return f"the process that looks HDF5 files over cannot be talked to: {error}"
            if not answer:
                self.stop()
                return "HDF5's library crashes on it"
        return json.loads(answer)

    def stop(self) -> None:
        if self._process is not None and self._requests is not None:
            self._requests.close()
            self._process.kill()
            self._process.wait()
        self._process = self._requests = None

    def _started(self) -> socket.socket:
        if self._requests is None or self._process is None or self._process.poll() is not None:
            self.stop()
            self._requests, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, __file__],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        return self._requests


_PROBE = _Probe()
atexit.register(_PROBE.stop)


def look_through(content: FileRange) -> None:
    """Touches every structure that a reader will touch, data only where they are packed; in the other process."""
    with h5py.File(content, "r") as file:
        _look_at(file)
        seen: set[int] = set()
        groups: list[h5py.Group] = [file["/"]]
        for group in groups:
            address = h5py.h5o.get_info(group.id).addr
            if address in seen:
                continue
            seen.add(address)
            for name in group:
                if isinstance(group.get(name, getlink=True), h5py.HardLink):
                    child = group[name]
                    _look_at(child)
                    if isinstance(child, h5py.Group):
                        groups.append(child)


def _look_at(thing) -> None:
    for name in getattr(thing, "attrs", {}):
        thing.attrs[name]
    if isinstance(thing, h5py.Dataset):
        layout = thing.id.get_create_plist()
        kind = layout.get_layout()
        thing.id.get_storage_size(), thing.id.get_offset(), thing.fletcher32, thing.shape
        # What unpacks to so much more than is there is refused by its size, and would only keep this busy.
        bearable = FLOOR_BYTES + LARGEST_RATIO * thing.id.get_storage_size()
        if kind == h5py.h5d.CHUNKED and thing.dtype.kind in "biufcV" and thing.shape and thing.nbytes <= bearable:
            for chunk in thing.iter_chunks():
                thing[chunk]
        elif kind == h5py.h5d.COMPACT and thing.dtype.kind in "biufcV":
            thing[()]


def main() -> None:
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            message, descriptors, _, _ = socket.recv_fds(requests, 4096, 1)
            if not message:
                return
            request = json.loads(message)
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            limit = _ROOM_BYTES + 2 * request["size_bytes"]
            resource.setrlimit(
                resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
            )
            with os.fdopen(descriptors[0], "rb") as file:
                answer = ""
                try:
                    look_through(FileRange(file, request["start"], request["size_bytes"]))
                except Exception as error:  # noqa: BLE001  whatever it is, it is an answer
                    answer = f"{type(error).__name__}: {error}".splitlines()[0]
            requests.sendall((json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    main()
