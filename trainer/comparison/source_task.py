"""What a run has forgotten: the metric on the data that its checkpoint was trained on, before and after."""

from pathlib import Path

import keras
import tensorflow as tf

from trainer.assembly import assemble_model
from trainer.comparison.session import clear_session
from trainer.config import bindings_of
from trainer.data import as_data
from trainer.evaluation import build_evaluate
from trainer.restore import RULES, RestoreError, restore_weights


def measure_forgetting(
    metric: str, final_weights: Path, seed: int, strategy: tf.distribute.Strategy, source_data
) -> tuple[str, float, float | None, str]:
    """(name of the data, metric before, metric after, message); call in the run's config.

    Before is the restored start, what is fresh in it drawn by `seed` as in the run; after are its final weights,
    None with a message where they do not fit into the model as its builder makes it.
    """
    given = bindings_of(
        "train", "model", "task", "train_data", "init_checkpoint", "global_batch_size", "synchronize_batch_norm", *RULES
    )
    data = as_data(source_data, "compare.source_data")
    train_data = as_data(given["train_data"], "train_data")
    clear_session()
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = assemble_model(given["model"], given["task"], train_data, strategy, given["synchronize_batch_norm"])
        if given["init_checkpoint"]:
            restore_weights(model, given["init_checkpoint"], **{name: given[name] for name in RULES})
    evaluate = build_evaluate(strategy, model, given["task"], given["global_batch_size"])
    before = evaluate(data)[metric]
    try:
        with strategy.scope():
            restore_weights(model, final_weights)
    except RestoreError as error:
        return data.label, before, None, f"the final weights do not fit into the model as it was built: {error}"
    return data.label, before, evaluate(data)[metric], ""
