"""Models of style transfer: the pictures themselves, or a network that makes them from photographs."""

from collections.abc import Sequence

import gin
import keras
import numpy as np
import tensorflow as tf

from trainer.errors import UserError
from trainer.tasks.style_transfer.photographs import read_photograph
from trainer.tasks.style_transfer.targets import check_photographs


class InRange(keras.constraints.Constraint):
    """Keeps pixels between 0 and 1: what is trained is what a file can show."""

    def __call__(self, value):
        return keras.ops.clip(value, 0.0, 1.0)


class TrainedImages(keras.Model):
    """One variable that holds all pictures, [num_images, size, size, 3].

    Input [batch] int32, their places; output [batch, size, size, 3] float32, RGB from 0 to 1.
    """

    def __init__(self, num_images: int, size: int, initializer):
        super().__init__()
        self.images = self.add_weight(
            shape=(num_images, size, size, 3), initializer=initializer, constraint=InRange(), name="images"
        )

    def call(self, index):
        return keras.ops.take(self.images, index, axis=0)


class TransformNetwork(keras.Model):
    """Down, through residual blocks, and up again.  [batch, height, width, 3] RGB from 0 to 1 -> the same.

    As in Johnson et al. (2016), and as they found later: instance normalisation, and resize with a convolution in
    place of a transposed one, whose steps show as a checkerboard (Odena et al. 2016).
    """

    def __init__(self, width: int, num_blocks: int):
        super().__init__()
        # By attribute and not in lists, through which TensorFlow's checkpoints do not find a layer.
        self.down1 = ConvolutionBlock(width, 9)
        self.down2 = ConvolutionBlock(2 * width, 3, strides=2)
        self.down3 = ConvolutionBlock(4 * width, 3, strides=2)
        for number in range(1, num_blocks + 1):
            setattr(self, f"residual{number}", ResidualBlock(4 * width))
        self.up1 = ConvolutionBlock(2 * width, 3)
        self.up2 = ConvolutionBlock(width, 3)
        self.enlarge = keras.layers.UpSampling2D(2)
        self.output_pixels = keras.layers.Conv2D(3, 9, activation="sigmoid")
        self.num_blocks = num_blocks

    def call(self, images):
        if any(side is not None and side % 4 for side in images.shape[1:3]):
            raise UserError(f"transform_network takes sides that divide by 4; these images are {images.shape[1:3]}.")
        x = self.down3(self.down2(self.down1(images - 0.5)))
        for number in range(1, self.num_blocks + 1):
            x = getattr(self, f"residual{number}")(x)
        x = self.up2(self.enlarge(self.up1(self.enlarge(x))))
        return self.output_pixels(_mirror_edges(x, 4))


class ConvolutionBlock(keras.layers.Layer):
    """Convolution, instance normalisation, ReLU; the edges are mirrored, since zeros would show as a frame."""

    def __init__(self, channels: int, kernel_size: int, strides: int = 1, activation: str | None = "relu"):
        super().__init__()
        self.margin = kernel_size // 2
        self.convolution = keras.layers.Conv2D(channels, kernel_size, strides, use_bias=False)
        self.normalization = keras.layers.GroupNormalization(groups=-1, epsilon=1e-5)
        self.activation = keras.layers.Activation(activation)

    def call(self, x):
        return self.activation(self.normalization(self.convolution(_mirror_edges(x, self.margin))))


class ResidualBlock(keras.layers.Layer):
    def __init__(self, channels: int):
        super().__init__()
        self.first = ConvolutionBlock(channels, 3)
        self.second = ConvolutionBlock(channels, 3, activation=None)

    def call(self, x):
        return x + self.second(self.first(x))


def _mirror_edges(x, margin: int):
    return keras.ops.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]], mode="reflect")


@gin.register(module="models")
def trained_images(contents: Sequence[str], size: int = 128, start: str = "noise") -> keras.Model:
    """Pictures that are trained pixel by pixel (Gatys et al. 2016).

    contents, size: as `target_images` has them.
    start: "noise", drawn by the run's seed, or "content", the photographs themselves, whose content loss is 0 to begin
      with.
    """
    check_photographs("trained_images.contents", contents)
    if start not in ("noise", "content"):
        raise UserError(f"trained_images.start = {start!r} must be 'noise' or 'content'.")
    if start == "noise":
        return TrainedImages(len(contents), size, keras.initializers.RandomUniform(0.0, 1.0))
    photographs = np.stack([read_photograph(name, size) for name in contents])
    return TrainedImages(len(contents), size, lambda shape, dtype=None: tf.constant(photographs, dtype, shape))


@gin.register(module="models")
def transform_network(width: int = 16, num_blocks: int = 3) -> keras.Model:
    """A network that gives photographs a style in one pass (Johnson et al. 2016).

    width: channels of the first convolution; the paper has 32.
    num_blocks: residual blocks; the paper has 5.
    """
    return TransformNetwork(width, num_blocks)
