"""Makes the runs that are missing, one or several at a time, each in a process of its own."""

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence

from trainer.comparison.display import ComparisonDisplay
from trainer.comparison.folder import ComparisonDir
from trainer.comparison.member_run import Job, make_run
from trainer.comparison.process import Process
from trainer.comparison.record import RunRecord, read_record
from trainer.errors import RunAgain
from trainer.run.signals import StopSignals

_LOOK_SECONDS = 0.05
_AGAIN = (RunAgain.exit_status, -signal.SIGTERM, -signal.SIGINT)  # of a process that was asked to leave


def run_members(
    jobs: Sequence[Job], at_a_time: int, display: ComparisonDisplay, after_each: Callable[[], None]
) -> bool:
    """Returns False where a signal, to us or to one of the processes, ended it before the last run."""
    waiting, running, all_ended_well = list(jobs), dict[Process, Job](), True

    def send(number: int) -> None:
        for process in list(running):
            process.send(number)

    with StopSignals(lambda number: send(signal.SIGTERM), on_second=lambda number: send(signal.SIGKILL)) as signals:
        try:
            while running or (waiting and not signals.received):
                while waiting and len(running) < at_a_time and not signals.received:
                    job = waiting.pop(0)
                    display.begin(job.member, job.seed)
                    job.files.run(job.member, job.seed).create()
                    process = Process(make_run, job, log=job.files.log(job.member, job.seed))
                    running[process] = job
                    if signals.received:  # between the two: it is not among those that got the signal
                        process.send(signal.SIGTERM)
                for process, job in [(each, job) for each, job in running.items() if each.status() is not None]:
                    del running[process]
                    status = process.status()
                    assert status is not None
                    record = _record_of(job.files, job, status, signals.received)
                    display.end(job.member, job.seed, record)
                    all_ended_well = all_ended_well and status not in _AGAIN
                    if not signals.received:
                        after_each()
                if not all_ended_well:  # a signal to one of them: nothing new is begun
                    waiting.clear()
                time.sleep(_LOOK_SECONDS)
        finally:
            send(signal.SIGTERM)
    return all_ended_well and not waiting and not signals.received


def _record_of(files: ComparisonDir, job: Job, status: int, was_asked_to_leave: bool) -> RunRecord | None:
    """The record that the process wrote, completed where it had a bug or was killed and could not write it."""
    path = files.record(job.member, job.seed)
    record = read_record(path)
    if status in _AGAIN or status == 0 or was_asked_to_leave or (record and record.state == "failed"):
        return record
    log = files.log(job.member, job.seed)
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("regraft: ")]
    reason = errors[-1].removeprefix("regraft: ") if errors else f"exit status {status}"
    if status < 0:
        reason = f"ended by {signal.Signals(-status).name}"
        reason += ", as where memory runs out; a smaller --parallel needs less" if status == -signal.SIGKILL else ""
    record = dataclasses.replace(record or RunRecord(), state="failed", message=f"{reason} ({log})")
    record.write(path)
    return record
