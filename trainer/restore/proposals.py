"""Searches for rules that let a refused restore succeed, and tries each before anybody reads it."""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.restore.errors import UndecidedRestore
from trainer.restore.matching.rules import Rules, changed_axis
from trainer.restore.renames import Home, is_in_bare_list, likely_renames, possible_homes, same_kind
from trainer.restore.report import Record, RestoreReport
from trainer.restore.trials import Proposal, Trials

_MAX_CHOICES = 4  # more alternatives than that are no help
_MAX_PATTERNS = 30  # more than a person would read before pasting them
_ROWS = {0: 0, 1: 1}

# What may become of a variable that has another length in the file, the most of the file first.
_GROW, _COPY_ROWS, _FRESH = "grow", "copy_rows", "reinitialize"
_WAYS = {
    _GROW: "the checkpoint's rows come first, the new ones stay fresh",
    _COPY_ROWS: "rows of what both have, as {the checkpoint's row: the model's row}",
    _FRESH: "all of it starts fresh",
}
_AVERAGE = re.compile(r"ema\b|average|avg|shadow", re.IGNORECASE)
_MIN_MEMBERS = 2


def proposals(report: RestoreReport, trials: Trials) -> list[Proposal]:
    """The proposals that leave fewest problems, the best first; none where no rule helps.

    None of them takes away what is restored without it, or leaves a variable fresh that the file might fill.
    """
    found: list[Proposal] = []
    for ways in itertools.zip_longest(*(_finished(*start, report, trials) for start in _starts(report, trials))):
        found += [proposal for proposal in ways if proposal is not None]
    restored = {record.name for record in report.restored}
    found = [
        proposal
        for proposal in found
        if proposal.left < len(report.problems)
        and restored <= {record.name for record in proposal.report.restored}
        and set(proposal.report.idle_rules) <= set(report.idle_rules)
    ]
    return _best(found)


def choices(undecided: UndecidedRestore, trials: Trials) -> list[Proposal]:
    """For a restore that has several ways to go: each way, with what else it needs."""
    found: list[Proposal] = []
    for choice in undecided.choices[:_MAX_CHOICES]:
        rules = dataclasses.replace(trials.rules, **choice)
        there = trials.report(rules)
        if there is not None:
            found += _finished("", rules, there, there, trials)[:1]
    return _best(found)


def spare_weights(report: RestoreReport) -> list[Record]:
    """Weights of the file that nothing takes, and that the user did not ask to leave behind.

    What a root that was named leaves outside counts, unless it is a copy of what is restored.
    """
    restored = tuple(f"/{record.name}" for record in report.restored)
    return [
        record
        for record in report.unused
        if not record.rule or (record.rule.startswith("root = ") and not f"/{record.name}".endswith(restored))
    ]


def wanting(report: RestoreReport) -> list[Record]:
    return report.missing + report.mismatched


def _best(found: list[Proposal]) -> list[Proposal]:
    """Those that leave fewest problems; what drops nothing makes what drops something needless."""
    unique = list({repr(proposal.rules): proposal for proposal in found}.values())
    least = min((proposal.left for proposal in unique), default=0)
    best = [proposal for proposal in unique if proposal.left == least]
    whole = [proposal for proposal in best if not proposal.dropped]
    return (whole or best)[:_MAX_CHOICES]


def _starts(report: RestoreReport, trials: Trials) -> Iterator[tuple[str, Rules, RestoreReport]]:
    """(what it is, rules, report) of what to decide first: which of two weights of one name, or the order."""
    suffixed = False
    for why, rules in suffix_choices(report, trials):
        there = trials.report(rules)
        if there is not None:
            suffixed = True
            yield why, rules, there
    if not suffixed:
        yield "", trials.rules, report
    if report.missing and trials.rules.match != "order":
        for rules in _in_order(report, trials.rules):
            there = trials.report(rules)
            if there is not None:
                yield "by the places in a list of the file, if the model was built by the same code", rules, there
                return


def _in_order(report: RestoreReport, rules: Rules) -> Iterator[Rules]:
    """The order alone; else with a fresh start for what has another shape in a list as long as the model's."""
    rules = dataclasses.replace(rules, match="order")
    yield rules
    ours = [record for record in report.records if record.status != "unused"]
    numbered = [record for record in report.unused if is_in_bare_list(record.name)]
    if len(ours) == len(numbered):
        pairs = zip(ours, numbered, strict=True)
        resized = [record for record, other in pairs if record.shape != other.checkpoint_shape]
        if 0 < len(resized) < len(ours):
            yield dataclasses.replace(rules, reinitialize=[*rules.reinitialize, *_covering(resized, ours)])


def _finished(why: str, rules: Rules, there: RestoreReport, base: RestoreReport, trials: Trials) -> list[Proposal]:
    rules, there = _renamed(rules, there, trials)
    found = []
    # To excuse everything would be no restore.
    homes = possible_homes(wanting(there), spare_weights(there)) if there.restored else []
    for way in _WAYS if there.problems and there.restored else ():
        settled = _settled(rules, there, way, homes)
        report = None if settled is None else trials.report(settled)
        if settled is not None and report is not None:
            note = _WAYS[way] if there.mismatched else ""
            dropped = _dropped(report, base, there)
            found.append(Proposal(settled, report, ", ".join(filter(None, (why, note))), dropped))
    return found or [Proposal(rules, there, why, _dropped(there, base, there))]


def _dropped(report: RestoreReport, base: RestoreReport, there: RestoreReport) -> int:
    """How many records are excused that were not before; what does not fit by its shape is no loss."""
    excused = [record for record in report.unused if record.rule] + report.reinitialized
    before = {record.key or record.name for record in base.unused + base.reinitialized if record.rule}
    before |= {record.key or "" for record in base.mismatched + there.mismatched}
    return sum((record.key or record.name) not in before for record in excused)


def _renamed(rules: Rules, report: RestoreReport, trials: Trials) -> tuple[Rules, RestoreReport]:
    """With the renames that are likely meant; a second look finds what the first ones made plain."""
    for _ in range(2):
        pairs = likely_renames(wanting(report), spare_weights(report), [record.name for record in report.restored])
        changed = dataclasses.replace(rules, rename=list(dict.fromkeys([*pairs, *rules.rename])))
        there = trials.report(changed) if 0 < len(pairs) <= _MAX_PATTERNS else None
        if there is None or len(there.problems) >= len(report.problems):
            break
        rules, report = changed, there
    return rules, report


def _settled(rules: Rules, report: RestoreReport, way: str, homes: Sequence[Home]) -> Rules | None:
    """With a word on everything that is left over, but for what may belong together; None where `way` fits nothing."""
    held_back = {record.name for variables, _ in homes for record in variables}
    held_behind = {record.key for _, weights in homes for record in weights}
    sized = [r for r in report.mismatched if r.name not in held_back and same_kind(r) and _fits_way(r, way)]
    if way != _FRESH and not sized:
        return None
    fresh = [r for r in wanting(report) if r.name not in held_back and r not in sized]
    fresh = [r for r in fresh if r.status == "missing" or r.shape != r.checkpoint_shape]
    behind = [r for r in report.unused if not r.rule and r.key not in held_behind]
    ours = [record for record in report.records if record.status != "unused"]
    ignored = _covering(behind, report.records) + _of_tables(report)
    changes: dict[str, list] = {_FRESH: _covering(fresh, ours), "ignore": ignored}
    if way != _FRESH:
        patterns = _covering(sized, ours)
        changes[way] = patterns if way == _GROW else [(pattern, _ROWS) for pattern in patterns]
    changes = {name: found for name, found in changes.items() if 0 < len(found) <= _MAX_PATTERNS}
    more: dict[str, Any] = {name: [*getattr(rules, name), *new] for name, new in changes.items()}
    return dataclasses.replace(rules, **more)


def _of_tables(report: RestoreReport) -> list[str]:
    """Patterns for vocabularies and the like that the model may keep; one that is empty it cannot."""
    return [f"^{re.escape(table.key or table.name)}$" for table in report.table_problems if table.status != "empty"]


def _fits_way(record: Record, way: str) -> bool:
    assert record.shape is not None and record.checkpoint_shape is not None
    axis = changed_axis(record.shape, record.checkpoint_shape, -1)
    if axis is None or record.shape == record.checkpoint_shape or way == _FRESH:
        return False
    ours, theirs = record.shape[axis], record.checkpoint_shape[axis]
    return ours > theirs if way == _GROW else min(ours, theirs) >= len(_ROWS)


def _covering(wanted: Sequence[Record], records: Sequence[Record]) -> list[str]:
    """Patterns, each as short as it can be, that match every wanted name and no other of the records' names.

    Where they are too many, those that differ in their numbers only become one.
    """
    those = {id(record) for record in wanted}
    others = [record for record in records if id(record) not in those]
    kept = {prefix for record in others for prefix in _prefixes(record.name)}
    patterns = []
    for record in wanted:
        shortest = next((prefix for prefix in _prefixes(record.name) if prefix not in kept), record.name)
        patterns.append(f"^{re.escape(shortest)}{'$' if shortest == record.name else '/'}")
    patterns = list(dict.fromkeys(patterns))
    if len(patterns) <= _MAX_PATTERNS:
        return patterns
    shorter = list(dict.fromkeys(re.sub(r"\d+", r"\\d+", pattern) for pattern in patterns))
    return patterns if any(re.search(p, r.name) for p in shorter for r in others) else shorter


def _prefixes(name: str) -> list[str]:
    segments = name.split("/")
    return ["/".join(segments[: count + 1]) for count in range(len(segments))]


def suffix_choices(report: RestoreReport, trials: Trials) -> Iterator[tuple[str, Rules]]:
    """(which weights, rules) for a file that has a second set of weights, under longer names, or that set alone.

    `x/kernel/ExponentialMovingAverage` beside `x/kernel`, for one: the averages may be left behind, or taken instead.
    """
    rules = trials.rules
    spare = [record for record in report.unused if not record.rule]
    beside = _beside(report, spare)
    if beside:
        patterns = [f"{re.escape(tail)}$" for tail in beside]
        without = dataclasses.replace(rules, ignore=[*rules.ignore, *patterns])
        yield f"the weights without {', '.join(beside)} at the end of their names", without
    for tail, plain_keys in beside.items():
        if _AVERAGE.search(tail):
            others = [f"{re.escape(other)}$" for other in beside if other != tail]
            ignoring = dataclasses.replace(rules, ignore=[*rules.ignore, *others])
            yield from _instead(tail, plain_keys, ignoring, trials)
    for tail in () if beside else _alone(report, spare):
        yield "", _without(tail, rules)


def _beside(report: RestoreReport, spare: list[Record]) -> dict[str, set[str]]:
    """{end of names: keys of the weights that have the same names without it, and the same shapes}."""
    shapes = {record.key: record.checkpoint_shape for record in report.records if record.key}
    lengths = {len(key) for key in shapes}
    found: dict[str, set[str]] = {}
    for record in spare:
        key = record.key or ""
        plain = next(
            (
                key[:n]
                for n in range(len(key) - 1, 0, -1)
                if n in lengths and shapes.get(key[:n]) == record.checkpoint_shape
            ),
            None,
        )
        if plain is not None:
            tail = key[len(plain) :]
            tail = tail if record.name.endswith(tail) else tail.replace(".", "/")
            if record.name.endswith(tail):
                found.setdefault(tail, set()).add(plain)
    return {tail: keys for tail, keys in found.items() if len(keys) >= _MIN_MEMBERS}


def _instead(tail: str, plain_keys: set[str], rules: Rules, trials: Trials) -> Iterator[tuple[str, Rules]]:
    renamed = _without(tail, rules)
    report = trials.report(renamed)
    if report is None:
        return
    spare = [record for record in report.unused if not record.rule]
    plain = [record for record in spare if record.key in plain_keys]
    # One pattern says it if nothing else is left over that it would excuse.
    short = [rf"^(?!.*{re.escape(tail)}$)"]
    patterns = short if len(plain) == len(spare) else [f"^{re.escape(record.name)}$" for record in plain]
    yield f"the weights with {tail} at the end", dataclasses.replace(renamed, ignore=[*rules.ignore, *patterns])


def _alone(report: RestoreReport, spare: list[Record]) -> list[str]:
    """An end that names of the file have and those of the model have not, of as many weights as possible."""
    wanted = {(record.name.split("/")[-1], record.shape) for record in report.missing}
    ends = {"/" + record.name.split("/")[-1] for record in spare if "/" in record.name}
    ends.add(os.path.commonprefix([record.name[::-1] for record in spare])[::-1])
    members = {
        end: sum((record.name.removesuffix(end).split("/")[-1], record.checkpoint_shape) in wanted for record in named)
        for end in ends
        if end and (named := [record for record in spare if record.name.endswith(end)])
    }
    found = [end for end in sorted(members, key=lambda end: -members[end]) if members[end] >= _MIN_MEMBERS]
    return found[:1]


def _without(tail: str, rules: Rules) -> Rules:
    return dataclasses.replace(rules, rename=[(rf"^(.*){re.escape(tail)}$", r"\1"), *rules.rename])
