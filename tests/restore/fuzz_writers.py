"""A small model, and how it is written in every format. No two of its weights have one shape.

So no damage can make one pass for another.
"""

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf
from zoo import layers, saved

from trainer.restore import weights_of


class Odd(keras.Model):
    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.a, self.b, self.c = layers.Dense(5), layers.Dense(7), layers.Dense(num_classes)

    def call(self, x):
        return self.c(self.b(self.a(x)))


def named(model) -> dict[str, np.ndarray]:
    return {weight.name: weight.variable.numpy() for weight in weights_of(model)}


def write_checkpoint(model, folder: Path) -> None:
    optimizer = keras.optimizers.SGD()
    optimizer.build(model.trainable_variables)
    saved(folder, model=model, optimizer=optimizer)


def write_named(model, folder: Path) -> None:
    tensors = {**named(model), "global_step": np.int64(7)}
    tf.raw_ops.SaveV2(
        prefix=str(folder / "ckpt-1"), tensor_names=list(tensors), shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )  # fmt: skip


def write_slices(model, folder: Path) -> None:
    names, slices, tensors = [], [], []
    for name, value in named(model).items():
        rows, *rest = value.shape
        for start, count in ((0, 2), (2, rows - 2)):
            names.append(name)
            others = "".join(f":0,{size}" for size in rest)
            slices.append(f"{' '.join(map(str, value.shape))} {start},{count}{others}")
            tensors.append(value[start : start + count])
    tf.raw_ops.SaveV2(prefix=str(folder / "ckpt-1"), tensor_names=names, shape_and_slices=slices, tensors=tensors)


def write_sharded_safetensors(model, folder: Path) -> None:
    tensors, weight_map = named(model), {}
    for number, part in enumerate((list(tensors)[:3], list(tensors)[3:])):
        file = f"m-{number + 1:05}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_sharded_npz(model, folder: Path) -> None:
    tensors = named(model)
    for number, part in enumerate((list(tensors)[:3], list(tensors)[3:])):
        np.savez(folder / f"m-{number:05}-of-00002.npz", **{name: tensors[name] for name in part})


def write_keras_folder(model, folder: Path) -> None:
    model.save(folder / "m.keras")
    with zipfile.ZipFile(folder / "m.keras") as archive:
        archive.extractall(folder / "m")
    (folder / "m.keras").unlink()
    (folder / "m").rename(folder / "m.keras")
