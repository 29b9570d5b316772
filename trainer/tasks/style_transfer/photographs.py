"""Reads a photograph from a file, or one that ships with scikit-learn, as a square of a given size."""

import importlib.util
import os
import re

import numpy as np
import tensorflow as tf

from trainer.errors import UserError
from trainer.suggest import nearest

#: Photographs that are on every machine, by the name that a config gives them.
SHIPPED = ("sklearn:china.jpg", "sklearn:flower.jpg")


def read_photograph(name: str, size: int) -> np.ndarray:
    """[size, size, 3] float32, RGB from 0 to 1: the largest square in the middle, brought to `size` pixels.

    name: path of a PNG, JPEG, GIF or BMP file, on any file system that `tf.io.gfile` knows, or one of `SHIPPED`.
    Raises `UserError` for a file that is not there or holds no image.
    """
    path = _path_of(name)
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            data = file.read()
    except (tf.errors.OpError, OSError) as error:
        raise UserError(
            f"The image {name} cannot be read: {_reason(error)}. Give the path of a PNG or JPEG file, "
            f"or one of those that ship with scikit-learn: {', '.join(SHIPPED)}."
        ) from error
    try:
        image = tf.io.decode_image(data, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        raise UserError(f"The image {name} is not a PNG, JPEG, GIF or BMP file, or it is damaged.") from error
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = tf.cast(image[top : top + side, left : left + side], tf.float32) / 255.0
    resized = tf.image.resize(square, [size, size], method="bicubic", antialias=True)
    return tf.clip_by_value(resized, 0.0, 1.0).numpy()  # bicubic weights overshoot at edges


def title_of(name: str) -> str:
    """A photograph's name in files and headings: its file name without folder and ending."""
    stem = os.path.splitext(re.split(r"[/:]", name)[-1])[0]
    return re.sub(r"[^\w-]+", "_", stem) or "image"


def _path_of(name: str) -> str:
    if not name.startswith("sklearn:"):
        return os.path.expanduser(name)
    if name not in SHIPPED:
        raise UserError(f"scikit-learn ships no image {name!r}.{nearest(name, SHIPPED, 'images', cutoff=0.7)}")
    # By its folder: to import scikit-learn takes a second.
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations
    return os.path.join(spec.submodule_search_locations[0], "datasets", "images", name.removeprefix("sklearn:"))


def _reason(error: Exception) -> str:
    if isinstance(error, tf.errors.NotFoundError | FileNotFoundError):
        return "there is no such file"
    return str(getattr(error, "message", None) or getattr(error, "strerror", None) or error)
