"""Reads the vocabularies of a TensorFlow checkpoint: our own runs' record, its tables, its SavedModel's."""

import os
import re
from collections.abc import Callable, Mapping

import numpy as np

from trainer.restore.layer_state import LayerState, states_from_json
from trainer.restore.matching.names import normalize
from trainer.restore.readers.saved_model_tables import by_index, saved_model_states
from trainer.restore.readers.tensor_bundle import StoredTensor

_OWN = "train_state/layer_states/.ATTRIBUTES/py_state"
_TABLE = re.compile(r"(.+)/([^/]+)/\.ATTRIBUTES/table-keys")
# What `adapt` counts in; a vocabulary is made of it, and it is emptied.
_COUNTS = ("token_counts", "token_document_counts")
_TOP = ("model", "root")  # what checkpoints call the model


def checkpoint_states(
    prefix: str, stored: Mapping[str, StoredTensor], load: Callable[[str], np.ndarray]
) -> list[LayerState]:
    """The state of layers that is no variable, as far as the files at `prefix` have it.

    stored: the tensors of the checkpoint.  load: gives one of them.
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
