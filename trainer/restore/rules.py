"""The user's rules, what may be renamed, start fresh or stay unused, and whether they make sense."""

import dataclasses
import difflib
import re
from collections.abc import Sequence

from trainer.restore.live import LiveVariable
from trainer.restore.report import RestoreError


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the user allows. Every pattern is a regex that is searched for in normalised names.

    rename: (pattern, replacement) pairs that turn a checkpoint's name into the model's; they come first.
    reinitialize: weights of the model that keep their fresh values, whatever the checkpoint holds.
    ignore: weights of the checkpoint that may stay unused.

    A name of the checkpoint is written from the object that fits the model (`backbone/kernel`), as in
    the report; the whole path from the file's top (`model/backbone/kernel`) is understood as well.
    """

    rename: Sequence[tuple[str, str]] = ()
    reinitialize: Sequence[str] = ()
    ignore: Sequence[str] = ()

    def renamed(self, name: str, whole_name: str) -> str:
        """The model's name for a checkpoint's, by the first rule that fits; `name` where none does."""
        for pattern, replacement in self.rename:
            for spelling in (name, whole_name):
                if re.search(pattern, spelling):
                    return re.sub(pattern, replacement, spelling, count=1)
        return name


def check_rules(rules: Rules, weights: list[LiveVariable]) -> None:
    """Raises `RestoreError` for what is no regex, and for a fresh start of something that is not there."""
    for what in ("reinitialize", "ignore"):
        if isinstance(getattr(rules, what), str):
            raise RestoreError(f"{what} is a list of patterns; write {what} = [{getattr(rules, what)!r}].")
    for rule in rules.rename:
        if isinstance(rule, str) or len(rule) != 2:
            raise RestoreError(
                f"rename: {rule!r} is not a pair of pattern and replacement; "
                "write e.g. rename = [('^backbone/', 'encoder/')]."
            )
        _check_pattern("rename", rule[0])
        try:
            re.sub(f"{rule[0]}|", rule[1], "")  # matches the empty text, so that the replacement is looked at
        except (re.error, IndexError, TypeError) as error:
            raise RestoreError(f"rename: {rule[1]!r} is no replacement for {rule[0]!r}: {error}.") from error
    for what, patterns in (("reinitialize", rules.reinitialize), ("ignore", rules.ignore)):
        for pattern in patterns:
            _check_pattern(what, pattern)
    for pattern in rules.reinitialize:
        if not any(re.search(pattern, weight.name) for weight in weights):
            raise RestoreError(_matches_nothing(pattern, weights))


def _check_pattern(what: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise RestoreError(f"{what}: {pattern!r} is not a regular expression: {error}.") from error


def _matches_nothing(pattern: str, weights: list[LiveVariable]) -> str:
    names = [weight.name for weight in weights]
    prefixes = {name.rsplit("/", depth)[0] for name in names for depth in range(name.count("/") + 1)}
    near = difflib.get_close_matches(pattern.strip("^$/"), sorted(prefixes), n=1, cutoff=0.4)
    meant = "" if not near else f"'^{near[0]}$'" if near[0] in names else f"'^{near[0]}/'"
    return (
        f"reinitialize: {pattern!r} matches no variable of the model."
        + (f" Did you mean {meant}?" if meant else "")
        + f" Its variables: {', '.join(names[:8])}{', ...' * (len(names) > 8)}."
    )
