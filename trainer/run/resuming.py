"""Takes a run back to its newest checkpoint, at the learning rate of the config that it goes on with."""

import keras

from trainer.checkpoints.manager import Checkpoints
from trainer.optimizers.build import constant_rates


class Resume:
    """Call it, on every worker, to load the newest whole checkpoint; returns its step.

    optimizer: with the constant rates of the config, before anything was loaded.
    changed_at: the step at which the config was changed last, -1 for one that never was; `math.inf` if it is changed
      now, which the first call makes a step of.

    A checkpoint holds the optimizer's rate, which for one up to that step is the rate of another config. One from
    after it has the right one, which the optimizer itself may have changed since.
    """

    def __init__(self, checkpoints: Checkpoints, optimizer: keras.optimizers.Optimizer, changed_at: float = -1):
        self._checkpoints = checkpoints
        self._configured = constant_rates(optimizer)
        self.changed_at = changed_at

    def __call__(self) -> int:
        step = self._checkpoints.resume()
        self.changed_at = min(self.changed_at, step)
        if step <= self.changed_at:
            for variable, value in self._configured:
                variable.assign(value)
        return step
