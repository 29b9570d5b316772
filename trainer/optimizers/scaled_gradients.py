"""Multiplies gradients by a factor, but for what only stands in a gradient's place."""

from collections.abc import Iterable

import tensorflow as tf


def times(factor, pairs: Iterable[tuple]) -> list[tuple]:
    """(gradient, variable) pairs with each gradient times the factor."""
    return [(g if is_overwritten(v) else g * tf.cast(factor, g.dtype), v) for g, v in pairs]


def is_overwritten(variable) -> bool:
    """Whether its gradient is no gradient but its new value, as of scales of float8 layers."""
    return getattr(variable, "overwrite_with_gradient", False)
