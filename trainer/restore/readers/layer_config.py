"""Reads vocabularies, boundaries and constants out of the config that Keras writes beside the weights."""

from collections.abc import Iterator

import numpy as np

from trainer.restore.layer_state import LayerState, flat, is_numbered
from trainer.restore.matching.model_tree import snake_case
from trainer.restore.matching.names import join, normalize


def configured_states(config: dict) -> list[LayerState]:
    """The state of every layer in the config of a model; nothing in it is run."""
    found = []
    queue = [("", config)]
    for place, described in queue:
        settings = described.get("config")
        state = layer_state(place, described) if place and isinstance(settings, dict) else None
        if state is not None:
            found.append(state)
        else:
            queue += [(join(place, name), part) for name, part in _parts(settings)]
    return found


def layer_state(place: str, described: dict) -> LayerState | None:
    """The state of one layer by its config, None for a layer without; known by its settings, as classes are derived."""
    settings = described["config"]
    layer_class = _class_of(described)
    name = _name(described)
    called = "" if is_numbered(name, layer_class) else name
    if "vocabulary" in settings:
        return LayerState(place, called, layer_class, _vocabulary(settings))
    if "bin_boundaries" in settings:
        return LayerState(place, called, layer_class, _numbers(settings, "bin_boundaries"))
    if {"mean", "variance", "axis"} <= set(settings):
        return LayerState(place, called, layer_class, _numbers(settings, "mean", "variance"))
    return None


def _vocabulary(settings: dict) -> dict[str, list]:
    """The vocabulary as `get_vocabulary` would give it, and the weights beside it; nothing for an adapted one."""
    words = settings["vocabulary"]
    if not isinstance(words, list) or not words or not all(type(word) in (str, int) for word in words):
        return {}
    mask, oov = settings.get("mask_token", ""), settings.get("oov_token", "[UNK]")
    special = [mask] if mask is not None and settings.get("output_mode") == "int" else []
    count = settings.get("num_oov_indices", 1)
    special += [oov] * (count if isinstance(count, int) and 0 <= count <= len(words) + 1000 else 1)
    has_special = bool(special) and words[: len(special)] == special
    values = {"vocabulary": words if has_special else special + words}
    idf = _numbers(settings, "idf_weights").get("idf_weights")
    if idf and len(idf) == len(words):
        # As Keras does where nothing is known of the special tokens.
        values["idf_weights"] = idf if has_special else [float(np.average(idf))] * len(special) + idf
    return values


def _numbers(settings: dict, *names: str) -> dict[str, list]:
    values = {}
    for name in names:
        try:
            values[name] = flat(settings.get(name))
        except (ValueError, TypeError):
            return {}
    # None, for what was not set, is read as NaN.
    return values if all(np.isfinite(value).all() for value in values.values()) else {}


def _parts(settings: object) -> Iterator[tuple[str, dict]]:
    """(name, description) of every object in a layer's config."""
    if isinstance(settings, list):  # a Sequential model of old
        settings = {"layers": settings}
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if _is_described(value):
            yield normalize(key), value
        elif isinstance(value, list):
            parts = [(index, part) for index, part in enumerate(value) if _is_described(part)]
            names = [_name(part) if key == "layers" else "" for _, part in parts]
            for (index, part), name in zip(parts, names, strict=True):
                yield name or join(normalize(key), str(index)), part


def _name(part: dict) -> str:
    settings = part["config"] if isinstance(part["config"], dict) else {}
    name = settings.get("name", part.get("name"))
    return name if isinstance(name, str) else ""


def _is_described(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class_name"), str) and "config" in value


def _class_of(described: dict) -> str:
    return snake_case(described["class_name"].rpartition(">")[2])
