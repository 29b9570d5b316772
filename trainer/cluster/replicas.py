"""Sums over all replicas, and a variable's value on each replica of this process."""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf


def add_up_replicas(structure):
    """The same nest of tensors, each the sum over all replicas; call in `strategy.run`.

    One all-reduce for each dtype: TensorFlow packs what it sends at once into one tensor.
    """
    tensors = tf.nest.flatten(structure)
    reduce = tf.distribute.get_replica_context().all_reduce
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
        sums = reduce(tf.distribute.ReduceOp.SUM, [tensors[i] for i in places])
        for place, total in zip(places, sums, strict=True):
            tensors[place] = total
    return tf.nest.pack_sequence_as(structure, tensors)


def each_replica_value(variable) -> Iterator[np.ndarray]:
    """The value on one local replica after the other; one for a variable that no strategy distributes.

    variable: of Keras or of TensorFlow. Read copy by copy: `int(v)` and `np.array(v)` fail on variables that are
      mirrored, and a plain read would show the first replica's only.
    """
    for copy in _copies(variable):
        # Not `.numpy()`, which copies once more where the value is in this machine's memory already.
        yield np.asarray(copy.read_value())


def _copies(variable) -> Sequence[tf.Variable]:
    raw = getattr(variable, "value", variable)
    raw = variable if callable(raw) else raw  # tf.Variable.value is a method, keras.Variable.value a property
    return getattr(raw, "values", None) or (raw,)


def is_finite(variable) -> bool:
    """Whether all its numbers are finite, on the first local replica; only the answer leaves the device."""
    value = _copies(variable)[0].read_value()
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))


def replica_values(variable) -> list[np.ndarray]:
    """[value on each local replica], all of them in memory."""
    return list(each_replica_value(variable))


def first_value(variable) -> np.ndarray:
    """The value on the first local replica."""
    return next(each_replica_value(variable))
