"""Reads the results of a run from its files."""

import dataclasses
import json

from trainer.comparison.folder import ComparisonDir
from trainer.comparison.plan import Plan
from trainer.comparison.record import RunRecord
from trainer.errors import UserError
from trainer.output.metric_writer import read_rows


@dataclasses.dataclass(frozen=True)
class Result:
    """One run. Values are those of the comparison's metric.

    final: None unless the run is finished.
    best, best_step: over all evaluations, that of step 0 included.
    steps_to_target: of the first evaluation at the target; None if there was none, or there is no target.
    start: every metric at step 0.
    evaluations: (step, value).
    training: rows of the log, see `metrics.jsonl`.
    """

    member: str
    seed: int
    record: RunRecord | None
    optimizer: str | None = None
    initial: float | None = None
    final: float | None = None
    best: float | None = None
    best_step: int | None = None
    steps_to_target: int | None = None
    examples_per_second: float | None = None
    start: dict = dataclasses.field(default_factory=dict)
    evaluations: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    training: list[dict] = dataclasses.field(default_factory=list)

    @property
    def state(self) -> str:
        return self.record.state if self.record else "not begun"


def read_results(plan: Plan, files: ComparisonDir, records: dict) -> list[Result]:
    """One result a run of the plan, whether it was made or not, in the plan's order."""
    return [_read(plan, files, member, seed, records[member, seed]) for member, seed in plan.runs]


def _read(plan: Plan, files: ComparisonDir, member: str, seed: int, record: RunRecord | None) -> Result:
    run = files.run(member, seed)
    if record is None:
        return Result(member, seed, None)
    rows = read_rows(run.metrics)
    evaluated = [row for row in rows if "split" in row]
    try:
        evaluations = [(row["step"], row[plan.metric]) for row in evaluated]
    except KeyError:
        raise UserError(f"{run.metrics} has evaluations without {plan.metric!r}; choose another --model_dir.") from None
    summary = json.loads(run.summary.read_text()) if record.state == "finished" else {}
    # Of equal ones the first.
    best = min(evaluations, key=lambda at: -at[1] if plan.higher_is_better else at[1], default=(None, None))
    return Result(
        member,
        seed,
        record,
        optimizer=summary.get("optimizer"),
        initial=evaluations[0][1] if evaluations and evaluations[0][0] == 0 else None,
        final=evaluations[-1][1] if record.state == "finished" else None,
        best=best[1],
        best_step=best[0],
        steps_to_target=next((step for step, value in evaluations if plan.reached(value)), None),
        examples_per_second=summary.get("examples_per_second"),
        start={name: value for name, value in (evaluated[0] if evaluated else {}).items() if name != "split"},
        evaluations=evaluations,
        training=[row for row in rows if "split" not in row],
    )
