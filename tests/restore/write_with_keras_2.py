"""Writes all that the tests read of Keras 2, in one process with TF_USE_LEGACY_KERAS=1.

python write_with_keras_2.py FOLDER [--full]

FOLDER/zoo has the zoo's models in every way that Keras 2 has of writing them, without --full those that `make test`
reads. Beside each file stands `NAME.npz`: an input, what the model makes of it, and its weights in no order that
counts. FOLDER/files has HDF5 files with their corners, FOLDER/named a model with names, FOLDER/text one with a
vocabulary, FOLDER/optimizers what `write_optimizers.py` writes.
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf
import tf_keras as keras
import write_optimizers
from zoo import MODELS, InLists, built, text_model, used_adam

FOUR = tf.TensorSpec([None, 4], tf.float32)
WAYS = (
    "checkpoint", "list_checkpoint", "weights", "x.weights.h5", "x.h5", "model.h5", "model.keras", "saved_model",
)  # fmt: skip
FAST = {"functional": WAYS, "in lists": WAYS, "text": ("checkpoint", "list_checkpoint")}  # of others a checkpoint
SAVED_MODELS = ("subclassed", "functional")  # the others take seconds each


def write(model, optimizer, way: str, path: str) -> None:
    if way == "checkpoint":
        tf.train.Checkpoint(model=model, optimizer=optimizer).write(f"{path}_{way}")
    elif way == "list_checkpoint":
        tf.train.Checkpoint(weights=model.weights).write(f"{path}_{way}")
    elif way == "weights":
        model.save_weights(f"{path}_{way}")
    elif way == "saved_model":
        model.save(f"{path}_{way}")
    elif way.startswith("model."):
        model.compile(optimizer=optimizer, loss="mse")
        model.save(f"{path}_{way}")
    else:
        model.save_weights(f"{path}_{way}")


def write_zoo(folder: Path, full: bool) -> None:
    for kind, (build, spec) in {**MODELS, "in lists": (InLists, FOUR)}.items():
        model = built(build(), spec)
        optimizer = used_adam(model)
        example = np.random.default_rng(5).integers(0, 4, [2, *spec.shape[1:]]).astype(spec.dtype.as_numpy_dtype)
        name = kind.replace(" ", "_")
        output = model(example, training=False)
        np.savez(folder / f"{name}.npz", example, output, *[w.numpy() for w in model.weights])
        for way in WAYS if full else FAST.get(kind, ("checkpoint",)):
            subclassed = not (model._is_graph_network or isinstance(model, keras.Sequential))
            if (way == "saved_model" and kind not in SAVED_MODELS) or (way == "model.h5" and subclassed):
                continue
            write(model, optimizer, way, str(folder / name))
        if kind in ("subclassed", "functional", "sequential", "in lists") and (full or kind in FAST):
            model = built(build(), spec)
            legacy = keras.optimizers.legacy.Adam()
            legacy.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
            tf.train.Checkpoint(model=model, optimizer=legacy).write(str(folder / f"{name}_legacy_checkpoint"))
            np.savez(folder / f"{name}_legacy.npz", example, model(example), *[w.numpy() for w in model.weights])


def write_files(folder: Path) -> None:
    layers = keras.layers
    image = keras.Input([4])
    x = layers.Normalization(name="scaled")(layers.Dropout(0.3)(layers.Dense(4, name="first")(image)))
    inner = keras.Sequential([layers.Dense(4, name="inside"), layers.Dense(3)], name="net")
    model = keras.Model(image, inner(x))
    model.compile("adam", "mse", run_eagerly=True)
    model.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
    for name in ("model.weights.h5", "weights.h5"):
        model.save_weights(folder / name)
    for name in ("model.keras", "model.h5"):
        model.save(folder / name)
    long = keras.Sequential([keras.Input([1]), *(layers.Dense(1, name="x" * 400 + str(i)) for i in range(200))])
    long.save_weights(folder / "long.h5")


def write_named(folder: Path) -> None:
    """A Sequential model of layers called a and b, in every way that keeps their names."""
    layers = [keras.Input([4]), keras.layers.Dense(4, name="a"), keras.layers.Dense(4, name="b")]
    model = built(keras.Sequential(layers))
    np.savez(folder / "values.npz", **{w.name.removesuffix(":0"): w.numpy() for w in model.weights})
    tf.train.Checkpoint(model=model).write(str(folder / "checkpoint"))
    model.save_weights(folder / "weights")
    model.save(folder / "model.keras")


def write_text(folder: Path) -> None:
    model = text_model(num_bins=3, texts=np.array(["good film", "bad film", "good good", "bad bad plot"]))
    model.save(folder / "model.keras")
    model.save(folder / "saved_model")
    model.save_weights(folder / "model.weights.h5")


def main(folder: Path, full: bool) -> None:
    for name, write_them in (
        ("zoo", functools.partial(write_zoo, full=full)), ("files", write_files), ("named", write_named),
        ("text", write_text), ("optimizers", write_optimizers.main),
    ):  # fmt: skip
        (folder / name).mkdir(parents=True)
        write_them(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--full" in sys.argv)
