"""What a checkpoint is worth to a config: its metrics on the evaluation data, and how it would be restored."""

import contextlib
import re
from collections.abc import Callable

import tensorflow as tf

from trainer.assembly import assemble_model
from trainer.data import as_data
from trainer.errors import UserError
from trainer.evaluation import build_evaluate
from trainer.pipeline import replica_batch_size
from trainer.restore import RestoreReport, lasting_names, open_checkpoint, plan_weights, restore_weights, weights_of
from trainer.tasks import Task

_EMA = "train_state/ema_weights"


def load_and_evaluate(
    model: Callable,
    task: Task,
    data,
    checkpoint: str,
    global_batch_size: int,
    strategy: tf.distribute.Strategy,
    ema: bool = False,
) -> tuple[RestoreReport, dict[str, float]]:
    """Restores a checkpoint's weights into a new model and evaluates it on every example of `data`.

    ema: takes the averages that a run with `ema_decay` keeps beside the weights, if the checkpoint has them.
    """
    data = as_data(data, "eval_data")
    replica_batch_size(global_batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        built_model = assemble_model(model, task, data, strategy)
        report = restore_weights(built_model, checkpoint)
        if ema:
            _take_averages(built_model, report.checkpoint)
    return report, build_evaluate(strategy, built_model, task, global_batch_size)(data)


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
