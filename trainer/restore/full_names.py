"""Lets the full names of variables, `backbone/dense/kernel`, decide where only a place has paired them."""

import re
from collections.abc import Callable, Collection

from trainer.restore.errors import UndecidedRestore
from trainer.restore.keras_paths import Comparison
from trainer.restore.live import LiveVariable
from trainer.restore.match import Match
from trainer.restore.report import Pairing
from trainer.restore.rules import Rules
from trainer.restore.source import CheckpointSource, Entry

Pairs = dict[LiveVariable, Entry]

# Keras 3 leaves the names of some parts out of TensorFlow's names, and Keras 2 did not.
_SPELLINGS: tuple[Callable[[LiveVariable], str], ...] = (
    lambda weight: weight.variable.path,
    lambda weight: weight.variable.value.name.removesuffix(":0"),
)


def settle_by_full_names(
    pairs: Pairs,
    ways: dict[Entry, Pairing],
    weights: list[LiveVariable],
    match: Match,
    rules: Rules,
    source: CheckpointSource,
    classes: Collection[str],
) -> tuple[Pairs, dict[LiveVariable, str]]:
    """(the pairs that the full names leave, why others were dropped); `ways` is brought up to date.

    classes: names that Keras makes layer names from.

    Where each weight of either side has its name on the other side, once, names replace places. Where only some
    have, a pair by place is dropped if the name of one stands on the other side at another place.
    Raises `RestoreError` where names of a file that holds nothing else fit both ways, and differ.
    """
    entries = [entry for entry in match.names if entry.label and _is_named_weight(entry)]
    comparisons = [
        Comparison([spelling(weight) for weight in weights], [entry.label for entry in entries], classes)
        for spelling in _SPELLINGS
    ]
    if not rules.rename and rules.root is None and all(e.label for e in match.names if e.kind == "weight"):
        for compared in comparisons:
            found = {weights[ours]: entries[theirs] for ours, theirs in compared.equal()}
            taken = set(found.values())
            by_number = [w for place, w in enumerate(weights) if compared.has_rank(place) and w not in pairs]
            if any(id(weight.variable) in match.disputed for weight in by_number):
                continue
            if len(found) == len(weights) and all(e.kind != "weight" or e in taken for e in entries):
                return _by_name(found, pairs, ways, weights, match, source), {}
    dropped: dict[LiveVariable, str] = {
        weight: "the order of the layers in the file and the numbers that Keras gave them disagree"
        for weight in weights
        if id(weight.variable) in match.disputed and weight not in pairs
    }
    for compared in comparisons:
        dropped |= _contradictions(compared, pairs, ways, weights, entries)
    return {weight: entry for weight, entry in pairs.items() if weight not in dropped}, dropped


def _is_named_weight(entry: Entry) -> bool:
    """Counters of a layer, such as Normalization's, have its name; those of a program stand alone."""
    return entry.kind == "weight" or (entry.kind == "counter" and "/" in entry.label)


def _by_name(
    found: Pairs,
    pairs: Pairs,
    ways: dict[Entry, Pairing],
    weights: list[LiveVariable],
    match: Match,
    source: CheckpointSource,
) -> Pairs:
    differing = [weight for weight, entry in found.items() if pairs.get(weight, entry) is not entry]
    if any(found[w].shape != w.shape == pairs[w].shape for w in differing if w in pairs):
        return pairs  # numbers that Keras gave say less than a shape
    if len(pairs) == len(weights) and any(ways[pairs[weight]] != Pairing.BY_PLACE for weight in differing):
        if source.top.is_plain:
            raise _fits_in_two_ways(differing, found, pairs, match, source)
        return pairs
    for weight, entry in found.items():
        if weight in differing or ways.get(entry, Pairing.BY_PLACE) == Pairing.BY_PLACE:
            ways[entry] = Pairing.BY_NAME
    return found


def _fits_in_two_ways(
    differing: list[LiveVariable], found: Pairs, pairs: Pairs, match: Match, source: CheckpointSource
) -> UndecidedRestore:
    weight = differing[0]
    return UndecidedRestore(
        f"{source.path}: its names fit the model in two ways. {weight.name} is {pairs[weight].key} if they are "
        f"those of attributes, and {found[weight].key} if they are the paths that Keras gave the variables, by "
        "number.",
        [
            {"rename": [(f"^{re.escape(match.names[way[weight]])}$", weight.name) for weight in differing]}
            for way in (pairs, found)
        ],
    )


def _contradictions(
    compared: Comparison, pairs: Pairs, ways: dict[Entry, Pairing], weights: list[LiveVariable], entries: list[Entry]
) -> dict[LiveVariable, str]:
    number_of = {entry: number for number, entry in enumerate(entries)}
    return {
        weight: f"in its place the file has {entry.label}"
        for number, weight in enumerate(weights)
        if (entry := pairs.get(weight)) in number_of
        and ways[entry] == Pairing.BY_PLACE
        and compared.contradicts(number, number_of[entry])
        and compared.are_certain(number, number_of[entry])
        and not compared.differ_by_rank(number, number_of[entry])
    }
