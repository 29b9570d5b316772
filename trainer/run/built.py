"""What a run consists of before its first step, for those that describe, record and run it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.checkpoints.train_state import TrainState
from trainer.data.data import Data
from trainer.optimizers.build import OptimizerProof
from trainer.optimizers.groups import Part
from trainer.optimizers.phases import Phase
from trainer.optimizers.state_transfer import Handover
from trainer.restore import RestoreReport
from trainer.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class RunParts:
    """Everything of a run up to its first step.

    init_checkpoint: the path as it was given, None from scratch.
    variables: those that the optimizer trains.  report: None from scratch and on a resumed run.
    proof: None on a resumed run, whose optimizer continues.  resumed_step: None on a fresh run.
    rules: those of the restore, the patterns of frozen, and how the model is changed.
    step_options: further arguments of `build_train_loop`.  ema_decay: None for no averages.
    max_rollbacks: how often the run may go back from a loss that is not finite; 0 stops it.
    notes: what else is said of the run, by heading.
    groups: the parts of `variables` that are trained each in a way of its own; none where all are alike.
    phases: what trains after the first optimizer, which is one of several then; none for one throughout.
    handover: what became of the checkpoint's optimizer; None for nothing, which `proof` shows, and on a resumed run.
    """

    strategy: tf.distribute.Strategy
    task: Task
    train_data: Data
    eval_data: Data | None
    state: TrainState
    variables: Sequence[keras.Variable]
    report: RestoreReport | None
    proof: OptimizerProof | None
    global_batch_size: int
    replica_batch_size: int
    accumulation_steps: int
    num_steps: int
    steps_per_loop: int
    init_checkpoint: str | None
    seed: int
    rules: Mapping[str, Any]
    step_options: Mapping[str, Any]
    ema_decay: float | None
    max_rollbacks: int
    notes: Mapping[str, str]
    resumed_step: int | None = None
    groups: Sequence[Part] = ()
    phases: Sequence[Phase] = ()
    handover: Handover | None = None
    handover_warmup_steps: int = 0
