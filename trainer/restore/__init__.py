"""Weights-only restore that accounts for every variable: read -> plan -> report -> apply."""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator, Sequence

import keras

from trainer.restore.all_workers import AllWorkers
from trainer.restore.apply import apply_plan
from trainer.restore.build import build_model, forget_traces, renew_constants
from trainer.restore.errors import RestoreError, UndecidedRestore
from trainer.restore.explain import explain_choices, explain_problems
from trainer.restore.find import find_checkpoint, missing_files, unreadable_checkpoints, whole_checkpoints
from trainer.restore.layer_state import OWN_DATASET, empty_layers, live_states, states_as_json
from trainer.restore.matching.model_tree import lasting_names, layer_paths, layers_of, weights_of
from trainer.restore.matching.names import is_lora_matrix
from trainer.restore.matching.plan import Plan, plan_restore
from trainer.restore.matching.rules import Rules
from trainer.restore.matching.torch_layout import explain_torch_layout
from trainer.restore.report import Record, RestoreReport
from trainer.restore.show import RestoreProgress, log_report
from trainer.restore.source import CheckpointSource, describe_source, open_checkpoint
from trainer.restore.tables import SavedLayerStates
from trainer.restore.trials import Trials

RULES = tuple(field.name for field in dataclasses.fields(Rules))  # what a restore's config may say

__all__ = [
    "OWN_DATASET",
    "RULES",
    "Record",
    "RestoreError",
    "RestoreReport",
    "Rules",
    "SavedLayerStates",
    "build_model",
    "describe_source",
    "empty_layers",
    "find_checkpoint",
    "is_lora_matrix",
    "lasting_names",
    "layer_paths",
    "layers_of",
    "live_states",
    "open_checkpoint",
    "plan_weights",
    "renew_constants",
    "restore_weights",
    "states_as_json",
    "unreadable_checkpoints",
    "weights_of",
    "missing_files",
    "whole_checkpoints",
]


def restore_weights(
    model: keras.Model,
    init_checkpoint,
    rename: Sequence[tuple[str, str]] = (),
    reinitialize: Sequence[str] = (),
    ignore: Sequence[str] = (),
    input_spec=None,
    match: str = "structure",
    root: str | None = None,
    grow: Sequence[str] = (),
    copy_rows: Sequence[tuple[str, dict[int, int]]] = (),
) -> RestoreReport:
    """Copies a checkpoint's weights, and nothing else of it, into a model; every variable is accounted for.

    model: unbuilt models are built from `input_spec` first. Under a strategy, call in its scope.
    init_checkpoint: a prefix, one of its files, a folder of checkpoints, a model_dir, a SavedModel, or a `.weights.h5`,
      `.keras`, `.h5`, `.safetensors` or `.npz` file, or the index or a shard of one.
    rename: (regex, replacement) pairs on the checkpoint's normalised names, e.g. `("^backbone/", "encoder/")`.
    reinitialize: regexes of model variables that keep their fresh values.
    ignore: regexes of checkpoint weights that may stay unused.
    input_spec: structure of `tf.TensorSpec` the model is called with, batch dimension included.
    match: "order" pairs by position what structure and names leave over; it asks for equal counts and shapes.
    root: place in the file of the object that is the model, such as `"ema"`, where several fit.
    grow: regexes of model variables that got longer along one axis, such as an embedding with new tokens: the
      checkpoint's rows come first, the new ones stay fresh.
    copy_rows: (regex, {the checkpoint's row: the model's row}) pairs, for a head that shares some classes.
      Rows lie along the one axis whose length differs; where none does along the last, the classes, and
      in a variable called `embeddings` along the first, the tokens.

    Returns the report, verified: a checksum of every replica's copy was compared with the file's. The
    optimizer's state in the file is listed and never read.
    Raises `RestoreError`, before any variable changed, if a variable of the model would stay
    unfilled, a shape or kind of dtype differs, or a weight of the file would stay unused, and no
    rule excuses it. It carries the plan as `.report`.
    """
    workers = AllWorkers()
    with workers.all_or_none("find the checkpoint"):
        path = find_checkpoint(init_checkpoint)
    build_model(model, input_spec)
    with workers.all_or_none("plan the restore"):
        rules = Rules(
            rename=rename, reinitialize=reinitialize, ignore=ignore, match=match, root=root, grow=grow,
            copy_rows=copy_rows,
        )  # fmt: skip
        plan, source = _accepted_plan(model, path, rules)
    with contextlib.closing(source), RestoreProgress() as progress:
        apply_plan(plan, source, progress.show)
        renew_constants(model, [pair.weight.variable for pair in plan.pairs])
        if plan.fills:
            forget_traces(model)
    log_report(plan.report)
    return plan.report


def plan_weights(model: keras.Model, init_checkpoint, **rules) -> RestoreReport:
    """Plans what `restore_weights` would do with a built model; changes nothing and reads tables, no variables.

    rules: `rename` to `copy_rows`, as `restore_weights` takes them.
    Raises `RestoreError`, with the plan, where `restore_weights` would.
    """
    plan, source = _accepted_plan(model, find_checkpoint(init_checkpoint), Rules(**rules))
    source.close()
    return plan.report


def _accepted_plan(model: keras.Model, path: str, rules: Rules) -> tuple[Plan, CheckpointSource]:
    with _no_garbage_collection():
        source = open_checkpoint(path)
        trials = Trials(lambda changed: plan_restore(model, source, changed).report, rules)
        try:
            plan = plan_restore(model, source, rules)
            if plan.report.problems:
                message = explain_torch_layout(plan.report) or explain_problems(plan.report, trials)
                raise RestoreError(message, plan.report)
        except UndecidedRestore as undecided:
            message = explain_choices(undecided, trials)
            source.close()
            raise RestoreError(message) from None
        except RecursionError as error:
            source.close()
            raise RestoreError(f"{path}: its objects lie deeper in each other than those of any model.") from error
        except BaseException:
            source.close()
            raise
    return plan, source


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Planning makes many small objects, and a large model has so many that each collection takes long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
