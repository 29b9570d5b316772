"""Several optimizers from one restored start, over several seeds: one table, one picture, and no winner by chance."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gin
import tensorflow as tf
from rich.console import Console

from trainer.cluster.strategy import describe_strategy, num_workers
from trainer.comparison.display import ComparisonDisplay
from trainer.comparison.folder import ComparisonDir, name_of
from trainer.comparison.in_parallel import PARENT, make_in_parallel
from trainer.comparison.in_turn import make_in_turn
from trainer.comparison.one_run import make_run
from trainer.comparison.plan import Plan, check_metric, read_plan
from trainer.comparison.record import RunRecord, read_records
from trainer.comparison.report import lines_of, sentences_of, terminal_table, write_report
from trainer.comparison.results import read_results
from trainer.comparison.same_start import check_same_start
from trainer.comparison.signals import leave_with_parent
from trainer.comparison.source_task import check_source
from trainer.config import config_of
from trainer.config.settings import set_by_flag
from trainer.errors import RunAgain, UserError
from trainer.output.model_dir import ModelDirLock
from trainer.suggest import nearest

DONE, FAILED = 0, 2

set_by_flag(
    "compare", model_dir="--model_dir", strategy="--strategy", parallel="--parallel", only="--only",
    dry_run="--dry_run", command="",
)  # fmt: skip


@gin.register(module="comparison")
def compare(
    members: Sequence[str] = (),
    num_seeds: int = 3,
    metric: str = "accuracy",
    mode: str = "max",
    target: float | None = None,
    source_data=None,
    model_dir: str | os.PathLike | None = None,
    strategy: tf.distribute.Strategy | None = None,
    parallel: int = 0,
    only: str | None = None,
    dry_run: bool = False,
    command: Sequence[str] = (),
) -> int:
    """Trains every member with every seed from the same start, and writes what came of it.

    members: names of gin scopes; `adam/SGD.momentum = 0.9` belongs to the runs of the member `adam` alone.
    num_seeds: so many from the run's seed on; each decides data order and fresh weights of all members.
    metric, mode: of the evaluation data, and whether "max" or "min" is better.
    target: value of it; how many steps it takes to reach it is reported.
    source_data: of the task that the checkpoint was trained for, to tell what was forgotten; None for not to.
    model_dir: folder of the comparison; each run has a model_dir of its own in it, and is gone on with.
    strategy: None only with `parallel`, whose processes have their own.
    parallel: processes at a time; 0 makes all runs in this process.  command: what starts one, without `--only`.
    only: makes one run, `adam/seed_0`, and no report.  dry_run: checks and shows all, trains and writes nothing.

    Returns the exit status: 0 done, 2 if a run failed otherwise than by diverging, 75 if a signal ended it.
    Raises `UserError` for members that differ in more than what optimizes, and whatever else can be mended.
    """
    plan = read_plan(members, num_seeds, metric, mode, target)
    if strategy is not None and num_workers(strategy) > 1:
        raise UserError("A comparison runs in one process, or with --parallel in several that know nothing of another.")
    if not model_dir:
        if dry_run:
            print(_describe(plan, _needed(strategy), source_data))
            return DONE
        raise UserError("--model_dir is missing: it says which folder holds the comparison's files.")
    files = ComparisonDir(Path(model_dir))
    records = read_records(plan, files)
    if only is not None:
        run = _chosen(plan, only)
        record = records[run]
        if record is None or not record.is_done:
            if os.environ.get(PARENT):
                leave_with_parent(int(os.environ[PARENT]))
            files.run(*run).create()
            record = make_run(plan, files, *run, _needed(strategy), source_data, max(parallel, 1))
        return _status_of_one(name_of(*run), record)
    missing = _missing(records)
    if dry_run:
        print(_describe(plan, _needed(strategy), source_data))
        print(f"runs             {len(records) - len(missing)} of {len(records)} are done in {files.path}")
        return DONE
    if missing:
        # In a process of its own where the runs are: this one then holds no GPU, and no memory, that they need.
        print(_checked_by(command) if parallel else _describe(plan, _needed(strategy), source_data), flush=True)
    files.whole.create()
    with ModelDirLock(files.whole):
        return _make_and_report(plan, files, strategy, source_data, parallel, command)


def _make_and_report(plan: Plan, files: ComparisonDir, strategy, source_data, parallel, command) -> int:
    def report():
        write_report(plan, files, read_results(plan, files, read_records(plan, files)))

    whole, records = True, read_records(plan, files)
    missing = _missing(records)
    if missing:
        with ComparisonDisplay(plan, files, records) as display:
            if parallel:
                whole = make_in_parallel(plan, files, missing, parallel, command, display, report)
            else:
                whole = make_in_turn(plan, files, missing, _needed(strategy), source_data, display, report)
    report()
    results = read_results(plan, files, read_records(plan, files))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(terminal_table(plan, results))
    for sentence in sentences_of(plan, results):
        console.print(sentence, soft_wrap=True)
    others = files.others(plan.members)
    if others:
        console.print(
            f"not compared     {', '.join(others)}: in the folder, and no members of the config", soft_wrap=True
        )
    console.print(f"report           {files.markdown}, {files.csv.name}, {files.picture.name}, {files.page.name}")
    if not whole:
        console.print("Run the same command again to go on from here.")
        return RunAgain.exit_status
    return FAILED if any(result.state == "failed" for result in results) else DONE


def _describe(plan: Plan, strategy: tf.distribute.Strategy, source_data) -> str:
    """What will be compared, once it was seen that it can be: builds every member up to its first step."""
    check_metric(plan)
    alike = check_same_start(plan, strategy)
    if source_data is not None:
        with config_of(plan.members[0], plan.seeds[0]):
            check_source(source_data, strategy)
    better = "higher" if plan.higher_is_better else "lower"
    target = "" if plan.target is None else f", target {plan.target:g}"
    lines = [
        f"strategy         {describe_strategy(strategy)}",
        f"comparison       {len(plan.members)} members, seeds {', '.join(map(str, plan.seeds))}, "
        f"{plan.num_steps:,} steps each",
        f"metric           {plan.metric}, {better} is better{target}",
        alike,
    ]
    for member in plan.members:
        first, *more = lines_of(plan, member).splitlines()
        lines += [f"{member:<16} {first}", *(" " * 17 + line for line in more)]
    return "\n".join(lines)


def _checked_by(command: Sequence[str]) -> str:
    """The same, printed by a separate process; ends with its message and status if it cannot be compared."""
    done = subprocess.run([*command, "--dry_run"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == FAILED:
        raise UserError(done.stderr.strip().removeprefix("regraft: "))
    if done.returncode:
        raise RuntimeError(f"The check before the first run ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout.rstrip()


def _missing(records: dict) -> list[tuple[str, int]]:
    return [run for run, record in records.items() if record is None or not record.is_done]


def _chosen(plan: Plan, only: str) -> tuple[str, int]:
    known = {name_of(*run): run for run in plan.runs}
    if only not in known:
        raise UserError(f"--only={only} is no run of this comparison.{nearest(only, known, 'runs')}")
    return known[only]


def _needed(strategy: tf.distribute.Strategy | None) -> tf.distribute.Strategy:
    assert strategy is not None
    return strategy


def _status_of_one(name: str, record: RunRecord) -> int:
    print(f"{name:<16} {record.state} {record.message}".rstrip(), flush=True)
    if record.state == "failed":
        raise UserError(record.message)
    return DONE if record.is_done else RunAgain.exit_status
