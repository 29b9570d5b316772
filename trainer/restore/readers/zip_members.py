"""Lists and unpacks what is in a zip archive, and believes none of its numbers unseen."""

import os
import struct
import zipfile
import zlib

import numpy as np

# What `zipfile` raises besides OSError, ValueError and RuntimeError.
ZIP_DAMAGE = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error)
_PIECE_BYTES = 1 << 18  # stays in the processor's cache, as NumPy's own reader has it
_MAX_END_BYTES = 22 + 0xFFFF  # the end of a zip archive and the longest comment after it
_MAX_TIMES = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}  # as long as it was packed; deflate has this limit


def members(archive: zipfile.ZipFile, file: str) -> list[zipfile.ZipInfo]:
    """The members of an archive, without its folders; raises `ValueError` for what no such archive can hold."""
    infos = archive.infolist()
    archive_bytes = os.path.getsize(file)
    _assert_all_listed(file, archive_bytes, len(infos))
    for info in infos:
        # Other ways of packing have no limit that a few bytes of them could not exceed at once.
        if info.compress_type not in _MAX_TIMES:
            raise ValueError(f"{info.filename!r} is neither stored nor deflated")
        if info.compress_size > archive_bytes or info.file_size > _MAX_TIMES[info.compress_type] * info.compress_size:
            raise ValueError(
                f"{info.filename!r} is said to be {info.file_size:,} bytes long, more than an archive of "
                f"{archive_bytes:,} bytes can hold"
            )
    return [info for info in infos if info.file_size or not info.is_dir()]


def unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, skipped_bytes: int) -> np.ndarray:
    """A member's bytes, but for the first ones, tested by its checksum.

    In pieces, so that no more memory is taken than is announced and really there.
    """
    raw = np.empty(info.file_size - skipped_bytes, np.uint8)
    with archive.open(info) as stream:
        stream.read(skipped_bytes)
        filled = 0
        while piece := stream.read(min(_PIECE_BYTES, raw.size - filled)):
            raw[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        # The checksum is tested where the stream ends, and only there.
        if filled != raw.size or stream.read(1):
            raise EOFError("it ends before its last byte")
    return raw


def _assert_all_listed(file: str, archive_bytes: int, found: int) -> None:
    """Raises `ValueError` if the archive's end counts more members than were found.

    `zipfile` does not look at that count, and one flipped bit in the table of contents can hide the rest of it.
    """
    with open(file, "rb") as stream:
        stream.seek(-min(archive_bytes, _MAX_END_BYTES), os.SEEK_END)
        tail = stream.read()
    (announced,) = struct.unpack_from("<H", tail, tail.rfind(b"PK\5\6") + 10)
    # 65,535 stands for a count that does not fit.
    if announced not in (found, 0xFFFF) or not found:
        raise ValueError(f"it holds {announced or 'no'} members, and {found or 'none'} of them can be found")
