"""Shows a run's progress in the terminal."""

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class StepProgress:
    """A bar with rate and time left on a terminal; a plain line a log elsewhere.

    Used as a context manager. `visible=False` (a worker that is not the chief) shows nothing.
    """

    def __init__(self, num_steps: int, start_step: int = 0, visible: bool = True):
        self._num_steps = num_steps
        self._step = start_step
        self._visible = visible
        self._last_line = time.monotonic()
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar = Progress(
            BarColumn(bar_width=14),  # leaves room for the rest in 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not (visible and self._console.is_terminal),
        )
        self._task = self._bar.add_task("train", total=num_steps, completed=start_step, rate="")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *unused):
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._step = step
        self._bar.update(self._task, completed=step)

    def show_rate(self, steps_per_second: float, examples_per_second: float, loss: float) -> None:
        """States speed and loss at a log; where no bar can be drawn, in a line with the time left, once a second."""
        rate = f"training loss {loss:.4f}  {steps_per_second:.4g} steps/s  {examples_per_second:,.0f} examples/s"
        self._bar.update(self._task, rate=rate)
        now = time.monotonic()
        if self._visible and not self._console.is_terminal and now - self._last_line > 1.0:
            self._last_line = now
            left = (self._num_steps - self._step) / steps_per_second if steps_per_second else 0.0
            self._console.print(f"step {self._step}/{self._num_steps}  {rate}  ETA {left:.0f} s")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._visible:
            self._console.print(text)
