"""Writes the zoo's models in every way that Keras 2 has; run in a process of its own with TF_USE_LEGACY_KERAS=1.

python write_with_keras_2.py FOLDER

Beside each file stands `NAME.npz`: an input, what the model makes of it, and its weights in no order that counts.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras
from zoo import MODELS, InLists, built, used_adam

FOUR = tf.TensorSpec([None, 4], tf.float32)
SAVED_MODELS = ("subclassed", "functional")  # the others take seconds each


def write(model, optimizer, way: str, path: str) -> None:
    if way == "checkpoint":
        tf.train.Checkpoint(model=model, optimizer=optimizer).write(f"{path}_{way}")
    elif way == "weights":
        model.save_weights(f"{path}_{way}")
    elif way == "saved_model":
        model.save(f"{path}_{way}")
    elif way.startswith("model."):
        model.compile(optimizer=optimizer, loss="mse")
        model.save(f"{path}_{way}")
    else:
        model.save_weights(f"{path}_{way}")


def main(folder: Path) -> None:
    for kind, (build, spec) in {**MODELS, "in lists": (InLists, FOUR)}.items():
        model = built(build(), spec)
        optimizer = used_adam(model)
        example = np.random.default_rng(5).integers(0, 4, [2, *spec.shape[1:]]).astype(spec.dtype.as_numpy_dtype)
        name = kind.replace(" ", "_")
        output = model(example, training=False)
        np.savez(folder / f"{name}.npz", example, output, *[w.numpy() for w in model.weights])
        for way in ("checkpoint", "weights", "x.weights.h5", "x.h5", "model.h5", "model.keras", "saved_model"):
            subclassed = not (model._is_graph_network or isinstance(model, keras.Sequential))
            if (way == "saved_model" and kind not in SAVED_MODELS) or (way == "model.h5" and subclassed):
                continue
            write(model, optimizer, way, str(folder / name))
        if kind in ("subclassed", "functional", "sequential", "in lists"):
            model = built(build(), spec)
            legacy = keras.optimizers.legacy.Adam()
            legacy.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
            tf.train.Checkpoint(model=model, optimizer=legacy).write(str(folder / f"{name}_legacy_checkpoint"))
            np.savez(folder / f"{name}_legacy.npz", example, model(example), *[w.numpy() for w in model.weights])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
