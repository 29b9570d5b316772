"""Trains a model to predict a feature by a Keras loss."""

import inspect
from collections.abc import Mapping, Sequence

import gin
import keras
import numpy as np
import tensorflow as tf

from trainer.config.settings import may_change
from trainer.errors import UserError
from trainer.tasks.loss_terms import (
    MeanLoss,
    by_class,
    check_class_weight,
    losses_and_mask,
    of_real_rows,
    regularization,
    spread,
    times,
    weighted_sums,
    weights_by_class,
)
from trainer.tasks.task import Task, check_metrics, feature_of


class SupervisedTask(Task):
    """A Keras loss between the model's output and a target feature."""

    def __init__(
        self,
        inputs,
        target: str,
        loss: keras.losses.Loss,
        metrics: Mapping,
        sample_weight: str | None,
        class_weight: Mapping[int, float] | None = None,
    ):
        super().__init__(inputs)
        self._target = target
        self._sample_weight = sample_weight
        self._class_weight = class_weight
        self._metrics = metrics
        # Not by `copy`: Keras would make another from the config, which has no dtype and no state of a user's loss.
        self._loss = object.__new__(type(loss))
        self._loss.__dict__.update(vars(loss))
        # The mean is ours to take: its denominator is the whole global batch, on all replicas.
        self._loss.reduction = "none"

    def describe(self):
        options = {name: value for name, value in self._loss.get_config().items() if name not in ("name", "reduction")}
        return {
            "inputs": self.inputs,
            "target": self._target,
            "sample_weight": self._sample_weight,
            # Only where there is one: else a run that began before there could be would be another run.
            **({"class_weight": by_class(self._class_weight)} if self._class_weight else {}),
            "loss": type(self._loss).__name__,
            **options,
        }

    def check_values(self, outputs, examples):
        labels = np.asarray(examples.get(self._target, ()))
        classes = (outputs.shape[-1] if outputs.shape.rank else None) or 0
        highest = max(self._class_weight or [0])
        if highest >= max(classes, 2):
            raise UserError(f"supervised.class_weight weighs class {highest}, but the model has {classes} outputs.")
        if not isinstance(self._loss, keras.losses.SparseCategoricalCrossentropy) or not classes:
            return
        ignored = self._loss.get_config().get("ignore_class")
        if ignored is not None:
            labels = labels[labels != ignored]
        # TensorFlow would stop at such a label on a CPU, and continue with NaN on a GPU.
        if np.issubdtype(labels.dtype, np.number) and labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise UserError(
                f"The labels {self._target!r} run from {labels.min()} to {labels.max()}, but the model has "
                f"{classes} outputs, for classes 0 to {classes - 1}."
            )

    def check_features(self, batch_spec, what="The data"):
        super().check_features(batch_spec, what)
        if batch_spec[self._target].dtype == tf.string:
            raise UserError(
                f"{what} has texts in the target {self._target!r}, and a loss compares numbers: number the classes "
                "before, e.g. by keras.layers.StringLookup in a function bound to `prepare` or `preprocess`."
            )

    def features(self):
        return [*super().features(), self._target, *([self._sample_weight] if self._sample_weight else [])]

    def loss_and_outputs(self, model, batch, weight, training):
        values, weights, _, outputs = self._values(model, batch, weight, training)
        loss_sum, total = weighted_sums(values, weights)
        # Regularisers are a term of the mean, so they are weighted by this part's share of it.
        return loss_sum + regularization(model) * total if model.losses else loss_sum, total, outputs

    def new_metrics(self):
        built = {name: build(name=name) if _takes_name(build) else build() for name, build in self._metrics.items()}
        for name, metric in built.items():
            if not isinstance(metric, keras.metrics.Metric):
                kind = type(metric).__name__
                raise UserError(
                    f"supervised.metrics[{name!r}] must be a Keras metric, not {metric!r}."
                    + (f" @{kind} is the loss; the metric is @metrics.{kind}." if hasattr(keras.metrics, kind) else "")
                )
        return {"loss": MeanLoss(name="loss")} | built

    def update_metrics(self, metrics, model, batch, weight):
        def values_of(batch, weight):
            return self._values(model, batch, weight, training=False)

        batch, weight, (values, weights, seen, outputs) = of_real_rows(values_of, model, batch, weight)
        metrics["loss"].update_state(values, weights, regularization(model), weight)
        for name in self._metrics:
            metrics[name].update_state(feature_of(batch, self._target), outputs, sample_weight=seen)

    def _values(self, model, batch, weight, training):
        """(losses, their weights, the weights of what metrics see, outputs), [batch, ...]; weights of None are ones."""
        target, outputs = feature_of(batch, self._target), model(self.model_inputs(batch), training=training)
        values, loss_mask = losses_and_mask(self._loss, target, outputs)
        weights = None if weight is None else spread(weight, values)
        if self._sample_weight is not None:
            sample_weight = tf.cast(feature_of(batch, self._sample_weight), tf.float32)
            weights = times(weights, spread(sample_weight, values))
        mask = getattr(outputs, "_keras_mask", None)
        if mask is not None:
            weights = times(weights, tf.cast(mask, tf.float32))
        seen = weights
        if loss_mask is not None:
            weights = times(weights, tf.cast(loss_mask, tf.float32))
        if self._class_weight and training:
            weights = times(weights, spread(weights_by_class(self._class_weight, target, outputs), values))
        return values, weights, seen, outputs


may_change("supervised", "metrics", of_evaluation=True)


@gin.register(module="tasks")
def supervised(
    loss,
    inputs: str | Sequence[str] | Mapping[str, str] = "image",
    target: str = "label",
    metrics: Mapping | None = None,
    sample_weight: str | None = None,
    class_weight: Mapping[int, float] | None = None,
) -> Task:
    """Trains a model to predict a feature.

    loss: a Keras loss. It is averaged over the global batch; its own reduction is not used.
    inputs: feature name that the model is called with, or a list of names, or a dict {model's name: feature}.
    target: feature to predict.
    metrics: name -> Keras metric class or builder, `{'accuracy': @SparseCategoricalAccuracy}`.
    sample_weight: name of a feature that weighs the examples, or None.
    class_weight: class -> what its examples weigh in training, `{0: 1.0, 1: 5.0}`; classes left out weigh 1. The target
      is the class, or one number for each class. Evaluations weigh all classes alike, as those of Keras do.

    The loss is sum(loss * weight) / sum(weight); examples that the loss itself leaves out, as by `ignore_class`,
    weigh nothing.
    """
    if inspect.isclass(loss) or inspect.isfunction(loss):
        try:
            loss = loss()
        except TypeError as error:
            raise UserError(
                f"supervised.loss must be a Keras loss such as @MeanSquaredError(), or make one; "
                f"{loss!r} does not: {error}"
            ) from error
    for name, value in (("target", target), ("sample_weight", sample_weight)):
        if not isinstance(value, str | (type(None) if name == "sample_weight" else str)):
            raise UserError(f"supervised.{name} names one feature, 'label'; it is {value!r}.")
    if not isinstance(loss, keras.losses.Loss):
        raise UserError(f"supervised.loss must be a Keras loss such as @MeanSquaredError(), not {loss!r}.")
    check_metrics(metrics)
    for name, metric in (metrics or {}).items():
        if isinstance(metric, keras.metrics.Metric):
            raise UserError(
                f"supervised.metrics[{name!r}] is a metric already; give its class or a function that makes one, "
                f"e.g. @{type(metric).__name__} without parentheses: its variables belong into the strategy's scope."
            )
    if loss.reduction == "sum":
        raise UserError("supervised.loss has reduction='sum'; the loss is always the mean over the global batch.")
    if class_weight is not None:
        check_class_weight(class_weight)
    return SupervisedTask(inputs, target, loss, dict(metrics or {}), sample_weight, class_weight)


def _rows(batch):
    some = next(iter(batch.values()))
    return tf.shape(some)[0] if some.shape[0] is None else some.shape[0]


def _takes_name(build) -> bool:
    return "name" in inspect.signature(build).parameters
