"""Name -> model builder: the models that the shipped configs train, each unbuilt when handed over.

Any other model is bound the same way: a function without required arguments that returns a
`keras.Model`, from a module that the config imports, or one of `keras.applications`.
"""

import gin
import keras


class Linear(keras.Model):
    """y = w x + b.  Input [batch, 1] float32, output [batch, 1] float32."""

    def __init__(self):
        super().__init__()
        self.unit = keras.layers.Dense(1)

    def call(self, x):
        return self.unit(x)


class SmallCNN(keras.Model):
    """Three convolutions, one hidden layer, a head.

    Input [batch, height, width, channels] float32 in [0, 1]; output [batch, num_classes] logits.
    """

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.conv1 = keras.layers.Conv2D(width, 3, padding="same", activation="relu")
        self.conv2 = keras.layers.Conv2D(2 * width, 3, padding="same", activation="relu")
        self.conv3 = keras.layers.Conv2D(2 * width, 3, strides=2, padding="same", activation="relu")
        self.flatten = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(4 * width, activation="relu")
        self.head = keras.layers.Dense(num_classes)

    def call(self, images):
        x = self.conv3(self.conv2(self.conv1(images)))
        return self.head(self.hidden(self.flatten(x)))


@gin.register(module="models")
def linear() -> keras.Model:
    """A one-unit linear model."""
    return Linear()


@gin.register(module="models")
def small_cnn(num_classes: int = 10, width: int = 16) -> keras.Model:
    """A convolutional classifier; `width` is the number of channels of the first convolution."""
    return SmallCNN(num_classes, width)
