"""Mixes each training example with another one, by a seed that the example and its epoch decide."""

import dataclasses
from collections.abc import Callable, Mapping

import gin
import tensorflow as tf

from trainer.data.data import Data
from trainer.data.given import as_indexed
from trainer.errors import UserError


@gin.register(module="pipeline")
def mixup(data, num_classes: int, alpha: float = 0.2, key: str = "image", label: str = "label") -> Data:
    """Training data whose examples are means of two (Zhang et al. 2018): w x + (1 - w) x', w from Beta(alpha, alpha).

    data: data whose examples are reached by number: in memory, or read when they are drawn.
    num_classes: labels become float32 [num_classes], for `CategoricalCrossentropy`; so do those of the evaluation data,
      by `preprocess = @one_hot`.
    key: the feature that is mixed, of any shape; it becomes float32.
    label: the feature that holds the class, an integer.

    The other example is any of the data. It has its own augmentation. Raises `UserError` for a stream, and for labels
    that are no single integers.
    """

    def blend(one, other, seed):
        weight = _beta(alpha, seed)
        return {name: weight * one[name] + (1 - weight) * other[name] for name in (key, label)}

    return _mixed("mixup", data, num_classes, alpha, key, label, blend)


@gin.register(module="pipeline")
def cutmix(data, num_classes: int, alpha: float = 1.0, key: str = "image", label: str = "label") -> Data:
    """Training images with a rectangle of another one, and labels by area (Yun et al. 2019).

    data, num_classes, label: as `mixup` has them.
    alpha: the rectangle has 1 - w of the area, w from Beta(alpha, alpha), less what lies outside.
    key: the images, [height, width, channels]; they become float32.
    """

    def blend(one, other, seed):
        image = one[key]
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        half = size * tf.sqrt(1 - _beta(alpha, seed)) / 2
        center = size * tf.random.stateless_uniform([2], _folded(seed, 3))
        low, high = tf.round(center - half), tf.round(center + half)
        rows, columns = (tf.range(tf.shape(image)[axis], dtype=tf.float32) for axis in (0, 1))
        inside = ((rows >= low[0]) & (rows < high[0]))[:, None] & ((columns >= low[1]) & (columns < high[1]))[None, :]
        share = tf.reduce_mean(tf.cast(inside, tf.float32))
        return {
            key: tf.where(inside[..., None], other[key], image),
            label: (1 - share) * one[label] + share * other[label],
        }

    return _mixed("cutmix", data, num_classes, alpha, key, label, blend)


@gin.register(module="pipeline")
def one_hot(batch: Mapping, num_classes: int, label: str = "label") -> dict:
    """Turns class numbers into float32 [..., num_classes], 1 at the class; for `preprocess` or `prepare`."""
    return {**batch, label: tf.one_hot(batch[label], num_classes)}


def _mixed(
    function: str, data, num_classes: int, alpha: float, key: str, label: str, blend: Callable[..., dict]
) -> Data:
    given = as_indexed(data, f"{function}.data", reorders=False)
    stored = dataclasses.replace(given, preprocess=None, augment=None).batch_spec
    for name in (key, label):
        if name not in stored:
            raise UserError(f"{function}: {given.label} has no feature {name!r}; it has {', '.join(stored)}.")
    if not stored[label].dtype.is_integer or stored[label].shape.rank != 1:
        raise UserError(
            f"{function}: the feature {label!r} of {given.label} must hold one integer an example, and holds "
            f"{stored[label].dtype.name}{stored[label].shape[1:]}."
        )
    labels = None if given.examples is None else given.examples[label]
    if labels is not None and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"{function}: the labels {label!r} of {given.label} run from {labels.min()} to {labels.max()}, and "
            f"num_classes = {num_classes} has the classes 0 to {num_classes - 1}."
        )
    if not alpha > 0:
        raise UserError(f"{function}.alpha = {alpha} must be above 0.")

    def look_up(numbers, seeds):
        batch = one_hot(given.look_up(numbers, seeds), num_classes, label)
        return {**batch, key: tf.cast(batch[key], tf.float32)}

    def read(numbers, seeds):
        batch = look_up(numbers, seeds)
        if seeds is None:
            return batch
        others = tf.map_fn(lambda seed: _number(seed, given.num_examples), seeds, fn_output_signature=tf.int64)
        other_seeds = tf.map_fn(lambda seed: _folded(seed, 4), seeds, fn_output_signature=tf.int64)
        other = look_up(others, other_seeds)
        ours, theirs = ({name: each[name] for name in (key, label)} for each in (batch, other))
        signature = {name: tf.TensorSpec(ours[name].shape[1:], tf.float32) for name in ours}
        return batch | tf.map_fn(lambda row: blend(*row), (ours, theirs, seeds), fn_output_signature=signature)

    return dataclasses.replace(
        given, examples=None, read=read, augment=None, contents=f"{given.fingerprint}, {function} {alpha:g}"
    )


def _folded(seed, number: int):
    return tf.cast(tf.random.experimental.stateless_fold_in(seed, number), tf.int64)


def _number(seed, num_examples: int):
    return tf.random.stateless_uniform([], _folded(seed, 1), maxval=num_examples, dtype=tf.int64)


def _beta(alpha: float, seed):
    """A draw from Beta(alpha, alpha)."""
    one, other = tf.unstack(tf.random.stateless_gamma([2], _folded(seed, 2), alpha=[alpha, alpha]))
    return tf.math.divide_no_nan(one, one + other)
