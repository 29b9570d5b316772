"""Several optimizers from one restored start, over several seeds: one table, one picture, and no winner by chance."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import gin
from rich.console import Console

from trainer.comparison.display import ComparisonDisplay
from trainer.comparison.folder import ComparisonDir
from trainer.comparison.member_run import Job
from trainer.comparison.plan import Plan, read_plan
from trainer.comparison.process import Devices
from trainer.comparison.record import RunRecord, read_records
from trainer.comparison.report import lines_of, sentences_of, terminal_table, write_report
from trainer.comparison.results import read_results
from trainer.comparison.run_members import run_members
from trainer.comparison.same_start import check_same_start
from trainer.config import text_of
from trainer.config.settings import set_by_flag
from trainer.errors import RunAgain, UserError
from trainer.output.model_dir import ModelDirLock

DONE, FAILED = 0, 2

set_by_flag("compare", model_dir="--model_dir", devices="--strategy", parallel="--parallel", dry_run="--dry_run")


@gin.register(module="comparison")
def compare(
    members: Sequence[str] = (),
    num_seeds: int = 3,
    metric: str = "accuracy",
    mode: str = "max",
    target: float | None = None,
    source_data=None,
    model_dir: str | os.PathLike | None = None,
    devices: Devices = Devices(),
    parallel: int = 1,
    dry_run: bool = False,
) -> int:
    """Trains every member with every seed from the same start, and writes what came of it.

    Each run is a process of its own with an ordinary config: the comparison's, with the member's bindings over it.

    members: names of gin scopes; `adam/SGD.momentum = 0.9` belongs to the runs of the member `adam` alone. A gin file
      is a member too: 'configs/optimizers/lora.gin' is the scope `lora` with what the file binds.
    num_seeds: so many from the run's seed on; each decides data order and fresh weights of all members.
    metric, mode: of the evaluation data, and whether "max" or "min" is better.
    target: value of it; how many steps it takes to reach it is reported.
    source_data: of the task that the checkpoint was trained for, to measure what is forgotten; None for not to. Only
      the config sets it: a run's process builds it.
    model_dir: folder of the comparison; each run has a model_dir of its own in it, from which it is resumed.
    devices: of each process.
    parallel: processes at a time.
    dry_run: checks and shows all, trains and writes nothing.

    Returns the exit status: 0 done, 2 if a run failed otherwise than by diverging, 75 if a signal ended it.
    Raises `UserError` for members that differ in more than what optimizes, and whatever else can be mended.
    """
    plan = read_plan(members, num_seeds, metric, mode, target)
    devices.check()
    if not model_dir:
        if dry_run:
            print(_describe(plan, devices))
            return DONE
        raise UserError("--model_dir is missing: it says which folder holds the comparison's files.")
    files = ComparisonDir(Path(model_dir))
    records = read_records(plan, files)
    missing = _missing(records)
    if dry_run or missing:
        print(_describe(plan, devices), flush=True)
    if dry_run:
        print(f"runs             {len(records) - len(missing)} of {len(records)} are done in {files.path}")
        return DONE
    files.whole.create()
    with ModelDirLock(files.whole):
        return _make_and_report(plan, files, devices, parallel)


def _make_and_report(plan: Plan, files: ComparisonDir, devices: Devices, parallel: int) -> int:
    def report():
        write_report(plan, files, read_results(plan, files, read_records(plan, files)))

    whole, records = True, read_records(plan, files)
    jobs = [
        Job(
            files, member, seed, text_of(member, seed),
            text_of(member, seed, with_source_data=True) if plan.has_source_data else None,
            plan.metric, devices, parallel,
        )
        for member, seed in _missing(records)
    ]  # fmt: skip
    if jobs:
        with ComparisonDisplay(plan, files, records) as display:
            whole = run_members(jobs, parallel, display, report)
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
        console.print("Run the same command again to resume from here.")
        return RunAgain.exit_status
    return FAILED if any(result.state == "failed" for result in results) else DONE


def _describe(plan: Plan, devices: Devices) -> str:
    """Builds every member up to its first step, and describes what will be compared."""
    start, alike = check_same_start(plan, devices)
    better = "higher" if plan.higher_is_better else "lower"
    target = "" if plan.target is None else f", target {plan.target:g}"
    lines = [
        f"strategy         {start.strategy}",
        f"comparison       {len(plan.members)} members, seeds {', '.join(map(str, plan.seeds))}, "
        f"{plan.num_steps:,} steps each",
        f"metric           {plan.metric}, {better} is better{target}",
        alike,
    ]
    for member in plan.members:
        first, *more = lines_of(plan, member).splitlines()
        lines += [f"{member:<16} {first}", *(" " * 17 + line for line in more)]
    return "\n".join(lines)


def _missing(records: dict[tuple[str, int], RunRecord | None]) -> list[tuple[str, int]]:
    return [run for run, record in records.items() if record is None or not record.is_done]
