"""What a model is trained for: loss, metrics, and which features it is called with."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence

import gin
import keras
import tensorflow as tf

from trainer.errors import UserError


class Task:
    """What every task answers. A batch is a dict of features; `weight` [batch] is 0 for filling.

    inputs: the feature, or features, that the model is called with.
    """

    def __init__(self, inputs: str | Sequence[str]):
        self.inputs = inputs

    def model_inputs(self, batch):
        """The features (or their specs) that the model is called with, as one value or a list."""
        if isinstance(self.inputs, str):
            return _feature(batch, self.inputs)
        return [_feature(batch, name) for name in self.inputs]

    def features(self) -> list[str]:
        """The features that a batch must have; a loss of the user's own may want more."""
        return [self.inputs] if isinstance(self.inputs, str) else list(self.inputs)

    def check_features(self, batch_spec: Mapping) -> None:
        """Raises `UserError` for the first feature that the data lacks."""
        for name in self.features():
            _feature(batch_spec, name)

    def loss(self, model, batch, weight, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """(sum of weighted losses, sum of weights), float32 scalars; their ratio is the mean loss."""
        raise NotImplementedError

    def new_metrics(self) -> dict[str, keras.metrics.Metric]:
        """Fresh metrics by name, `loss` among them."""
        raise NotImplementedError

    def update_metrics(self, metrics, model, batch, weight) -> None:
        """Adds one batch to the metrics, in inference mode."""
        raise NotImplementedError


class SupervisedTask(Task):
    """A Keras loss between the model's output and a target feature."""

    def __init__(self, inputs, target: str, loss: keras.losses.Loss, metrics: Mapping, sample_weight: str | None):
        super().__init__(inputs)
        self._target = target
        self._sample_weight = sample_weight
        self._metrics = metrics
        self._loss = copy.copy(loss)
        # The mean is ours to take: its denominator is the whole global batch, on all replicas.
        self._loss.reduction = "none"

    def features(self):
        return [*super().features(), self._target, *([self._sample_weight] if self._sample_weight else [])]

    def loss(self, model, batch, weight, training):
        values, weights, _ = self._values(model, batch, weight, training)
        total = tf.reduce_sum(weights)
        # Regularisers are a term of the mean, so they are weighted by this part's share of it.
        return tf.reduce_sum(values * weights) + _regularization(model) * total, total

    def new_metrics(self):
        built = {name: build(name=name) if _takes_name(build) else build() for name, build in self._metrics.items()}
        for name, metric in built.items():
            if not isinstance(metric, keras.metrics.Metric):
                kind = type(metric).__name__
                raise UserError(
                    f"supervised.metrics[{name!r}] must be a Keras metric, not {metric!r}."
                    + (f" @{kind} is the loss; the metric is @metrics.{kind}." if hasattr(keras.metrics, kind) else "")
                )
        return {"loss": keras.metrics.Mean(name="loss")} | built

    def update_metrics(self, metrics, model, batch, weight):
        values, weights, outputs = self._values(model, batch, weight, training=False)
        metrics["loss"].update_state(values + _regularization(model), sample_weight=weights)
        for name in self._metrics:
            metrics[name].update_state(_feature(batch, self._target), outputs, sample_weight=weights)

    def _values(self, model, batch, weight, training):
        outputs = model(self.model_inputs(batch), training=training)
        values = tf.cast(self._loss(_feature(batch, self._target), outputs), tf.float32)
        if self._sample_weight is not None:
            weight = weight * tf.cast(_feature(batch, self._sample_weight), tf.float32)
        mask = getattr(outputs, "_keras_mask", None)
        weights = _spread(weight, values)
        return values, weights if mask is None else weights * tf.cast(mask, tf.float32), outputs


class CustomLossTask(Task):
    """The user's own loss, a function of (model, batch)."""

    def __init__(self, inputs, loss: Callable, metrics: Mapping[str, Callable]):
        super().__init__(inputs)
        self._loss = loss
        self._metrics = metrics
        self._takes_training = "training" in inspect.signature(loss).parameters

    def loss(self, model, batch, weight, training):
        values = self._call(self._loss, model, batch, training)
        if not values.shape.rank and not training:
            return self._scalar_loss(model, batch, weight)
        # A scalar is the mean over the examples it was given.
        values = values if values.shape.rank else tf.fill(tf.shape(weight), values)
        weights = _spread(weight, values)
        return tf.reduce_sum(values * weights), tf.reduce_sum(weights)

    def new_metrics(self):
        return {name: keras.metrics.Mean(name=name) for name in ("loss", *self._metrics)}

    def update_metrics(self, metrics, model, batch, weight):
        total, count = self.loss(model, batch, weight, training=False)
        metrics["loss"].update_state(tf.math.divide_no_nan(total, count), sample_weight=count)
        for name, function in self._metrics.items():
            values = tf.cast(function(model, batch), tf.float32)
            if not values.shape.rank:
                raise UserError(f"The metric {name!r} must return a value for each example, [batch], not a scalar.")
            metrics[name].update_state(values, sample_weight=_spread(weight, values))

    def _call(self, function, model, batch, training):
        values = function(model, batch, training=training) if self._takes_training else function(model, batch)
        return tf.cast(values, tf.float32)

    def _scalar_loss(self, model, batch, weight):
        """A mean over the real examples alone: filling can't be taken out of a scalar afterwards."""
        real = {key: tf.boolean_mask(value, weight > 0) for key, value in batch.items()}
        count = tf.reduce_sum(weight)
        mean = self._call(self._loss, model, real, False)
        return tf.where(count > 0, mean * count, 0.0), count


@gin.configurable(module="tasks")
def supervised(
    loss=gin.REQUIRED,
    inputs: str | Sequence[str] = "image",
    target: str = "label",
    metrics: Mapping | None = None,
    sample_weight: str | None = None,
) -> Task:
    """Trains a model to predict a feature.

    loss: a Keras loss. It is averaged over the global batch; its own reduction is not used.
    inputs: feature name, or list of names, that the model is called with.  target: feature to predict.
    metrics: name -> Keras metric class or builder, `{'accuracy': @SparseCategoricalAccuracy}`.
    sample_weight: name of a feature that weighs the examples, or None.
    """
    loss = loss() if inspect.isfunction(loss) or inspect.isclass(loss) else loss
    if not isinstance(loss, keras.losses.Loss):
        raise UserError(f"supervised.loss must be a Keras loss such as @MeanSquaredError(), not {loss!r}.")
    if loss.reduction == "sum":
        raise UserError("supervised.loss has reduction='sum'; the loss is always the mean over the global batch.")
    return SupervisedTask(inputs, target, loss, dict(metrics or {}), sample_weight)


@gin.configurable(module="tasks")
def custom_loss(
    loss: Callable = gin.REQUIRED,
    inputs: str | Sequence[str] = "image",
    metrics: Mapping[str, Callable] | None = None,
) -> Task:
    """Trains a model by a loss that the user writes.

    loss: (model, batch) -> the loss of each example, [batch, ...], or their mean, a scalar; it may
      take a keyword `training`. It calls the model itself, and adds `model.losses` if it wants them.
    inputs: feature name, or list of names, that the model is called with (to build its variables).
    metrics: name -> function (model, batch) -> a value for each example, [batch].
    """
    return CustomLossTask(inputs, loss, dict(metrics or {}))


def _feature(batch, name: str):
    if name not in batch:
        raise UserError(
            f"The data has no feature {name!r}; it has {', '.join(batch)}. Set the task's inputs and target."
        )
    return batch[name]


def _regularization(model) -> tf.Tensor:
    return tf.add_n([tf.cast(term, tf.float32) for term in model.losses]) if model.losses else tf.constant(0.0)


def _spread(weight, values):
    """[batch] weights, repeated over the other dimensions of [batch, ...] values."""
    extra = values.shape.rank - weight.shape.rank
    return tf.broadcast_to(tf.reshape(weight, [-1] + [1] * extra) if extra > 0 else weight, tf.shape(values))


def _takes_name(build) -> bool:
    return "name" in inspect.signature(build).parameters
