"""A variable's value on each replica of this process, as NumPy."""

import numpy as np


def replica_values(variable) -> list[np.ndarray]:
    """[value on each local replica]; one for a variable that no strategy distributes.

    variable: of Keras or of TensorFlow. Read copy by copy: `int(v)` and `np.array(v)` fail on
    variables that are mirrored, and a plain read would show the first replica's only.
    """
    raw = getattr(variable, "value", variable)
    raw = variable if callable(raw) else raw  # tf.Variable.value is a method, keras.Variable.value a property
    copies = getattr(raw, "values", None) or (raw,)
    return [np.asarray(copy.numpy()) for copy in copies]


def first_value(variable) -> np.ndarray:
    """The value on the first local replica."""
    return replica_values(variable)[0]
