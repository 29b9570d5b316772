"""Makes the runs that are missing in processes of their own, several at a time."""

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from trainer.comparison.display import ComparisonDisplay
from trainer.comparison.folder import ComparisonDir, name_of
from trainer.comparison.plan import Plan
from trainer.comparison.record import RunRecord, read_record
from trainer.errors import RunAgain
from trainer.run.signals import StopSignals

PARENT = "REGRAFT_COMPARISON_PROCESS"  # tells a run's process who started it
_LOOK_SECONDS = 0.1
_AGAIN = (RunAgain.exit_status, -signal.SIGTERM, -signal.SIGINT)  # of a process that was asked to leave


class Processes:
    """Processes that each make one run. What they print goes to the run's log."""

    def __init__(self, files: ComparisonDir, command: Sequence[str]):
        self._files, self._command = files, list(command)
        self._running: dict[tuple[str, int], subprocess.Popen] = {}

    def start(self, member: str, seed: int) -> None:
        log = self._files.log(member, seed)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            self._running[member, seed] = subprocess.Popen(
                [*self._command, f"--only={name_of(member, seed)}"],
                # Else the first of them would take all of a GPU's memory.
                env={
                    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    PARENT: str(os.getpid()),
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal reaches us alone, and we pass it on once.
                start_new_session=True,
            )

    def send(self, number: int) -> None:
        """Sends a signal to all that are there still; from any thread."""
        for process in list(self._running.values()):
            if process.poll() is None:
                process.send_signal(number)

    def ended(self) -> list[tuple[tuple[str, int], int]]:
        """(run, exit status) of those that have ended since the last time."""
        found = [(run, process.poll()) for run, process in self._running.items()]
        over = [(run, status) for run, status in found if status is not None]
        for run, _ in over:
            del self._running[run]
        return over

    def __len__(self) -> int:
        return len(self._running)


def make_in_parallel(
    plan: Plan,
    files: ComparisonDir,
    missing: list[tuple[str, int]],
    at_a_time: int,
    command: Sequence[str],
    display: ComparisonDisplay,
    after_each: Callable[[], None],
) -> bool:
    """Returns False where a signal, to us or to one of the processes, ended it before the last run.

    command: makes one run of the comparison once `--only=member/seed_0` is added.
    """
    processes, waiting, all_ended_well = Processes(files, command), list(missing), True
    with StopSignals(processes.send, on_second=lambda number: processes.send(signal.SIGKILL)) as noted:
        try:
            while processes or (waiting and not noted.received):
                while waiting and len(processes) < at_a_time and not noted.received:
                    run = waiting.pop(0)
                    display.begin(*run)
                    processes.start(*run)
                    if noted.received:  # between the two: it is not among those that got the signal
                        processes.send(signal.SIGTERM)
                for run, status in processes.ended():
                    record = _record_of(files, run, status, noted.received)
                    display.end(*run, record)
                    all_ended_well = all_ended_well and status not in _AGAIN
                    if not noted.received:
                        after_each()
                time.sleep(_LOOK_SECONDS)
        finally:
            processes.send(signal.SIGTERM)
    return all_ended_well and not waiting and not noted.received


def _record_of(files: ComparisonDir, run: tuple[str, int], status: int, was_told: bool) -> RunRecord | None:
    """What the process has noted, and what it could not note itself: that it was refused, or had a bug."""
    path = files.record(*run)
    record = read_record(path)
    if status in _AGAIN or status == 0 or was_told or (record and record.state == "failed"):
        return record
    log = files.log(*run)
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("regraft: ")]
    reason = errors[-1].removeprefix("regraft: ") if errors else f"exit status {status}"
    if status < 0:
        reason = f"ended by {signal.Signals(-status).name}"
        reason += ", as where memory runs out; a smaller --parallel needs less" if status == -signal.SIGKILL else ""
    message = f"{reason} ({log})"
    record = dataclasses.replace(record or RunRecord(), state="failed", message=message)
    record.write(path)
    return record
