"""Takes over the old optimizer's state: nothing, its step count, or the slots that mean the same."""

import contextlib
import dataclasses
from collections.abc import Collection

import keras
import numpy as np
import tensorflow as tf

from trainer import keras_internals
from trainer.cluster.replicas import first_value
from trainer.errors import UserError
from trainer.optimizers.learning_rate import learning_rate_at
from trainer.optimizers.state_transfer.matrix import matrix_table
from trainer.optimizers.state_transfer.plan import SlotPlan, late_start, plan_slots, steps_entry
from trainer.optimizers.state_transfer.report import CarriedSlot, FreshSlot, LeftEntry, StateTransfer
from trainer.optimizers.state_transfer.warmup import warm_up_again
from trainer.restore import RestoreError, RestoreReport, open_checkpoint
from trainer.restore.apply import apply_plan
from trainer.restore.matching.model_tree import LiveVariable
from trainer.restore.matching.plan import Pair, Plan
from trainer.restore.report import Record

POLICIES = ("fresh", "step", "slots")  # of Restore.optimizer_state

__all__ = ["CarriedSlot", "FreshSlot", "StateTransfer", "LeftEntry", "transfer_state", "matrix_table",
           "warm_up_again"]  # fmt: skip


def transfer_state(
    policy: str,
    optimizer: keras.optimizers.Optimizer,
    model: keras.Model,
    report: RestoreReport,
    row_rules: Collection[str] = (),
    num_steps: int = 1,
    warmup_steps: int = 0,
) -> StateTransfer:
    """Fills a new, built optimizer with what is carried over from the checkpoint's; call in the strategy's scope.

    policy: "step" or "slots", see `Restore.optimizer_state`.
    report: of the restore that filled the model; the optimizer's entries that are read here are noted in it.
    row_rules: the patterns of `grow` and `copy_rows`.

    Everything is tested before a variable changes, and every replica's copy compared with the file afterwards.
    Raises `UserError` for a carry that has no meaning, for slots that are not finite, and for a schedule that
    is over at the step that is carried over.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    with contextlib.closing(open_checkpoint(report.checkpoint)) as source:
        count = steps_entry(source)
        slots = SlotPlan("", [], [], [], [])
        if policy == "slots":
            slots = plan_slots(inner, model, source, count, report, row_rules)
        step = int(source.read(count))
        _expect_rate(inner, step, num_steps)
        _expect_finite(source, slots)
        verified = _fill(source, inner, count, slots)
    report.transferred_keys = sorted(source.keys_read.intersection(report.optimizer_keys))
    report.optimizer_keys_read = len(report.transferred_keys)
    notes = slots.notes + _set_what_follows(inner, step)
    if policy == "step" and step:
        notes += late_start(inner)
    return StateTransfer(
        policy=policy,
        source=slots.source,
        target=type(inner).__name__,
        step=step,
        carried=[
            dataclasses.replace(record, checksum=verified.records[1 + number].checksum)
            for number, (record, _, _) in enumerate(slots.pairs)
        ],
        fresh=slots.fresh,
        left=slots.left,
        notes=notes,
        entries_read=report.optimizer_keys_read,
        replicas_verified=verified.replicas_verified,
        warmup_steps=warmup_steps,
        first_learning_rate=learning_rate_at(inner, step) / max(warmup_steps, 1),
    )


def _fill(source, inner, count, slots: SlotPlan) -> RestoreReport:
    """The restore's own way: tests every tensor, assigns, and compares the copy of every replica."""
    pairs = [Pair(LiveVariable("the step count", keras_internals.step_count(inner)), count)]
    pairs += [
        Pair(LiveVariable(f"{record.slot} of {record.variable}", variable), entry)
        for record, variable, entry in slots.pairs
    ]
    records = [Record(name=pair.weight.name, status="restored", key=pair.entry.key) for pair in pairs]
    verified = RestoreReport(source.path, source.format, records, [], [], [])
    apply_plan(Plan(verified, pairs), source)
    return verified


def _expect_finite(source, slots: SlotPlan) -> None:
    for record, _, entry in slots.pairs:
        bad = sum(int(piece.size - np.count_nonzero(np.isfinite(piece))) for piece in source.pieces(entry))
        if bad:
            raise RestoreError(
                f"Restore.optimizer_state = 'slots': {record.meaning} of {record.variable} ({entry.key}) has {bad} "
                "values that are "
                "NaN or infinite; every update would spread them. Take Restore.optimizer_state = 'step', or 'fresh'."
            )


def _expect_rate(inner, step: int, num_steps: int) -> None:
    ends = [learning_rate_at(inner, step), learning_rate_at(inner, step + num_steps - 1)]
    if not any(ends):
        raise UserError(
            f"The schedule is over: with the step count of the checkpoint, {step}, the run makes the updates "
            f"{step + 1} to {step + num_steps}, all at a learning rate of 0. Let it last {step + num_steps} steps, or "
            "take Restore.optimizer_state = 'fresh'."
        )


def _set_what_follows(inner, step: int) -> list[str]:
    """Sets what an optimizer makes of its step count or of the weights, and would take for begun at step 0."""
    notes = []
    if isinstance(inner, keras.optimizers.Nadam):
        keras_internals.momentum_product(inner).assign(momentum_product(inner, step))
        notes.append("Nadam's product of momenta is computed again from the step count and this run's beta_1")
    # At any step but 0 Keras would average with what is there, which are zeros.
    if step and inner.use_ema:
        averages, variables = keras_internals.moving_averages(inner), keras_internals.optimized_variables(inner)
        for average, variable in zip(averages, variables, strict=True):
            if average is not None:
                average.assign(first_value(variable))
        notes.append("Keras' averages of the weights (use_ema) begin at the restored weights")
    return notes


def momentum_product(nadam: keras.optimizers.Nadam, steps: int) -> tf.Tensor:
    """Nadam's product of momenta after so many steps, by the operations that it makes in each of them."""
    dtype = keras_internals.momentum_product(nadam).dtype
    product = tf.ones([], dtype)
    for step in range(steps):
        if float(product) == 0.0:  # after some hundred steps
            break
        product = product * nadam.beta_1 * (1.0 - 0.5 * keras.ops.power(0.96, tf.cast(step + 1, dtype)))
    return product
