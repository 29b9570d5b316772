"""Opens a run's session: locks the folder, resumes, and listens to signals; closes all of it at the end."""

import contextlib
from collections.abc import Iterator

from trainer.checkpoints.finder import newest_checkpoint
from trainer.checkpoints.manager import Checkpoints
from trainer.cluster.strategy import is_chief
from trainer.errors import RunAgain
from trainer.output.model_dir import ModelDir, ModelDirLock
from trainer.run.build import Built, Fit
from trainer.run.identity import Identity
from trainer.run.preemption import Preemption
from trainer.run.resume import Resume, Start
from trainer.run.session import Session


@contextlib.contextmanager
def open_session(built: Built, fit: Fit, start: Start, identity: Identity) -> Iterator[Session]:
    """Locks the folder, finds its checkpoints, resumes, and listens to signals while it is open.

    Nothing is on the disk before: every part of the run was built by now.
    Raises `RunAgain` where another process went on with the run meanwhile.
    """
    files, saving, limits = built.inputs.files, built.settings.saving, built.settings.limits
    strategy, agreement = built.inputs.strategy, built.inputs.agreement
    notes = {**built.notes, **fit.notes, **identity.notes()}
    if files is None:
        with Preemption(strategy, limits.grace_seconds) as preemption:
            yield Session(built, fit, notes, identity.text, preemption)
        return
    no_lock: contextlib.AbstractContextManager[dict[str, str]] = contextlib.nullcontext({})
    with _locked(files, start) if is_chief(strategy) else no_lock as lock_notes:
        checkpoints = Checkpoints(
            built.state, files.checkpoints, saving.keep, is_chief(strategy), saving.keep_every, saving.in_background,
            agreement if agreement.workers > 1 else None,
        )  # fmt: skip
        resume = Resume(checkpoints, built.state.optimizer, built.settings.num_steps, identity.changed_at)
        resumed_step = resume() if start is Start.RESUMED else None
        if checkpoints.skipped:
            notes["checkpoints"] = "; ".join(checkpoints.skipped)
        checkpoints.tidy()
        # Closed before the folder is another's; a signal waits from here on until the run is on the disk.
        preemption = Preemption(strategy, limits.grace_seconds, lambda: newest_checkpoint(files.checkpoints))
        with contextlib.closing(checkpoints), preemption:
            text = identity.as_file(resume.changed_at)
            yield Session(built, fit, notes | lock_notes, text, preemption, files, checkpoints, resume, resumed_step)


@contextlib.contextmanager
def _locked(files: ModelDir, start: Start) -> Iterator[dict[str, str]]:
    """Makes and locks the folder; gives a note, by heading, on who held it before.

    Raises `RunAgain` where another process went on with the run meanwhile.
    """
    files.create()
    with ModelDirLock(files) as lock:
        if (newest_checkpoint(files.checkpoints) is not None) != (start is Start.RESUMED):
            raise RunAgain(f"model_dir {files.path} was written by another process just now. Run the command again.")
        if not lock.left_by:
            yield {}
        else:
            yield {
                "lock": f"{lock.left_by} did not let go of it; killed, or still at work where locks do not reach other "
                "hosts"
            }
