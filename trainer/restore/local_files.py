"""Opens regular files only, brings remote ones near, and leads TensorFlow to paths that it takes for patterns."""

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import tensorflow as tf

from trainer.restore.errors import RestoreError, first_line

_KINDS = [
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
]
_MARKS = frozenset("*?[]\\")


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


@contextlib.contextmanager
def without_pattern(prefix: str) -> Iterator[str]:
    """A prefix of links to the checkpoint's files, there as long as the context; the prefix itself where it will do."""
    if "://" in prefix or not _MARKS.intersection(prefix):
        yield prefix
        return
    # Schedulers name the folder after the job, and an array's jobs have brackets.
    folders = [folder for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp") if not _MARKS.intersection(folder)]
    with tempfile.TemporaryDirectory(prefix="regraft-", dir=folders[0]) as links:
        folder, name = os.path.split(os.path.abspath(prefix))
        for file in os.listdir(folder):
            if file == f"{name}.index" or file.startswith(f"{name}.data-"):
                os.symlink(os.path.join(folder, file), os.path.join(links, f"ckpt{file.removeprefix(name)}"))
        yield os.path.join(links, "ckpt")


def local_copy(path: str) -> str:
    """The path itself, or of `gs://` and other `tf.io.gfile` paths a copy that is removed when the process ends.

    Raises `RestoreError` where there is no file, or something else than a file.
    """
    if "://" not in path:
        try:
            expect_regular(path)
        except FileNotFoundError as error:
            raise RestoreError(f"The checkpoint {path} is not there.") from error
        except (OSError, ValueError) as error:  # the latter for a name that no file can have
            raise RestoreError(f"The checkpoint {path} cannot be read: {first_line(error)}.") from error
        return path
    folder = tempfile.mkdtemp(prefix="regraft-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    near = os.path.join(folder, os.path.basename(path))
    try:
        tf.io.gfile.copy(path, near)
    except tf.errors.OpError as error:
        raise RestoreError(f"{path} cannot be copied to this machine: {first_line(error)}") from error
    return near
