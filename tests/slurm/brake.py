"""A model whose steps take their time in a Slurm job's first try, which then is still at it when its limit comes."""

import os
import time

import gin
import keras
import tensorflow as tf
from fault_model import everything


class Brake(keras.layers.Layer):
    """Gives back what it gets, later."""

    def call(self, inputs):
        if "SLURM_JOB_ID" not in os.environ or "SLURM_RESTART_COUNT" in os.environ:
            return inputs
        with tf.control_dependencies([tf.py_function(lambda: time.sleep(0.3), [], [])]):
            return tf.identity(inputs)


@gin.configurable
def braked() -> keras.Model:
    return keras.Sequential([Brake(), *everything().layers])
