"""A small model with every kind of state: dropout, batch statistics, slots; and what may happen to its clock."""

import gin
import keras


@gin.configurable
def everything() -> keras.Model:
    return keras.Sequential([
        keras.layers.Flatten(),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10),
    ])  # fmt: skip
