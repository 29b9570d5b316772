"""Sequences of different lengths: padded to one length, or cut in each batch after its longest."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import gin
import numpy as np
import tensorflow as tf

from trainer.data.autograph import as_it_is
from trainer.data.data import Data
from trainer.data.given import as_indexed
from trainer.data.order import Mixed
from trainer.errors import UserError


@gin.register(module="pipeline")
def pad_to(example: Mapping, lengths: Mapping[str, int], value=0) -> dict:
    """Brings features to one length along their first dimension; for `prepare`.

    example: feature -> tensor, [length, ...]; a ragged tensor becomes a dense one.
    lengths: {"tokens": 128}: a longer feature is cut, a shorter one gets `value` at its end.
    value: the padding. With `keras.layers.Embedding(mask_zero=True)`, loss and metrics leave out what is 0.
    """
    changed = dict(example)
    for name, length in lengths.items():
        if name not in example:
            raise UserError(f"pad_to.lengths: there is no feature {name!r}; there are {', '.join(example)}.")
        tensor = example[name]
        if isinstance(tensor, tf.RaggedTensor):
            tensor = tensor.to_tensor(default_value=tf.cast(value, tensor.dtype))
        tensor = tf.convert_to_tensor(tensor)[:length]
        missing = [[0, length - tf.shape(tensor)[0]]] + [[0, 0]] * (tensor.shape.rank - 1)
        padded = tf.pad(tensor, missing, constant_values=tf.cast(value, tensor.dtype))
        changed[name] = tf.ensure_shape(padded, [length, *tensor.shape[1:]])
    return changed


@gin.register(module="pipeline")
def trim_padding(batch: Mapping, keys: Sequence[str], value=0, lengths: Sequence[int] | None = None) -> dict:
    """Cuts features of a batch after the longest example in it; for `preprocess`.

    batch: feature -> [batch, length, ...].
    keys: the features, of one length; the first one decides.
    value: the padding at the end of an example.
    lengths: the lengths to choose from, ascending; None for any. A few lengths are a few shapes for the device.
    """
    first = batch[keys[0]]
    used = _is_used(first, value)
    whole = tf.shape(first)[1]
    longest = tf.reduce_max(tf.where(used, tf.range(1, whole + 1), 0))
    if lengths is not None:
        choices = tf.constant([*lengths], tf.int32)
        longer = tf.boolean_mask(choices, choices >= longest)
        longest = tf.cond(tf.size(longer) > 0, lambda: tf.minimum(longer[0], whole), lambda: whole)
    return {**batch, **{key: batch[key][:, : tf.maximum(longest, 1)] for key in keys}}


@gin.register(module="pipeline")
def bucket_by_length(data, keys: Sequence[str], boundaries: Sequence[int], value=0) -> Data:
    """Batches of examples of like length, each cut to the boundary of its bucket; for training.

    data: padded data whose examples are reached by number: in memory, or read when they are drawn.
    keys: the features that hold the sequences, [length, ...]; the first one decides.
    boundaries: ascending: [16, 64] makes buckets of up to 16, up to 64, and of what is longer.
    value: the padding at the end of an example.

    Which batch comes from which bucket, and which of its examples, is a function of seed and step. Each bucket has its
    share of the batches, and each of its examples comes once before any comes again.
    """
    given = as_indexed(data, "bucket_by_length.data")
    unknown = [key for key in keys if key not in given.batch_spec]
    if unknown:
        known = ", ".join(given.batch_spec)
        raise UserError(f"bucket_by_length.keys: {given.label} has no feature {unknown[0]!r}; it has {known}.")
    if list(boundaries) != sorted({int(each) for each in boundaries if each > 0}):
        raise UserError(f"bucket_by_length.boundaries = {list(boundaries)} must be whole numbers above 0, ascending.")
    buckets = np.searchsorted(np.asarray(boundaries), _lengths(given, keys[0], value), side="left")
    _, sizes = np.unique(buckets, return_counts=True)
    members = np.argsort(buckets, kind="stable")
    order = Mixed([int(size) for size in sizes], [float(size) for size in sizes], members, by_batch=True)
    trim = functools.partial(trim_padding, keys=list(keys), value=value, lengths=list(boundaries))
    return dataclasses.replace(given, order=order, preprocess=_in_turn(trim, given.preprocess))


def _in_turn(first: Callable, second: Callable | None) -> Callable:
    if second is None:
        return first

    @functools.wraps(second)
    def both(batch):
        return second(first(batch))

    return both


def _is_used(sequences, value) -> tf.Tensor:
    """[batch, length] bool: the positions that hold anything but padding."""
    differs = tf.not_equal(sequences, tf.cast(value, sequences.dtype))
    return tf.reduce_any(differs, axis=list(range(2, sequences.shape.rank)))


def _lengths(data: Data, key: str, value) -> np.ndarray:
    """[num_examples] int64: the length of each example without its padding."""
    batches = tf.data.Dataset.range(data.num_examples).batch(1024).map(as_it_is(data.look_up))

    def longest(batch):
        used = _is_used(batch[key], value)
        return tf.reduce_max(tf.where(used, tf.range(1, tf.shape(used)[1] + 1), 0), axis=1)

    found = [each.numpy() for each in data.elements(batches.map(as_it_is(longest)))]
    return np.concatenate(found).astype(np.int64)
