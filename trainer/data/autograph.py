"""Calls functions of the user's in a graph that is traced without AutoGraph."""

from collections.abc import Callable

import tensorflow as tf

# As it is outside of every graph: inside of one that is not converted, nothing would be.
_OUTSIDE = tf.__internal__.autograph.control_status_ctx()


#: For functions of ours that tf.data maps, which it would convert.
as_it_is = tf.autograph.experimental.do_not_convert


def in_graph(function: Callable) -> Callable:
    """The function as `tf.function` would trace it: its `if` and `while` may depend on tensors.

    Our own graphs are traced without AutoGraph: to convert our code took longer than Keras' `fit` takes to
    its first step. Source: https://www.tensorflow.org/guide/function
    """
    return tf.__internal__.autograph.tf_convert(function, _OUTSIDE)
