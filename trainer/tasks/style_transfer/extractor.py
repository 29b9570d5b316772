"""A frozen VGG19 that says what it sees in a picture: the activations of chosen layers.

Source: Simonyan, Zisserman (2015), and for the use of it Gatys, Ecker, Bethge (2016).
"""

from collections.abc import Mapping, Sequence

import gin
import keras
import numpy as np
import tensorflow as tf

from trainer.cluster.replicas import first_value
from trainer.errors import UserError
from trainer.restore import RestoreError, restore_weights
from trainer.suggest import nearest
from trainer.tasks.style_transfer.photographs import SHIPPED, read_photograph

# (convolutions, channels) of each block; after each but the last, the picture is halved.
_BLOCKS = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))

#: The convolutions in their order, by Keras' names.
LAYERS = tuple(f"block{b}_conv{i}" for b, (count, _) in enumerate(_BLOCKS, 1) for i in range(1, count + 1))

_MEAN_BGR = (103.939, 116.779, 123.68)  # of ImageNet, which Caffe's weights expect to be taken away
_NORM_SIZE = 128  # pixels of the photographs that the activations are scaled by
_WHERE_FROM = (
    "the file that Keras offers is https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5 (80 MB)"
)


class Vgg19:
    """The convolutions of VGG19 as plain tensors: nothing trains them, and no checkpoint of a run holds them.

    arrays: {layer: (kernel [3, 3, in, out], bias [out])}, float32.
    pooling: "average" or "max".
    description: where the weights are from, for a person.

    Activations are scaled layer by layer, so that over the two photographs that scikit-learn ships their mean is 1.
    So does the paper, by channel and over ImageNet: it changes nothing but the layers' shares in the loss, which
    else span many powers of ten, and it makes the losses of any weights alike in size.
    """

    def __init__(self, arrays: Mapping[str, tuple[np.ndarray, np.ndarray]], pooling: str, description: str):
        self._arrays = arrays
        self._pooling = pooling
        self.description = description
        self._on_device: dict[str, dict[str, tuple]] = {}
        photographs = tf.constant(np.stack([read_photograph(name, _NORM_SIZE) for name in SHIPPED]))
        means = {layer: float(tf.reduce_mean(seen)) for layer, seen in self._activations(photographs, LAYERS).items()}
        silent = [layer for layer, mean in means.items() if not mean > 0]
        if silent:
            raise UserError(f"vgg19: the layer {silent[0]} sees nothing in a photograph; its weights are not VGG19's.")
        self._scales = {layer: 1.0 / mean for layer, mean in means.items()}

    def features(self, pictures: tf.Tensor, layers: Sequence[str]) -> dict[str, tf.Tensor]:
        """{layer: [batch, height, width, channels]}, after the ReLU, scaled.

        pictures: [batch, height, width, 3] float32, RGB from 0 to 1.
        layers: of `LAYERS`.
        """
        return {layer: seen * self._scales[layer] for layer, seen in self._activations(pictures, layers).items()}

    def _activations(self, pictures, layers: Sequence[str]) -> dict[str, tf.Tensor]:
        x = pictures[..., ::-1] * 255.0 - tf.constant(_MEAN_BGR)
        needed = LAYERS[: max(map(LAYERS.index, layers), default=-1) + 1]
        weights = self._weights_here(needed)
        seen = {}
        for before, layer in zip((None, *needed), needed, strict=False):
            if before and before[:6] != layer[:6]:  # from block to block
                pool = tf.nn.avg_pool2d if self._pooling == "average" else tf.nn.max_pool2d
                x = pool(x, 2, 2, "VALID")
            kernel, bias = weights[layer]
            x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))
            if layer in layers:
                seen[layer] = x
        return seen

    def _weights_here(self, layers: Sequence[str]) -> dict[str, tuple]:
        """{layer: (kernel, bias)} on the device that is being traced for: each replica has a copy of its own.

        Made outside of every graph, so that a graph refers to them and does not hold 80 MB itself.
        """
        device = tf.zeros([]).device
        here = self._on_device.setdefault(device, {})
        with tf.init_scope(), tf.device(device or None):
            for layer in layers:
                if layer not in here:
                    here[layer] = tuple(map(tf.constant, self._arrays[layer]))
        return here


@gin.register(module="neural_style")
def vgg19(weights: str | None = None, random_weights: bool = False, pooling: str = "average", seed: int = 0) -> Vgg19:
    """A VGG19 to see with.

    weights: a file of its weights, in any format that can be restored, with or without the classifier on top; nothing
      is downloaded.
    random_weights: says outright that weights drawn at random are meant. They see colours, edges and textures, not
      things, and the pictures are weaker.
    pooling: between the blocks, "average" as the paper recommends for pictures, or "max" as it was trained.
    seed: of random weights.

    Raises `UserError` if neither or both of the first two are given, and `RestoreError` for a file that does not fit.
    """
    if pooling not in ("average", "max"):
        raise UserError(f"vgg19.pooling = {pooling!r} must be 'average' or 'max'.")
    if weights is not None and random_weights:
        raise UserError("Both vgg19.weights and vgg19.random_weights = True are set; say which one is meant.")
    if weights is not None:
        return Vgg19(*_restored(weights, pooling))
    if random_weights:
        description = (
            f"VGG19 with RANDOM weights (seed {seed}), {pooling} pooling: it sees textures and colours, not things"
        )
        return Vgg19(_random(seed), pooling, description)
    raise UserError(
        f"VGG19 has no weights: set vgg19.weights = 'path'; {_WHERE_FROM}. "
        "Or say vgg19.random_weights = True if random ones are meant."
    )


def check_layer(what: str, layer: str) -> None:
    """Raises `UserError` for what is no convolution of VGG19."""
    if layer not in LAYERS:
        raise UserError(
            f"{what}: VGG19 has no layer {layer!r}; it has {LAYERS[0]} to {LAYERS[-1]}.{nearest(layer, LAYERS)}"
        )


def smallest_size(layers: Sequence[str]) -> int:
    """The least height and width, in pixels, that leaves the deepest of the layers two places each way."""
    return 2 ** max(int(layer[len("block")]) for layer in layers)


def _restored(weights: str, pooling: str) -> tuple[dict, str, str]:
    model = keras.applications.VGG19(weights=None, include_top=False)
    try:
        report = restore_weights(model, weights, ignore=["^(fc1|fc2|predictions)/"])
    except RestoreError as error:
        raise RestoreError(f"vgg19.weights: {error}\nOf VGG19 {_WHERE_FROM}.", error.report) from error
    layers = {layer: model.get_layer(layer) for layer in LAYERS}
    arrays = {name: (first_value(layer.kernel), first_value(layer.bias)) for name, layer in layers.items()}
    return arrays, pooling, f"VGG19 with {pooling} pooling, frozen, from {report}"


def _random(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """He-normal kernels (He et al. 2015), which keep the size of what passes through, and biases of zero."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, 0], np.uint64)))
    arrays, channels = {}, 3
    for layer in LAYERS:
        width = _BLOCKS[int(layer[len("block")]) - 1][1]
        kernel = generator.standard_normal([3, 3, channels, width], np.float32) * np.sqrt(2 / (9 * channels))
        arrays[layer], channels = (kernel.astype(np.float32), np.zeros(width, np.float32)), width
    return arrays
