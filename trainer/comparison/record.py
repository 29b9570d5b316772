"""The comparison's record of a run, beside the run's own files: how it ended, how long it took, what it forgot."""

import dataclasses
import json
from pathlib import Path

from trainer.comparison.folder import ComparisonDir, name_of
from trainer.comparison.plan import Plan
from trainer.config import differing_lines, text_of
from trainer.errors import UserError
from trainer.output.atomic_files import write_json

DONE = ("finished", "diverged")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """State and measurements of one run.

    state: "running" (or killed), "stopped" by a signal, "finished", "diverged", or "failed".
    config: of the run, as gin text.
    wall_seconds: of all its parts; whole_wall_seconds: False if one was killed, whose time is unknown.
    peak_memory_bytes: of the whole process while the run was made; None where the kernel does not tell.
    peak_device_memory_bytes: of the fullest GPU; None without one.
    at_a_time: processes that shared the machine.
    source_before, source_after: the metric on the source task's data; None without, or where it is unknown.
    message: why it failed or diverged, or why there is no source_after.
    """

    state: str = "running"
    config: str = ""
    wall_seconds: float = 0.0
    whole_wall_seconds: bool = True
    at_a_time: int = 1
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    source_data: str = ""
    source_before: float | None = None
    source_after: float | None = None
    diverged_at: int | None = None
    message: str = ""

    @property
    def is_done(self) -> bool:
        return self.state in DONE

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dataclasses.asdict(self))


def read_record(path: Path) -> RunRecord | None:
    """None where no run was begun."""
    try:
        return RunRecord(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no record of a run: {error}. Delete {path.parent} to run it again.") from error


def read_records(plan: Plan, files: ComparisonDir) -> dict[tuple[str, int], RunRecord | None]:
    """The record of every run of the plan; raises `UserError` for one that was made with another config.

    Strictly another one: a run that was evaluated at other steps, or trained for longer, does not compare.
    """
    records = {run: read_record(files.record(*run)) for run in plan.runs}
    for (member, seed), record in records.items():
        if record is None or not record.config:
            continue
        changed = differing_lines(record.config, text_of(member, seed), harmless_too=True)
        if changed:
            lines = "".join(f"\n  was: {old}\n  now: {new}" for old, new in changed[:8])
            raise UserError(
                f"{files.path} holds the run {name_of(member, seed)} of another config:{lines}\n"
                f"Choose another --model_dir, go back to that config, or delete {files.path / member} to make its "
                "runs again."
            )
    return records
