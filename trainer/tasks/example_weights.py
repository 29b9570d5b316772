"""How much an example weighs in a loss, by its class, by what its loss leaves out, and by both together."""

import math
from collections.abc import Mapping

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
    """What each target weighs, float32; classes that are not named weigh 1.

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
