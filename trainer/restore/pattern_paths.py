"""Leads TensorFlow to a checkpoint whose path it would take for a pattern: `run[1]/ckpt-7`."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

_MARKS = frozenset("*?[]\\")


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
