"""Finds the checkpoints of a run, and what is wrong with those that are damaged."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from trainer.checkpoints import files
from trainer.restore import RestoreError, find_checkpoint, open_checkpoint, whole_checkpoints
from trainer.restore.local_files import open_regular


def prefix_of(folder: str, step: int) -> str:
    return os.path.join(folder, f"ckpt-{step}")


def newest_checkpoint(folder) -> str | None:
    """The prefix of the newest checkpoint of a run in `folder` whose files are all there, or None.

    Looked up from the files: a `checkpoint` state file can name one that is not there any more.
    """
    folder = os.fspath(folder)
    ours = {prefix_of(folder, step) for step in files.checkpoint_steps(folder)}
    whole = [prefix for prefix in whole_checkpoints(folder) if prefix in ours]
    return whole[-1] if whole else None


def checkpoint_faults(folder) -> list[str]:
    """A sentence for each checkpoint of a run in `folder` that lacks a file or has one of another size."""
    folder = os.fspath(folder)
    found = {step: missing_or_cut(prefix_of(folder, step)) for step in files.checkpoint_steps(folder)}
    return [f"ckpt-{step}: {', '.join(faults)}" for step, faults in found.items() if faults]


def find_faults(prefix: str) -> list[str]:
    """The faults of a checkpoint, of which every byte is read: by its manifest, or by the index alone.

    Without a manifest it is of an earlier version, or a kill came just before. The index has a checksum
    of itself and of each tensor; if they fit, nothing can be missing.
    """
    has_manifest = files.has_manifest(prefix)
    faults = files.find_faults(prefix) if has_manifest else []
    if faults:
        return faults
    try:
        # With a manifest, too: TensorFlow's reader ends the process at an index that holds what cannot be.
        with contextlib.closing(open_checkpoint(find_checkpoint(prefix))) as source:
            for entry in source.entries if not has_manifest else ():
                written = source.crc32c(entry)
                if written is None:
                    source.read(entry)  # which tests the checksums of its parts
                elif source.computed_crc32c(entry) != written:
                    return [f"the checksum of {entry.key} is not that of the bytes that were written"]
    except RestoreError as error:
        return [str(error).splitlines()[0]]
    return []


def missing_or_cut(prefix: str) -> list[str]:
    """The same by names and sizes alone."""
    if files.has_manifest(prefix):
        return files.find_faults(prefix, checksums=False)
    if prefix in whole_checkpoints(os.path.dirname(prefix)):
        return []
    return [f"not all files of {os.path.basename(prefix)} are there"]


def read_best(folder: str) -> tuple[dict[str, Any] | None, list[str]]:
    """(what `info.json` says of the best checkpoint, what is wrong with it); None where there is none or a fault."""
    path = Path(folder, "info.json")
    if not path.exists():
        return None, []
    try:
        with open_regular(path) as file:
            best = json.load(file)
        prefix = prefix_of(folder, int(best["step"]))
        faults = [] if files.is_kept_aside(prefix) else missing_or_cut(prefix)
        float(best["value"]), best["metric"], best["higher_is_better"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return None, [f"info.json cannot be read ({type(error).__name__}: {error})"]
    return (None if faults else best), faults
