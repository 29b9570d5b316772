"""Shows a restore: a bar when it takes longer than two seconds, and five lines in the log."""

import sys
import time

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.output.printable import printable
from trainer.restore.report import RestoreReport

_PATIENCE_SECONDS = 2.0


class RestoreProgress:
    """A context manager; `show` draws nothing before two seconds have passed, and only on a terminal."""

    def __init__(self):
        self._console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._started = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        if self._bar:
            self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """done, total: in bytes; each is counted three times: tested, assigned, compared."""
        if self._bar is None:
            if not self._console.is_terminal or time.monotonic() - self._started < _PATIENCE_SECONDS:
                return
            columns = (
                TextColumn("restore"),
                BarColumn(bar_width=24),
                DownloadColumn(),
                TimeRemainingColumn(compact=True),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._bar.add_task("restore")
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)


def log_report(report: RestoreReport) -> None:
    """The restore in five lines at INFO."""
    counts = {
        "reinitialized": report.reinitialized,
        "unused": report.unused,
    }
    left = ", ".join(f"{len(records)} {status}" for status, records in counts.items())
    logging.info(
        "restored from %s (%s%s)",
        printable(report.checkpoint),
        report.format,
        f", {report.writer}" * bool(report.writer),
    )
    logging.info("weights: %d restored, %s, 0 mismatched, 0 missing", len(report.restored), left)
    logging.info(
        "not read: %d entries of an optimizer%s, %d counters, %d others",
        len(report.optimizer_keys),
        f" ({report.optimizer})" * bool(report.optimizer),
        len(report.counter_keys),
        len(report.other_keys),
    )
    logging.info(
        "read: %s bytes, %d entries of the optimizer, %s",
        f"{report.bytes_read:,}",
        report.optimizer_keys_read,
        report.checksums or "no checksums in this format",
    )
    logging.info(
        "verified: every variable on %d replicas, %d values not finite", report.replicas_verified, report.not_finite
    )
