"""Reads vocabularies, boundaries and constants that stand beside the weights of a file; nothing in it is run.

They are in the config that Keras writes, in the tables of a TensorFlow checkpoint, in our own runs' record there, or in
the graph of a SavedModel and files beside it.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from trainer.restore.errors import RestoreError
from trainer.restore.layer_state import LayerState, flat, is_numbered, states_from_json
from trainer.restore.local_files import read_whole
from trainer.restore.matching.model_tree import snake_case
from trainer.restore.matching.names import join, normalize
from trainer.restore.readers.tensor_bundle import StoredTensor

_INNER = ("lookup_layer", "index_lookup_layer")  # the part of TextVectorization that holds the table
_TABLES = ("lookup_table", "table")
_MAX_BYTES = 1 << 31  # of a protocol buffer
_DAMAGE = (DecodeError, IndexError, KeyError, ValueError, TypeError, OSError, RuntimeError, tf.errors.OpError)
_MAX_SPECIAL = 100_000  # special tokens before the first word; a layer has one or two
_OWN = "train_state/layer_states/.ATTRIBUTES/py_state"
_TABLE = re.compile(r"(.+)/([^/]+)/\.ATTRIBUTES/table-keys")
# What `adapt` counts in; a vocabulary is made of it, and it is emptied.
_COUNTS = ("token_counts", "token_document_counts")
_TOP = ("model", "root")  # what checkpoints call the model


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


def saved_model_states(folder: str) -> list[LayerState]:
    """The state of every layer in a SavedModel; raises `RestoreError` if its description is damaged."""
    path = os.path.join(folder, "saved_model.pb")
    try:
        graphs = saved_model_pb2.SavedModel.FromString(read_whole(path, _MAX_BYTES)).meta_graphs
        return _states(graphs[0], folder) if graphs else []
    except _DAMAGE as error:
        raise RestoreError(f"{path} is damaged: its lookup tables cannot be read.") from error


def by_index(keys: np.ndarray, values: np.ndarray) -> list:
    """A table as words by their index, None for an index that has none; the indices are the side that counts up."""
    if not len(keys):
        return []
    words, indices = (keys, values) if _counts_up(values) else (values, keys)
    if not _counts_up(indices):
        raise ValueError("neither side of the table counts its entries")
    found: list = [None] * (int(np.max(indices)) + 1)
    for word, index in zip(words.tolist(), indices.tolist(), strict=True):
        found[index] = word.decode("utf8", "surrogateescape") if isinstance(word, bytes) else word
    return found


def _counts_up(side: np.ndarray) -> bool:
    is_count = side.dtype.kind in "iu" and 0 <= side.min() <= _MAX_SPECIAL
    return is_count and np.array_equal(np.sort(side), np.arange(len(side)) + side.min())


def _states(graph, folder: str) -> list[LayerState]:
    nodes = graph.object_graph_def.nodes
    described = _described(folder)
    found: dict[str, LayerState] = {}
    for place, index in _places(nodes):
        last = place.rpartition("/")[2]
        table = _table(graph, nodes[index], folder) if nodes[index].WhichOneof("kind") == "resource" else None
        if index in described:
            state = layer_state(place, described[index])
            if state is not None and last not in _INNER:
                found[place] = state
        if table is None:
            continue
        owner = place.rpartition("/")[0] if last in _TABLES else place  # `model.export()` keeps bare lists of tables
        is_inner = owner.rpartition("/")[2] in _INNER
        owner = owner.rpartition("/")[0] if is_inner else owner
        known = found.get(owner)
        layer_class = known.layer_class if known else "text_vectorization" if is_inner else ""
        found[owner] = LayerState(owner, known.called if known else "", layer_class, {"vocabulary": table})
    return list(found.values())


def _places(nodes) -> Iterator[tuple[str, int]]:
    """(shortest path, number) of every object of the writer's program."""
    queue, seen = [("", 0)], set()
    for place, index in queue:
        if index in seen:
            continue
        seen.add(index)
        yield place, index
        queue += [(join(place, normalize(child.local_name)), child.node_id) for child in nodes[index].children]


def _table(graph, node, folder: str) -> list | None:
    """The values that a table is filled with, None for one that is filled later or not at all."""
    nodes = graph.object_graph_def.nodes
    functions = [nodes[child.node_id] for child in node.children if child.local_name == "_initialize"]
    names = [name for function in functions for name in function.function.concrete_functions]
    bound = [i for name in names for i in graph.object_graph_def.concrete_functions[name].bound_inputs]
    assets = [nodes[i].asset for i in bound if nodes[i].WhichOneof("kind") == "asset"]
    if assets:
        file = graph.asset_file_def[assets[0].asset_file_def_index].filename
        return _from_file(graph, names[0], os.path.join(folder, "assets", os.path.basename(file)))
    constants = {found.name: found for found in graph.graph_def.node}
    captured = [nodes[i].constant.operation for i in bound if nodes[i].WhichOneof("kind") == "constant"]
    tensors = [tf.make_ndarray(constants[name].attr["value"].tensor) for name in captured]
    return by_index(*tensors) if len(tensors) == 2 and len(tensors[0]) == len(tensors[1]) else None


def _from_file(graph, function: str, path: str) -> list:
    bodies = [found for found in graph.graph_def.library.function if found.signature.name == function]
    offsets = [n.attr["offset"].i for n in bodies[0].node_def if n.op == "InitializeTableFromTextFileV2"]
    if any(not 0 <= offset <= _MAX_SPECIAL for offset in offsets):
        raise ValueError("a table begins at an index that cannot be")
    words = read_whole(path, _MAX_BYTES).decode("utf8", "surrogateescape").split("\n")
    words = words[:-1] if words[-1:] == [""] else words
    return [None] * (offsets[0] if offsets else 0) + words


def _described(folder: str) -> dict[int, dict]:
    """{number of an object: class and config} as Keras 2 writes them beside the SavedModel."""
    path = os.path.join(folder, "keras_metadata.pb")
    if not tf.io.gfile.exists(path):
        return {}
    from tensorflow.python.keras.protobuf import saved_metadata_pb2  # takes long to import, and few files need it

    objects = saved_metadata_pb2.SavedMetadata.FromString(read_whole(path, _MAX_BYTES)).nodes
    described = {
        found.node_id: json.loads(found.metadata) for found in objects if found.identifier == "_tf_keras_layer"
    }
    return {
        index: one
        for index, one in described.items()
        if isinstance(one, dict) and isinstance(one.get("config"), dict) and isinstance(one.get("class_name"), str)
    }


def checkpoint_states(
    prefix: str, stored: Mapping[str, StoredTensor], load: Callable[[str], np.ndarray]
) -> list[LayerState]:
    """The state of layers that is no variable, as far as the files at `prefix` have it.

    stored: the tensors of the checkpoint.
    load: gives one of them.
    Tables whose contents are constants of the program are in no checkpoint.
    """
    if _OWN in stored:
        return states_from_json(load(_OWN).item())
    folder = os.path.dirname(prefix)
    if os.path.basename(folder) == "variables" and os.path.basename(prefix) == "variables":
        return saved_model_states(os.path.dirname(folder))
    found = []
    for key in sorted(stored):
        named = _TABLE.fullmatch(key)
        if named is None or named[2] in _COUNTS or not all(stored[key].shape):
            continue
        segments = [normalize(segment) for segment in named[1].split("/")]
        segments = segments[1:] if len(segments) > 1 and segments[0] in _TOP else segments
        is_inner = segments[-1] in ("lookup_layer", "index_lookup_layer") and len(segments) > 1
        values = by_index(load(key), load(key.removesuffix("keys") + "values"))
        place = "/".join(segments[:-1] if is_inner else segments)
        found.append(LayerState(place, "", "text_vectorization" if is_inner else "", {"vocabulary": values}))
    return found
