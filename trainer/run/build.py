"""Builds every part of a run in the strategy's scope, and tries whether the parts fit together."""

import dataclasses
from collections.abc import Mapping, Sequence

import keras

from trainer.checkpoints.train_state import TrainState, new_train_state
from trainer.config import bound_value
from trainer.data.step_batches import StackedBatches
from trainer.optimizers.build import OptimizerProof, build_optimizer, prove_new, trained_variables
from trainer.optimizers.groups import Part, divide
from trainer.optimizers.lora import add_lora, describe_lora, finds_trainable, lora_variables
from trainer.optimizers.state_transfer import StateTransfer, transfer_state
from trainer.restore import RestoreReport, restore_weights
from trainer.run.inputs import Inputs, Settings
from trainer.run.model import (
    assemble_model,
    describe_batch_norm,
    describe_half_precision,
    freeze_batch_norm,
    refuse_empty_layers,
)
from trainer.run.resume import Start
from trainer.step.trace_checks import try_task
from trainer.step.train_step import OneTrace, build_train_loop
from trainer.step.xla_check import check_xla, describe_fitness


@dataclasses.dataclass(frozen=True)
class Built:
    """Everything of a run up to its first step.

    variables: those that the optimizer trains.
    groups: the parts of `variables` that are trained each in a way of its own; none where all are alike.
    report: None from scratch and on a resumed run.
    proof: None on a resumed run, whose optimizer continues.
    state_transfer: what was taken of the checkpoint's optimizer; None for nothing, and on a resumed run.
    notes: what else a person should know, by heading.
    """

    settings: Settings
    inputs: Inputs
    state: TrainState
    variables: Sequence[keras.Variable]
    groups: Sequence[Part]
    report: RestoreReport | None
    proof: OptimizerProof | None
    state_transfer: StateTransfer | None
    notes: Mapping[str, str]

    def changing_weights(self) -> list[keras.Variable]:
        """The variables that a step may change: the trained ones, and moving averages of the data."""
        averages = [v for v in self.state.model.non_trainable_variables if v.path.split("/")[-1].startswith("moving_")]
        return [*self.variables, *averages]

    def train_loop(self, batches: StackedBatches) -> OneTrace:
        """The run's steps on these batches, see `build_train_loop`."""
        settings, step = self.settings, self.settings.step
        return build_train_loop(
            self.inputs.strategy, self.state, settings.task, self.variables, settings.global_batch_size, batches,
            step.accumulation_steps, step.random_numbers, step.jit_compile, step.update,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fit:
    """The findings when the parts were tried together.

    notes: for a person, by heading.
    tpu_obstacles: with jit_compile, the operations that XLA compiles here and a TPU would refuse.
    """

    notes: Mapping[str, str]
    tpu_obstacles: Sequence[str] = ()


def build(settings: Settings, inputs: Inputs, start: Start) -> Built:
    """Makes the model, restores its weights, adds LoRA, and makes the new optimizer and the train state, in scope.

    Raises `UserError`, `RestoreError` among them, for whatever the caller can mend; nothing is written.
    """
    task, finetune, restore = settings.task, settings.finetune, settings.restore
    takes_state = settings.optimizer_state != "fresh"
    with inputs.strategy.scope():
        synchronized = settings.step.synchronize_batch_norm
        model = assemble_model(settings.model, task, inputs.train_data, inputs.strategy, synchronized)
        variables = trained_variables(model, finetune.frozen, finetune.trained)
        report = None
        if restore is not None and start is not Start.RESUMED:
            report = restore_weights(model, restore.checkpoint, **restore.rules)
        if start is not Start.RESUMED:
            refuse_empty_layers(model)
        with_lora = []
        if finetune.lora:  # on the restored kernels, which have no place for it in the checkpoint
            with_lora = add_lora(model, finetune.lora)
            # A kernel that has matrices beside it is frozen by them, and no pattern finds it any more.
            still_frozen = [pattern for pattern in finetune.frozen if finds_trainable(model, pattern)]
            variables = lora_variables(model, trained_variables(model, still_frozen), finetune.lora, report)
        groups = divide(model, variables, finetune.groups, finetune.layer_decay, finetune.layer_blocks)
        notes = task.notes() | freeze_batch_norm(model, variables, finetune.update_frozen_batch_norm)
        if finetune.lora:
            notes["lora"] = describe_lora(model, with_lora, finetune.lora)

        if start is Start.FRESH:
            notes |= _unread_checkpoint()

        def new_optimizer(variables):
            return build_optimizer(settings.optimizer, variables, groups, finetune.phases)

        optimizer = new_optimizer(variables)
        proof = None if start is Start.RESUMED else prove_new(optimizer, new_optimizer, variables, report)
        state = new_train_state(model, optimizer, variables, settings.step.ema_decay, takes_state)
        taken = None
        if restore is not None and report is not None and state.steps_before is not None:
            row_rules = {*restore.grow, *(pattern for pattern, _ in restore.copy_rows)}
            taken = transfer_state(
                restore.optimizer_state, optimizer, model, report, row_rules, settings.num_steps, restore.rewarmup_steps
            )
            state.steps_before.assign(taken.step)
    return Built(settings, inputs, state, variables, groups, report, proof, taken, notes)


def _unread_checkpoint() -> dict[str, str]:
    """A note where the config names a checkpoint and says `train.restore = None` as well."""
    checkpoint, macro = bound_value("Restore", "checkpoint")
    if checkpoint is None:
        return {}
    return {"checkpoint": f"{macro or 'Restore.checkpoint'} = {checkpoint!r} is not read: train.restore = None"}


def check_it_fits(built: Built) -> Fit:
    """Traces the loss and the metrics on the data, and what XLA is to compile; changes nothing.

    Raises `UserError` for parts that do not fit together.
    """
    settings, inputs, model = built.settings, built.inputs, built.state.model
    replicas, replica_batch = inputs.strategy.num_replicas_in_sync, inputs.replica_batch_size
    parts_of_a_step = replicas * settings.step.accumulation_steps
    try_task(model, settings.task, inputs.train_data, inputs.eval_data, replica_batch, parts_of_a_step)
    notes: dict[str, str] = {}
    if replicas > 1 and not settings.step.synchronize_batch_norm:
        notes |= describe_batch_norm(model, replica_batch)
    notes |= describe_half_precision(model, built.state.optimizer)
    if not settings.step.jit_compile:
        return Fit(notes)
    obstacles = check_xla(
        model, settings.task, inputs.train_data, replica_batch, built.variables, inputs.strategy, inputs.eval_data
    )
    return Fit(notes | {"xla": describe_fitness(obstacles)}, obstacles)
