"""Opens members of a zip archive as files that can seek, without unpacking the archive to any path it names."""

import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections import Counter

from trainer.restore.errors import RestoreError
from trainer.restore.local_files import local_copy
from trainer.restore.readers.hdf5_probe import FileRange
from trainer.restore.readers.zip_members import ZIP_DAMAGE

_FLOOR_BYTES = 100 << 20
_LARGEST_RATIO = 200
_BLOCK_BYTES = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of the name and of the extra field


class Archive:
    """An open zip archive. `names_read`: the members that were opened."""

    damage: tuple[type[Exception], ...] = (*ZIP_DAMAGE, NotImplementedError)

    def __init__(self, path: str):
        self._path = path
        near = local_copy(path)
        self._size_bytes = os.path.getsize(near)
        self._file = open(near, "rb")  # noqa: SIM115  stays open as long as its members do
        self._zip = zipfile.ZipFile(self._file)
        self._times = Counter(info.filename for info in self._zip.infolist())
        self.names_read: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._times

    @property
    def names(self) -> list[str]:
        return list(self._times)

    def open(self, name: str) -> FileRange:
        """A member as a file that can seek: a view of the archive, or where it was packed a temporary file."""
        info = self._info(name)
        if name not in self.names_read:
            self.names_read.append(name)
        if info.compress_type == zipfile.ZIP_STORED:
            return FileRange(self._file, self._start(info), info.file_size)
        unpacked = tempfile.TemporaryFile(prefix="regraft-")  # noqa: SIM115  it is gone when it is closed
        with self._zip.open(info) as packed:
            # zipfile gives no more bytes than the member announces, and that much was found bearable.
            shutil.copyfileobj(packed, unpacked, _BLOCK_BYTES)
        unpacked.flush()
        return FileRange(unpacked, 0, unpacked.tell())

    def check(self, name: str) -> None:
        """Raises `RestoreError` for a member whose bytes are not those that were packed."""
        info, checksum = self._info(name), 0
        with self.open(name) as file:
            while block := file.read(_BLOCK_BYTES):
                checksum = zlib.crc32(block, checksum)
        if checksum != info.CRC:
            raise RestoreError(
                f"{self._path} is damaged: the checksum of {name} in it is not that of its bytes. "
                f"No variable was changed. Copy the checkpoint again, or take an older one."
            )

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._times:
            raise RestoreError(f"{self._path} holds no {name}.")
        info = self._zip.getinfo(name)
        if self._times[name] > 1:
            raise RestoreError(f"{self._path} is refused: it holds {name} more than once.")
        if info.flag_bits & 1:
            raise RestoreError(f"{self._path} is encrypted; unpack it and pack it again without a password.")
        is_stored = info.compress_type == zipfile.ZIP_STORED
        unpacks_to_too_much = info.file_size > max(_FLOOR_BYTES, info.compress_size * _LARGEST_RATIO)
        if (is_stored and info.file_size != info.compress_size) or unpacks_to_too_much:
            raise RestoreError(
                f"{self._path} is refused: {name} in it announces {info.file_size:,} bytes "
                f"and takes {info.compress_size:,} in the archive."
            )
        return info

    def _start(self, info: zipfile.ZipInfo) -> int:
        header = os.pread(self._file.fileno(), _LOCAL_HEADER.size, info.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature != b"PK\x03\x04" or start + info.file_size > self._size_bytes:
            raise zipfile.BadZipFile(f"{info.filename} does not lie where the archive says")
        return start
