"""Finds out whether a model_dir holds a run to resume, and takes one back to its newest checkpoint."""

import enum

import keras

from trainer.checkpoints.finder import checkpoint_faults, newest_checkpoint
from trainer.checkpoints.manager import Checkpoints
from trainer.errors import UserError
from trainer.optimizers.build import constant_rates
from trainer.output.model_dir import ModelDir
from trainer.run.inputs import Inputs, Settings


class Start(enum.Enum):
    """A run's start: random weights, another run's weights, or its own last checkpoint."""

    FRESH = "fresh"
    RESTORED = "restored"
    RESUMED = "resumed"


def find_start(settings: Settings, inputs: Inputs) -> Start:
    """A collective of all workers, which must see the same: its own checkpoint wins over what is to be restored."""
    files, agreement = inputs.files, inputs.agreement
    if files is not None:
        resumes = may_resume(files)
        (seen,) = agreement.all_reduce_sum([resumes])
        if seen not in (0, agreement.workers):
            raise UserError(
                f"{seen} of {agreement.workers} workers see a checkpoint of the run in {files.path}, and this one sees "
                f"{'one' if resumes else 'none'}: model_dir must be a folder that all workers share."
            )
        if resumes:
            return Start.RESUMED
    return Start.FRESH if settings.restore is None else Start.RESTORED


def may_resume(files: ModelDir) -> bool:
    """Whether the folder holds a whole checkpoint of a run; raises `UserError` if it holds only broken ones.

    A folder that holds checkpoints of another program, which would get mixed with ours, is refused.
    """
    if any(files.path.glob("*.index")):
        raise UserError(
            f"model_dir {files.path} holds checkpoints that no run wrote; choose a folder of its own for the run."
        )
    if newest_checkpoint(files.checkpoints) is not None:
        return True
    broken = checkpoint_faults(files.checkpoints)
    if broken:
        raise UserError(
            f"model_dir {files.path} holds no whole checkpoint any more: {'; '.join(broken)}. "
            "Bring the files back, or choose another --model_dir; starting over would erase the run's record."
        )
    return False


class Resume:
    """Call it, on every worker, to load the newest whole checkpoint; returns its step.

    optimizer: with the constant rates of the config, before anything was loaded.
    changed_at: the step at which the config was changed last, -1 for one that never was; `math.inf` if it is changed
      now, which the first call makes a step of.

    A checkpoint holds the optimizer's rate, which for one up to that step is the rate of another config. One from
    after it has the right one, which the optimizer itself may have changed since.
    """

    def __init__(
        self, checkpoints: Checkpoints, optimizer: keras.optimizers.Optimizer, num_steps: int, changed_at: float = -1
    ):
        self._checkpoints = checkpoints
        self._num_steps = num_steps
        self._configured = constant_rates(optimizer)
        self.changed_at = changed_at

    def __call__(self) -> int:
        step = self._checkpoints.resume()
        self.changed_at = min(self.changed_at, step)
        if step <= self.changed_at:
            for variable, value in self._configured:
                variable.assign(value)
        if step > self._num_steps:
            raise UserError(
                f"The run is at step {step} already, past num_steps = {self._num_steps}; it cannot go back."
            )
        return step
