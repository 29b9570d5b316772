"""Puts model, task and data together, and refuses what does not fit before anything is written."""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.errors import UserError
from trainer.pipeline import Data
from trainer.restore import build_model, layers_of
from trainer.tasks import Task


def assemble_model(model: Callable, task: Task, data: Data, strategy: tf.distribute.Strategy) -> keras.Model:
    """Calls the builder and builds the model's variables for the task's inputs; call in the strategy's scope.

    With several replicas every BatchNormalization is synchronised.
    """
    built = model()
    if not isinstance(built, keras.Model):
        raise UserError(f"The model builder must return a keras.Model; it returned {type(built).__name__}.")
    task.check_features(data.batch_spec)
    build_model(built, task.model_inputs(data.batch_spec))
    if strategy.num_replicas_in_sync > 1:
        for layer in layers_of(built):
            # Apart, the replicas' statistics drift, and the first one's would be saved for all.
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    return built


def try_task(model: keras.Model, task: Task, data: Data, batch_size: int) -> None:
    """Traces loss and metrics on a batch's specification; computes nothing, changes nothing.

    Raises `UserError` for a loss or metric that can't be computed on such a batch, and for a metric
    that is not one number. Call outside the strategy's scope.
    """
    weight = tf.TensorSpec([batch_size], tf.float32)
    batch = {key: tf.TensorSpec([batch_size, *spec.shape[1:]], spec.dtype) for key, spec in data.batch_spec.items()}
    metrics = task.new_metrics()

    def loss(batch, weight):
        return task.loss(model, batch, weight, training=True)

    def evaluated(batch, weight):
        task.update_metrics(metrics, model, batch, weight)
        return {name: tf.convert_to_tensor(metric.result()) for name, metric in metrics.items()}

    outputs = _trace("outputs", lambda batch, weight: model(task.model_inputs(batch)), batch, weight)
    if isinstance(outputs, tf.TensorSpec | tf.Tensor):
        task.check_values(tf.TensorSpec(outputs.shape), data.examples or {})
    _trace("loss", loss, batch, weight)
    results = _trace("metrics", evaluated, batch, weight)
    for name, value in results.items():
        if value.shape.rank:
            raise UserError(f"The metric {name!r} gives {value.shape} values; one number is needed.")


def _trace(what: str, function: Callable, batch, weight):
    try:
        return tf.function(function).get_concrete_function(batch, weight).structured_outputs
    except UserError:
        raise
    except Exception as error:
        specs = ", ".join(f"{key} {spec.dtype.name}{spec.shape}" for key, spec in batch.items())
        raise UserError(
            f"The task's {what} cannot be computed on a batch of {specs}:\n{type(error).__name__}: {str(error).strip()}"
        ) from error
