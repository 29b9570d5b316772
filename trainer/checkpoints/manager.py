"""Saves and resumes a train state: everything of our own run, never a foreign file."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.checkpoints import files
from trainer.checkpoints.finder import find_faults, prefix_of, read_best
from trainer.checkpoints.retention import delete_old, keep_only, looks_whole
from trainer.checkpoints.train_state import TrainState
from trainer.cluster.collectives import Agreement
from trainer.errors import UserError
from trainer.output.atomic_files import write_json
from trainer.restore import renew_constants
from trainer.restore.local_files import without_pattern

# What a worker sees when another one is lost: not a fault of the disk.
_PEER_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)


class Checkpoints:
    """The checkpoints of one run, `ckpt-<step>`, in `model_dir/checkpoints`; the best one in `best/` in it.

    keep: how many to hold; older ones are deleted after a newer one is whole.
    keep_every: those of a multiple of this many steps stay for good; 0 for none.
    is_chief: other workers take part in the reads, which are collectives, and write to a folder that is thrown away.
    in_background: whether `save` returns as soon as the state is written, before it is on the disk, see `wait`.
    agreement: of several workers, which resume the checkpoint that the chief finds, each reading it itself, and keep as
      the best what is the best to the chief.

    skipped: after `resume`, a sentence for each checkpoint that was not whole and that another one stood in for.
    """

    def __init__(
        self,
        state: TrainState,
        folder,
        keep: int = 3,
        is_chief: bool = True,
        keep_every: int = 0,
        in_background: bool = False,
        agreement: Agreement | None = None,
    ):
        self._state = state
        self._checkpoint = state.as_checkpoint()
        self._folder = os.fspath(folder)
        self._best_folder = os.path.join(self._folder, "best")
        self._keep, self._keep_every = keep, keep_every
        self._scratch = None if is_chief else tempfile.TemporaryDirectory(prefix="regraft-worker-")
        self._in_background = in_background and is_chief
        self._finishing: threading.Thread | None = None
        self._background_error: BaseException | None = None  # what the thread that finishes a checkpoint met
        self._saved: tuple[int, str] | None = None  # the last step that was saved or resumed, and its folder
        self._damaged: set[int] = set()
        self._agreement = agreement
        self._is_tidy = False
        #: The longest that a checkpoint took to be on the disk.
        self.longest_seconds = 0.0
        self.skipped: list[str] = []
        # Now, before the chief can write another: all workers must find the same one.
        self._best, faults = read_best(self._best_folder)
        if faults:
            self.skipped.append(f"best/ is not whole: {', '.join(faults)}; the best from now on takes its place")

    def save(self) -> None:
        """Writes the state as of now, and deletes what need not be kept any longer.

        Raises `UserError` if it cannot be written; the older checkpoints are then as they were. An error in the
        background is raised by the next `save` of another step, or by `wait`; a `save` of the same step tries again.
        """
        step = self._state.current_step()
        self.close()
        if self._saved == (step, self._folder):
            if self._background_error is None:
                return None
            self._saved = self._background_error = None  # once more

        def clear_away():
            with self._explaining(f"ckpt-{step} is written, but the older ones cannot be cleared away"):
                delete_old(self._folder, step, self._keep, self._keep_every, self._damaged)

        return self._write(step, self._folder, clear_away)

    def wait(self) -> None:
        """Returns when the last checkpoint is on the disk; raises the `UserError` of one that is not."""
        self.close()
        background_error, self._background_error = self._background_error, None
        if background_error is not None:
            self._saved = None  # so that the same step may be tried again
            raise background_error

    def close(self) -> None:
        """Returns when nothing is under way any more, and raises nothing."""
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None

    def save_best(self, value: float, name: str, higher_is_better: bool = True) -> bool:
        """Keeps the state as of now in `best/` if `value` is better than all before; returns whether it is.

        value, name: of the metric; NaN is never the best. `best/info.json` says whose checkpoint it is.
        Call it before `save`, which then links to its files: a run that is killed between the two comes
        by this step again, where one that was killed after `save` would never look at it again.
        """
        if self._saved is not None and self._saved[1] == self._best_folder:
            self.close()  # one that is still under way may become the best so far, or fail to
        measured = {"metric": name, "higher_is_better": higher_is_better}
        is_better = self._beats_best(value, measured)
        if self._agreement is not None:
            # All must continue to the same saves, and the chief alone knows whether the best so far could be written.
            is_better = bool(self._agreement.broadcast_from_chief([is_better])[0])
        if not is_better:
            return False
        step = self._state.current_step()
        best = {"checkpoint": f"ckpt-{step}", "step": step, "value": float(value), **measured}

        def tell():
            with self._explaining(f"best/ckpt-{step} is written, but best/info.json cannot be"):
                # From here on it is the best one; before, the old one was, whose files are still there.
                write_json(Path(self._best_folder, "info.json"), best)
                self._best = best
                keep_only(self._best_folder, step)

        self._write(step, self._best_folder, tell)
        if self._scratch is not None:
            self._best = best
        return True

    def _beats_best(self, value: float, measured: dict[str, Any]) -> bool:
        if self._best is None or not measured.items() <= self._best.items():
            return value == value
        before = self._best["value"]
        return value > before if measured["higher_is_better"] else value < before

    def resume(self) -> int:
        """Loads the newest whole checkpoint of this run; returns its step, or 0 where there is none.

        Every byte is compared with its checksum before. Changes nothing on the disk.
        Raises `UserError` if there are checkpoints and none is whole, or if it is of a differently built run.
        """
        self.close()
        step = self._newest_whole() if self._agreement is None else self._newest_of_chief(self._agreement)
        if step is None:
            return 0
        latest = prefix_of(self._folder, step)
        try:
            with without_pattern(latest) as prefix:
                status = self._checkpoint.restore(prefix)
                status.assert_existing_objects_matched()
                status.assert_consumed()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise UserError(
                f"{latest} is not a checkpoint of this run: its model or optimizer is built differently. "
                f"Choose another --model_dir, or go back to the config that wrote it.\n{str(error)[:300]}"
            ) from error
        self._state.take_layer_states()
        renew_constants(self._state.model)
        self._saved = (step, self._folder)
        return self._state.current_step()

    def tidy(self) -> None:
        """Removes what killed processes left: half-written checkpoints, and old ones that should be gone by now.

        For the one process that writes the folder, after `resume`; the first `save` makes up for it.
        """
        self._is_tidy = True
        if self._scratch is not None:
            return
        with self._explaining("What an earlier process left cannot be cleared away"):
            files.bring_back(self._best_folder)
            for folder in (self._folder, self._best_folder):
                files.remove_unfinished(folder)
            if self._best is not None:
                keep_only(self._best_folder, self._best["step"])
            if self._saved is not None:
                delete_old(self._folder, self._saved[0], self._keep, self._keep_every, self._damaged)

    def _newest_whole(self) -> int | None:
        """Its step; None where there are no checkpoints. Notes what is wrong with newer ones."""
        found: dict[int, str] = {}
        for step in reversed(files.checkpoint_steps(self._folder)):
            faults = find_faults(prefix_of(self._folder, step))
            if not faults:
                said = [
                    f"ckpt-{bad} is not whole: {fault}; ckpt-{step} is used instead" for bad, fault in found.items()
                ]
                self.skipped += [text for text in said if text not in self.skipped]
                self._damaged = set(found)
                return step
            found[step] = ", ".join(faults)
        if found:
            raise UserError(
                f"{self._folder} holds no whole checkpoint any more. "
                + "".join(f"ckpt-{bad}: {fault}. " for bad, fault in found.items())
                + f"Bring the files back, or delete {self._folder} to start over, or choose another --model_dir; "
                "nothing was changed."
            )
        return None

    def _newest_of_chief(self, agreement: Agreement) -> int | None:
        """The same, as the chief finds it: others may look at another moment. Raises on all workers or on none."""
        step, failure = None, None
        if self._scratch is None:
            try:
                step = self._newest_whole()
            except UserError as error:
                failure = error
        found, failed = agreement.broadcast_from_chief([-1 if step is None else step, failure is not None])
        if failure is not None:
            raise failure
        if failed:
            raise UserError(f"The chief finds no whole checkpoint in {self._folder}; its own message says more.")
        faults = find_faults(prefix_of(self._folder, int(found))) if found >= 0 and self._scratch is not None else []
        (others,) = agreement.all_reduce_sum([bool(faults)])
        if others:
            own = f" This one finds: {', '.join(faults)}." if faults else ""
            raise UserError(
                f"The chief resumes from ckpt-{found}, which {others} of {agreement.workers} workers cannot read in "
                f"{self._folder}.{own} model_dir must be a folder that all workers share."
            )
        return int(found) if found >= 0 else None

    def _write(self, step: int, folder: str, then: Callable[[], None]) -> None:
        """Makes a whole `ckpt-<step>` in `folder`, of the state as of now or of where it is saved already.

        The state is written here and now, into the system's memory; in the background it is brought to the
        disk, gets its manifest and is moved in. So training continues while the disk is slow, and what is
        written is what was there.
        """
        started = time.monotonic()
        try:
            self.wait()
            failed = None
        except UserError as error:
            failed = error
        saved_in = self._saved[1] if self._saved is not None and self._saved[0] == step else None
        if self._scratch is not None:
            if saved_in is None:
                with self._explaining(f"This worker's part of step {step} cannot be written to {self._scratch.name}"):
                    self._write_state(os.path.join(self._scratch.name, "ckpt"))
            self._saved = (step, folder)
            return
        if not self._is_tidy:
            self.tidy()
        # Finished elsewhere, then moved in: what stands in the folder itself never is half-written.
        unfinished = files.unfinished_folder(folder, step)
        staged = prefix_of(unfinished, step)
        with self._explaining(f"The checkpoint of step {step} cannot be written", unfinished):
            if saved_in is None:
                self._write_state(staged)
            else:
                files.copy_to(prefix_of(saved_in, step), unfinished)
        self._saved = (step, folder)

        def finish():
            try:
                with self._explaining(f"The checkpoint of step {step} cannot be written", unfinished):
                    if not files.has_manifest(staged):
                        files.write_manifest(staged, step)
                    if not self._is_there(staged, folder, step):
                        files.move_in(staged, folder, keep_old=folder == self._best_folder)
                    shutil.rmtree(unfinished, ignore_errors=True)
                self._damaged.discard(step)
                then()
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - started)
            except BaseException as error:  # noqa: BLE001  `wait` raises it in the thread that trains
                self._background_error = error

        if self._in_background:
            # No daemon: a process that leaves ends it first.
            self._finishing = threading.Thread(target=finish, name=f"finishes ckpt-{step}")
            self._finishing.start()
        else:
            finish()
            self.wait()
        if failed is not None:
            raise failed

    def _is_there(self, staged: str, folder: str, step: int) -> bool:
        there = prefix_of(folder, step)
        if step not in files.checkpoint_steps(folder) or find_faults(there):
            return False
        # In `best/` it may be of steps that a run went back behind, to make them otherwise.
        return folder == self._folder or (files.has_manifest(there) and files.is_the_same(staged, there))

    def _write_state(self, prefix: str) -> None:
        # Asking for the counter makes it: TensorFlow's own `restore` expects one in the file. It stays 0, so
        # that how often a run was interrupted leaves no trace.
        assert self._checkpoint.save_counter is not None
        self._checkpoint.write(prefix)

    @contextlib.contextmanager
    def _explaining(self, what: str, unfinished: str | None = None) -> Iterator[None]:
        """Raises a `UserError` for what the file system refuses, after the unfinished files are removed."""
        try:
            yield
        except _PEER_LOST:
            raise
        except (OSError, tf.errors.OpError) as error:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)
            steps = files.checkpoint_steps(self._folder)
            whole = [step for step in steps if looks_whole(self._folder, step, self._damaged)]
            left = f"ckpt-{whole[-1]} is whole, and a run resumes from it" if whole else "There is no older one"
            raise UserError(
                f"{what}, in {self._folder}: {files.reason_of(error)}. {left}. Make room or give the right to write "
                "there, and run the same command again."
            ) from error
