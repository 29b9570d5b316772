"""Makes a tensor and lets it be filled in place, so that its bytes go from the file into a variable with one copy."""

import ctypes

import numpy as np
import tensorflow as tf

_WORTHWHILE_BYTES = 1 << 20


def is_worthwhile(size_bytes: int, dtype: tf.DType) -> bool:
    """Whether a copy that is saved is worth more than the way around it."""
    return size_bytes >= _WORTHWHILE_BYTES and dtype.is_numpy_compatible and dtype != tf.string


def unfilled_tensor(shape: tuple[int, ...], dtype: tf.DType) -> tuple[tf.Tensor, np.ndarray]:
    """A tensor in the host's memory, and its bytes as a flat uint8 array to be written once, before it is used.

    The array is good for as long as the tensor is referenced.

    TensorFlow allocates: a variable that the tensor is assigned to takes the memory over, and gives
    back its old one for the next tensor. Memory of NumPy's would be taken over as well, but the old
    one would be kept beside it.
    """
    with tf.device("/CPU:0"):
        tensor = tf.raw_ops.Empty(shape=shape, dtype=dtype, init=False)
    view = np.asarray(tensor)  # shares the memory, for reading
    memory = (ctypes.c_uint8 * view.nbytes).from_address(view.__array_interface__["data"][0])
    return tensor, np.ctypeslib.as_array(memory)
