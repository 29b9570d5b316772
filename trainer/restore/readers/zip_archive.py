"""Reads zip archives, `.npz` and `.keras`: lists members, unpacks them, and believes no size that it has not seen.

One rule against bombs: a member is stored or deflated, is not announced to be longer than its packed bytes can be, and
unpacks to at most 100 MB or to 200 times its packed size. No path that an archive names is ever written to.
"""

import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections import Counter

import numpy as np

from trainer.restore.errors import RestoreError
from trainer.restore.readers.file_range import FileRange
from trainer.restore.readers.local_copy import local_copy

_MAX_TIMES = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}  # as long as it was packed; deflate has this limit
_FLOOR_BYTES, _LARGEST_RATIO = 100 << 20, 200
_MAX_END_BYTES = 22 + 0xFFFF  # the end of a zip archive and the longest comment after it
_PIECE_BYTES = 1 << 18  # stays in the processor's cache, as NumPy's own reader has it
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of the name and of the extra field


class ZipArchive:
    """An open archive. `names_read`: the members that were opened.

    Raises what is in `damage` for an archive that is damaged, or lies.
    """

    # What `zipfile` raises besides OSError, ValueError and RuntimeError.
    damage: tuple[type[Exception], ...] = (
        zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, NotImplementedError,
    )  # fmt: skip

    def __init__(self, path: str):
        self._path = path
        near = local_copy(path)
        self._size_bytes = os.path.getsize(near)
        self._file = open(near, "rb")  # noqa: SIM115  stays open as long as its members do
        self._zip = zipfile.ZipFile(self._file)
        self._times = Counter(info.filename for info in self._zip.infolist())
        self._expect_all_listed()
        self.names_read: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._times

    @property
    def names(self) -> list[str]:
        return list(self._times)

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def members(self) -> list[zipfile.ZipInfo]:
        """All members without folders; raises `ValueError` for one that breaks the rule."""
        infos = self._zip.infolist()
        for info in infos:
            self._expect_bearable(info)
        return [info for info in infos if info.file_size or not info.is_dir()]

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
            shutil.copyfileobj(packed, unpacked, _PIECE_BYTES)
        unpacked.flush()
        return FileRange(unpacked, 0, unpacked.tell())

    def stream(self, info: zipfile.ZipInfo):
        """A member's bytes from the first on, as a file that cannot seek."""
        return self._zip.open(info)

    def unpack(self, info: zipfile.ZipInfo, skipped_bytes: int) -> np.ndarray:
        """A member's bytes, but for the first ones, tested by its checksum.

        In pieces, so that no more memory is taken than is announced and really there.
        """
        raw = np.empty(info.file_size - skipped_bytes, np.uint8)
        with self._zip.open(info) as stream:
            stream.read(skipped_bytes)
            filled = 0
            while piece := stream.read(min(_PIECE_BYTES, raw.size - filled)):
                raw[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                filled += len(piece)
            # The checksum is tested where the stream ends, and only there.
            if filled != raw.size or stream.read(1):
                raise EOFError("it ends before its last byte")
        return raw

    def check(self, name: str) -> None:
        """Raises `RestoreError` for a member whose bytes are not those that were packed."""
        info, checksum = self._info(name), 0
        with self.open(name) as file:
            while block := file.read(_PIECE_BYTES):
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
        try:
            self._expect_bearable(info)
        except ValueError as error:
            raise RestoreError(f"{self._path} is refused: {error}.") from error
        return info

    def _expect_bearable(self, info: zipfile.ZipInfo) -> None:
        """Raises `ValueError` for a member that breaks the rule against bombs."""
        # Other ways of packing have no limit that a few bytes of them could not exceed at once.
        if info.compress_type not in _MAX_TIMES:
            raise ValueError(f"{info.filename!r} is neither stored nor deflated")
        packed_bytes, most = info.compress_size, _MAX_TIMES[info.compress_type]
        if packed_bytes > self._size_bytes or info.file_size > most * packed_bytes:
            raise ValueError(
                f"{info.filename!r} is said to be {info.file_size:,} bytes long, more than an archive of "
                f"{self._size_bytes:,} bytes can hold"
            )
        if info.file_size > max(_FLOOR_BYTES, _LARGEST_RATIO * packed_bytes):
            raise ValueError(
                f"{info.filename!r} announces {info.file_size:,} bytes and takes {packed_bytes:,} in the archive, as a "
                "bomb would; write the file again without compression"
            )
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != packed_bytes:
            raise ValueError(f"{info.filename!r} announces {info.file_size:,} bytes and takes {packed_bytes:,}")

    def _expect_all_listed(self) -> None:
        """Raises `ValueError` if the archive's end counts more members than were found.

        `zipfile` does not look at that count, and one flipped bit in the table of contents can hide the rest of it.
        """
        found = sum(self._times.values())
        length = min(self._size_bytes, _MAX_END_BYTES)
        tail = os.pread(self._file.fileno(), length, self._size_bytes - length)
        (announced,) = struct.unpack_from("<H", tail, tail.rfind(b"PK\5\6") + 10)
        # 65,535 stands for a count that does not fit.
        if announced not in (found, 0xFFFF) or not found:
            raise ValueError(f"it holds {announced or 'no'} members, and {found or 'none'} of them can be found")

    def _start(self, info: zipfile.ZipInfo) -> int:
        header = os.pread(self._file.fileno(), _LOCAL_HEADER.size, info.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature != b"PK\x03\x04" or start + info.file_size > self._size_bytes:
            raise zipfile.BadZipFile(f"{info.filename} does not lie where the archive says")
        return start
