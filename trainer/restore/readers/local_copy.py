"""Brings a file of a remote file system near, for libraries that open local files only."""

import atexit
import os
import shutil
import tempfile

import tensorflow as tf

from trainer.restore.report import RestoreError, first_line


def local_copy(path: str) -> str:
    """The path itself, or of `gs://` and other `tf.io.gfile` paths a copy that is removed when the process ends."""
    if "://" not in path:
        return path
    folder = tempfile.mkdtemp(prefix="regraft-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    near = os.path.join(folder, os.path.basename(path))
    try:
        tf.io.gfile.copy(path, near)
    except tf.errors.OpError as error:
        raise RestoreError(f"{path} cannot be copied to this machine: {first_line(error)}") from error
    return near
