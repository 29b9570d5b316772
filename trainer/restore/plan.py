"""Decides, without touching a variable, which entry of a checkpoint goes into which weight of a model."""

import dataclasses
import difflib

import tensorflow as tf

from trainer.restore.live import LiveVariable, live_tree, live_variables
from trainer.restore.match import Match, best_match
from trainer.restore.names import matching_rule
from trainer.restore.report import Record, RestoreReport
from trainer.restore.rules import Rules, check_rules
from trainer.restore.source import CheckpointSource, Entry

_MOST_KIN = 20  # comparing spellings takes about 0.1 ms a pair; a large model has thousands of equal shapes


@dataclasses.dataclass(frozen=True)
class Plan:
    """report: what would happen.  pairs: the weights that are to be filled, each with its entry."""

    report: RestoreReport
    pairs: list[tuple[LiveVariable, Entry]]


def plan_restore(model, source: CheckpointSource, rules: Rules) -> Plan:
    """Matches a built model with a checkpoint: the user's rules first, then structure, then unique names.

    Raises `RestoreError` for a bad rule or an ambiguous root; everything else that is wrong is in
    the report (`report.problems`), for the caller to judge.
    """
    tree = live_tree(model)
    weights = live_variables(model, tree)
    check_rules(rules, weights)
    match = best_match(tree, weights, source, rules)
    pairs = _pairs(weights, match, rules)
    fresh = {weight: rule for weight in weights if (rule := matching_rule(weight.name, rules.reinitialize))}

    records, kept = _judge(weights, pairs, fresh, match)
    records += _unused(match, pairs, fresh, rules, records)
    used = set(pairs.values())
    report = RestoreReport(
        checkpoint=source.path,
        format=source.format,
        records=records,
        optimizer_keys=[entry.key for entry in source.of_kind("optimizer")],
        counter_keys=[entry.key for entry in source.of_kind("counter") if entry not in used],
        other_keys=[entry.key for entry in source.of_kind("other") if entry not in used],
    )
    return Plan(report, kept)


def _pairs(weights: list[LiveVariable], match: Match, rules: Rules) -> dict[LiveVariable, Entry]:
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
    by_name = _unique({e: rules.renamed(name, e.name) if e in match.moved else name for e, name in left.items()})
    for weight in weights:
        take(weight, by_name.get(weight.name))
    return pairs


def _unique(names: dict[Entry, str]) -> dict[str, Entry]:
    counts: dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {name: entry for entry, name in names.items() if counts[name] == 1}


def _judge(weights, pairs, fresh, match: Match) -> tuple[list[Record], list[tuple[LiveVariable, Entry]]]:
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
        elif entry is None:
            records.append(Record(status="missing", **common))
        elif entry.shape != weight.shape or not _castable(entry.dtype, weight.dtype):
            records.append(Record(status="mismatched", **common))
        else:
            note = "" if entry.dtype == weight.dtype else f"cast from {entry.dtype.name} to {weight.dtype.name}"
            rule = "rename" if entry in match.moved else ""
            records.append(Record(status="restored", rule=rule, note=note, **common))
            kept.append((weight, entry))
    return records, kept


def _unused(match: Match, pairs, fresh, rules: Rules, records: list[Record]) -> list[Record]:
    # What a reinitialized variable would have taken is left over by the same rule.
    left_by_rule = {pairs[weight]: rule for weight, rule in fresh.items() if weight in pairs}
    used = set(pairs.values()) - set(left_by_rule)
    homes: dict[tuple, list[str]] = {}
    for record in records:
        if record.status == "missing":
            homes.setdefault(_kinship(record.name, record.shape), []).append(record.name)
    found = []
    for entry, name in match.names.items():
        if entry.kind != "weight" or entry in used:
            continue
        rule = left_by_rule.get(entry) or matching_rule((name, entry.name), rules.ignore) or ""
        found.append(
            Record(
                name=name, status="unused", key=entry.key, checkpoint_shape=entry.shape,
                checkpoint_dtype=entry.dtype.name, rule=rule,
                likely_home="" if rule else _likely_home(name, homes.get(_kinship(name, entry.shape), [])),
            )
        )  # fmt: skip
    return found


def _kinship(name: str, shape) -> tuple:
    return name.rsplit("/", 1)[-1], shape


def _likely_home(name: str, kin: list[str]) -> str:
    """The one missing variable of the same leaf name and shape, or of several the one that is spelled most alike."""
    if len(kin) > _MOST_KIN:
        return ""
    near = difflib.get_close_matches(name, kin, n=1, cutoff=0.0 if len(kin) == 1 else 0.6)
    return near[0] if near else ""


def _castable(source: tf.DType, target: tf.DType) -> bool:
    return source == target or (source.is_floating and target.is_floating)
