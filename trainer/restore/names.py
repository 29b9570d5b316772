"""Normalised names: one spelling for a variable, whoever wrote it."""

import re


def normalize(segment: str) -> str:
    """One path segment without the spellings that differ between writers.

    Keras 3 stores a Dense kernel as `_kernel`, Keras 2 as `kernel`; TensorFlow escapes a slash
    inside an attribute name as `.S` and a dot as `..`
    (https://github.com/tensorflow/tensorflow/blob/master/tensorflow/python/checkpoint/util.py).
    """
    return segment.replace(".S", "/").replace("..", ".").lstrip("_") or segment


def join(parent: str, segment: str) -> str:
    return f"{parent}/{segment}" if parent else segment


def matching_rule(name: str, patterns) -> str | None:
    """The first regex of `patterns` that is found in `name`, or None."""
    return next((pattern for pattern in patterns if re.search(pattern, name)), None)
