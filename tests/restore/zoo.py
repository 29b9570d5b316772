"""Small models of every kind, and what the tests of restore do with them.

Imported with TF_USE_LEGACY_KERAS=1 in the environment, they are models of Keras 2.
"""

import os

import numpy as np
import tensorflow as tf

if os.environ.get("TF_USE_LEGACY_KERAS"):
    import tf_keras as keras
else:
    import keras

layers = keras.layers
FOUR = tf.TensorSpec([None, 4], tf.float32)
TOKENS = tf.TensorSpec([None, 5], tf.int32)


class Plain(keras.Model):
    """Dense, BatchNorm, Dropout, Dense: eight weights."""

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.body = layers.Dense(4)
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.5)
        self.head = layers.Dense(num_classes)

    def call(self, x, training=None):
        return self.head(self.drop(self.norm(self.body(x), training=training), training=training))


class TwoDense(keras.Model):
    """encoder and head: four weights."""

    def __init__(self, num_classes: int = 2, dtype=None):
        super().__init__(dtype=dtype)
        self.encoder = layers.Dense(4, dtype=dtype)
        self.head = layers.Dense(num_classes, dtype=dtype)

    def call(self, x):
        return self.head(self.encoder(x))


class InLists(keras.Model):
    """Layers in a Python list, which TensorFlow does not reach in a Keras 3 model: four of six weights."""

    def __init__(self, with_head: bool = True):
        super().__init__()
        self.blocks = [layers.Dense(4), layers.Dense(4)]
        self.head = layers.Dense(2) if with_head else None

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x) if self.head else x


class Twins(keras.Model):
    """Two layers of one shape whose names differ by an underscore only."""

    def __init__(self):
        super().__init__()
        self._proj = layers.Dense(4)
        self.proj = layers.Dense(4)

    def call(self, x):
        return self.proj(self._proj(x))


class Text(keras.Model):
    """Embedding, attention, RNN, a wrapper and a weight of the model's own."""

    def __init__(self):
        super().__init__()
        self.embed = layers.Embedding(7, 4)
        self.attend = layers.MultiHeadAttention(2, 2)
        self.recur = layers.Bidirectional(layers.GRU(3))
        self.each = layers.TimeDistributed(layers.Dense(2))
        self.scale = self.add_weight(shape=[2], name="scale")

    def call(self, tokens):
        x = self.embed(tokens)
        return self.recur(self.each(self.attend(x, x)) * self.scale)


def functional() -> keras.Model:
    image = keras.Input([4])
    x = layers.BatchNormalization()(layers.Dropout(0.3)(layers.Dense(4)(image)))
    return keras.Model(image, layers.Dense(2)(layers.Dense(4)(x)))


def sequential() -> keras.Model:
    return keras.Sequential([layers.Dense(4), layers.Dropout(0.3), layers.BatchNormalization(), layers.Dense(2)])


def named_functional() -> keras.Model:
    image = keras.Input([4], name="image")
    x = layers.BatchNormalization(name="norm")(layers.Dense(4, name="first")(image))
    return keras.Model(image, layers.Dense(2, name="last")(layers.Dense(4, name="second")(x)), name="named")


def efficientnet_stem() -> keras.Model:
    """Named layers, and between them a Normalization, whose name Keras makes and whose `count` is an integer."""
    image = keras.Input([8, 8, 3])
    x = layers.Normalization()(layers.Rescaling(1 / 255.0)(image))
    x = layers.BatchNormalization(name="stem_bn")(layers.Conv2D(4, 3, use_bias=False, name="stem_conv")(x))
    x = layers.DepthwiseConv2D(3)(layers.DepthwiseConv2D(3, name="dwconv")(x))  # Keras 2 called its kernel otherwise
    return keras.Model(image, layers.Dense(3, name="predictions")(layers.GlobalAveragePooling2D()(x)))


def recurrent() -> keras.Model:
    return keras.Sequential([layers.Embedding(7, 4), layers.LSTM(3, return_sequences=True), layers.GRU(2)])


def application() -> keras.Model:
    return keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=3)


def shared() -> keras.Model:
    image = keras.Input([4])
    twice = layers.Dense(4)
    return keras.Model(image, layers.Dense(2)(twice(twice(image))))


def nested_functional() -> keras.Model:
    image, inside = keras.Input([4]), keras.Input([4])
    inner = keras.Model(inside, layers.Dense(4)(layers.Dense(4)(inside)))
    return keras.Model(image, layers.Dense(2)(keras.Sequential([layers.Dense(4)])(inner(image))))


class Nested(keras.Model):
    """A functional, a Sequential and a subclassed model in one."""

    def __init__(self):
        super().__init__()
        self.graph = functional()
        self.stack = sequential()
        self.plain = Plain()

    def call(self, x):
        x = self.graph(x)
        return self.plain(self.stack(x))


def text_model(vocabulary=None, num_bins=None, boundaries=None, name="vec", texts=None) -> keras.Model:
    """TextVectorization and three weights; with bins also Discretization of a number, the second input.

    texts: what the layers are adapted to, with the numbers up to 30.
    """
    text, number = keras.Input([], dtype="string"), keras.Input([1])
    vec = layers.TextVectorization(max_tokens=20, output_sequence_length=4, vocabulary=vocabulary, name=name)
    if texts is not None:
        vec.adapt(texts)
    x = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4, name="emb")(vec(text)))
    if not num_bins and not boundaries:
        return keras.Model(text, layers.Dense(2, name="out")(x))
    bins = layers.Discretization(bin_boundaries=boundaries, num_bins=num_bins, output_mode="one_hot", name="bins")
    if texts is not None:
        bins.adapt(np.arange(30.0)[:, None])
    x = layers.Concatenate()([x, bins(number)])
    return keras.Model([text, number], layers.Dense(2, name="out")(x))


IMAGE = tf.TensorSpec([None, 32, 32, 3], tf.float32)
SMALL_IMAGE = tf.TensorSpec([None, 8, 8, 3], tf.float32)

# name -> (builder, spec of the input); every one arrives whole from an ordinary checkpoint
MODELS = {
    "subclassed": (Plain, FOUR),
    "functional": (functional, FOUR),
    "sequential": (sequential, FOUR),
    "nested": (Nested, FOUR),
    "nested functional": (nested_functional, FOUR),
    "named functional": (named_functional, FOUR),
    "recurrent": (recurrent, TOKENS),
    "shared layer": (shared, FOUR),
    "underscored twins": (Twins, FOUR),
    "text": (Text, TOKENS),
    "EfficientNet stem": (efficientnet_stem, SMALL_IMAGE),
}


def built(model: keras.Model, spec: tf.TensorSpec = FOUR, seed: int = 1) -> keras.Model:
    """The model with variables, each filled with values of its own."""
    model(tf.zeros([2, *spec.shape[1:]], spec.dtype))
    random = np.random.default_rng(seed)
    for weight in model.weights:
        value = 3 * random.normal(size=weight.shape)
        weight.assign((np.abs(value) if "variance" in weight.name else value).astype(weight.numpy().dtype))
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
    return model


def used_adam(model: keras.Model, wrap=lambda optimizer: optimizer):
    """Adam after one step, which moved the weights."""
    optimizer = wrap(keras.optimizers.Adam(0.01))
    optimizer.build(model.trainable_variables)
    optimizer.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
    return optimizer


def values(model: keras.Model) -> list[bytes]:
    return [np.asarray(weight.numpy()).tobytes() for weight in model.weights]


def saved(folder, **parts) -> str:
    return tf.train.Checkpoint(**parts).save(str(folder / "ckpt"))
