"""Compares the vocabularies, boundaries and constants of a file with the model's, and plans which ones to fill."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import keras
import tensorflow as tf

from trainer.errors import UserError
from trainer.output.printable import printable
from trainer.restore.layer_state import (
    LOOKUP_CLASSES,
    LayerState,
    LiveState,
    boundaries_from,
    fill,
    first_difference,
    live_states,
    states_as_json,
    states_from_json,
)
from trainer.restore.matching.model_tree import LiveNode
from trainer.restore.matching.names import join, matching_rule
from trainer.restore.matching.rules import Rules
from trainer.restore.report import RestoreReport, TableRecord
from trainer.restore.source import CheckpointSource, Entry
from trainer.restore.state_pairs import Pairs, state_pairs

# Keras writes them as weights of the layer, the summary by number in `.weights.h5` files.
_MAX_SHOWN = 60  # characters of a word
_ENTRY = re.compile(r"(.*?)(?:(?:^|/)lookup_layer)?/?(idf_weights|summary|(?<=/)0)")


@dataclasses.dataclass(frozen=True)
class Fill:
    """A layer of the model that takes values of the file."""

    state: LiveState
    values: dict[str, list]

    def apply(self) -> None:
        fill(self.state, self.values)


def plan_tables(model, tree: LiveNode, source: CheckpointSource, rules: Rules, report: RestoreReport) -> list[Fill]:
    """Adds to `report.tables` what becomes of each table and constant of the model; returns what is to be filled.

    Tables are read here, and only if the model has some. Entries of the file that they are computed from count as
    used. Raises `RestoreError` for a table that is damaged.
    """
    live = live_states(model, tree)
    if not live:
        return []
    theirs, read = source.layer_states(), _from_entries(live, source, report, rules)
    pairs = state_pairs(live, theirs, rules)
    in_entries = state_pairs(live, [state for state, _ in read], rules)
    fills = []
    for state in live:
        parts = [pair for pair in (in_entries.get(state), pairs.get(state)) if pair is not None]
        values = _merged(state, [part for part, _ in parts])
        place = parts[-1][0].place if parts else state.place
        judged = _judge(state, values, rules, place)
        note = parts[-1][1] if parts else _others(state, theirs, pairs)
        report.tables += [dataclasses.replace(record, note=_joined(record.note, note)) for record in judged]
        if any(record.status == "filled" for record in judged):
            fills.append(Fill(state, values))
    taken = {state for state, _ in in_entries.values()}
    _count_as_used(report, [entry for state, entries in read if state in taken for entry in entries])
    _settle_idle(report, rules, [*live, *theirs])
    return fills


def _from_entries(
    live: Sequence[LiveState], source: CheckpointSource, report: RestoreReport, rules: Rules
) -> list[tuple[LayerState, list[Entry]]]:
    """The state that the file keeps as weights, which no variable of the model takes, and the entries of each."""
    wanted = {what for state in live for what in state.values}
    spare = {record.key for record in report.unused if record.rule in ("", *rules.ignore)}
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in source.entries:
        named = _ENTRY.fullmatch(entry.name)
        if named is None or entry.key not in spare:
            continue
        what = "idf_weights" if named[2] == "idf_weights" else "bin_boundaries"
        is_fit = len(entry.shape) == 1 if what == "idf_weights" else entry.shape[:1] == (2,) and len(entry.shape) == 2
        if what in wanted and is_fit and entry.dtype.is_floating:
            found.setdefault((named[1], what), []).append(entry)
    return [(_state_of(place, what, source.read(entries[0])), entries) for (place, what), entries in found.items()]


def _state_of(place: str, what: str, value) -> LayerState:
    layer_class = re.sub(r"_\d+$", "", place.rpartition("/")[2])
    layer_class = layer_class if layer_class in LOOKUP_CLASSES else ""
    if what == "idf_weights":
        return LayerState(place, layer_class=layer_class, values={what: value.tolist()})
    return LayerState(place, values={what: []}, summary=value)


def _merged(state: LiveState, parts: Sequence[LayerState]) -> dict[str, list]:
    """The file's values for a layer, without those that were never set."""
    values: dict[str, list] = {}
    for part in parts:
        if part.summary is not None:
            values["bin_boundaries"] = boundaries_from(part.summary, state.layer)
        values |= {what: value for what, value in part.values.items() if value}
    if "vocabulary" in values and isinstance(state.layer, keras.layers.IntegerLookup):
        values["vocabulary"] = _as_integers(values["vocabulary"])
    words = values.get("vocabulary", [])
    if len(words) <= state.special_tokens:
        values.pop("vocabulary", None)  # of a layer that was never given one
    elif "idf_weights" in values:
        values["idf_weights"] = values["idf_weights"][: len(words)]  # Keras pads them to `max_tokens`
    return values


def _as_integers(words: list) -> list:
    """The integers that stand in a text file."""
    return [int(word) if isinstance(word, str) and re.fullmatch(r"-?[0-9]{1,19}", word) else word for word in words]


def _judge(state: LiveState, values: dict[str, list], rules: Rules, place: str) -> list[TableRecord]:
    records = []
    why_not = _why_not_filled(state, values) if state.lacks else ""
    for what, ours in state.values.items():
        name, key = join(state.place, what), printable(join(place, what))
        rule = matching_rule((name, key), rules.ignore) or ""
        theirs = values.get(what)
        record = TableRecord(name, "equal", key if theirs else "", len(theirs or ours))
        if why_not:
            record = dataclasses.replace(record, status="empty", size=0, note=why_not)
        elif state.lacks:
            record = dataclasses.replace(record, status="filled")
        elif theirs is None:
            # What the config alone holds is the model's to say; a vocabulary belongs to the weights.
            status = "not in the file" if what == "vocabulary" else "not compared"
            names = [join(at, other) for other in state.values for at in (state.place, place)]
            record = dataclasses.replace(record, status=status, rule=matching_rule(names, rules.ignore) or "")
        elif (index := first_difference(ours, _stretched(theirs, ours), state.special_tokens)) is not None:
            note = _difference(ours, theirs, index)
            record = dataclasses.replace(record, status="different", note=note, rule=rule)
        records.append(record)
    return records


def _why_not_filled(state: LiveState, values: dict[str, list]) -> str:
    """Why a layer that has no values of its own can't take the file's, "" where it can."""
    absent = [what for what in state.values if what not in values]
    if absent:
        return f"neither the model nor the file has {_an(absent[0])}"
    if state.has_bins:
        bins, most = len(values["bin_boundaries"]) + 1, state.layer.num_bins
        return f"the file has {bins} bins, and the layer num_bins={most}" if most and bins > most else ""
    words, special = values["vocabulary"], state.values["vocabulary"]
    index = first_difference(special, words[: len(special)], len(special))
    if index is not None:
        return _difference(special, words, index)
    if None in words[len(special) :]:
        return f"the file's words do not begin at index {len(special)}, as the layer's special tokens ask for"
    repeated = [word for word, count in Counter(words[len(special) :]).items() if count > 1]
    if repeated:
        return f"the file has {repeated[0]!r} twice"
    most = getattr(state.layer, "_lookup_layer", state.layer).max_tokens
    return f"the file has {len(words)} tokens, and the layer max_tokens={most}" if most and len(words) > most else ""


def _difference(ours: Sequence, theirs: Sequence, index: int) -> str:
    said = [repr(side[index])[:_MAX_SHOWN] if index < len(side) else "nothing" for side in (theirs, ours)]
    return f"at index {index} the file has {said[0]}, the model {said[1]}"


def _stretched(theirs: list, ours: list) -> list:
    """One number stands for all, as in `Normalization(mean=0.0, ...)`."""
    return theirs * len(ours) if len(theirs) == 1 and isinstance(theirs[0], float) else theirs


def _an(what: str) -> str:
    return f"{what.replace('_', ' ')} for it" if what != "vocabulary" else "a vocabulary for it"


def _others(state: LiveState, theirs: Sequence[LayerState], pairs: Pairs) -> str:
    """The entries that the file has under other names."""
    taken = {id(other) for other, _ in pairs.values()}
    spare = [join(s.place, what) for s in theirs if id(s) not in taken for what in s.values if what in state.values]
    return f"the file has {', '.join(printable(name) for name in spare[:4])} for no layer of the model" if spare else ""


def _joined(*notes: str) -> str:
    return ", ".join(note for note in notes if note)


def _count_as_used(report: RestoreReport, entries: Sequence[Entry]) -> None:
    keys = {entry.key for entry in entries}
    report.records = [record for record in report.records if record.status != "unused" or record.key not in keys]


def _settle_idle(report: RestoreReport, rules: Rules, states: Sequence[LayerState]) -> None:
    names = [join(state.place, what) for state in states for what in state.values]
    fitting = {f"ignore {pattern!r}" for pattern in rules.ignore if any(re.search(pattern, name) for name in names)}
    report.idle_rules = [idle for idle in report.idle_rules if idle not in fitting]


class SavedLayerStates(tf.train.experimental.PythonState):
    """The tables and constants of a model as a part of a checkpoint; `take` after the checkpoint was loaded."""

    def __init__(self, model: keras.Layer):
        self._model = model
        self._loaded: list[LayerState] = []
        self._text = ""

    def serialize(self) -> str:
        # Once: training does not change them, and a large vocabulary takes long.
        self._text = self._text or states_as_json(live_states(self._model))
        return self._text

    def deserialize(self, string_value: bytes) -> None:
        self._loaded = states_from_json(string_value)

    def take(self) -> None:
        """Fills what is empty in the model; raises `UserError` for what is not as it was saved."""
        live = live_states(self._model)
        pairs = state_pairs(live, self._loaded, Rules())
        for state in live:
            values = pairs[state][0].values if state in pairs else {}
            wrong = [record for record in _judge(state, values, Rules(), state.place) if record.is_problem]
            if wrong:
                raise UserError(
                    f"{wrong[0].name} is not that of the run, of whose checkpoint this speaks: "
                    f"{wrong[0].note or wrong[0].status}. Build the model as it was, or choose another --model_dir."
                )
            if state.lacks:
                Fill(state, values).apply()
        self._loaded = []
