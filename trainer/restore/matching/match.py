"""Finds the object of a checkpoint that is the model, and with it what each of the model's variables takes.

Where only a place has paired two variables, their full names, `backbone/dense/kernel`, decide.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator

from trainer.restore.errors import RestoreError, UndecidedRestore
from trainer.restore.matching.keras_paths import Comparison
from trainer.restore.matching.model_tree import LiveNode, LiveVariable
from trainer.restore.matching.names import matching_rule
from trainer.restore.matching.rules import Rules
from trainer.restore.matching.walk import Walk, nodes
from trainer.restore.report import Pairing
from trainer.restore.source import CheckpointSource, Entry, Node
from trainer.suggest import nearest

Pairs = dict[LiveVariable, Entry]

# Keras 3 leaves the names of some parts out of TensorFlow's names, and Keras 2 did not.
_SPELLINGS: tuple[Callable[[LiveVariable], str], ...] = (
    lambda weight: weight.variable.path,
    lambda weight: weight.variable.value.name.removesuffix(":0"),
)


@dataclasses.dataclass(frozen=True)
class Match:
    """The object of the checkpoint that fits the model best.

    names: each entry that is not an optimizer's -> its name from that object, or from the file's top.
    pairs: id of a model's variable -> entry.
    by_rename: the ids that a rename rule led to.
    moved: entries that a rule renamed; they go where the rule says or nowhere.
    ways: how the walk paired an entry.
    twins: entries that stand where a variable would be a second time, as wrappers write that of their layer -> the
      entry that the variable takes.
    disputed: ids of variables in layers whose place in some object and whose number disagree, so that neither counts.
    outside: where the user named a root, the entries that it does not lead to.
    """

    names: dict[Entry, str]
    pairs: dict[int, Entry]
    by_rename: set[int]
    moved: set[Entry]
    ways: dict[Entry, Pairing]
    outside: set[Entry]
    twins: dict[Entry, Entry]
    disputed: set[int]


def best_match(
    tree: LiveNode, weights: list[LiveVariable], source: CheckpointSource, rules: Rules, classes: frozenset[str]
) -> Match:
    """Walks the trees together from every object of the checkpoint and keeps the one that fits most weights.

    Raises `UndecidedRestore` where two objects fit equally well, could be the model and hold different
    weights; `root`, or a rule that ignores one of them, decides. Layers of Functional and Sequential models,
    which TensorFlow stores without their names, are paired by position where their number and all their
    variables' names agree; nothing else is ever paired by position or shape.
    """
    shapes = {id(weight.variable): weight.shape for weight in weights}
    walk = Walk(tree, rules, classes)
    best: tuple[tuple[int, ...], str, Node, dict[int, Entry]] | None = None
    rivals: list[str] = []
    for place, node in _objects(source, rules.root):
        found, _ = walk.pairs_from(node, place)
        found = {key: entry for key, entry in found.items() if key in shapes}
        # What the user ignores counts last, so that it can settle a tie and still be used where all is ignored.
        wanted = {key: entry for key, entry in found.items() if not matching_rule(entry.name, rules.ignore)}
        score = _fit(wanted, shapes) + _fit(found, shapes)
        if best is None or score > best[0]:
            best, rivals = (score, place, node, found), []
        elif score == best[0] and found and set(found.values()) != set(best[3].values()):
            rivals.append(place)
    if best is None:
        raise RestoreError(
            f"{source.path} holds the state of an optimizer and no model beside it. "
            "Name a checkpoint that was written with the model in it."
        )
    score, place, root, found = best
    if rivals and _fills(found, weights, rules):
        raise _ambiguous(source, [place, *rivals], f"{score[-1]} of {len(weights)} variables")
    if rivals:  # a few layers that look alike make no model: the names say what is where
        place, root, found = "", source.top, walk.pairs_from(source.top, "")[0]
        found = {key: entry for key, entry in found.items() if key in shapes}
    by_rename = walk.pairs_from(root, place)[1]
    taken = set(found.values())
    twins = {twin: first for twin, first in walk.twins.items() if twin not in taken}
    names = _names_from(root, [entry for entry in source.entries if entry.kind != "optimizer"])
    moved = {entry for entry, name in names.items() if rules.renamed(name, entry.name) != name}
    inside = {node.entry for _, node in nodes(root)} if rules.root is not None else set(source.entries)
    return Match(names, found, by_rename, moved, walk.ways, set(source.entries) - inside, twins, walk.disputed)


def _fit(found: dict[int, Entry], shapes: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    """(pairs of equal shape, pairs)."""
    return sum(shapes[key] == entry.shape for key, entry in found.items()), len(found)


def _fills(found: dict[int, Entry], weights: list[LiveVariable], rules: Rules) -> bool:
    """Whether an object is the model for the most part: it has two thirds of what does not start fresh by a rule."""
    wanted = [weight for weight in weights if not matching_rule(weight.name, rules.reinitialize)]
    return 3 * sum(id(weight.variable) in found for weight in wanted) >= 2 * len(wanted)


def _objects(source: CheckpointSource, root: str | None) -> Iterator[tuple[str, Node]]:
    """(place, object) of everything that could be a model, no variables and nothing of an optimizer; or of `root`."""
    places = [(place, node) for place, node in nodes(source.top) if node.entry is None]
    if root is not None:
        wanted = root.strip("/")
        names = [place for place, _ in places]
        places = [(place, node) for place, node in places if place == wanted]
        if not places:
            tops = ", ".join(sorted({name.split("/")[0] for name in names if name}))
            raise RestoreError(
                f"root: {source.path} holds no object at {root!r}.{nearest(wanted, names)} "
                f"At its top: {tops or 'nothing'}."
            )
    yield from places


def _names_from(root: Node, entries: list[Entry]) -> dict[Entry, str]:
    """Each entry's name from the chosen root, or from the file's top where the root does not lead to it."""
    names = {node.entry: path for path, node in nodes(root) if node.entry is not None}
    # Our own train states keep what TensorFlow does not reach from the model under this name.
    return {entry: names.get(entry, entry.name).removeprefix("train_state/untracked/") for entry in entries}


def _ambiguous(source: CheckpointSource, places: list[str], fit: str) -> UndecidedRestore:
    shown = [place or "(the top)" for place in places]
    return UndecidedRestore(
        f"{source.path} holds {len(places)} things that fit the model equally well, {fit} each: {', '.join(shown)}.",
        [{"root": place} for place in places],
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
