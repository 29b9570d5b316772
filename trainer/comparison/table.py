"""The results as a table: a column a member and a row a quantity for people, a row a run for machines."""

import csv
import io
from collections.abc import Callable, Sequence

from trainer.comparison.folder import name_of
from trainer.comparison.plan import Plan
from trainer.comparison.results import Result
from trainer.comparison.spread import spread_of

CSV_COLUMNS = (
    "member", "seed", "state", "optimizer", "metric", "initial", "final", "best", "best_step", "steps_to_target",
    "diverged_at", "wall_seconds", "whole_wall_seconds", "at_a_time", "examples_per_second", "peak_memory_bytes",
    "peak_device_memory_bytes", "source_data", "source_before", "source_after", "message", "model_dir",
)  # fmt: skip


def table_rows(plan: Plan, results: Sequence[Result]) -> list[list[str]]:
    """The table's cells, its header first; quantities that no member has are left out."""
    by_member = {member: [result for result in results if result.member == member] for member in plan.members}

    def row(name: str, cell: Callable[[list[Result]], str]) -> list[str]:
        return [name, *(cell(runs) for runs in by_member.values())]

    def values(get: Callable[[Result], float | None], show: Callable[[float], str] = _number):
        return lambda runs: _spread(map(get, runs), show)

    metric = plan.metric
    rows = [
        row("optimizer", lambda runs: ", ".join(dict.fromkeys(run.optimizer for run in runs if run.optimizer)) or "-"),
        row("runs finished", lambda runs: f"{sum(run.state == 'finished' for run in runs)} of {len(runs)}"),
        row(f"{metric} at step 0", values(lambda run: run.initial)),
        row(f"{metric} at step {plan.num_steps}", values(lambda run: run.final)),
        row(f"best {metric}", values(lambda run: run.best)),
        row("... at step", values(lambda run: run.best_step, _whole)),
        *([row(f"steps to {metric} {plan.target:g}", _steps_to_target)] if plan.target is not None else []),
        row(f"source {metric}, before", values(_recorded("source_before"))),
        row("... after", values(_recorded("source_after"))),
        row("... forgotten", values(_forgotten)),
        row("seconds a run", values(_wall_seconds, lambda value: f"{value:.1f}")),
        row("examples a second", values(lambda run: run.examples_per_second, _whole)),
        row("peak memory, MiB", values(_recorded("peak_memory_bytes"), _mebibytes)),
        row("peak GPU memory, MiB", values(_recorded("peak_device_memory_bytes"), _mebibytes)),
    ]
    always = ("optimizer", "runs finished")
    return [
        ["", *plan.members],
        *(cells for cells in rows if cells[0] in always or any(cell != "-" for cell in cells[1:])),
    ]


def csv_text(plan: Plan, results: Sequence[Result]) -> str:
    """A row a run in full precision; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        sources = (vars(result.record) if result.record else {}) | vars(result)
        values = {name: sources[name] for name in CSV_COLUMNS if name in sources}
        named = {"state": result.state, "metric": plan.metric, "model_dir": name_of(result.member, result.seed)}
        writer.writerow(values | named)
    return text.getvalue()


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _steps_to_target(runs: Sequence[Result]) -> str:
    reached = [run.steps_to_target for run in runs]
    count = sum(step is not None for step in reached)
    if not count:
        return "not reached" if any(run.evaluations for run in runs) else "-"
    return _spread(reached, _whole) + ("" if count == len(runs) else f", {count} of {len(runs)} runs")


def _recorded(name: str) -> Callable[[Result], float | None]:
    return lambda run: getattr(run.record, name) if run.record else None


def _wall_seconds(run: Result) -> float | None:
    return run.record.wall_seconds if run.record and run.state == "finished" and run.record.whole_wall_seconds else None


def _forgotten(run: Result) -> float | None:
    if run.record is None or run.record.source_before is None or run.record.source_after is None:
        return None
    return run.record.source_before - run.record.source_after


def _spread(values, show: Callable[[float], str]) -> str:
    """Mean and range: `0.81 (0.80 to 0.82)`; one value alone where all are the same, `-` where none is known."""
    spread = spread_of(list(values))
    if spread is None:
        return "-"
    low, high = show(spread.low), show(spread.high)
    return show(spread.mean) if low == high else f"{show(spread.mean)} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:,.0f}"
