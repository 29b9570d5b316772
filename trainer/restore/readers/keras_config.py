"""Reads a Keras config as text: names and states of layers, and the settings of an optimizer."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from trainer.restore.errors import RestoreError
from trainer.restore.layer_state import LayerState, flat, is_numbered
from trainer.restore.model_tree import snake_case
from trainer.restore.names import join, normalize, readable_name
from trainer.restore.readers.hdf5 import Group
from trainer.restore.source import Node

# The list of a model's layers: its name since Keras 2.14, and the one before.
LAYER_LISTS = ("layers", "_layer_checkpoint_dependencies")


def name_groups(group: Group, description: object) -> None:
    """Sets `keras_name` on the `vars` groups of a model's layers, where the file has none, as Keras 3 writes it.

    description: the model's part of `config.json`, `{"class_name": ..., "config": {"layers": [...]}}`. Both
      sides list the layers in one order, so that the second Dense of the config is `dense_1` in the weights.
    """
    lists = [group.groups[name] for name in LAYER_LISTS if name in group.groups]
    times: Counter[str] = Counter()
    for layer in _layers(description):
        class_name = snake_case(str(layer.get("class_name")).rpartition(">")[2])
        key = f"{class_name}_{times[class_name]}" if times[class_name] else class_name
        times[class_name] += 1
        for found in (part.groups[key] for part in lists if key in part.groups):
            config = layer.get("config")
            name = config.get("name") if isinstance(config, dict) else None
            if isinstance(name, str) and "vars" in found.groups:
                found.groups["vars"].keras_name = found.groups["vars"].keras_name or readable_name(name)
            name_groups(found, layer)


def _layers(description: object) -> list[dict]:
    config = description.get("config") if isinstance(description, dict) else None
    layers = config.get("layers") if isinstance(config, dict) else None
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def parsed(text: str | bytes, where: str) -> dict:
    """A JSON object as a dict; raises `RestoreError` for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RestoreError(f"{where} is damaged: it is no JSON ({str(error).splitlines()[0][:100]}).") from error
    if not isinstance(value, dict):
        raise RestoreError(f"{where} is damaged: it holds no JSON object.")
    return value


def optimizer_words(description: object) -> str:
    """`AdamW (learning_rate 0.001, beta_1 0.9)` from `{"class_name": "AdamW", "config": {...}}`, or ""."""
    if isinstance(description, str):
        return plain(description)
    if not isinstance(description, dict) or not isinstance(description.get("class_name"), str):
        return ""
    config = description.get("config")
    settings = [_setting(key, value) for key, value in config.items()] if isinstance(config, dict) else []
    words = ", ".join(word for word in settings if word)
    # `Custom>Adam`: the package before it is Keras' own note of where to find the class.
    class_name = description["class_name"].rpartition(">")[2]
    return plain(class_name + (f" ({words})" if words else ""))


def plain(text: str, longest: int = 300) -> str:
    """Text of a stranger, fit for a terminal."""
    return "".join(letter for letter in text if letter.isprintable())[:longest]


def _setting(key: str, value: object) -> str:
    if key == "name" or value is None or value is False:
        return ""
    if isinstance(value, float):
        return f"{key} {value:g}"
    if isinstance(value, bool | int | str):
        return f"{key} {value}"
    # A schedule, or an optimizer inside of this one.
    return f"{key} {value['class_name']}" if isinstance(value, dict) and "class_name" in value else ""


_Scope = tuple[str, ...]  # a full name without the variable's own


def name_layers(nodes: Iterable[Node]) -> None:
    """Sets `keras_name` on the layers of each Functional and Sequential model, and makes them children by it.

    nodes: all objects of the file, with the labels of their entries set.  A layer whose name the scopes do not
      tell, or that shares it with another layer of the model, keeps its number only.
    """
    for model in nodes:
        layers = model.in_order()
        scopes = {layer: _scopes_below(layer) for layer in layers}
        around = _scopes_around(layers, scopes)
        for layer in layers:
            layer.keras_name = layer.keras_name or _name(layer, scopes[layer], around)
        times = Counter(layer.keras_name for layer in layers)
        named = {layer.keras_name: layer for layer in layers if layer.keras_name and times[layer.keras_name] == 1}
        named = {name: layer for name, layer in named.items() if name not in model.children}
        model.children = named | model.children  # first, so that paths go by names rather than by numbers
        model.spelled = {name: name for name in named} | model.spelled


def _name(layer: Node, scopes: set[_Scope], around: list[_Scope]) -> str:
    own = _own_scopes(layer)
    if len(own) == 1:
        return own.pop()[-1]
    common = _common(scopes)
    for scope in around:
        if common[: len(scope)] == scope and len(common) > len(scope):
            # What all variables of a model have in common may be the name of its only layer instead.
            is_lone_layer = layer.in_order() and any(len(found) < len(scope) + 2 for found in scopes)
            return "" if is_lone_layer else common[len(scope)]
    return ""


def _scopes_around(layers: list[Node], scopes: dict[Node, set[_Scope]]) -> list[_Scope]:
    """Scopes that a layer of the model may stand in, the longest first."""
    found = {own.pop()[:-1] for layer in layers if len(own := _own_scopes(layer)) == 1}
    filled = [below for below in scopes.values() if below]
    if not found and len(filled) > 1:
        found = {_common(set().union(*filled))}
    return sorted(found, key=len, reverse=True)


def _own_scopes(layer: Node) -> set[_Scope]:
    """The scopes of the variables directly in a layer, those without one left out."""
    return {scope for part in layer.children.values() if part.entry is not None and (scope := _scope(part))}


def _scopes_below(layer: Node) -> set[_Scope]:
    seen: set[int] = set()
    queue = [layer]
    found = set()
    for node in queue:
        if id(node) in seen or node.is_optimizer:
            continue
        seen.add(id(node))
        queue += node.children.values()
        if node.entry is not None:
            found.add(_scope(node))
    return found


def _scope(node: Node) -> _Scope:
    assert node.entry is not None
    return tuple(node.entry.label.split("/")[:-1])


def _common(scopes: set[_Scope]) -> _Scope:
    return tuple(os.path.commonprefix([list(scope) for scope in scopes]))


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
    name = _state_name(described)
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
            names = [_state_name(part) if key == "layers" else "" for _, part in parts]
            for (index, part), name in zip(parts, names, strict=True):
                yield name or join(normalize(key), str(index)), part


def _state_name(part: dict) -> str:
    settings = part["config"] if isinstance(part["config"], dict) else {}
    name = settings.get("name", part.get("name"))
    return name if isinstance(name, str) else ""


def _is_described(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class_name"), str) and "config" in value


def _class_of(described: dict) -> str:
    return snake_case(described["class_name"].rpartition(">")[2])
