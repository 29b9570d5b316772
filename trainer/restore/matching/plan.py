"""Decides, without touching a variable, which entry of a checkpoint goes into which weight of a model."""

import dataclasses
import difflib
import re
from collections.abc import Sequence

from trainer.restore.casts import castable
from trainer.restore.matching.by_order import pairs_by_order
from trainer.restore.matching.match import Match, best_match, settle_by_full_names
from trainer.restore.matching.model_tree import LiveVariable, classes_in, live_tree, live_variables, numbered_by_keras
from trainer.restore.matching.names import matching_rule
from trainer.restore.matching.rules import Rows, Rules, check_rules, rows_for
from trainer.restore.matching.torch_layout import torch_note
from trainer.restore.report import Pairing, Record, RestoreReport
from trainer.restore.source import CheckpointSource, Entry, is_copy_of
from trainer.restore.tables import Fill, plan_tables

_NUMBERED = "(a number)"  # the leaf of what a file knows by its place in its layer only
_MAX_KIN = 20  # comparing spellings takes about 0.1 ms a pair; a large model has thousands of equal shapes


@dataclasses.dataclass(frozen=True)
class Pair:
    """A weight that is to be filled, and the entry that it takes, or takes some rows of."""

    weight: LiveVariable
    entry: Entry
    rows: Rows | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """report: what would happen.
    pairs: the weights that are to be filled.
    fills: tables that are to be filled.
    """

    report: RestoreReport
    pairs: list[Pair]
    fills: Sequence[Fill] = ()


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
    pairs, ways = _pairs(weights, match, rules, numbered_by_keras(tree))
    pairs, contradicted = settle_by_full_names(pairs, ways, weights, match, rules, source, classes)
    ordered, no_weights = (
        pairs_by_order(tree, weights, pairs, source, classes, rules, match.names)
        if rules.match == "order"
        else ({}, set())
    )
    pairs |= ordered
    ways |= dict.fromkeys(ordered.values(), Pairing.BY_ORDER)
    fresh = {weight: rule for weight in weights if (rule := matching_rule(weight.name, rules.reinitialize))}

    records, kept = _judge(weights, pairs, ways, fresh, match, rules, contradicted)
    records += _unused(source, match, pairs, fresh, rules, records)
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
    return Plan(report, kept, plan_tables(model, tree, source, rules, report))


def _pairs(
    weights: list[LiveVariable], match: Match, rules: Rules, numbered: set[int]
) -> tuple[dict[LiveVariable, Entry], dict[Entry, Pairing]]:
    """Each weight's entry, by rule or by structure, else by a full name that only one entry has; and how."""
    pairs: dict[LiveVariable, Entry] = {}
    ways: dict[Entry, Pairing] = {}

    def take(weight: LiveVariable, entry: Entry | None, way: Pairing | None) -> None:
        if entry is not None and weight not in pairs and entry not in ways:
            pairs[weight] = entry
            ways[entry] = way or match.ways[entry]

    for by_rename in (True, False):  # what the user said comes first
        for weight in weights:
            if (id(weight.variable) in match.by_rename) == by_rename:
                take(weight, match.pairs.get(id(weight.variable)), Pairing.BY_RULE if by_rename else None)
    left = {entry: name for entry, name in match.names.items() if entry not in ways}
    renamed = {e: rules.renamed(name, e.name) if e in match.moved else name for e, name in left.items()}
    for is_outside in (False, True):  # what a named root leads to comes before what is called the same elsewhere
        by_name = _unique({entry: name for entry, name in renamed.items() if (entry in match.outside) == is_outside})
        for weight in weights:
            if id(weight.variable) not in numbered:  # such a name is equal by chance
                entry = by_name.get(weight.name)
                take(weight, entry, Pairing.BY_RULE if entry in match.moved else Pairing.BY_NAME)
    return pairs, ways


def _unique(names: dict[Entry, str]) -> dict[str, Entry]:
    counts: dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {name: entry for entry, name in names.items() if counts[name] == 1}


def _judge(
    weights, pairs, ways, fresh, match: Match, rules: Rules, contradicted: dict[LiveVariable, str]
) -> tuple[list[Record], list[Pair]]:
    records, kept = [], []
    for weight in weights:
        entry = pairs.get(weight)
        common = {"name": weight.name, "shape": weight.shape, "dtype": weight.dtype.name}
        if entry is not None:
            common |= {
                "key": entry.key,
                "checkpoint_shape": entry.shape,
                "checkpoint_dtype": entry.dtype.name,
                "paired": ways[entry],
            }
        if weight in fresh:
            records.append(Record(status="reinitialized", rule=fresh[weight], **common))
            continue
        if entry is None:
            records.append(Record(status="missing", note=contradicted.get(weight, ""), **common))
            continue
        if layout := torch_note(weight.name, weight.shape, entry):
            records.append(Record(status="mismatched", note=layout, **common))
            continue
        rows = rows_for(weight.name, weight.shape, entry.shape, rules.grow, rules.copy_rows)
        if (entry.shape != weight.shape and rows is None) or not castable(entry.dtype, weight.dtype):
            records.append(Record(status="mismatched", **common))
            continue
        notes = [] if entry.dtype == weight.dtype else [f"cast from {entry.dtype.name} to {weight.dtype.name}"]
        notes += [rows.note(weight.shape[rows.axis])] if rows else []
        notes += _note_of_place(ways[entry], entry, match)
        by_order = ways[entry] == Pairing.BY_ORDER
        rule = rows.rule if rows else "rename" if entry in match.moved else "match = 'order'" if by_order else ""
        records.append(Record(status="restored", rule=rule, note=", ".join(notes), **common))
        kept.append(Pair(weight, entry, rows))
    return records, kept


def _note_of_place(way: Pairing, entry: Entry, match: Match) -> list[str]:
    """The file's name of an entry that was paired by nothing but its place."""
    if way == Pairing.BY_PLACE:
        return [f"by place, where the file has {entry.label or match.names.get(entry, entry.name)}"]
    return [str(way.value)] if way == Pairing.BY_ORDER else []


def _unused(source: CheckpointSource, match: Match, pairs, fresh, rules: Rules, records: list[Record]) -> list[Record]:
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
        twin = match.twins.get(entry)
        note = ""
        if twin is not None and not rule:
            if is_copy_of(source, entry, twin):
                rule = "the same variable a second time"
            else:
                note = f"stands for the same variable as {match.names.get(twin, twin.name)}, and is another one"
        found.append(
            Record(
                name=name, status="unused", key=entry.key, checkpoint_shape=entry.shape,
                checkpoint_dtype=entry.dtype.name, rule=rule, note=note,
                likely_home="" if rule else _likely_home(name, homes.get(_kinship(name, entry.shape), [])),
            )
        )  # fmt: skip
    return found


def _kinship(name: str, shape) -> tuple:
    leaf = name.rsplit("/", 1)[-1]
    return _NUMBERED if leaf.isdigit() else leaf, shape


def _likely_home(name: str, kin: list[str]) -> str:
    """The one missing variable of the same leaf name and shape, or of several the one that is spelled most alike."""
    if len(kin) > _MAX_KIN:
        return ""
    leaf = name.rsplit("/", 1)[-1]
    spelled = {f"{other.rsplit('/', 1)[0]}/{leaf}" if leaf.isdigit() else other: other for other in kin}
    near = difflib.get_close_matches(name, list(spelled), n=1, cutoff=0.0 if len(kin) == 1 else 0.6)
    return spelled[near[0]] if near else ""


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
