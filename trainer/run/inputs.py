"""The settings of a run as a whole, and its inputs, read before a variable is made."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gin
import keras
import tensorflow as tf

from trainer.cluster.collectives import Agreement
from trainer.cluster.strategy import build_strategy, num_workers, worker_index
from trainer.config.settings import DECLARED, Declaration
from trainer.data.batches import replica_batch_size, train_batches
from trainer.data.data import Data
from trainer.data.given import as_data
from trainer.data.step_batches import StackedBatches
from trainer.errors import UserError
from trainer.optimizers.phases import check_phases, describe_starts
from trainer.output.model_dir import ModelDir
from trainer.run.same_inputs import check_same_run_everywhere
from trainer.run.settings import Finetune, Intervals, Invocation, Limits, Restore, Saving, Step
from trainer.run.start_checks import check_model, check_model_dir, check_strategy, check_task
from trainer.suggest import nearest
from trainer.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that `train` is given, see there.

    strategy: None for `build_strategy("auto")`.
    started_at: of `time.monotonic()`, from when on the run's time counts.
    """

    model: Callable[[], keras.Model]
    task: Task
    optimizer: Callable[[], keras.optimizers.Optimizer]
    train_data: Any
    num_steps: int
    global_batch_size: int
    restore: Restore | None
    eval_data: Any
    model_dir: str | os.PathLike | None
    strategy: tf.distribute.Strategy | None
    seed: int
    finetune: Finetune
    step: Step
    intervals: Intervals
    saving: Saving
    limits: Limits
    invocation: Invocation
    started_at: float

    def check(self) -> None:
        """Raises `UserError` for what makes no sense, as far as it shows before anything is built."""
        for entry in DECLARED.values():
            value = getattr(self, entry.parameter)
            if not isinstance(value, entry.cls) and (entry.cls is not Restore or value is not None):
                raise UserError(f"{entry.parameter} must be a {entry.cls.__name__}(...), not {value!r}.")
        check_model(self.model)
        check_task(self.task)
        check_model_dir(self.model_dir)
        check_strategy(self.strategy)
        if self.optimizer_state != "fresh" and self.finetune.divides:
            raise UserError(
                f"Restore.optimizer_state = {self.optimizer_state!r} goes with one optimizer for all "
                "variables; with groups or layer_decay each part has its own. Leave these out, or take 'fresh'."
            )
        self._check_best_metric()
        check_phases(
            self.finetune.phases,
            list(self.task.new_metrics()),
            self.eval_data is not None and self.intervals.eval_every > 0,
            self.finetune.groups,
            self.finetune.layer_decay,
            self.optimizer_state,
        )

    @property
    def optimizer_state(self) -> str:
        """`Restore.optimizer_state`; from scratch there is none to take."""
        return self.restore.optimizer_state if self.restore else "fresh"

    @property
    def rewarmup_steps(self) -> int:
        return self.restore.rewarmup_steps if self.restore else 0

    def fields(self) -> Iterator[tuple[Declaration, dataclasses.Field, Any]]:
        """(class, field, value) of each field of the settings classes; those of `Restore` are none from scratch."""
        for entry in DECLARED.values():
            part = getattr(self, entry.parameter)
            for field in dataclasses.fields(entry.cls) if part is not None else ():
                yield entry, field, getattr(part, field.name)

    def decisive(self) -> dict[str, Any]:
        """{`Restore.rename`: value} of what decides the weights and can be compared, data, model and task left out."""
        names = ("num_steps", "global_batch_size", "seed")
        given: dict[str, Any] = {f"train.{name}": getattr(self, name) for name in names}
        decided = ((entry, field, value) for entry, field, value in self.fields() if not entry.may_change)
        given |= {f"{entry.cls.__name__}.{field.name}": value for entry, field, value in decided}
        return given | {"Finetune.phases": describe_starts(self.finetune.phases, self.intervals.eval_every)}

    def _check_best_metric(self) -> None:
        name = self.saving.best_metric
        if name is None:
            return
        if self.eval_data is None:
            raise UserError(f"Saving.best_metric = {name!r} needs eval_data: nothing is evaluated.")
        known = list(self.task.new_metrics())
        if name not in known:
            raise UserError(
                f"The evaluation has no metric {name!r} (Saving.best_metric); it has {', '.join(known)}."
                f"{nearest(name, known)}"
            )


def as_restore(restore: Restore | str | os.PathLike | None) -> Restore | None:
    """`"path"` is short for `Restore("path")`, by the rules that the config binds; None is from scratch."""
    if isinstance(restore, str | os.PathLike):
        return gin.get_configurable(Restore)(restore)
    if restore is not None and not isinstance(restore, Restore):
        raise UserError(f"restore must be a path, Restore(...) or None for random weights, not {restore!r}.")
    return restore


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The devices and the data of a run, the same on all workers.

    files: None for a run that writes nothing.
    train_data, eval_data: completed by the task, such as with what a network computes of them.
    given_train_data: as it was given; what is computed is not the same to the last bit on every kind of machine.
    replica_batch_size: examples that one replica sees in one micro-batch.
    """

    strategy: tf.distribute.Strategy
    agreement: Agreement
    files: ModelDir | None
    train_data: Data
    eval_data: Data | None
    given_train_data: Data
    replica_batch_size: int


def load_inputs(settings: Settings) -> Inputs:
    """Reads the data and seeds what is random; a collective of all workers, which must find the same.

    Raises `UserError` for data that cannot be read, a batch that does not divide, and workers that differ.
    """
    strategy = settings.strategy or build_strategy("auto")
    replica_batch = replica_batch_size(
        settings.global_batch_size, strategy.num_replicas_in_sync, settings.step.accumulation_steps
    )
    train_data = as_data(settings.train_data, "train_data")
    eval_data = None if settings.eval_data is None else as_data(settings.eval_data, "eval_data")
    keras.utils.set_random_seed(settings.seed)
    agreement = Agreement(strategy)
    check_same_run_everywhere(agreement, train_data, eval_data, settings.decisive())
    task, given = settings.task, train_data
    train_data = task.completed(train_data)
    task.check_features(train_data.batch_spec, f"The training data ({train_data.label})")
    if eval_data is not None:
        eval_data = task.completed(eval_data)
        task.check_features(eval_data.batch_spec, f"The evaluation data ({eval_data.label})")
    return Inputs(
        strategy=strategy,
        agreement=agreement,
        files=ModelDir(Path(settings.model_dir)) if settings.model_dir else None,
        train_data=train_data,
        eval_data=eval_data,
        given_train_data=given,
        replica_batch_size=replica_batch,
    )


def worker_batches(settings: Settings, inputs: Inputs, first_batch: int, steps_per_loop: int) -> StackedBatches:
    """This worker's part of the run's batches, from the global batch `first_batch` on, without end."""
    return train_batches(
        inputs.train_data,
        settings.global_batch_size,
        settings.seed,
        first_batch,
        num_workers(inputs.strategy),
        worker_index(inputs.strategy),
        settings.step.accumulation_steps,
        steps_per_loop,
    )
