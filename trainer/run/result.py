"""The result of a run, for the program that called `train`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras

from trainer.optimizers.build import OptimizerProof
from trainer.optimizers.state_transfer import StateTransfer
from trainer.restore import RestoreReport
from trainer.run.build import Built


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Returned by `train`.

    finished: False if a signal or `Limits.max_seconds` stopped the run before `num_steps`; the same call resumes it.
    initial_metrics, final_metrics: evaluations at step 0 and at `step`; empty where there is none of that step.
    last_evaluation: (step, metrics) of the last one, which a run that was stopped may have made some steps before.
    restore_report, optimizer_proof: None where nothing was restored or the run was resumed.
    state_transfer: what was taken of the checkpoint's optimizer; None for nothing, and where the run was resumed.
    tpu_obstacles: with jit_compile, the operations that XLA compiles here and a TPU would refuse.
    """

    model: keras.Model
    step: int
    finished: bool
    initial_metrics: Mapping[str, float]
    final_metrics: Mapping[str, float]
    restore_report: RestoreReport | None
    optimizer_proof: OptimizerProof | None
    model_dir: Path | None
    state_transfer: StateTransfer | None = None
    tpu_obstacles: Sequence[str] = ()
    last_evaluation: tuple[int, Mapping[str, float]] | None = None

    @classmethod
    def of(
        cls,
        built: Built,
        tpu_obstacles: Sequence[str],
        finished: bool = False,
        initial: Mapping[str, float] | None = None,
        evaluated: tuple[int, Mapping[str, float]] | None = None,
        model_dir: Path | None = None,
    ) -> "TrainResult":
        step = built.state.current_step()
        return cls(
            model=built.state.model,
            step=step,
            finished=finished,
            initial_metrics=initial or {},
            final_metrics=evaluated[1] if evaluated and evaluated[0] == step else {},
            last_evaluation=evaluated,
            restore_report=built.report,
            optimizer_proof=built.proof,
            model_dir=model_dir,
            state_transfer=built.state_transfer,
            tpu_obstacles=tpu_obstacles,
        )
