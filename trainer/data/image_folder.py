"""Images in a folder with a subfolder for each class."""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import gin
import numpy as np
import tensorflow as tf

from trainer.data.autograph import as_it_is, in_graph
from trainer.data.data import Data, loaded
from trainer.data.splits import check_split, rows_of_split
from trainer.errors import UserError

_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")


@gin.register(module="pipeline")
def image_folder(
    path: str,
    height: int,
    width: int,
    split: str = "all",
    channels: int = 3,
    prepare: Callable | None = None,
    preprocess: Callable | None = None,
    augment: Callable | None = None,
    split_seed: int = 0,
    memory_limit_bytes: int = 2**30,
) -> Data:
    """Images of classes: `path/CLASS/*.jpg`, or `path/SPLIT/CLASS/*.jpg` where it has folders of splits.

    Each example is {"image": uint8 [height, width, channels], "label": int64}. Classes are numbered in the order of
    their names.

    path: of the folder; `~` is the home folder.
    height, width: to which each image is resized, with antialiasing.
    split: the name of a folder in `path`; or "all", or a part of all images such as "[:80%]" and "[80%:]", which are
      drawn class by class by `split_seed`: "[:80%]" holds the same images in each run, and none of "[80%:]".
    channels: 1 for grey, 3 for RGB.
    prepare: example -> example, applied once to each image as it is read.
    preprocess: batch -> batch, such as @scale_image.
    augment: (example, seed) -> example, for training; see `trainer.data.augment`.
    memory_limit_bytes: images that take more, once resized, are read and decoded whenever they are drawn.

    Raises `UserError` for a folder that is not there or has no images, and, as it is read, names an image that cannot
    be decoded.
    """
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise UserError(f"image_folder.path {folder} is no folder.")
    check_split(split)
    is_part = split == "all" or split.startswith("[")
    if not is_part and not (folder / split).is_dir():
        names = ", ".join(sorted(each.name for each in folder.iterdir() if each.is_dir()))
        raise UserError(
            f"image_folder.split = {split!r} is no folder in {folder}, which has {names}. A part of all images is "
            "written '[:80%]'."
        )
    root = folder if is_part else folder / split
    classes = sorted(each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))
    files = [
        (str(file), number)
        for number, name in enumerate(classes)
        for file in sorted((root / name).iterdir())
        if file.suffix.lower() in _ENDINGS
    ]
    if not files:
        inner = [each for name in classes for each in (root / name).iterdir() if each.is_dir()]
        hint = f" Its folders hold folders; name one of them: image_folder.split = {classes[0]!r}." if inner else ""
        raise UserError(f"{root} has no images in folders of classes ({', '.join(_ENDINGS)}).{hint}")
    paths, labels = np.array([path for path, _ in files]), np.array([label for _, label in files], np.int64)
    rows = rows_of_split(split if is_part else "all", labels, split_seed)
    paths, labels = paths[rows], labels[rows]

    def load(path, label):
        image = tf.io.decode_image(tf.io.read_file(path), channels=channels, expand_animations=False)
        resized = tf.image.resize(image, [height, width], antialias=True)
        example = {"image": tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8), "label": label}
        example["image"] = tf.ensure_shape(example["image"], [height, width, channels])
        return example if prepare is None else in_graph(prepare)(example)

    return loaded(
        Data(
            f"{folder.name}", len(paths), split if split != "all" else "", read=_reader(load, paths, labels),
            preprocess=preprocess, augment=augment, contents=_contents(paths, labels),
            find_faults=functools.partial(_unreadable, paths),
        ),
        memory_limit_bytes,
    )  # fmt: skip


def _reader(load: Callable, paths: np.ndarray, labels: np.ndarray) -> Callable:
    example = tf.data.Dataset.from_tensors((paths[0], labels[0])).map(as_it_is(load)).element_spec

    def read(numbers, seeds):
        del seeds
        chosen = tf.gather(paths, numbers), tf.gather(labels, numbers)
        return tf.map_fn(lambda pair: load(*pair), chosen, fn_output_signature=example)

    return read


def _unreadable(paths: np.ndarray) -> list[str]:
    """A clause for each image that cannot be read or decoded; reads them all."""
    found = []
    for path in paths.tolist():
        try:
            tf.io.decode_image(tf.io.read_file(path), expand_animations=False)
        except tf.errors.OpError as error:
            found.append(f"{path} ({error.message.splitlines()[0].split('[Op')[0].strip()})")
    return found


def _contents(paths: np.ndarray, labels: np.ndarray) -> str:
    """Names of files and folders, labels and sizes: not the place of the whole, which may differ by machine."""
    facts = [
        (*path.split(os.sep)[-2:], int(label), os.path.getsize(path))
        for path, label in zip(paths.tolist(), labels, strict=True)
    ]
    return f"{len(facts)} images, names and sizes {hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"
