"""Brings a file of a remote file system near, for libraries that open local files only."""

import atexit
import os
import shutil
import tempfile

import tensorflow as tf

from trainer.restore.errors import RestoreError, first_line
from trainer.restore.regular_files import expect_regular


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
