"""Evaluates a checkpoint with a config: its metrics on the evaluation data, and how it would be restored."""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from trainer.checkpoints.finder import find_faults
from trainer.data.batches import replica_batch_size
from trainer.data.given import as_data
from trainer.errors import UserError
from trainer.optimizers.lora import Lora, add_lora, holds_matrices
from trainer.output.metric_writer import read_rows
from trainer.output.model_dir import ModelDir
from trainer.restore import (
    RestoreError,
    RestoreReport,
    lasting_names,
    open_checkpoint,
    plan_weights,
    restore_weights,
    weights_of,
    whole_checkpoints,
)
from trainer.restore.matching.rules import Rules
from trainer.run.model import assemble_model
from trainer.step.evaluate import build_evaluate
from trainer.tasks.task import Task

_EMA = "train_state/ema_weights"


def load_and_evaluate(
    model: Callable,
    task: Task,
    data,
    checkpoint: str,
    global_batch_size: int,
    strategy: tf.distribute.Strategy,
    ema: bool = False,
    lora: Lora | None = None,
    **rules,
) -> tuple[RestoreReport, dict[str, float]]:
    """Restores a checkpoint's weights into a new model and evaluates it on every example of `data`.

    ema: takes the averages that a run with `ema_decay` keeps beside the weights, if the checkpoint has them.
    lora: of the run; its matrices are taken if the checkpoint has some, and is not one of merged weights.
    rules: `rename`, `ignore`, `match` and `root`, as `restore_weights` takes them, for a checkpoint that is refused
      without: one that the run starts from. None of them leaves a variable as it was built.
    """
    data = task.completed(as_data(data, "eval_data"))
    replica_batch_size(global_batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        built_model = assemble_model(model, task, data, strategy)
        if lora is not None and holds_matrices(checkpoint):
            add_lora(built_model, lora)
        report = _restore(built_model, checkpoint, rules)
        if ema:
            _take_averages(built_model, report.checkpoint)
    return report, build_evaluate(strategy, built_model, task, global_batch_size)(data)


def _restore(model, checkpoint: str, rules: dict) -> RestoreReport:
    try:
        return restore_weights(model, checkpoint)
    except RestoreError:
        if Rules(**rules) == Rules():
            raise
        return restore_weights(model, checkpoint, **rules)


def follow(
    model: Callable,
    task: Task,
    data,
    model_dir: Path,
    global_batch_size: int,
    strategy: tf.distribute.Strategy,
    ema: bool = False,
    timeout_seconds: float = 0.0,
    poll_seconds: float = 1.0,
    lora: Lora | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, metrics) of each checkpoint of a run, while another process writes them; each once, oldest first.

    Ends when the run has reached its end and its last checkpoint was evaluated, or when for `timeout_seconds`
    none has come (0 waits on). What was evaluated is on record in `model_dir`, and is not evaluated again by a
    second call. A checkpoint that the run deletes meanwhile is passed over; so is a damaged one, and it is said.
    """
    data = task.completed(as_data(data, "eval_data"))
    replica_batch_size(global_batch_size, strategy.num_replicas_in_sync)
    files = ModelDir(Path(model_dir))
    done = max((row["step"] for row in read_rows(files.continuous_metrics)), default=-1)
    with strategy.scope():
        built_model = assemble_model(model, task, data, strategy)
        if lora is not None:
            add_lora(built_model, lora)
    evaluate = build_evaluate(strategy, built_model, task, global_batch_size)
    last_news = time.monotonic()
    passed_over: set[tuple[str, int]] = set()
    while True:
        finished = _has_finished(files)
        found = [(path, _written_at(path)) for path in whole_checkpoints(files.checkpoints) if _step_of(path) > done]
        newer = [checkpoint for checkpoint in found if checkpoint not in passed_over]
        for path, written_at in newer:
            try:
                with strategy.scope():
                    restore_weights(built_model, path)
                    if ema:
                        _take_averages(built_model, path)
            except RestoreError:
                faults = find_faults(path)
                if _written_at(path) not in (0, written_at):  # another one, since it was read
                    continue
                if not faults and os.path.exists(f"{path}.index"):
                    raise
                passed_over.add((path, written_at))
                if os.path.exists(f"{path}.index"):
                    say(f"{path} is passed over, because it is not whole: {', '.join(faults)}.")
                continue
            done, last_news = _step_of(path), time.monotonic()
            yield done, evaluate(data)
        if not newer and (finished or (timeout_seconds and time.monotonic() - last_news > timeout_seconds)):
            return
        if not newer:
            time.sleep(poll_seconds)


def _written_at(checkpoint: str) -> int:
    """The time that distinguishes a checkpoint from a later one of the same step; 0 for one that is gone by now."""
    try:
        return os.stat(f"{checkpoint}.index").st_mtime_ns
    except FileNotFoundError:
        return 0


def _has_finished(files: ModelDir) -> bool:
    return files.summary.exists() and json.loads(files.summary.read_text())["finished"]


def _step_of(checkpoint: str) -> int:
    return int(checkpoint.rsplit("-", 1)[1])


def _take_averages(model, checkpoint: str) -> None:
    """Puts averages that are in a checkpoint of ours over the weights; what was not trained has none."""
    with contextlib.closing(open_checkpoint(checkpoint)) as source:
        names = {entry.name for entry in source.entries}
    averaged = {name.removeprefix(f"{_EMA}/") for name in names if name.startswith(f"{_EMA}/")}
    if not averaged and "train_state/step" in names:
        raise UserError(
            f"The config has an ema_decay, but {checkpoint} was written by a run without: it has no averages."
        )
    if averaged:
        lasting = lasting_names(model)
        kept = [weight.name for weight in weights_of(model) if lasting[id(weight.variable)] not in averaged]
        restore_weights(
            model,
            checkpoint,
            root=_EMA,
            rename=[
                (f"^{lasting[id(w.variable)]}$", w.name) for w in weights_of(model) if lasting[id(w.variable)].isdigit()
            ],
            reinitialize=[f"^{re.escape(name)}$" for name in kept],
        )


def plan_only(checkpoint: str, model: Callable, task: Task, train_data, **rules) -> RestoreReport:
    """How `checkpoint` would be restored into a new model; reads no tensor and assigns nothing.

    rules: as `restore_weights` takes them, `rename` to `copy_rows`.

    Raises `RestoreError`, with the plan, if it would be refused.
    """
    data = as_data(train_data, "train_data")
    built_model = assemble_model(model, task, data, tf.distribute.get_strategy())
    return plan_weights(built_model, checkpoint, **rules)
