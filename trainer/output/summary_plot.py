"""Draws a run in one picture: loss, accuracy and learning rate over the steps."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # a training machine has no screen
import matplotlib.pyplot as plt  # noqa: E402


def draw_summary(rows: list[dict], path, title: str, rates: Sequence[tuple[int, float]] = ()) -> None:
    """Writes a PNG of at most three panels to `path`.

    rows: as `metrics.jsonl` has them; training rows carry no `split`, evaluations name theirs.
    rates: (step, learning rate) of more steps than are in the rows, so that a warm-up shorter than `log_every` is seen.
    The second panel shows every evaluated metric but the loss; without any it is left out.
    A dashed line marks the step at which a phase began.
    """
    training = [row for row in rows if "split" not in row]
    splits = sorted({row["split"] for row in rows if "split" in row})
    evaluated = {split: [row for row in rows if row.get("split") == split] for split in splits}
    names = sorted({name for row in rows if "split" in row for name in row} - {"step", "split", "loss", "num_examples"})

    begun = {row["phase_began"]: row["phase"] for row in training if row.get("phase_began")}

    panels = ["loss"] + (["metrics"] if names else []) + ["learning_rate"]
    width = 4.6 * len(panels)
    # The margins in inches. A layout that Matplotlib finds by itself takes as long as the drawing.
    margins = {
        "left": 0.7 / width,
        "right": 1 - 0.15 / width,
        "bottom": 0.5 / 3.6,
        "top": 1 - 0.65 / 3.6,
        "wspace": 0.24,
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.6), gridspec_kw=margins)
    for panel, axis in zip(panels, axes, strict=True):
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        # Half of the time goes into ticks, and into placing titles that have no place: a few ticks, titles at 1.0.
        axis.locator_params(nbins=5)
        axis.spines[["top", "right"]].set_visible(False)
        for began, phase in begun.items():
            axis.axvline(began, color="0.5", linestyle="--", linewidth=0.9)
            axis.annotate(
                f"phase {phase:g}", (began, 1.0), (2, -2), xycoords=("data", "axes fraction"), va="top",
                textcoords="offset points", fontsize="x-small", color="0.35",
            )  # fmt: skip
        if panel == "metrics":
            axis.set_title(", ".join(names), y=1.0)
            for split in splits:
                for name in names:
                    _line(axis, evaluated[split], name, f"{name} ({split})", marker="o")
        else:
            axis.set_title(panel.replace("_", " "), y=1.0)
            sampled = [{"step": step, panel: rate} for step, rate in rates] if panel == "learning_rate" else []
            _line(axis, sampled or training, panel, "training batch")
            if panel == "loss":
                for split in splits:
                    _line(axis, evaluated[split], "loss", split, marker="o")
        if axis.get_legend_handles_labels()[1] and panel != "learning_rate":
            axis.legend(frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _line(axis, rows: list[dict], name: str, label: str, **style) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        marker = style.get("marker", "o" if len(points) == 1 else None)  # a single point is no line
        axis.plot(*zip(*points, strict=True), label=label, markersize=3, linewidth=1.2, marker=marker)
