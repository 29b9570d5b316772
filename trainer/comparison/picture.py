"""Draws the learning curves of a comparison: a line a member, in the band of its seeds."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a training machine has no screen
import matplotlib.pyplot as plt  # noqa: E402

from trainer.comparison.plan import Plan  # noqa: E402
from trainer.comparison.results import Result  # noqa: E402

# Okabe and Ito's colours, which people who see colours in another way tell apart too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":")


def draw_comparison(plan: Plan, results: Sequence[Result], path: Path) -> None:
    """Writes a PNG of three panels: the metric, the training loss, the learning rate.

    A line is the mean over the seeds at the steps that all of them have, its band reaches from the lowest to the
    highest. A run that diverged ends with a cross, and is in no line.
    """
    figure, axes = plt.subplots(1, 3, figsize=(14.4, 4.2), constrained_layout=True)
    panels: list[tuple[str, Callable[[Result], list[tuple[int, float]]]]] = [
        (f"{plan.metric}, evaluated", lambda result: result.evaluations),
        ("loss of a training batch", lambda result: _column(result, "loss")),
        ("learning rate", lambda result: _column(result, "learning_rate")),
    ]
    for axis, (title, points) in zip(axes, panels, strict=True):
        lowest = _draw(axis, plan, results, points)
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("step")
        axis.set_xlim(0, plan.num_steps)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if title != panels[0][0] and 0 < lowest < math.inf:
            axis.set_yscale("log")
    if plan.target is not None:
        axes[0].axhline(plan.target, color="0.45", linewidth=0.9, linestyle=(0, (4, 3)))
        axes[0].annotate(
            f"target {plan.target:g}", (plan.num_steps, plan.target), ha="right", va="bottom", fontsize="small",
            color="0.35",
        )  # fmt: skip
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    figure.suptitle(_title(plan), fontsize="medium")
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _draw(axis, plan: Plan, results: Sequence[Result], points: Callable) -> float:
    """Returns the lowest value; infinity where nothing was drawn."""
    lowest = math.inf
    for index, member in enumerate(plan.members):
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": _LINES[index // len(COLOURS) % len(_LINES)]}
        runs = [result for result in results if result.member == member]
        for run in runs:
            ended = points(run)
            if run.state == "diverged" and ended:
                axis.plot(*zip(*ended, strict=True), linewidth=0.8, alpha=0.6, **style)
                axis.plot(*ended[-1], marker="x", markersize=8, **style)
        curves = [dict(points(run)) for run in runs if run.state != "diverged" and points(run)]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if steps:
            values = [[curve[step] for curve in curves] for step in steps]
            low, high = [min(each) for each in values], [max(each) for each in values]
            lowest = min(lowest, *low)
            marker = "o" if len(steps) < 40 else None
            mean = [sum(each) / len(each) for each in values]
            axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
            axis.plot(steps, mean, label=member, marker=marker, markersize=3, linewidth=1.4, **style)
        else:
            axis.plot([], [], label=member, **style)
    return lowest


def _column(result: Result, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in result.training if name in row]


def _title(plan: Plan) -> str:
    count = len(plan.seeds)
    return f"mean and range of {count} seeds" if count > 1 else "one seed: no spread is known"
