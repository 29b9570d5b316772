"""Finds the newest whole checkpoint at a path, or says what is there instead."""

import os
import re

import tensorflow as tf

from trainer.restore.report import RestoreError


def find_checkpoint(path) -> str:
    """The prefix of the newest whole checkpoint at `path`.

    path: a prefix (`.../ckpt-7`), one of its files, a folder of checkpoints, a model_dir or a
      SavedModel. A folder's state file is believed only if the checkpoint that it names is whole.
    Raises `RestoreError` saying what is there instead.
    """
    path = os.fspath(path) if path else ""
    if not path:
        raise RestoreError("init_checkpoint is empty: name a checkpoint prefix or a folder that holds one.")
    path = re.sub(r"\.(index|data-\d+-of-\d+)$", "", path.rstrip("/"))
    if tf.io.gfile.isdir(path):
        return _newest_in(path)
    if tf.io.gfile.exists(path + ".index"):
        missing = missing_files(path)
        if missing:
            raise RestoreError(f"The checkpoint {path} is not whole: {', '.join(missing)} is missing.")
        return path
    if tf.io.gfile.exists(path):
        raise RestoreError(
            f"{path} is a file, but not a TensorFlow checkpoint; its index file {path}.index is not there."
        )
    folder = os.path.dirname(path) or "."
    there = whole_checkpoints(folder) if tf.io.gfile.isdir(folder) else None
    if there is None:
        raise RestoreError(f"There is no checkpoint at {path}: the folder {folder} does not exist.")
    raise RestoreError(
        f"There is no checkpoint at {path}. "
        + (
            f"Whole checkpoints in {folder}: {', '.join(map(os.path.basename, there))}."
            if there
            else f"{folder} holds none."
        )
    )


def whole_checkpoints(folder) -> list[str]:
    """Prefixes of the checkpoints in `folder` whose files are all there, oldest first."""
    prefixes = [name.removesuffix(".index") for name in tf.io.gfile.glob(os.path.join(os.fspath(folder), "*.index"))]
    whole = [prefix for prefix in prefixes if not missing_files(prefix)]
    return sorted(whole, key=_age)


def missing_files(prefix: str) -> list[str]:
    """Names of the data shards that a checkpoint's files speak of and that are not there."""
    shards = tf.io.gfile.glob(prefix + ".data-*-of-*")
    if not shards:
        return [os.path.basename(prefix) + ".data-00000-of-00001"]
    count = int(shards[0].rsplit("-", 1)[-1])
    expected = [f"{prefix}.data-{i:05d}-of-{count:05d}" for i in range(count)]
    return [os.path.basename(name) for name in expected if name not in shards]


def _newest_in(folder: str) -> str:
    if tf.io.gfile.exists(os.path.join(folder, "saved_model.pb")):
        return find_checkpoint(os.path.join(folder, "variables", "variables"))
    if tf.io.gfile.isdir(os.path.join(folder, "checkpoints")):
        return _newest_in(os.path.join(folder, "checkpoints"))
    whole = whole_checkpoints(folder)
    named = tf.train.latest_checkpoint(folder)
    if named in whole:
        return named
    if whole:
        return whole[-1]
    raise RestoreError(f"There is no checkpoint in the folder {folder}; it holds: {_listing(folder)}.")


def _age(prefix: str):
    number = re.search(r"-(\d+)$", prefix)
    return (int(number[1]) if number else -1, tf.io.gfile.stat(prefix + ".index").mtime_nsec)


def _listing(folder: str) -> str:
    names = sorted(tf.io.gfile.listdir(folder))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
