"""A split of a TFDS data set, and what images go through on their way to a model."""

from collections.abc import Callable

import gin
import tensorflow as tf

from trainer.config.settings import may_change
from trainer.data.data import Data, in_memory_bytes, loaded
from trainer.errors import UserError

may_change("tfds_data", "download", "data_dir")


@gin.register(module="pipeline")
def tfds_data(
    tfds_name: str,
    split: str,
    data_dir: str | None = None,
    download: bool = False,
    features: list[str] | None = None,
    prepare: Callable | None = None,
    preprocess: Callable | None = None,
    augment: Callable | None = None,
    memory_limit_bytes: int = 2**30,
    shuffle_buffer: int = 10_000,
) -> Data:
    """A split of a TFDS data set.

    tfds_name: as TFDS spells it, `mnist` or `handwritten_digits/rotated`.
    split: `train`, `train[:80%]`, ...
    data_dir: where it is prepared; None is TFDS' own default.
    download: whether it may be fetched over the network when it is not prepared there.
    features: which features to keep; None keeps all but strings, which no accelerator takes.
    prepare: example -> example, applied once, before caching (decode, resize to one shape).
    preprocess: batch -> batch, applied to every batch (cast, normalise).
    augment: (example, seed) -> example, applied to each example that training draws; see `trainer.data.augment`.
    memory_limit_bytes: a split that is larger once decoded is streamed, in blocks of `shuffle_buffer` examples that
      come in another order each epoch, as do the examples of a block (see `Records`).

    Raises `UserError` for an unknown name (naming the nearest), an unknown split or feature, and a
    data set that is not there and would need the network.
    """
    # Here: TensorFlow Datasets takes longer to import than a small model to its first step.
    from trainer.data.tfds import open_split

    dataset, records, num_examples, label = open_split(tfds_name, split, data_dir, download, features, prepare)
    if in_memory_bytes(dataset.element_spec, num_examples) is None:
        raise UserError(
            f"{label}: its examples have different shapes ({_show(dataset.element_spec)}) and cannot be batched. "
            "Bind tfds_data.prepare to a function that brings them to one: @resize_image, or @pad_to for sequences."
        )
    streamed = Data(
        tfds_name, num_examples, split, stream=lambda: dataset, records=records, preprocess=preprocess, augment=augment,
        shuffle_buffer=shuffle_buffer,
    )  # fmt: skip
    return loaded(streamed, memory_limit_bytes)


@gin.register(module="pipeline")
def scale_image(batch, key: str = "image"):
    """Turns uint8 pixels 0 to 255 into float32 0 to 1."""
    return {**batch, key: tf.cast(batch[key], tf.float32) / 255.0}


@gin.register(module="pipeline")
def resize_image(example, height: int, width: int, key: str = "image"):
    """Brings an image to one size, as uint8; for `tfds_data.prepare`."""
    image = tf.image.resize(example[key], [height, width], antialias=True)
    return {**example, key: tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)}


def _show(element_spec) -> str:
    return ", ".join(f"{key} {spec.dtype.name}{spec.shape}" for key, spec in element_spec.items())
