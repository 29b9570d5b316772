"""Exponential moving averages of the trained weights, and the model with them in place."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import keras
import tensorflow as tf

from trainer.cluster.replicas import first_value


class EmaWeights:
    """One average a trained variable, begun at its value: average <- decay * average + (1 - decay) * variable.

    variables: name -> average; float32 for half-precision weights, whose steps would else be lost.
    Made in the strategy's scope. Source: Polyak and Juditsky, 1992.
    """

    def __init__(self, weights: Mapping[str, keras.Variable], decay: float):
        self.decay = decay
        self._weights = dict(weights)
        self.variables = {
            name: tf.Variable(
                tf.cast(first_value(weight), tf.float32 if tf.as_dtype(weight.dtype).size < 4 else weight.dtype),
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for name, weight in self._weights.items()
        }

    def update(self, copy_of: Callable = lambda variable: variable) -> None:
        """Call once a step, after the optimizer.

        copy_of: variable -> the copy of it to read and set, for an update on each replica's own.
        """
        for name, original in self.variables.items():
            average = copy_of(original)
            value = tf.cast(tf.convert_to_tensor(copy_of(self._weights[name])), average.dtype)
            average.assign(self.decay * average + (1.0 - self.decay) * value)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has its averages inside, and afterwards the very bits that it had before."""
        trained = {name: first_value(weight) for name, weight in self._weights.items()}
        try:
            for name, weight in self._weights.items():
                weight.assign(first_value(self.variables[name]).astype(trained[name].dtype))
            yield
        finally:
            for name, weight in self._weights.items():
                weight.assign(trained[name])
