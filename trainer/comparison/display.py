"""Shows all runs while a comparison runs: a table that moves on a terminal, lines elsewhere."""

import os
import re
import sys
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.comparison.folder import ComparisonDir, name_of
from trainer.comparison.plan import Plan
from trainer.comparison.record import RunRecord

_TAIL_BYTES = 4096


class ComparisonDisplay:
    """Shows every run's state and step; how far a run is, it reads in the run's own log. Used as a context manager."""

    def __init__(self, plan: Plan, files: ComparisonDir, records: dict[tuple[str, int], RunRecord | None]):
        self._plan, self._files = plan, files
        self._records = dict(records)
        self._begun: dict[tuple[str, int], tuple[float, int]] = {}
        # Not `sys.stdout` as it is later: while a run is made that is the run's log.
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live = Live(
            console=self._console, get_renderable=self._table, refresh_per_second=4, redirect_stdout=False,
            redirect_stderr=False,
        )  # fmt: skip
        self._moves = self._console.is_terminal

    def __enter__(self):
        if self._moves:
            self._live.start()
        return self

    def __exit__(self, *unused):
        if self._moves:
            self._live.stop()

    def begin(self, member: str, seed: int) -> None:
        log = self._files.log(member, seed)
        self._begun[member, seed] = (time.monotonic(), log.stat().st_size if log.exists() else 0)
        if not self._moves:
            self._console.print(f"{self._place(member, seed):<10} {name_of(member, seed)} begins")

    def end(self, member: str, seed: int, record: RunRecord | None) -> None:
        start, _ = self._begun.pop((member, seed), (time.monotonic(), 0))
        self._records[member, seed] = record
        if not self._moves:
            state = record.state if record else "was ended"
            reached = progress_in(self._files.log(member, seed))[1]
            more = record.message.splitlines()[0] if record and record.message else reached
            seconds = time.monotonic() - start
            self._console.print(
                f"{self._place(member, seed):<10} {name_of(member, seed)} {state} ({seconds:.1f} s)  {more}".rstrip()
            )

    def _place(self, member: str, seed: int) -> str:
        return f"run {self._plan.runs.index((member, seed)) + 1}/{len(self._plan.runs)}"

    def _table(self):
        table = Table(box=None, pad_edge=False, show_header=False)
        for member, seed in self._plan.runs:
            record, begun = self._records.get((member, seed)), self._begun.get((member, seed))
            state, step, progress, seconds = record.state if record else "waits", 0, "", 0.0
            if begun is not None:
                state, seconds = "running", time.monotonic() - begun[0]
                step, progress = progress_in(self._files.log(member, seed), begun[1])
            elif record is not None:
                state = "waits" if state in ("running", "stopped") else state
                seconds = record.wall_seconds
                step, progress = progress_in(self._files.log(member, seed))
            bar = ProgressBar(total=self._plan.num_steps, completed=step, width=18)
            clock = f"{seconds:.0f} s" if seconds else ""
            table.add_row(name_of(member, seed), state, bar, Text(progress, overflow="ellipsis", no_wrap=True), clock)
        done = sum(record is not None and record.is_done for record in self._records.values())
        return Group(Text(f"{done} of {len(self._records)} runs done"), table)


def progress_in(log: Path, start: int = 0) -> tuple[int, str]:
    """(step, what was said of it) of the last step that a run's log names behind the byte `start`; (0, "") for none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return 0, ""
    for line in reversed(lines):
        # As `progress.StepProgress` writes it, and `experiment.train` at step 0 and at the end.
        found = re.match(r"step (\d+)(?:/\d+)?\s+(.*)", line)
        if found:
            return int(found[1]), found[2]
    return 0, ""
