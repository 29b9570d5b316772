"""Plans a restore with other rules than the user's, to see what they would change before proposing them."""

import dataclasses
from collections.abc import Callable

from trainer.restore.errors import RestoreError
from trainer.restore.matching.rules import Rules
from trainer.restore.report import RestoreReport

_MAX_PLANS = 12  # a plan of a large model takes a second


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Rules that were tried, and the report of the plan that was made with them.

    rules: all of them, the user's own too.
    why: what sets it apart from other proposals, "" where nothing does.
    dropped: how many weights of the file stay behind, or variables fresh, which was not the user's wish.
    """

    rules: Rules
    report: RestoreReport
    why: str
    dropped: int

    @property
    def left(self) -> int:
        return len(self.report.problems)

    def lines(self, before: Rules) -> list[str]:
        """The lines of gin for what differs from the rules as they were."""
        names = [field.name for field in dataclasses.fields(Rules)]
        changed = [name for name in names if getattr(self.rules, name) != getattr(before, name)]
        return [f"  Restore.{name} = {getattr(self.rules, name)!r}" for name in changed]


class Trials:
    """Plans with other rules than the user's, each made once, and no more than a dozen."""

    def __init__(self, plan: Callable[[Rules], RestoreReport], rules: Rules):
        self._plan = plan
        self.rules = rules
        self._known: dict[str, RestoreReport | RestoreError] = {}

    def report(self, rules: Rules) -> RestoreReport | None:
        """None where the plan is refused as a whole, or too many were made already."""
        outcome = self._outcome(rules)
        return outcome if isinstance(outcome, RestoreReport) else None

    def refusal(self, rules: Rules) -> str:
        outcome = self._outcome(rules)
        return str(outcome) if isinstance(outcome, RestoreError) else ""

    def _outcome(self, rules: Rules) -> RestoreReport | RestoreError | None:
        key = repr(rules)
        if key not in self._known and len(self._known) < _MAX_PLANS:
            try:
                self._known[key] = self._plan(rules)
            except RestoreError as error:
                self._known[key] = error
        return self._known.get(key)
