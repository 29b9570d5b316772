"""Normalised names: one spelling for a variable, whichever library wrote it."""

import functools
import re
from collections.abc import Iterable, Sequence

from trainer.output.printable import printable

_MAX_LEVELS = 256  # models nest a dozen; each level costs a walk over all that is in it
_MAX_LETTERS = 4096
_SEPARATORS = ("/", ".", ".S")  # the last is TensorFlow's way to write the first inside of an attribute's name


def readable_name(raw: str) -> str:
    """A name from a file as we write it, look it up and match rules with it: fit for a terminal.

    Raises `ValueError` for one so deep or so long that no model has it.
    """
    if len(raw) > _MAX_LEVELS:
        expect_bearable(raw, 1 + max(raw.count(separator) for separator in _SEPARATORS))
    return printable(raw)


def expect_bearable(name: str, levels: int) -> None:
    """Raises `ValueError` for a name, or a path to an object, that no model has."""
    if levels > _MAX_LEVELS or len(name) > _MAX_LETTERS:
        raise ValueError(
            f"the name {printable(name[:60])}... has {levels:,} levels and {len(name):,} letters, "
            f"where at most {_MAX_LEVELS} and {_MAX_LETTERS:,} are read"
        )


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
