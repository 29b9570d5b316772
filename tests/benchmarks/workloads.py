"""What the speed benchmarks train: four small models, each with random data that stay in memory."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Workload:
    """build: makes the model.  shape: of one input, float32.  batch_size: global.

    steps: that one round of the benchmark takes, in whole fifties: fit's executions are no shorter.
    """

    name: str
    build: Callable[[], keras.Model]
    shape: tuple[int, ...]
    batch_size: int
    steps: int
    num_batches: int = 16

    def arrays(self) -> dict[str, np.ndarray]:
        """`num_batches` global batches of examples: `x` float32, `y` int32."""
        random = np.random.default_rng(0)
        count = self.num_batches * self.batch_size
        return {
            "x": random.normal(size=[count, *self.shape]).astype(np.float32),
            "y": random.integers(0, NUM_CLASSES, count).astype(np.int32),
        }


def optimizer() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(1e-3, momentum=0.9)


def mlp() -> keras.Model:
    return keras.Sequential([keras.Input([64]), keras.layers.Dense(128, "relu"), keras.layers.Dense(NUM_CLASSES)])


def cnn() -> keras.Model:
    """About 0.3 million weights."""
    return keras.Sequential([
        keras.Input([32, 32, 3]),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(112, "relu"),
        keras.layers.Dense(NUM_CLASSES),
    ])  # fmt: skip


def mobilenet() -> keras.Model:
    """The shape of MobileNetV2 (Sandler et al. 2018) at width 0.35.

    Without its BatchNormalization, with which fit trains another model on several replicas.
    """
    image = keras.Input([96, 96, 3])
    x = keras.layers.Conv2D(16, 3, 2, "same", activation="relu6")(image)
    for channels, stride, repeats in (
        (8, 1, 1),
        (8, 2, 2),
        (16, 2, 3),
        (24, 2, 4),
        (32, 1, 3),
        (56, 2, 3),
        (112, 1, 1),
    ):
        for block in range(repeats):
            x = _inverted_residual(x, channels, stride if block == 0 else 1)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(1280, 1, activation="relu6")(x))
    return keras.Model(image, keras.layers.Dense(NUM_CLASSES)(x))


def _inverted_residual(x, channels: int, stride: int):
    y = keras.layers.Conv2D(6 * x.shape[-1], 1, activation="relu6")(x)
    y = keras.layers.DepthwiseConv2D(3, stride, "same", activation="relu6")(y)
    y = keras.layers.Conv2D(channels, 1)(y)
    return x + y if y.shape == x.shape else y


def transformer() -> keras.Model:
    """Two encoder layers over 128 positions of width 128."""
    inputs = keras.Input([128, 128])
    x = inputs
    for _ in range(2):
        attended = keras.layers.MultiHeadAttention(4, 32)(keras.layers.LayerNormalization()(x), x)
        x = x + attended
        hidden = keras.layers.Dense(512, "gelu")(keras.layers.LayerNormalization()(x))
        x = x + keras.layers.Dense(128)(hidden)
    return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(keras.layers.GlobalAveragePooling1D()(x)))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("mlp", mlp, (64,), 64, 500),
        Workload("cnn", cnn, (32, 32, 3), 64, 50),
        Workload("mobilenet", mobilenet, (96, 96, 3), 16, 50),
        Workload("transformer", transformer, (128, 128), 16, 50),
    )
}
