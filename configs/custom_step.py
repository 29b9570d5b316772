"""What a user brings along for seed story 3: a subclassed model and a loss as a function of (model, batch)."""

import gin
import keras
import tensorflow as tf


class TwoDense(keras.Model):
    """Two Dense layers over flattened images: [batch, 8, 8, 1] float32 -> [batch, 10] logits."""

    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(64, activation="relu")
        self.head = keras.layers.Dense(10)

    def call(self, images):
        return self.head(self.hidden(self.flatten(images)))


@gin.configurable(module="custom_step")
def two_dense():
    return TwoDense()


@gin.configurable(module="custom_step")
def smoothed_cross_entropy(model, batch, training, smoothing=0.1):
    """The loss of each example, [batch]: cross-entropy against labels that are `smoothing` unsure."""
    log_probabilities = tf.nn.log_softmax(model(batch["image"], training=training))
    of_label = tf.gather(log_probabilities, batch["label"], axis=1, batch_dims=1)
    return -(1.0 - smoothing) * of_label - smoothing * tf.reduce_mean(log_probabilities, axis=1)


@gin.configurable(module="custom_step")
def is_right(model, batch):
    """Whether each example's label is the most likely one, [batch] float32."""
    predicted = tf.argmax(model(batch["image"], training=False), axis=1)
    return tf.cast(predicted == tf.cast(batch["label"], tf.int64), tf.float32)
