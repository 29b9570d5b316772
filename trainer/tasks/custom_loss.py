"""Trains a model by a loss that the user writes, a function of model and batch."""

import inspect
from collections.abc import Callable, Mapping, Sequence

import gin
import keras
import tensorflow as tf

from trainer.config.settings import may_change
from trainer.data.autograph import in_graph
from trainer.errors import UserError
from trainer.tasks.loss_terms import (
    real_rows,
    spread,
    weighted_sums,
)
from trainer.tasks.task import Task, check_metrics


class CustomLossTask(Task):
    """The user's own loss, a function of (model, batch)."""

    def __init__(self, inputs, loss: Callable, metrics: Mapping[str, Callable]):
        super().__init__(inputs)
        self._loss = loss
        self._metrics = metrics
        self._takes_training = "training" in inspect.signature(loss).parameters

    def loss_and_outputs(self, model, batch, weight, training):
        values = self._call(self._loss, model, batch, training)
        if not values.shape.rank and not training:
            return *self._scalar_loss(model, batch, weight), None
        if not values.shape.rank:  # the mean over the examples that it was given
            values = tf.fill([_rows(batch)] if weight is None else tf.shape(weight), values)
        return *weighted_sums(values, None if weight is None else spread(weight, values)), None

    def describe(self):
        return {"inputs": self.inputs, "loss": getattr(self._loss, "__qualname__", repr(self._loss))}

    def new_metrics(self):
        return {name: keras.metrics.Mean(name=name) for name in ("loss", *self._metrics)}

    def update_metrics(self, metrics, model, batch, weight):
        total, count = self.loss(model, batch, weight, training=False)
        metrics["loss"].update_state(tf.math.divide_no_nan(total, count), sample_weight=count)
        for name, function in self._metrics.items():
            values = tf.cast(in_graph(function)(model, batch), tf.float32)
            if not values.shape.rank:
                raise UserError(f"The metric {name!r} must return a value for each example, [batch], not a scalar.")
            metrics[name].update_state(values, sample_weight=spread(weight, values))

    def _call(self, function, model, batch, training):
        function = in_graph(function)
        values = function(model, batch, training=training) if self._takes_training else function(model, batch)
        return tf.cast(values, tf.float32)

    def _scalar_loss(self, model, batch, weight):
        """A mean over the real examples alone: filling can't be taken out of a scalar afterwards."""
        real, ones = real_rows(batch, weight)
        count = tf.reduce_sum(ones)
        mean = self._call(self._loss, model, real, False)
        return tf.where(count > 0, mean * count, 0.0), count


may_change("custom_loss", "metrics", of_evaluation=True)


@gin.register(module="tasks")
def custom_loss(
    loss: Callable,
    inputs: str | Sequence[str] | Mapping[str, str] = "image",
    metrics: Mapping[str, Callable] | None = None,
) -> Task:
    """Trains a model by a loss that the user writes.

    loss: (model, batch) -> the loss of each example, [batch, ...], or their mean, a scalar; it may take a keyword
      `training`. It calls the model itself, and adds `model.losses` if it wants them.
    inputs: as for `supervised`, to build the model's variables with.
    metrics: name -> function (model, batch) -> a value for each example, [batch].
    """
    if not callable(loss):
        raise UserError(f"custom_loss.loss must be a function of (model, batch), not {loss!r}.")
    check_metrics(metrics)
    return CustomLossTask(inputs, loss, dict(metrics or {}))


def _rows(batch):
    some = next(iter(batch.values()))
    return tf.shape(some)[0] if some.shape[0] is None else some.shape[0]
