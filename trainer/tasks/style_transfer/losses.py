"""Losses for the content, style and smoothness of pictures; each is [batch] float32.

Source: Gatys, Ecker, Bethge (2016), equations 1 to 5. Features are [batch, height, width, channels], with N channels
at M = height * width places.
"""

import tensorflow as tf


def gram_matrix(features: tf.Tensor) -> tf.Tensor:
    """[batch, N, N]: products of every two channels, their mean over the places; equation 3 divided by M."""
    batch, channels = tf.shape(features)[0], features.shape[-1]
    flat = tf.reshape(features, [batch, -1, channels])
    places = tf.cast(tf.shape(flat)[1], flat.dtype)
    return tf.matmul(flat, flat, transpose_a=True) / places


def content_loss(features: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """sum (F - P)^2 / (N M): the mean of what equation 1 halves and adds up, so that it is alike at any size."""
    return tf.reduce_mean(tf.square(features - target), axis=[1, 2, 3])


def style_loss(gram: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """sum (G - A)^2 / (4 N^2 M^2) of equation 4, from matrices that are divided by M already."""
    return tf.reduce_mean(tf.square(gram - target), axis=[1, 2]) / 4.0


def total_variation(pictures: tf.Tensor) -> tf.Tensor:
    """Mean squared difference of neighbours, below each other and side by side."""
    down = pictures[:, 1:] - pictures[:, :-1]
    right = pictures[:, :, 1:] - pictures[:, :, :-1]
    return tf.reduce_mean(tf.square(down), axis=[1, 2, 3]) + tf.reduce_mean(tf.square(right), axis=[1, 2, 3])
