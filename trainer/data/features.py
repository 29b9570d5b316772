"""Nested features by their path: `{"objects": {"bbox": ...}}` is the feature `objects/bbox`."""

from collections.abc import Collection, Mapping
from typing import Any


def flat(features: Mapping, prefix: str = "") -> dict[str, Any]:
    """{path: value} of nested dicts; a dict that is not nested stays as it is."""
    found: dict[str, Any] = {}
    for name, value in features.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return found


def pick(features: Mapping, paths: Collection[str], prefix: str = "") -> dict[str, Any]:
    """The same nested dicts with the features of these paths alone."""
    found = {}
    for name, value in features.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            inner = pick(value, paths, f"{path}/")
            if inner:
                found[name] = inner
        elif path in paths:
            found[name] = value
    return found
