"""Writes a checkpoint for every optimizer, used for three steps; with TF_USE_LEGACY_KERAS=1 those of Keras 2.

python write_optimizers.py FOLDER

The optimizers are built on the variables in the reverse of the model's order, and two layers are of one shape: slots
that were paired by position would fit everywhere and be another variable's.
"""

import os
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

IS_KERAS_2 = bool(os.environ.get("TF_USE_LEGACY_KERAS"))
if IS_KERAS_2:
    import tf_keras as keras
else:
    import keras

OPTIMIZERS = {
    "SGD": ("SGD", {"momentum": 0.9}),
    "SGD nesterov": ("SGD", {"momentum": 0.8, "nesterov": True}),
    "Adam": ("Adam", {}),
    "AMSGrad": ("Adam", {"amsgrad": True}),
    "AdamW": ("AdamW", {}),
    "Nadam": ("Nadam", {}),
    "Lamb": ("Lamb", {}),
    "Adamax": ("Adamax", {}),
    "RMSprop": ("RMSprop", {}),
    "RMSprop with all": ("RMSprop", {"momentum": 0.9, "centered": True}),
    "Lion": ("Lion", {}),
    "Adagrad": ("Adagrad", {}),
    "Adadelta": ("Adadelta", {}),
    "Ftrl": ("Ftrl", {}),
}
STEPS = 3


def net():
    layers = keras.layers
    model = keras.Sequential([layers.Dense(4, name=n) for n in ("first", "second")], name="net")
    model.add(layers.Dense(2, name="head"))
    model.build((None, 4))
    return model


def built(name: str, /, **options):
    kind, settings = OPTIMIZERS[name]
    return getattr(keras.optimizers, kind)(**{"learning_rate": 0.01, **settings, **options})


def step(optimizer, variables, random) -> None:
    # Every value of another size and sign, so that none can be taken for another.
    gradients = [tf.constant(random.normal(size=v.shape) * random.uniform(0.1, 3), tf.float32) for v in variables]
    if IS_KERAS_2:
        optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
    else:
        optimizer.apply(gradients, variables)


def write(path: str, optimizer, number: int) -> None:
    keras.utils.set_random_seed(number)
    model, random = net(), np.random.default_rng(number)
    for _ in range(STEPS):
        step(optimizer, model.trainable_variables[::-1], random)
    tf.train.Checkpoint(model=model, optimizer=optimizer).write(path)


def main(folder: Path) -> None:
    for number, name in enumerate(OPTIMIZERS):
        if hasattr(keras.optimizers, OPTIMIZERS[name][0]):
            write(str(folder / name), built(name), number)
        legacy = getattr(getattr(keras.optimizers, "legacy", None), OPTIMIZERS[name][0], None)
        if legacy is not None and IS_KERAS_2:
            write(str(folder / f"legacy {name}"), legacy(learning_rate=0.01, **OPTIMIZERS[name][1]), number)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
