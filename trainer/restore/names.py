"""Normalised names: one spelling for a variable, whoever wrote it."""

import functools
import re
from collections.abc import Iterable, Sequence


@functools.lru_cache(maxsize=1 << 16)
def normalize(segment: str) -> str:
    """One path segment without the spellings that differ between writers.

    Keras 3 stores a Dense kernel as `_kernel`, Keras 2 as `kernel`; TensorFlow escapes a slash
    inside an attribute name as `.S` and a dot as `..`
    (https://github.com/tensorflow/tensorflow/blob/master/tensorflow/python/checkpoint/util.py).
    """
    return segment.replace(".S", "/").replace("..", ".").lstrip("_") or segment


def normalize_siblings(segments: Iterable[str]) -> dict[str, str]:
    """{segment: its normalised name}; those that would share one keep their own spelling.

    A model may hold `proj` and `_proj`, and neither must be taken for the other.
    """
    names = {segment: normalize(segment) for segment in segments}
    counts: dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {segment: name if counts[name] == 1 else segment for segment, name in names.items()}


def join(parent: str, segment: str) -> str:
    return f"{parent}/{segment}" if parent else segment


def matching_rule(names: str | Sequence[str], patterns: Iterable[str]) -> str | None:
    """The first regex of `patterns` that is found in the name, or in one of the names, or None."""
    names = (names,) if isinstance(names, str) else names
    return next((pattern for pattern in patterns if any(re.search(pattern, name) for name in names)), None)


def is_lora_matrix(name: str) -> bool:
    """Whether a weight of this name is one of those that Keras' `enable_lora` adds."""
    return bool(re.search(r"(^|/)lora_(kernel|embeddings)_[ab]$", name))
