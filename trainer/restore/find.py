"""Finds the newest whole checkpoint at a path, or says what is there instead."""

import os
import re
from collections import Counter

import tensorflow as tf

from trainer.output.printable import printable
from trainer.restore.errors import RestoreError, first_line

WEIGHT_FILES = (
    ".weights.h5", ".weights.json", ".keras", ".h5", ".hdf5", ".safetensors", ".safetensors.index.json", ".npz",
)  # fmt: skip
_SHARDS = (  # a file of several, and the end of their index, in small letters or in capitals
    (re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors", re.IGNORECASE), ".safetensors.index.json"),
    (re.compile(r"(.+)_\d{5}\.weights\.h5", re.IGNORECASE), ".weights.json"),
)


def find_checkpoint(path) -> str:
    """The prefix of the newest whole TensorFlow checkpoint at `path`, or the file of weights that is there.

    path: a prefix (`.../ckpt-7`), one of its files, a folder of checkpoints, a model_dir, a SavedModel, a file of
      `WEIGHT_FILES`, or a folder that holds one such file. A folder's state file is believed only if the checkpoint
      that it names is whole.
    Raises `RestoreError` saying what is there instead.
    """
    if not path or not isinstance(path, str | os.PathLike):
        raise RestoreError(
            f"init_checkpoint is {repr(path) if path else 'empty'}: "
            "name a checkpoint prefix or a folder that holds one."
        )
    try:
        return _find(os.fspath(path))
    except tf.errors.OpError as error:
        raise RestoreError(f"{path} cannot be looked at: {first_line(error)}") from error


def _find(path: str) -> str:
    path = re.sub(r"\.(index|data-\d+-of-\d+)$", "", path.rstrip("/") or path)
    # A prefix first: file systems without folders call every beginning of a name one.
    if tf.io.gfile.exists(path + ".index"):
        missing = missing_files(path)
        if missing:
            raise RestoreError(f"The checkpoint {path} is not whole: {_some(missing)} is missing.")
        return path
    if tf.io.gfile.isdir(path):
        return _newest_in(path)
    if tf.io.gfile.exists(path) and path.lower().endswith(WEIGHT_FILES):
        return _index_of(path)
    if tf.io.gfile.exists(path):
        raise RestoreError(
            f"{path} is a file, but not a TensorFlow checkpoint: its index file {path}.index is not there. "
            f"Other files are known by their ends: {', '.join(WEIGHT_FILES)}."
        )
    folder = os.path.dirname(path) or "."
    if not tf.io.gfile.isdir(folder):
        raise RestoreError(f"There is no checkpoint at {path}: the folder {folder} does not exist.")
    there = [printable(os.path.basename(name)) for name in (*whole_checkpoints(folder), *_weight_files(folder))]
    raise RestoreError(
        f"There is no checkpoint at {path}. "
        + (f"Whole checkpoints in {folder}: {', '.join(there)}." if there else f"{folder} holds none.")
    )


def _index_of(path: str) -> str:
    """The index of the files that this one is a part of, where there is one; else the file itself."""
    folder, name = os.path.split(path)
    for pattern, end in _SHARDS:
        whole = re.fullmatch(pattern, name)
        for index in (whole[1] + end, whole[1] + end.upper()) if whole else ():
            if tf.io.gfile.exists(os.path.join(folder, index)):
                return os.path.join(folder, index)
    return path


def _weight_files(folder: str) -> list[str]:
    """Names of the weight files in a folder, each set of shards once."""
    found = [os.path.join(folder, name) for name in tf.io.gfile.listdir(folder) if name.lower().endswith(WEIGHT_FILES)]
    names = {os.path.basename(_index_of(path)) for path in found}
    # Shards of .npz have no index: any one of them stands for all.
    return sorted({re.sub(r"-\d{5}-of-(\d{5}\.npz)$", r"-00000-of-\1", name, flags=re.IGNORECASE) for name in names})


def whole_checkpoints(folder) -> list[str]:
    """Prefixes of the checkpoints in `folder` whose files are all there, oldest first."""
    whole = [prefix for prefix, lacking in _with_what_they_lack(folder) if not lacking]
    aged = [(age, prefix) for prefix in whole if (age := _age(prefix)) is not None]
    return [prefix for _, prefix in sorted(aged)]


def unreadable_checkpoints(folder) -> list[str]:
    """A sentence for each checkpoint in `folder` that is not whole, naming what it lacks."""
    found = _with_what_they_lack(folder)
    return [f"{printable(os.path.basename(prefix))} lacks {_some(lacking)}" for prefix, lacking in found if lacking]


def _with_what_they_lack(folder) -> list[tuple[str, list[str]]]:
    """(prefix, names of the data shards that are not there) of every index file; nothing for no folder."""
    folder = os.fspath(folder)
    names = sorted(tf.io.gfile.listdir(folder)) if tf.io.gfile.isdir(folder) else []
    prefixes = [os.path.join(folder, name.removesuffix(".index")) for name in names if name.endswith(".index")]
    return [(prefix, _missing(prefix, names)) for prefix in prefixes]


def missing_files(prefix: str) -> list[str]:
    """Names of the data shards that a checkpoint's files speak of and that are not there."""
    return _missing(prefix, tf.io.gfile.listdir(os.path.dirname(prefix) or "."))


def _missing(prefix: str, names: list[str]) -> list[str]:
    # By listing, not by glob: a folder may be called `run[1]`.
    base = os.path.basename(prefix)
    shards = [found for name in names if (found := re.fullmatch(re.escape(base) + r"\.data-(\d{5})-of-(\d{5})", name))]
    there = {shard[0]: int(shard[2]) for shard in shards if int(shard[1]) < int(shard[2])}
    by_count = Counter(there.values())
    nearest = min(by_count, key=lambda count: count - by_count[count], default=1)
    wanted = (f"{base}.data-{index:05d}-of-{nearest:05d}" for index in range(nearest))
    return [name for name in wanted if name not in there]


def _newest_in(folder: str) -> str:
    if tf.io.gfile.exists(os.path.join(folder, "saved_model.pb")):
        return find_checkpoint(os.path.join(folder, "variables", "variables"))
    if tf.io.gfile.isdir(os.path.join(folder, "checkpoints")):
        return _newest_in(os.path.join(folder, "checkpoints"))
    whole = whole_checkpoints(folder)
    named = os.path.basename(_named_by_state_file(folder) or "")
    if whole:
        # By its name alone: the state file may hold the path where the folder was written.
        return next((prefix for prefix in whole if os.path.basename(prefix) == named), whole[-1])
    files = _weight_files(folder)
    if len(files) == 1:
        return os.path.join(folder, files[0])
    if files:
        raise RestoreError(f"The folder {folder} holds several files of weights: {_some(files)}. Name one of them.")
    raise RestoreError(f"There is no checkpoint in the folder {folder}; it holds: {_listing(folder)}.")


def _named_by_state_file(folder: str) -> str | None:
    path = os.path.join(folder, "checkpoint")
    if "://" not in path and not os.path.isfile(path):  # nor a pipe, which would be waited for without end
        return None
    try:
        state = tf.train.get_checkpoint_state(folder)
    except (ValueError, tf.errors.OpError):  # it is not text; what it would say can be seen from the files
        return None
    return state.model_checkpoint_path if state else None


def _age(prefix: str) -> tuple[int, int] | None:
    number = re.search(r"-(\d+)$", prefix)
    try:
        return int(number[1]) if number else -1, tf.io.gfile.stat(prefix + ".index").mtime_nsec
    except tf.errors.NotFoundError:  # a run that still trains has deleted it since the folder was listed
        return None


def _listing(folder: str) -> str:
    return _some(sorted(tf.io.gfile.listdir(folder))) or "nothing"


def _some(names: list[str]) -> str:
    return ", ".join(map(printable, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
