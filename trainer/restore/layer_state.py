"""Layers' state beside their variables: vocabularies, the boundaries of bins, constant statistics."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from trainer.restore.errors import RestoreError
from trainer.restore.matching.model_tree import LiveNode, class_name, live_tree, paths
from trainer.restore.matching.names import join

OWN_DATASET = "regraft_layer_states"  # in the `.weights.h5` files of our runs, which Keras passes over
LOOKUPS = (keras.layers.TextVectorization, keras.layers.StringLookup, keras.layers.IntegerLookup)
LOOKUP_CLASSES = ("text_vectorization", "string_lookup", "integer_lookup")


@dataclasses.dataclass(frozen=True, eq=False)
class LayerState:
    """The state of one layer that is no variable.

    place: path of the layer, in the names of the file or of the model.
    called: the layer's name, "" where Keras made it or the file has none.
    layer_class: `text_vectorization`, "" where the file does not say.
    values: `vocabulary` (words by their index, special tokens first, None for a special token that the file does not
      spell), `idf_weights`, `bin_boundaries`, `mean`, `variance`, each a flat list; an empty one was never set.
    summary: what Keras 2 computes boundaries from, [2, n]; None elsewhere.
    """

    place: str
    called: str = ""
    layer_class: str = ""
    values: dict[str, list] = dataclasses.field(default_factory=dict)
    summary: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class LiveState(LayerState):
    """The same of a layer of the model.
    special_tokens: how many stand before the first word."""

    layer: Any = None
    special_tokens: int = 0

    @property
    def has_bins(self) -> bool:
        return "bin_boundaries" in self.values

    @property
    def lacks(self) -> str:
        """The part without which the layer cannot compute, "" where it has all."""
        if "vocabulary" in self.values and len(self.values["vocabulary"]) <= self.special_tokens:
            return "vocabulary"
        return "bin_boundaries" if self.has_bins and not self.values["bin_boundaries"] else ""


def live_states(model: keras.Layer, tree: LiveNode | None = None) -> list[LiveState]:
    """The state of every layer of a built model that has some.
    tree: the model's, where it is known."""
    found: list[LiveState] = []
    inside: set[int] = set()
    for path, node in paths(tree or live_tree(model)):
        layer = node.layer
        if layer is None or id(layer) in inside:
            continue
        values, special_tokens = _values(layer)
        if values:
            inside.add(id(getattr(layer, "_lookup_layer", None)))
            found.append(
                LiveState(
                    path, node.given_name, class_name(type(layer)), values, layer=layer, special_tokens=special_tokens
                )
            )
    return found


def empty_layers(model: keras.Layer) -> list[str]:
    """`vec/vocabulary` of every layer that cannot compute, since it was never given one."""
    return [join(state.place, state.lacks) for state in live_states(model) if state.lacks]


def states_as_json(states: Sequence[LayerState]) -> str:
    """Text for a checkpoint of ours."""
    kept = [{"place": s.place, "called": s.called, "layer_class": s.layer_class, "values": s.values} for s in states]
    return json.dumps(kept)


def states_from_json(text: str | bytes) -> list[LayerState]:
    """Raises `ValueError` or `TypeError` for what `states_as_json` did not write."""
    found = [LayerState(**state) for state in json.loads(text)]
    if not all(isinstance(s.values, dict) and all(isinstance(v, list) for v in s.values.values()) for s in found):
        raise ValueError("the state of its layers is damaged")
    return found


def fill(state: LiveState, values: dict[str, list]) -> None:
    """Gives a layer values of a file; raises `RestoreError` for what the layer does not take."""
    layer = state.layer
    try:
        if "vocabulary" in values:
            special = state.values["vocabulary"][: state.special_tokens]
            words = special + values["vocabulary"][state.special_tokens :]
            idf = np.array(values["idf_weights"], np.float32) if "idf_weights" in values else None
            layer.set_vocabulary(words, idf_weights=idf)
        else:
            layer.bin_boundaries = values["bin_boundaries"]
        now, _ = _values(layer)
        if any(first_difference(now[what], value, state.special_tokens) is not None for what, value in values.items()):
            raise RestoreError(f"{state.place} holds other values than the file's after it was filled.")
    except (ValueError, RuntimeError) as error:
        raise RestoreError(
            f"{state.place} does not take the file's {next(iter(values))}: {str(error).splitlines()[0]}"
        ) from error


def first_difference(ours: Sequence, theirs: Sequence, special_tokens: int = 0) -> int | None:
    """The first index at which two lists differ, None for equal ones.

    special_tokens: how many of ours stand before the first word; None on their side stands for one of these.
    """
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        is_special = other is None and index < special_tokens
        if not is_special and _comparable(mine) != _comparable(other):
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def boundaries_from(summary: np.ndarray, layer: keras.layers.Discretization) -> list[float]:
    """The boundaries that Keras computes of the summary that Keras 2 keeps in its files."""
    bins = layer.num_bins or len(layer.bin_boundaries) + 1
    other = keras.layers.Discretization(num_bins=bins, epsilon=layer.epsilon)
    other.summary = summary
    other.finalize_state()
    return list(other.bin_boundaries)


def is_numbered(name: str, layer_class: str) -> bool:
    """Whether Keras made the name from the layer's class, as `dense_1` from `Dense`."""
    return bool(re.fullmatch(rf"{re.escape(layer_class)}(_\d+)?", name))


def _values(layer: keras.Layer) -> tuple[dict[str, list], int]:
    if isinstance(layer, LOOKUPS):
        inner = getattr(layer, "_lookup_layer", layer)
        special = [inner.mask_token] if inner.mask_token is not None and inner.output_mode == "int" else []
        special += [inner.oov_token] * inner.num_oov_indices
        words = special + _words(inner)
        values = {"vocabulary": words}
        if inner.output_mode == "tf_idf":
            idf = getattr(inner, "idf_weights_const", None)
            values["idf_weights"] = [] if idf is None else np.asarray(idf).tolist()[: len(words)]
        return values, len(special)
    if isinstance(layer, keras.layers.Discretization):
        return {"bin_boundaries": flat(layer.bin_boundaries or [])}, 0
    if isinstance(layer, keras.layers.Normalization) and layer.input_mean is not None:
        return {"mean": flat(layer.input_mean), "variance": flat(layer.input_variance)}, 0
    return {}, 0


def flat(value) -> list[float]:
    return np.asarray(value, np.float64).reshape(-1).tolist()


def _words(lookup: keras.Layer) -> list:
    """The words of a table in their order; `get_vocabulary` takes twenty times as long."""
    if not int(lookup.lookup_table.size()):
        return []  # one that was never filled cannot be exported
    words, indices = lookup.lookup_table.export()
    words, indices = (indices, words) if lookup.invert else (words, indices)
    in_order = words.numpy()[np.argsort(indices.numpy())].tolist()
    encoding = getattr(lookup, "encoding", "utf8")
    return [word.decode(encoding, "surrogateescape") if isinstance(word, bytes) else word for word in in_order]


def _comparable(value):
    # Layers compute in float32, and files hold what Python makes of it.
    return np.float32(value) if isinstance(value, float) else value
