"""Decides, without touching a variable, which entry of a checkpoint goes into which weight of a model."""

import dataclasses
import difflib
import re

import tensorflow as tf

from trainer.restore.keras_paths import path_pairs
from trainer.restore.live import LiveVariable, classes_in, live_tree, live_variables, numbered_by_keras
from trainer.restore.match import Match, best_match
from trainer.restore.names import matching_rule
from trainer.restore.order import pairs_by_order
from trainer.restore.report import Record, RestoreError, RestoreReport
from trainer.restore.rows import Rows, rows_for
from trainer.restore.rules import Rules, check_rules
from trainer.restore.source import CheckpointSource, Entry

_NUMBERED = "(a number)"  # the leaf of what a file knows by its place in its layer only
_MOST_KIN = 20  # comparing spellings takes about 0.1 ms a pair; a large model has thousands of equal shapes


@dataclasses.dataclass(frozen=True)
class Pair:
    """A weight that is to be filled, and the entry that it takes, or takes some rows of."""

    weight: LiveVariable
    entry: Entry
    rows: Rows | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """report: what would happen.  pairs: the weights that are to be filled."""

    report: RestoreReport
    pairs: list[Pair]


def plan_restore(model, source: CheckpointSource, rules: Rules) -> Plan:
    """Matches a built model with a checkpoint: the user's rules first, then structure, then unique names.

    Raises `RestoreError` for a bad rule or an ambiguous root; everything else that is wrong is in
    the report (`report.problems`), for the caller to judge.
    """
    tree = live_tree(model)
    weights = live_variables(model, tree)
    check_rules(rules, weights)
    classes = classes_in(tree)
    match = best_match(tree, weights, source, rules, classes)
    pairs = _pairs(weights, match, rules, numbered_by_keras(tree))
    pairs = _by_keras_paths(pairs, weights, match, rules, source, classes)
    ordered, no_weights = (
        pairs_by_order(tree, weights, pairs, source, classes) if rules.match == "order" else ({}, set())
    )
    pairs |= ordered
    fresh = {weight: rule for weight in weights if (rule := matching_rule(weight.name, rules.reinitialize))}

    records, kept = _judge(weights, pairs, fresh, match, rules, ordered)
    records += _unused(match, pairs, fresh, rules, records)
    no_weight_keys = {entry.key for entry in no_weights}
    records = [record for record in records if record.key not in no_weight_keys]
    used = set(pairs.values())
    report = RestoreReport(
        checkpoint=source.path,
        format=source.format,
        records=records,
        optimizer_keys=[entry.key for entry in source.of_kind("optimizer")],
        counter_keys=[entry.key for entry in source.of_kind("counter") if entry not in used],
        other_keys=[entry.key for entry in source.of_kind("other") if entry not in used]
        + [entry.key for entry in no_weights if entry.kind == "weight"],
        writer=source.writer,
        step=source.step,
        optimizer=source.optimizer,
        checksums=source.checksums,
        idle_rules=_idle_rules(rules, match, records, weights),
    )
    return Plan(report, kept)


def _pairs(weights: list[LiveVariable], match: Match, rules: Rules, numbered: set[int]) -> dict[LiveVariable, Entry]:
    """Each weight's entry, by rule or by structure, else by a full name that only one entry has."""
    pairs: dict[LiveVariable, Entry] = {}
    taken: set[Entry] = set()

    def take(weight: LiveVariable, entry: Entry | None) -> None:
        if entry is not None and weight not in pairs and entry not in taken:
            pairs[weight] = entry
            taken.add(entry)

    for by_rename in (True, False):  # what the user said comes first
        for weight in weights:
            if (id(weight.variable) in match.by_rename) == by_rename:
                take(weight, match.pairs.get(id(weight.variable)))
    left = {entry: name for entry, name in match.names.items() if entry not in taken}
    renamed = {e: rules.renamed(name, e.name) if e in match.moved else name for e, name in left.items()}
    for is_outside in (False, True):  # what a named root leads to comes before what is called the same elsewhere
        by_name = _unique({entry: name for entry, name in renamed.items() if (entry in match.outside) == is_outside})
        for weight in weights:
            if id(weight.variable) not in numbered:  # such a name is equal by chance
                take(weight, by_name.get(weight.name))
    return pairs


def _by_keras_paths(pairs, weights, match: Match, rules: Rules, source: CheckpointSource, classes):
    """The pairs, or those of the paths that Keras gave the variables where the file has just these and no more.

    Raises `RestoreError` where names of a file that holds nothing else fit both ways, and differ.
    """
    labelled = [(entry.label, entry) for entry in match.names if entry.kind == "weight"]
    if rules.rename or rules.root is not None or not all(label for label, _ in labelled):
        return pairs
    found = dict(path_pairs([(weight.variable.path, weight) for weight in weights], labelled, classes))
    differing = [weight for weight, entry in found.items() if pairs.get(weight, entry) is not entry]
    if len(found) < len(weights) or (differing and len(pairs) == len(weights) and not source.top.is_plain):
        return pairs
    if differing and len(pairs) == len(weights):
        weight = differing[0]
        raise RestoreError(
            f"{source.path}: its names fit the model in two ways. {weight.name} is {pairs[weight].key} if they are "
            f"those of attributes, and {found[weight].key} if they are the paths that Keras gave the variables, by "
            "number. Say which, for every such name:\n"
            f"  train.rename = [('^{match.names[pairs[weight]]}$', '{weight.name}'), ...]"
        )
    return found


def _unique(names: dict[Entry, str]) -> dict[str, Entry]:
    counts: dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {name: entry for entry, name in names.items() if counts[name] == 1}


def _judge(weights, pairs, fresh, match: Match, rules: Rules, ordered) -> tuple[list[Record], list[Pair]]:
    records, kept = [], []
    for weight in weights:
        entry = pairs.get(weight)
        common = {"name": weight.name, "shape": weight.shape, "dtype": weight.dtype.name}
        if entry is not None:
            common |= {
                "key": entry.key,
                "checkpoint_shape": entry.shape,
                "checkpoint_dtype": entry.dtype.name,
            }
        if weight in fresh:
            records.append(Record(status="reinitialized", rule=fresh[weight], **common))
            continue
        if entry is None:
            records.append(Record(status="missing", **common))
            continue
        rows = rows_for(weight.name, weight.shape, entry.shape, rules.grow, rules.copy_rows)
        if (entry.shape != weight.shape and rows is None) or not _castable(entry.dtype, weight.dtype):
            records.append(Record(status="mismatched", **common))
            continue
        notes = [] if entry.dtype == weight.dtype else [f"cast from {entry.dtype.name} to {weight.dtype.name}"]
        notes += [rows.note(weight.shape[rows.axis])] if rows else []
        notes += ["by order"] if weight in ordered else [match.notes[entry]] if entry in match.notes else []
        rule = (
            rows.rule if rows else "rename" if entry in match.moved else "match = 'order'" if weight in ordered else ""
        )
        records.append(Record(status="restored", rule=rule, note=", ".join(notes), **common))
        kept.append(Pair(weight, entry, rows))
    return records, kept


def _unused(match: Match, pairs, fresh, rules: Rules, records: list[Record]) -> list[Record]:
    # What a reinitialized variable would have taken is left over by the same rule.
    left_by_rule = {pairs[weight]: rule for weight, rule in fresh.items() if weight in pairs}
    used = set(pairs.values()) - set(left_by_rule)
    homes: dict[tuple, list[str]] = {}
    for record in records:
        if record.status == "missing":
            for kinship in (_kinship(record.name, record.shape), (_NUMBERED, record.shape)):
                homes.setdefault(kinship, []).append(record.name)
    found = []
    for entry, name in match.names.items():
        if entry.kind != "weight" or entry in used:
            continue
        rule = left_by_rule.get(entry) or matching_rule((name, entry.name), rules.ignore) or ""
        rule = rule or f"root = {rules.root!r}" * (entry in match.outside)
        rule = rule or "the same variable a second time" * (entry in match.twins)
        found.append(
            Record(
                name=name, status="unused", key=entry.key, checkpoint_shape=entry.shape,
                checkpoint_dtype=entry.dtype.name, rule=rule,
                likely_home="" if rule else _likely_home(name, homes.get(_kinship(name, entry.shape), [])),
            )
        )  # fmt: skip
    return found


def _kinship(name: str, shape) -> tuple:
    leaf = name.rsplit("/", 1)[-1]
    return _NUMBERED if leaf.isdigit() else leaf, shape


def _likely_home(name: str, kin: list[str]) -> str:
    """The one missing variable of the same leaf name and shape, or of several the one that is spelled most alike."""
    if len(kin) > _MOST_KIN:
        return ""
    leaf = name.rsplit("/", 1)[-1]
    spelled = {f"{other.rsplit('/', 1)[0]}/{leaf}" if leaf.isdigit() else other: other for other in kin}
    near = difflib.get_close_matches(name, list(spelled), n=1, cutoff=0.0 if len(kin) == 1 else 0.6)
    return spelled[near[0]] if near else ""


def _castable(source: tf.DType, target: tf.DType) -> bool:
    return source == target or (source.is_floating and target.is_floating)


def _idle_rules(rules: Rules, match: Match, records: list[Record], weights: list[LiveVariable]) -> list[str]:
    """Rules that fit nothing; a mistyped one should not go unnoticed."""
    names = [(name, entry.name) for entry, name in match.names.items()]
    idle = [
        f"rename {pattern!r}"
        for pattern, _ in rules.rename
        if not any(re.search(pattern, spelling) for pair in names for spelling in pair)
    ]
    idle += [
        f"ignore {pattern!r}" for pattern in rules.ignore if not any(matching_rule(pair, [pattern]) for pair in names)
    ]
    used = {record.rule for record in records}
    named = [*rules.grow, *(pattern for pattern, _ in rules.copy_rows)]
    return idle + [
        f"{'grow' if pattern in rules.grow else 'copy_rows'} {pattern!r}" for pattern in named if pattern not in used
    ]
