"""What configs of the comparison tests bind: imported by their `import` lines, in the runs' processes as well."""

import gin
import keras
import numpy as np

import trainer


@gin.register(module="test_comparison")
def hidden_width(width: int = 4) -> int:
    return width


@gin.register(module="test_comparison")
def hidden_rate(rate: float = 0.5) -> float:
    return rate


@gin.register(module="test_comparison")
def dropout_net() -> keras.Model:
    """Draws from Keras' own generator, whose state lives as long as the process."""
    width = gin.get_configurable("test_comparison.hidden_width")()  # which no reference in a config leads to
    rate = gin.get_configurable("test_comparison.hidden_rate")()
    return keras.Sequential([keras.layers.Dense(width), keras.layers.Dropout(rate), keras.layers.Dense(1)])


@gin.register(module="test_comparison")
def first_rows(count: int = 6):
    x = np.arange(1.0, 7.0, dtype=np.float32)[:, None]
    scale = 1.0 if gin.get_configurable("test_comparison.hidden_width")() < 9 else 2.0
    return trainer.in_memory({"x": x[:count] * scale, "y": 2 * x[:count]}, name="rows")


@gin.register(module="test_comparison")
def penalized() -> keras.Model:
    return keras.Sequential([keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.1), name="unit")])
