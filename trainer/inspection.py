"""What a checkpoint is worth to a config: its metrics on the evaluation data, and how it would be restored."""

from collections.abc import Callable

import tensorflow as tf

from trainer.assembly import assemble_model
from trainer.evaluation import build_evaluate
from trainer.pipeline import as_data, replica_batch_size
from trainer.restore import RestoreReport, plan_weights, restore_weights
from trainer.tasks import Task


def load_and_evaluate(
    model: Callable,
    task: Task,
    data,
    checkpoint: str,
    global_batch_size: int,
    strategy: tf.distribute.Strategy,
) -> tuple[RestoreReport, dict[str, float]]:
    """Restores a checkpoint's weights into a new model and evaluates it on every example of `data`."""
    data = as_data(data, "eval_data")
    replica_batch_size(global_batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        built_model = assemble_model(model, task, data, strategy)
        report = restore_weights(built_model, checkpoint)
    return report, build_evaluate(strategy, built_model, task, global_batch_size)(data)


def plan_only(checkpoint: str, model: Callable, task: Task, train_data, **rules) -> RestoreReport:
    """How `checkpoint` would be restored into a new model; reads no tensor and assigns nothing.

    rules: as `restore_weights` takes them, `rename` to `copy_rows`.

    Raises `RestoreError`, with the plan, if it would be refused.
    """
    data = as_data(train_data, "train_data")
    built_model = assemble_model(model, task, data, tf.distribute.get_strategy())
    return plan_weights(built_model, checkpoint, **rules)
