"""Saves and resumes a train state: everything of our own run, never somebody else's file."""

import os
import tempfile

import tensorflow as tf

from trainer.errors import UserError
from trainer.restore import renew_constants, whole_checkpoints
from trainer.train_state import TrainState


class Checkpoints:
    """The checkpoints of one run, `ckpt-<step>`, in `model_dir/checkpoints`.

    keep: how many to hold; older ones are deleted after a newer one is whole.
    is_chief: other workers take part in the reads, which are collectives, and write to a folder
      that is thrown away.
    """

    def __init__(self, state: TrainState, folder, keep: int = 3, is_chief: bool = True):
        self._folder = os.fspath(folder)
        self._checkpoint = state.as_checkpoint()
        self._state = state
        self._scratch = None if is_chief else tempfile.TemporaryDirectory(prefix="regraft-worker-")
        target = self._folder if self._scratch is None else self._scratch.name
        self._manager = tf.train.CheckpointManager(self._checkpoint, target, max_to_keep=keep)

    def save(self) -> None:
        """Writes the state as of now; a checkpoint of this step that is there already is kept."""
        step = self._state.current_step()
        if os.path.join(self._folder, f"ckpt-{step}") not in whole_checkpoints(self._folder):
            self._manager.save(checkpoint_number=step)

    def resume(self) -> int:
        """Loads the newest whole checkpoint of this run; returns its step, or 0 where there is none.

        Raises `UserError` if the checkpoint is of a differently built run.
        """
        latest = newest_checkpoint(self._folder)
        if latest is None:
            return 0
        try:
            status = self._checkpoint.restore(latest)
            status.assert_existing_objects_matched()
            status.assert_consumed()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise UserError(
                f"{latest} is not a checkpoint of this run: its model or optimizer is built differently. "
                f"Choose another --model_dir, or go back to the config that wrote it.\n{str(error)[:300]}"
            ) from error
        renew_constants(self._state.model)
        return self._state.current_step()


def newest_checkpoint(folder) -> str | None:
    """The prefix of the newest whole checkpoint in `folder`, or None.

    Looked up from the files: a `checkpoint` state file can name one that is not there any more.
    """
    whole = whole_checkpoints(folder)
    return whole[-1] if whole else None
