"""The sums that a loss is a ratio of: how much an example weighs in it, and what a model adds to it."""

import math
from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from trainer.errors import UserError


def check_class_weight(class_weight) -> None:
    """Raises `UserError` for what is no mapping of classes to weights."""
    if not isinstance(class_weight, Mapping) or not all(map(_is_class, class_weight)):
        wrong = class_weight
    else:
        wrong = {label: weight for label, weight in class_weight.items() if not _is_weight(weight)}
    if wrong or wrong is None:
        raise UserError(
            f"supervised.class_weight maps classes to weights of 0 or more, {{0: 1.0, 1: 5.0}}; it has {wrong!r}."
        )


def _is_class(label) -> bool:
    return isinstance(label, int) and not isinstance(label, bool) and label >= 0


def _is_weight(weight) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight < math.inf


def weights_by_class(class_weight: Mapping[int, float], target, outputs) -> tf.Tensor:
    """The weight of each target, float32; classes that are not named weigh 1.

    target: the class, [...] or [..., 1], or a number for each class, [..., classes].
    """
    target = tf.convert_to_tensor(target)
    if target.shape.rank == outputs.shape.rank and target.shape[-1] != 1:
        target = tf.argmax(target, axis=-1)
    elif target.shape.rank == outputs.shape.rank:
        target = tf.squeeze(target, axis=-1)
    labels = tf.cast(target, tf.int32)
    highest = max(class_weight, default=0)
    weights = tf.constant([float(class_weight.get(label, 1.0)) for label in range(highest + 1)])
    inside = (labels >= 0) & (labels <= highest)
    return tf.where(inside, tf.gather(weights, tf.clip_by_value(labels, 0, highest)), 1.0)


def by_class(class_weight: Mapping[int, float]) -> dict[str, float]:
    """As JSON can hold it, in the order of the classes."""
    return {str(label): class_weight[label] for label in sorted(class_weight)}


def times(weights, others):
    """The product; weights of None are ones."""
    return others if weights is None else weights * others


def spread(weight, values):
    """[batch] weights, repeated over the other dimensions of [batch, ...] values."""
    extra = values.shape.rank - weight.shape.rank
    return tf.broadcast_to(tf.reshape(weight, [-1] + [1] * extra) if extra > 0 else weight, tf.shape(values))


def weighted_sums(values, weights) -> tuple:
    """(sum of weighted values, sum of weights); weights of None are ones."""
    if weights is not None:
        return tf.reduce_sum(values * weights), tf.reduce_sum(weights)
    count = values.shape.num_elements()
    return tf.reduce_sum(values), tf.cast(tf.size(values), tf.float32) if count is None else float(count)


def losses_and_mask(loss: keras.losses.Loss, target, outputs) -> tuple:
    """(the loss of each example, float32, which of them count or None).

    Not by the loss's `__call__`: that takes out what `ignore_class` names, and does not tell of it.
    """
    target, outputs = keras.tree.map_structure(
        lambda value: keras.ops.convert_to_tensor(value, dtype=loss.dtype), (target, outputs)
    )
    values = loss.call(target, outputs)
    return tf.cast(values, tf.float32), getattr(values, "_keras_mask", None)


class MeanLoss(keras.metrics.Mean):
    """The weighted mean of losses, and the mean over the examples, each weighing the same, of what a model adds."""

    def __init__(self, name: str = "loss"):
        super().__init__(name=name)
        self.added = self.add_variable(shape=(), initializer="zeros", dtype=self.dtype, name="added")
        self.examples = self.add_variable(shape=(), initializer="zeros", dtype=self.dtype, name="examples")

    def update_state(self, values, sample_weight=None, added=0.0, example_weight=None):
        """values: [batch, ...], weighted by sample_weight.

        added: scalar, for as many examples as example_weight, [batch], sums to; None for all.
        """
        super().update_state(values, sample_weight=sample_weight)
        count = tf.cast(tf.shape(values)[0], self.dtype) if example_weight is None else tf.reduce_sum(example_weight)
        self.added.assign_add(tf.where(count > 0, added * count, 0.0))
        self.examples.assign_add(count)

    def result(self):
        return super().result() + tf.math.divide_no_nan(tf.convert_to_tensor(self.added), self.examples)


def real_rows(batch: Mapping, weight) -> tuple[dict, tf.Tensor]:
    """A batch and its weights, [batch], without the rows that only fill it up; one of them stays where all do.

    For not every kernel takes a batch of none: oneDNN gives what a convolution makes of it the shape of its input.
    """
    real = weight > 0
    real |= (tf.range(tf.size(real)) == 0) & ~tf.reduce_any(real)
    return {key: tf.boolean_mask(value, real) for key, value in batch.items()}, tf.boolean_mask(weight, real)


def of_real_rows(compute: Callable, model, batch: Mapping, weight) -> tuple:
    """(batch, weight, compute(batch, weight)), without filling where the model adds to the loss by what it sees.

    What filling adds can't be taken out afterwards. compute: calls the model; a first call that goes unused, as only
    a call shows what a model adds, is no work of the graph.
    """
    computed = compute(batch, weight)
    if added_terms(model):
        batch, weight = real_rows(batch, weight)
        computed = compute(batch, weight)
    return batch, weight, computed


def added_terms(model) -> list:
    """Those of the model's `losses` that depend on the batch: of activity regularisers and of `add_loss`."""
    of_weights = sum(variable.regularizer is not None for variable in model.trainable_variables)
    return model.losses[: len(model.losses) - of_weights]  # Keras puts those of weights last


def regularization(model) -> tf.Tensor:
    """The sum of the model's regularisers, a float32 scalar."""
    return tf.add_n([tf.cast(term, tf.float32) for term in model.losses]) if model.losses else tf.constant(0.0)
