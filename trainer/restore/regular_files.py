"""Opens regular files only: a pipe or a device would be waited for without end."""

import os
import stat
from typing import BinaryIO

import tensorflow as tf

_KINDS = [
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
]


def expect_regular(path: str) -> None:
    """Raises `OSError` that says what is at a local path, if that is no regular file or a link to one."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        what = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
        raise OSError(f"{path} is {what}, where a file is expected")


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A local file, open to be read. Raises `OSError` where there is none, or something else."""
    expect_regular(os.fspath(path))
    return open(path, "rb")


def read_whole(path: str, most_bytes: int) -> bytes:
    """The content of a file of any file system that TensorFlow knows.

    Raises `OSError` or `tf.errors.OpError`, and `OSError` for a file longer than `most_bytes`.
    """
    with tf.io.gfile.GFile(path, "rb") if "://" in path else open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(f"{path} is longer than {most_bytes:,} bytes")
    return content
