"""Changes each example that training draws, by a seed that the example and its epoch decide.

A run that is resumed, on whatever number of replicas or workers, so draws the same changes bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence

import gin
import keras
import numpy as np
import tensorflow as tf

from trainer.data.autograph import in_graph
from trainer.errors import UserError
from trainer.keras_internals import IMAGE_LAYER, drawing_from


def draw_seeds(run_seed: int, numbers: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[..., 2] int64: the seed of each draw, for TensorFlow's stateless functions.

    numbers: of the examples.
    times: how often each was drawn before, its epoch.
    """
    return np.stack([run_seed * 2**31 + times, numbers], axis=-1).astype(np.int64)


def augmented(function: Callable, batch: Mapping[str, tf.Tensor], seeds: tf.Tensor) -> dict[str, tf.Tensor]:
    """Calls function(example, seed) for each row.

    batch: feature -> [rows, ...].
    seeds: [rows, 2] int64.
    Raises `UserError` where it does not return a dict of features of one shape.
    """
    call = in_graph(function)
    example = {name: tf.TensorSpec(value.shape[1:], value.dtype) for name, value in batch.items()}
    traced = tf.function(call, autograph=False).get_concrete_function(example, tf.TensorSpec([2], tf.int64))
    made = traced.structured_outputs
    if not isinstance(made, Mapping) or not all(
        isinstance(value, tf.Tensor | tf.TensorSpec) for value in made.values()
    ):
        raise UserError(f"augment must return a dict of features, as it gets one; it returned {made!r}.")
    specs = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in made.items()}
    return tf.map_fn(lambda row: dict(call(*row)), (dict(batch), seeds), fn_output_signature=specs)


# Keras layers whose result the example's seed alone does not decide.
_NOT_BY_SEED = {
    keras.layers.MixUp: "mixes the images of a batch, and an example is changed alone here; take @mixup for the data",
    keras.layers.CutMix: "mixes the images of a batch, and an example is changed alone here; take @cutmix for the data",
    keras.layers.AugMix: "chooses by Python's `random`, which no seed of an example decides; leave it out",
}


@gin.register(module="pipeline")
def keras_layers(layers: Sequence[keras.Layer], key: str = "image") -> Callable:
    """Augments one feature by Keras' image layers, one after the other, for `augment`.

    layers: `[@RandomFlip(), @RandAugment()]`: image layers of Keras, random or not.
    key: the feature, an image [height, width, channels] of integers or floats; its dtype stays.

    Each layer draws from the example's seed instead of its generator, whose state no checkpoint holds.
    Raises `UserError` for other layers, and for `MixUp`, `CutMix` and `AugMix`.
    """
    for layer in layers:
        if not isinstance(layer, IMAGE_LAYER):
            raise UserError(f"keras_layers.layers takes image layers of Keras such as @RandomFlip(), not {layer!r}.")
        if type(layer) in _NOT_BY_SEED:
            name = type(layer).__name__
            raise UserError(f"keras_layers.layers: {name} {_NOT_BY_SEED[type(layer)]}.")

    def augment(example, seed):
        value, dtype = example[key], example[key].dtype
        value = tf.cast(value, tf.float32) if dtype.is_integer else value  # some of the layers take no others
        for place, layer in enumerate(layers):
            with drawing_from(layer, seed + tf.constant([0, place * 2**32], tf.int64)):
                value = layer(value[None], training=True)[0]
        if dtype.is_integer:
            value = tf.clip_by_value(tf.round(value), dtype.min, dtype.max)
        return {**example, key: tf.cast(value, dtype)}

    return augment
