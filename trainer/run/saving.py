"""What is kept as the best, and what becomes of a run that cannot save."""

import dataclasses
from collections.abc import Callable

from trainer.errors import UserError
from trainer.suggest import nearest
from trainer.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Saving:
    """best_metric: whose best checkpoint is kept, None for none.  best_mode: "max" or "min".

    on_save_error: "stop" or "continue".
    """

    best_metric: str | None = None
    best_mode: str = "max"
    on_save_error: str = "stop"

    def check(self, task: Task, eval_data, keep_every: int) -> None:
        """Raises `UserError` for words that are no choice, and a metric that no evaluation will have."""
        for name, value, choices in (
            ("best_mode", self.best_mode, ("max", "min")),
            ("on_save_error", self.on_save_error, ("stop", "continue")),
        ):
            if value not in choices:
                raise UserError(f"{name} = {value!r} must be one of {', '.join(map(repr, choices))}.")
        if keep_every < 0:
            raise UserError(f"keep_every = {keep_every} must be 0 or more.")
        if self.best_metric is None:
            return
        if eval_data is None:
            raise UserError(f"best_metric = {self.best_metric!r} needs eval_data: nothing is evaluated.")
        known = list(task.new_metrics())
        if self.best_metric not in known:
            raise UserError(
                f"The evaluation has no metric {self.best_metric!r}; it has {', '.join(known)}."
                f"{nearest(self.best_metric, known)}"
            )

    def guarded(self, save: Callable, say: Callable[[str], None]) -> None:
        """Calls `save`; an error ends the run or is printed, as `on_save_error` says."""
        try:
            save()
        except UserError as error:
            if self.on_save_error == "stop":
                raise
            say(f"{error} The run continues without (on_save_error = 'continue').")
