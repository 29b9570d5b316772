"""Has an HDF5 file looked through by another process first: HDF5's library may crash or hang on a damaged one.

HDF5 has no checksum of what it stores, and its library follows whatever the file says: a flipped bit in a file can end
the process with a segmentation fault, or make it loop without end. No Python code could catch either. So a second
process, `hdf5_probe`, opens the file with the same library and reads each dataset once; if it dies or takes too long,
the file is refused with a message, and this process has never opened it. The second process imports h5py alone, is
started at the first HDF5 file, and is used again for the next.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import threading

from trainer.restore.readers.file_range import FileRange

_PATIENCE_SECONDS = 60.0  # an undamaged file of 2,000 layers takes one
_SLOWEST_BYTES_PER_SECOND = 5 << 20  # compressed data on a network disk


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
            script = os.path.join(os.path.dirname(__file__), "hdf5_probe.py")
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, script],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        return self._requests


_PROBE = _Probe()
atexit.register(_PROBE.stop)
