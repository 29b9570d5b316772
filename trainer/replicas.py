"""A variable's value on each replica of this process, as NumPy."""

from collections.abc import Iterator

import numpy as np


def each_replica_value(variable) -> Iterator[np.ndarray]:
    """The value on one local replica after the other; one for a variable that no strategy distributes.

    variable: of Keras or of TensorFlow. Read copy by copy: `int(v)` and `np.array(v)` fail on
    variables that are mirrored, and a plain read would show the first replica's only.
    """
    raw = getattr(variable, "value", variable)
    raw = variable if callable(raw) else raw  # tf.Variable.value is a method, keras.Variable.value a property
    for copy in getattr(raw, "values", None) or (raw,):
        # Not `.numpy()`, which copies once more where the value is in this machine's memory already.
        yield np.asarray(copy.read_value())


def replica_values(variable) -> list[np.ndarray]:
    """[value on each local replica], all of them in memory."""
    return list(each_replica_value(variable))


def first_value(variable) -> np.ndarray:
    """The value on the first local replica."""
    return next(each_replica_value(variable))
