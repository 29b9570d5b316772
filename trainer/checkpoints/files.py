"""Tells a whole checkpoint from a damaged one, and moves and deletes its files so that a kill leaves no doubt.

A checkpoint `ckpt-30` is its data, its index, and a manifest, `ckpt-30.manifest.json`: the size and the
CRC-32C of each. The files come in that order and go in the opposite one, so that a kill leaves data alone,
which is no checkpoint, or data and index, which are whole and tested by the checksums in the index.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import google_crc32c
import tensorflow as tf

from trainer.restore.local_files import open_regular

MANIFEST = ".manifest.json"
_INDEX = ".index"
_FILE = re.compile(r"(ckpt-(0|[1-9]\d*))(\.data-\d{5}-of-\d{5}|\.index|\.manifest\.json)")
_UNFINISHED = re.compile(r"ckpt-\d+_temp|\.tmp\.(checkpoint|info\.json)")  # TensorFlow's name for it, and ours
_ASIDE = re.compile(r"(ckpt-\d+)-before(\.data-\d{5}-of-\d{5}|\.index)")
_BLOCK_BYTES = 1 << 20  # stays in the processor's cache: 100 MB in 10 ms, where SHA-256 takes 56


def checkpoint_steps(folder: str) -> list[int]:
    """Steps of all checkpoints in `folder`, whole or not, lowest first; data alone is none."""
    found = [match for match in map(_FILE.fullmatch, _listing(folder)) if match]
    return sorted({int(match[2]) for match in found if match[3] in (_INDEX, MANIFEST)})


def steps_with_files(folder: str) -> list[int]:
    """The same, and the steps of data that a kill left alone."""
    return sorted({int(match[2]) for match in map(_FILE.fullmatch, _listing(folder)) if match})


def write_manifest(prefix: str, step: int) -> None:
    """Puts the files of a checkpoint on the disk for good, and then what they are in a file beside them."""
    files = {}
    for path in _files(prefix):
        _sync(path)
        files[os.path.basename(path)] = {"bytes": os.path.getsize(path), "crc32c": _checksum(path)}
    with open(prefix + MANIFEST, "w") as file:
        json.dump({"step": step, "files": files}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def has_manifest(prefix: str) -> bool:
    return os.path.exists(prefix + MANIFEST)


def is_the_same(prefix: str, other_prefix: str) -> bool:
    """Whether two checkpoints with manifests are made of the same bytes."""
    return Path(prefix + MANIFEST).read_bytes() == Path(other_prefix + MANIFEST).read_bytes()


def find_faults(prefix: str, checksums: bool = True) -> list[str]:
    """The faults in the files of a checkpoint that has a manifest, a clause each; reads them in blocks.

    checksums: without, only names and sizes are compared, at no cost.
    """
    name = os.path.basename(prefix)
    try:
        with open_regular(prefix + MANIFEST) as file:
            files = {str(file): (int(it["bytes"]), str(it["crc32c"])) for file, it in json.load(file)["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{name}{MANIFEST} cannot be read as a manifest ({type(error).__name__}: {error})"]
    if name + _INDEX not in files or not any(file.startswith(f"{name}.data-") for file in files):
        return [f"{name}{MANIFEST} names no index or no data"]
    faults = [
        _fault(os.path.join(os.path.dirname(prefix), file), size_bytes, checksum if checksums else None)
        for file, (size_bytes, checksum) in sorted(files.items())
    ]
    return [fault for fault in faults if fault]


def move_in(prefix: str, folder: str, keep_old: bool = False) -> None:
    """Moves a finished checkpoint with its manifest into `folder`, in place of what is called so there.

    keep_old: the old one is one to the last, under the name `ckpt-<step>-before` meanwhile, see `bring_back`.
    """
    there = os.path.join(folder, os.path.basename(prefix))
    if keep_old:
        for path in _files(there):
            if not path.endswith(MANIFEST):
                _link(path, there + "-before" + path.removeprefix(there))
    remove(there)
    for path in _files(prefix):
        os.replace(path, os.path.join(folder, os.path.basename(path)))
    _sync(folder)
    _remove_aside(folder)


def is_kept_aside(prefix: str) -> bool:
    """Whether a kill came while `move_in` was at it, so that the old one is to be brought back."""
    return os.path.exists(f"{prefix}-before{_INDEX}")


def bring_back(folder: str) -> None:
    """Ends what a `move_in` with `keep_old` had begun when it was killed: the new one is whole, or the old one is."""
    for name in {match[1] for match in map(_ASIDE.fullmatch, _listing(folder)) if match}:
        prefix = os.path.join(folder, name)
        if is_kept_aside(prefix) and (not has_manifest(prefix) or find_faults(prefix, checksums=False)):
            remove(prefix)
            for path in _aside(folder, name):  # data first
                _link(path, prefix + path.removeprefix(f"{prefix}-before"))
            write_manifest(prefix, int(name.removeprefix("ckpt-")))
    _remove_aside(folder)


def remove(prefix: str) -> None:
    """Deletes a checkpoint, beginning with what says that it is whole."""
    for path in reversed(_files(prefix)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def copy_to(prefix: str, folder: str) -> None:
    """Puts a checkpoint's files into a new `folder` too, without taking room where links can be made."""
    os.makedirs(folder)
    for path in _files(prefix):
        _link(path, os.path.join(folder, os.path.basename(path)))


def unfinished_folder(folder: str, step: int) -> str:
    """Where a checkpoint is written before it is moved in."""
    return os.path.join(folder, f"ckpt-{step}_temp")


def remove_unfinished(folder: str) -> None:
    """Deletes what processes that were killed had begun to write, TensorFlow's folders among it."""
    for name in filter(_UNFINISHED.fullmatch, _listing(folder)):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def _listing(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _aside(folder: str, name: str | None = None) -> list[str]:
    """Paths of what is kept aside, of one checkpoint or of all: data, index."""
    found = [match for match in map(_ASIDE.fullmatch, _listing(folder)) if match]
    return [os.path.join(folder, match[0]) for match in found if name in (None, match[1])]


def _remove_aside(folder: str) -> None:
    for path in reversed(_aside(folder)):  # the index, which says that it is one, before the data
        os.unlink(path)


def _link(path: str, target: str) -> None:
    """Replaces nothing but what a kill left half-done."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    try:
        os.link(path, target)
    except OSError:  # not every file system has links
        shutil.copyfile(path, target)
        _sync(target)


def _files(prefix: str) -> list[str]:
    """Paths of what is there of a checkpoint, in the order in which they come: data, index, manifest."""
    folder, name = os.path.split(prefix)
    ours = [match for match in map(_FILE.fullmatch, _listing(folder)) if match and match[1] == name]
    ours.sort(key=lambda match: (match[3] == MANIFEST, match[3] == _INDEX, match[0]))
    return [os.path.join(folder, match[0]) for match in ours]


def _fault(path: str, size_bytes: int, checksum: str | None) -> str | None:
    name = os.path.basename(path)
    try:
        found_bytes = os.path.getsize(path)
        if found_bytes != size_bytes:
            return f"{name} has {found_bytes:,} bytes and should have {size_bytes:,}"
        if checksum is not None and _checksum(path) != checksum:
            return f"the checksum of {name} is not that of the bytes that were written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def _checksum(path: str) -> str:
    checksum = 0
    with open_regular(path) as file:
        while block := file.read(_BLOCK_BYTES):
            checksum = google_crc32c.extend(checksum, block)
    return f"{checksum:08x}"


def _sync(path: str) -> None:
    """Waits until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason_of(error: OSError | tf.errors.OpError) -> str:
    """The file system's message, without Python's additions."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # Without the kernel that failed, which comes before and after, and the name of a temporary file.
    return re.sub(r"{{.*?}} | \[Op:.*", "", error.message.splitlines()[0]).rpartition("; ")[2]
