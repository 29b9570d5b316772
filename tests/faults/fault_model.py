"""A small model with every kind of state: dropout, batch statistics, slots; and what may happen to its clock."""

import os
import time

import gin
import keras
import tensorflow as tf


class Dawdle(keras.layers.Layer):
    """Passes its input on; where FAULT_SLOW says so, 'training 0.2 PATH', after a sleep, noted by a byte in PATH."""

    def call(self, inputs, training=None):
        when, seconds, path = os.environ.get("FAULT_SLOW", "never 0 -").split()
        if when != ("training" if training else "evaluation"):
            return inputs

        def dawdle():
            with open(path, "a") as file:
                file.write(".")
            time.sleep(float(seconds))
            return 0

        with tf.control_dependencies([tf.numpy_function(dawdle, [], tf.int64)]):
            return tf.identity(inputs)


@gin.configurable
def everything() -> keras.Model:
    return keras.Sequential([
        keras.layers.Flatten(),
        Dawdle(),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10),
    ])  # fmt: skip
