"""Prints what runs reached, a row a run, from their summary.json.

python -m launch.report --model_dir=runs/digits_adam_to_sgd --model_dir=runs/digits_from_scratch

A run that was stopped shows its last evaluation with its step.
"""

import difflib
import json
import os
from collections.abc import Sequence

from absl import flags
from rich.console import Console
from rich.table import Table

from launch import command_line
from launch.command_line import Mistake

_METRICS = ("initial_metrics", "final_metrics")
# Of a summary, as far as the table shows them.
_FIELDS = ("init_checkpoint", "optimizer", "step", "num_steps", "finished", *_METRICS)

flags.DEFINE_multi_string("model_dir", [], "A run; may be repeated.")
flags.DEFINE_string("metric", None, "Which evaluated metric to show; by default accuracy, or what the runs have.")


def main(words: list[str]) -> int:
    if words:
        raise Mistake(f"Unexpected argument {words[0]!r}; every option is a flag, see --help.")
    if not flags.FLAGS.model_dir:
        raise Mistake("--model_dir is missing: name at least one run.")
    model_dirs = flags.FLAGS.model_dir
    summaries = [_summary(model_dir) for model_dir in model_dirs]
    metric = flags.FLAGS.metric or _usual_metric(summaries)
    for model_dir, summary in zip(model_dirs, summaries, strict=True):
        _check_metric(model_dir, summary, metric)
    table = Table(title=f"{metric} on the evaluation split", title_justify="left")
    for column in ("run", "starts from", "optimizer", "steps", "at step 0", "at the end"):
        table.add_column(column, overflow="fold")
    for name, summary in zip(_short_names(model_dirs), summaries, strict=True):
        table.add_row(*_row(name, summary, metric))
    console = Console(highlight=False, width=None if os.isatty(1) else 110)
    console.print(table)
    for model_dir in model_dirs:
        console.print(f"files {model_dir}   plot {os.path.join(model_dir, 'summary.png')}", soft_wrap=True)
    return 0


def _summary(model_dir: str) -> dict:
    path = os.path.join(model_dir, "summary.json")
    try:
        with open(path) as file:
            summary = json.load(file)
    except FileNotFoundError:
        raise Mistake(f"{model_dir} holds no run that has ended or was stopped: there is no {path}.") from None
    except (OSError, ValueError) as error:
        raise Mistake(f"{path} is not the summary of a run: {error}.") from error
    missing = [name for name in _FIELDS if not isinstance(summary, dict) or name not in summary]
    if missing or not all(isinstance(summary[when], dict) for when in _METRICS):
        raise Mistake(f"{path} is not the summary of a run: it lacks {', '.join(missing) or 'metrics by name'}.")
    return summary


def _metrics_of(summary: dict) -> list[str]:
    last = (summary.get("last_evaluation") or {}).get("metrics", {})
    return list(dict.fromkeys([*summary["initial_metrics"], *summary["final_metrics"], *last]))


def _usual_metric(summaries: Sequence[dict]) -> str:
    """Accuracy, or the first metric beside the loss that all have, or the loss."""
    evaluated = [names for names in map(_metrics_of, summaries) if names]
    common = [name for name in (evaluated or [[]])[0] if all(name in names for names in evaluated)]
    others = [name for name in common if name not in ("loss", "num_examples")]
    return "accuracy" if "accuracy" in common else (others or ["loss"])[0]


def _check_metric(model_dir: str, summary: dict, metric: str) -> None:
    known = _metrics_of(summary)
    if known and metric not in known:
        near = difflib.get_close_matches(metric.lower(), known, 1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known metrics: {', '.join(sorted(known))}."
        raise Mistake(f"{model_dir} was not evaluated by {metric!r}. {hint}")


def _short_names(model_dirs: Sequence[str]) -> list[str]:
    """The last part of each path, or as many parts as tell all of them apart."""
    paths = [os.path.normpath(model_dir).split(os.sep) for model_dir in model_dirs]
    for count in range(1, max(map(len, paths)) + 1):
        names = [os.sep.join(path[-count:]) for path in paths]
        if len(set(names)) == len(set(map(tuple, paths))):
            break
    return names


def _row(name: str, summary: dict, metric: str) -> list[str]:
    first, last = (summary[when].get(metric) for when in _METRICS)
    end = "-" if last is None else f"{last:.3f}"
    evaluation = summary.get("last_evaluation")
    if last is None and evaluation and metric in evaluation["metrics"]:
        end = f"{evaluation['metrics'][metric]:.3f} at step {evaluation['step']}"
    steps = str(summary["step"])
    return [
        name,
        summary["init_checkpoint"] or "random weights",
        summary["optimizer"],
        steps if summary["finished"] else f"{steps} of {summary['num_steps']}, not finished",
        "-" if first is None else f"{first:.3f}",
        end,
    ]


if __name__ == "__main__":
    command_line.run_plain(main)
