"""Decides which checkpoints of a run stay, and deletes the others."""

import errno
import itertools
import os
from collections.abc import Collection
from pathlib import Path

import tensorflow as tf

from trainer.checkpoints import files
from trainer.checkpoints.finder import missing_or_cut, prefix_of
from trainer.output.atomic_files import write_text


def delete_old(folder: str, step: int, keep: int, keep_every: int, damaged: Collection[int]) -> None:
    """Deletes what is older than `step` and need not be kept: all but the newest `keep` that look whole.

    keep_every: those of a multiple of this many steps stay too, unless they are damaged; 0 for none.
    Raises `FileNotFoundError` where none would be left.
    """
    steps = [other for other in files.checkpoint_steps(folder) if other <= step]
    kept = {other for other in steps if keep_every and other % keep_every == 0 and other not in damaged}
    kept |= set(itertools.islice((other for other in reversed(steps) if looks_whole(folder, other, damaged)), keep))
    if not kept:
        raise FileNotFoundError(errno.ENOENT, "the files are gone again", folder)
    # Before anything is deleted: the state file names nothing that is not there.
    _write_state_file(folder, sorted(kept))
    for other in files.steps_with_files(folder):
        if other < step and other not in kept:
            files.remove(prefix_of(folder, other))


def keep_only(folder: str, step: int) -> None:
    """Deletes all checkpoints in the folder but that of one step."""
    _write_state_file(folder, [step])
    for other in files.steps_with_files(folder):
        if other != step:
            files.remove(prefix_of(folder, other))


def looks_whole(folder: str, step: int, damaged: Collection[int]) -> bool:
    """Whether a checkpoint is not known to be damaged, and has all its files."""
    return step not in damaged and not missing_or_cut(prefix_of(folder, step))


def _write_state_file(folder: str, steps: list[int]) -> None:
    """TensorFlow's `checkpoint` file, by which `tf.train.latest_checkpoint` finds the last of `steps`."""
    names = [f"ckpt-{step}" for step in steps]
    state = tf.compat.v1.train.generate_checkpoint_state_proto(os.path.abspath(folder), names[-1], names)
    write_text(Path(folder, "checkpoint"), str(state))
