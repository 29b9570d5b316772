"""Reads members of a zip archive as arrays or as files that can seek, and believes none of its numbers unseen.

All formats that are zip archives are read here, with one rule against bombs, which every member must meet when the
archive is opened: it is there once, it is not encrypted, it is stored or deflated, it takes no more bytes than the
archive has, and it unpacks to no more than those bytes can hold, nor to more than 100 MB and 200 times them. Nothing is
unpacked to a path that the archive names.
"""

import copy
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from typing import IO, BinaryIO

import numpy as np

from trainer.output.printable import printable
from trainer.restore.errors import RestoreError
from trainer.restore.local_files import local_copy
from trainer.restore.readers.hdf5_probe import FileRange

_FLOOR_BYTES = 100 << 20  # what unpacks to less harms no machine
_LARGEST_RATIO = 200
# As long as it was packed; deflate has this limit. Other ways of packing have none that a few bytes could not exceed.
_MAX_TIMES = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_BLOCK_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18  # stays in the processor's cache, as NumPy's own reader has it
_MAX_END_BYTES = 22 + 0xFFFF  # the end of a zip archive and the longest comment after it
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of the name and of the extra field


class Archive:
    """An open zip archive, all of whose members were found bearable. Raises `RestoreError` or one of `damage`.

    names: of its members, without folders.
    names_read: of those that were opened as files.
    """

    # What `zipfile` raises besides OSError, ValueError and RuntimeError.
    damage: tuple[type[Exception], ...] = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error)

    def __init__(self, path: str):
        self.path = path
        self.names_read: list[str] = []
        self._near = local_copy(path)
        self._size_bytes = os.path.getsize(self._near)
        self._file: BinaryIO | None = None
        self._zip: zipfile.ZipFile | None = None
        infos = self._opened()[1].infolist()
        self._expect_all_listed(len(infos))
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            if info.file_size or not info.is_dir():
                self._expect_bearable(info)
                self._infos[info.filename] = info

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    @property
    def names(self) -> list[str]:
        return list(self._infos)

    def size_bytes(self, name: str) -> int:
        """The size of a member once it is unpacked, as the archive says."""
        return self._infos[name].file_size

    def beginning(self, name: str) -> IO[bytes]:
        """A member from its first byte on, for a look at its header; its checksum is not tested.

        `zipfile` reads ahead, and would refuse the whole file for damage in a small member that is not asked for.
        """
        unchecked = copy.copy(self._infos[name])
        del unchecked.CRC
        return self._opened()[1].open(unchecked)

    def read(self, name: str, skipped_bytes: int) -> np.ndarray:
        """A member's bytes, but for the first ones, tested by its checksum.

        In pieces, so that no more memory is taken than is announced and really there.
        """
        info = self._infos[name]
        raw = np.empty(info.file_size - skipped_bytes, np.uint8)
        with self._opened()[1].open(info) as stream:
            stream.read(skipped_bytes)
            filled = 0
            while piece := stream.read(min(_PIECE_BYTES, raw.size - filled)):
                raw[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                filled += len(piece)
            # The checksum is tested where the stream ends, and only there.
            if filled != raw.size or stream.read(1):
                raise EOFError("it ends before its last byte")
        return raw

    def open(self, name: str) -> FileRange:
        """A member as a file that can seek: a view of the archive, or where it was packed a temporary file."""
        if name not in self._infos:
            raise RestoreError(f"{self.path} holds no {name}.")
        info, (file, archive) = self._infos[name], self._opened()
        if name not in self.names_read:
            self.names_read.append(name)
        if info.compress_type == zipfile.ZIP_STORED:
            return FileRange(file, self._start(info, file), info.file_size)
        unpacked = tempfile.TemporaryFile(prefix="regraft-")  # noqa: SIM115  it is gone when it is closed
        with archive.open(info) as packed:
            # zipfile gives no more bytes than the member announces, and that much was found bearable.
            shutil.copyfileobj(packed, unpacked, _BLOCK_BYTES)
        unpacked.flush()
        return FileRange(unpacked, 0, unpacked.tell())

    def check(self, name: str) -> None:
        """Raises `RestoreError` for a member whose bytes are not those that were packed."""
        checksum = 0
        with self.open(name) as file:
            while block := file.read(_BLOCK_BYTES):
                checksum = zlib.crc32(block, checksum)
        if checksum != self._infos[name].CRC:
            raise RestoreError(
                f"{self.path} is damaged: the checksum of {name} in it is not that of its bytes. "
                f"No variable was changed. Copy the checkpoint again, or take an older one."
            )

    def close(self) -> None:
        """Gives back the open file; arrays can still be read afterwards, and files that `open` gave cannot."""
        if self._zip is not None and self._file is not None:
            self._zip.close()
            self._file.close()
        self._zip = self._file = None

    def _opened(self) -> tuple[BinaryIO, zipfile.ZipFile]:
        # Kept open: to read the table of contents again for every tensor takes longer than the tensor.
        if self._zip is None or self._file is None:
            self._file = open(self._near, "rb")  # noqa: SIM115  stays open as long as its members do
            self._zip = zipfile.ZipFile(self._file)
        return self._file, self._zip

    def _expect_all_listed(self, found: int) -> None:
        """Raises `ValueError` if the archive's end counts more members than were found.

        `zipfile` does not look at that count, and one flipped bit in the table of contents can hide the rest of it.
        """
        with open(self._near, "rb") as stream:
            stream.seek(-min(self._size_bytes, _MAX_END_BYTES), os.SEEK_END)
            tail = stream.read()
        (announced,) = struct.unpack_from("<H", tail, tail.rfind(b"PK\5\6") + 10)
        # 65,535 stands for a count that does not fit.
        if announced not in (found, 0xFFFF) or not found:
            raise ValueError(f"it holds {announced or 'no'} members, and {found or 'none'} of them can be found")

    def _expect_bearable(self, info: zipfile.ZipInfo) -> None:
        refused, name = f"{self.path} is refused:", printable(info.filename)
        if info.filename in self._infos:
            raise RestoreError(f"{refused} it holds {name} more than once. Take another one.")
        if info.flag_bits & 1:
            raise RestoreError(f"{self.path} is encrypted; unpack it and pack it again without a password.")
        if info.compress_type not in _MAX_TIMES:
            raise RestoreError(
                f"{refused} {name} in it is neither stored nor deflated. Copy the checkpoint again, or pack it so."
            )
        is_cut = info.compress_type == zipfile.ZIP_STORED and info.file_size < info.compress_size
        is_too_long = info.file_size > _MAX_TIMES[info.compress_type] * info.compress_size
        if is_cut or is_too_long or info.compress_size > self._size_bytes:
            raise RestoreError(
                f"{refused} {name} in it announces {info.file_size:,} bytes and takes {info.compress_size:,} in an "
                f"archive of {self._size_bytes:,}, which cannot be. Copy the checkpoint again, or take another one."
            )
        if info.file_size > max(_FLOOR_BYTES, info.compress_size * _LARGEST_RATIO):
            raise RestoreError(
                f"{refused} {name} in it announces {info.file_size:,} bytes and takes {info.compress_size:,}, like a "
                f"file that is made to fill memory or a disk. If you trust it, write it again without compression."
            )

    def _start(self, info: zipfile.ZipInfo, file: BinaryIO) -> int:
        header = os.pread(file.fileno(), _LOCAL_HEADER.size, info.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature != b"PK\x03\x04" or start + info.file_size > self._size_bytes:
            raise zipfile.BadZipFile(f"{info.filename} does not lie where the archive says")
        return start
