"""Measures what a run has forgotten: the metric on the data that its checkpoint was trained on, before and after."""

from pathlib import Path

import keras
import tensorflow as tf

from trainer.config import bindings_of
from trainer.data.batches import replica_batch_size
from trainer.data.given import as_data
from trainer.errors import UserError
from trainer.restore import RestoreError, restore_weights
from trainer.run.inputs import as_restore
from trainer.run.model import assemble_model
from trainer.step.evaluate import build_evaluate
from trainer.step.trace_checks import try_task


def check_source(strategy: tf.distribute.Strategy) -> None:
    """Raises `UserError` for data that the model and the task cannot be evaluated on; the config has them."""
    source_data = bindings_of("compare", "source_data")["source_data"]
    given = bindings_of("train", "model", "task", "train_data", "global_batch_size")
    task, batch_size = given["task"], given["global_batch_size"]
    data = task.completed(as_data(source_data, "compare.source_data"))
    with strategy.scope():
        model = assemble_model(given["model"], task, as_data(given["train_data"], "train_data"), strategy)
    try:
        task.check_features(data.batch_spec)
        try_task(model, task, data, None, replica_batch_size(batch_size, strategy.num_replicas_in_sync))
    except UserError as error:
        raise UserError(f"compare.source_data ({data.label}): {error}") from error


def measure_forgetting(
    metric: str, final_weights: Path, seed: int, strategy: tf.distribute.Strategy
) -> tuple[str, float | None, float | None, str]:
    """(name of the data, metric before, metric after, message); the config has the data.

    Before is the restored start, None with a message where a part of it is fresh, such as a new head: of the source
    task it knows nothing. After are the final weights, None with a message where they do not fit into the model as
    its builder makes it.
    """
    given = bindings_of("train", "model", "task", "train_data", "restore", "global_batch_size", "step")
    source_data = bindings_of("compare", "source_data")["source_data"]
    data = given["task"].completed(as_data(source_data, "compare.source_data"))
    train_data = as_data(given["train_data"], "train_data")
    restore = as_restore(given["restore"])
    if restore is None:
        return data.label, None, None, "from random weights there is no source task to forget"
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = assemble_model(
            given["model"], given["task"], train_data, strategy, given["step"].synchronize_batch_norm
        )
        report = restore_weights(model, restore.checkpoint, **restore.rules)
    if report.reinitialized:
        fresh = report.reinitialized[0].name
        return data.label, None, None, f"{fresh} starts fresh, so that nothing of the source task can be measured"
    evaluate = build_evaluate(strategy, model, given["task"], given["global_batch_size"])
    before = evaluate(data)[metric]
    try:
        with strategy.scope():
            restore_weights(model, final_weights)
    except RestoreError as error:
        return data.label, before, None, f"the final weights do not fit into the model as it was built: {error}"
    return data.label, before, evaluate(data)[metric], ""
