"""Finds what a file keeps of each variable beside it, under the variable's name with something appended."""

import dataclasses
import os
import re
from collections.abc import Iterator

from trainer.restore.matching.rules import Rules
from trainer.restore.report import Record, RestoreReport
from trainer.restore.trials import Trials

_AVERAGE = re.compile(r"ema\b|average|avg|shadow", re.IGNORECASE)
_MIN_MEMBERS = 2


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
