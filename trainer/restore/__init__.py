"""Weights-only restore that accounts for every variable: read -> plan -> report -> apply."""

from collections.abc import Sequence

import keras

from trainer.restore.apply import apply_plan
from trainer.restore.build import build_model
from trainer.restore.explain import explain_problems
from trainer.restore.find import find_checkpoint, unreadable_checkpoints, whole_checkpoints
from trainer.restore.live import layers_of, weights_of
from trainer.restore.plan import Plan, plan_restore
from trainer.restore.report import Record, RestoreError, RestoreReport
from trainer.restore.rules import Rules
from trainer.restore.source import CheckpointSource, describe_source, open_checkpoint

__all__ = [
    "Record",
    "RestoreError",
    "RestoreReport",
    "build_model",
    "describe_source",
    "find_checkpoint",
    "layers_of",
    "open_checkpoint",
    "plan_weights",
    "restore_weights",
    "unreadable_checkpoints",
    "weights_of",
    "whole_checkpoints",
]


def restore_weights(
    model: keras.Model,
    init_checkpoint,
    rename: Sequence[tuple[str, str]] = (),
    reinitialize: Sequence[str] = (),
    ignore: Sequence[str] = (),
    input_spec=None,
) -> RestoreReport:
    """Copies a checkpoint's weights, and nothing else of it, into a model; every variable is accounted for.

    model: unbuilt models are built from `input_spec` first. Under a strategy, call in its scope.
    init_checkpoint: a prefix, one of its files, a folder of checkpoints, a model_dir or a SavedModel.
    rename: (regex, replacement) pairs on the checkpoint's normalised names, e.g. `("^backbone/", "encoder/")`.
    reinitialize: regexes of model variables that keep their fresh values.
    ignore: regexes of checkpoint weights that may stay unused.
    input_spec: structure of `tf.TensorSpec` the model is called with, batch dimension included.

    Returns the report, verified: every replica's copy was compared with the file. The optimizer's
    state in the file is listed and never read.
    Raises `RestoreError`, before any variable changed, if a variable of the model would stay
    unfilled, a shape or kind of dtype differs, or a weight of the file would stay unused, and no
    rule excuses it. It carries the plan as `.report`.
    """
    source = open_checkpoint(find_checkpoint(init_checkpoint))
    build_model(model, input_spec)
    plan = _accepted_plan(model, source, Rules(rename, reinitialize, ignore))
    apply_plan(plan, source)
    return plan.report


def plan_weights(model: keras.Model, init_checkpoint, rename=(), reinitialize=(), ignore=()) -> RestoreReport:
    """What `restore_weights` would do with a built model; reads no tensor and changes nothing.

    Raises `RestoreError`, with the plan, where `restore_weights` would.
    """
    source = open_checkpoint(find_checkpoint(init_checkpoint))
    return _accepted_plan(model, source, Rules(rename, reinitialize, ignore)).report


def _accepted_plan(model: keras.Model, source: CheckpointSource, rules: Rules) -> Plan:
    plan = plan_restore(model, source, rules)
    if plan.report.problems:
        raise RestoreError(explain_problems(plan.report), plan.report)
    return plan
