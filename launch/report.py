"""Prints what finished runs reached, a row a run, from their summary.json.

python -m launch.report --model_dir=runs/digits_adam_to_sgd --model_dir=runs/digits_from_scratch
"""

import difflib
import json
import os

from absl import flags
from rich.console import Console
from rich.table import Table

from launch import command_line
from launch.command_line import Mistake

_METRICS = ("initial_metrics", "final_metrics")
_FIELDS = ("init_checkpoint", "optimizer", "step", *_METRICS)  # of a summary, as far as the table shows them

flags.DEFINE_multi_string("model_dir", [], "A finished run; may be repeated.")
flags.DEFINE_string("metric", "accuracy", "Which evaluated metric to show.")


def main(words: list[str]) -> int:
    if words:
        raise Mistake(f"Unexpected argument {words[0]!r}; every option is a flag, see --help.")
    if not flags.FLAGS.model_dir:
        raise Mistake("--model_dir is missing: name at least one finished run.")
    table = Table(title=f"{flags.FLAGS.metric} on the evaluation split", title_justify="left")
    for column in ("run", "starts from", "optimizer", "steps", "at step 0", "at the end"):
        table.add_column(column, overflow="fold")
    for model_dir in flags.FLAGS.model_dir:
        table.add_row(*_row(model_dir, flags.FLAGS.metric))
    console = Console(highlight=False, width=None if os.isatty(1) else 110)
    console.print(table)
    for model_dir in flags.FLAGS.model_dir:
        console.print(f"files {model_dir}   plot {os.path.join(model_dir, 'summary.png')}", soft_wrap=True)
    return 0


def _row(model_dir: str, metric: str) -> list[str]:
    path = os.path.join(model_dir, "summary.json")
    try:
        with open(path) as file:
            summary = json.load(file)
    except FileNotFoundError:
        raise Mistake(f"{model_dir} holds no finished run: there is no {path}.") from None
    except (OSError, ValueError) as error:
        raise Mistake(f"{path} is not the summary of a run: {error}.") from error
    missing = [name for name in _FIELDS if not isinstance(summary, dict) or name not in summary]
    if missing or not all(isinstance(summary[when], dict) for when in _METRICS):
        raise Mistake(f"{path} is not the summary of a run: it lacks {', '.join(missing) or 'metrics by name'}.")
    known = {name for when in _METRICS for name in summary[when]}
    if known and metric not in known:
        near = difflib.get_close_matches(metric.lower(), known, 1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known metrics: {', '.join(sorted(known))}."
        raise Mistake(f"{model_dir} was not evaluated by {metric!r}. {hint}")
    values = [summary[when].get(metric) for when in _METRICS]
    return [
        os.path.basename(model_dir.rstrip("/")),
        summary["init_checkpoint"] or "random weights",
        summary["optimizer"],
        str(summary["step"]),
        *("-" if value is None else f"{value:.3f}" for value in values),
    ]


if __name__ == "__main__":
    command_line.run_plain(main)
