"""The outer loop: steps; at intervals log, evaluate, save; leave when done or asked to."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import keras

from trainer.checkpoints.train_state import TrainState
from trainer.cluster.replicas import is_finite
from trainer.errors import UserError
from trainer.optimizers.learning_rate import learning_rate_at
from trainer.output.metric_writer import MetricWriter
from trainer.output.progress import StepProgress
from trainer.run.preemption import Interrupted
from trainer.run.settings import Intervals

_MAX_UNSEEN = 100  # loops whose metrics are held before they are looked at, where nothing else is due


class LossNotFinite(UserError):
    """Raised at the first look of the host that finds a loss, or a gradient, that is not finite.

    Nothing was logged, evaluated or saved of it.
    what: which of the two, and what it is.
    step: of the look; it may be of a step before.
    """

    def __init__(self, what: str, step: int):
        super().__init__(f"{what}, seen at step {step}; training further would only spread it.")
        self.what, self.step = what, step


def check_finite_weights(variables: Sequence[keras.Variable], step: int) -> None:
    """Raises `LossNotFinite` that names the first variable that the update of `step` has left not finite.

    Its loss and gradient may both be finite: the update itself overflows, or a moving average does.
    """
    bad = next((variable.path for variable in variables if not is_finite(variable)), None)
    if bad is not None:
        raise LossNotFinite(f"The weight {bad} is not finite after the update", step)


def finite_metrics(loops: Sequence[Mapping], step: int, optimizer: keras.optimizers.Optimizer) -> dict[str, float]:
    """The metrics of the last of some loops on the device, as numbers of the host; raises `LossNotFinite`.

    loops: 'loss' and 'grad_norm' of each as scalar tensors, waited for here.
    """
    for metrics in loops:
        values = {name: float(value.numpy()) for name, value in metrics.items()}
        if not math.isfinite(values["loss"]):
            raise LossNotFinite(f"The loss is {values['loss']}", step)
        # The loss is of the weights before the update, which such a gradient has spoilt by now. A LossScaleOptimizer
        # makes no update of it and halves its scale. The loss itself is not scaled: no scale makes it finite.
        if not math.isfinite(values["grad_norm"]) and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            raise LossNotFinite(f"The gradient's norm is {values['grad_norm']}", step)
    return values


class Run(Protocol):
    """The object that the loop drives; `Session` is one."""

    state: TrainState

    def next_steps(self, due_in: int) -> int:
        """How many steps to make now, `due_in` or fewer; 0 to leave."""

    def train(self, num_steps: int, end: int) -> Sequence[Mapping]:
        """Makes the steps, up to step `end`, and returns the metrics of each loop on the device, without waiting."""

    def check_weights(self, step: int) -> None:
        """Raises `LossNotFinite` for weights that are not finite; called before what keeps them."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """values: loss and norm of the gradient at the step."""

    def evaluate(self, step: int) -> None:
        """Raises `Interrupted` where a signal came before it was through."""

    def save(self) -> None: ...

    def leave(self) -> None:
        """Saves what is there; the run ends before its last step."""


def run_loop(run: Run, num_steps: int, intervals: Intervals) -> bool:
    """Trains to `num_steps`; returns True when it got there, False when it was asked to stop earlier.

    Always in this order: step, log, evaluate, save, leave. So what a checkpoint holds is on record
    when it is written, and a resumed run repeats nothing and misses nothing.

    Raises `LossNotFinite` before any of what follows a step would be done with it.
    """
    step = first_step = run.state.current_step()
    unseen: list[Mapping] = []  # of the loops since the last look
    while step < num_steps:
        count = run.next_steps(intervals.steps_to_next_look(step, num_steps, first_step))
        if not count:
            break
        step += count
        unseen += run.train(count, step)

        def due(every: int, step=step) -> bool:
            return step == num_steps or (every > 0 and step % every == 0)

        looks = (intervals.log_every, intervals.eval_every, intervals.checkpoint_every)
        if any(map(due, looks)) or len(unseen) >= _MAX_UNSEEN:
            values = finite_metrics(unseen, step, run.state.optimizer)
            unseen = []
        if due(intervals.checkpoint_every):
            run.check_weights(step)
        if due(intervals.log_every):
            run.log(step, values)
        if due(intervals.eval_every):
            try:
                run.evaluate(step)
            except Interrupted:
                # It is not on record, by which the run that is resumed from here knows to make up for it.
                run.leave()
                return False
        if due(intervals.checkpoint_every):
            run.save()
    if step < num_steps:
        if unseen:  # steps between two looks
            finite_metrics(unseen, step, run.state.optimizer)
        run.check_weights(step)
        run.leave()
    return step >= num_steps


class TrainingLog:
    """Writes and shows the training metrics, and how fast training alone is.

    log_more: given the updates that the optimizer had finished before that of the row, returns what else the row holds.
    """

    def __init__(
        self,
        state: TrainState,
        global_batch_size: int,
        writer: MetricWriter,
        progress: StepProgress,
        log_more: Callable[[int], Mapping[str, float]] = lambda step: {},
    ):
        self._state, self._global_batch_size = state, global_batch_size
        self._writer, self._progress, self._log_more = writer, progress, log_more
        self._clock = _Clock(state.current_step())

    def write(self, step: int, values: dict[str, float]) -> None:
        """values: loss and norm of the gradient at the step."""
        optimizer = self._state.optimizer
        steps_per_second = self._clock.lap(step)
        examples_per_second = steps_per_second * self._global_batch_size
        # The rate of the update that this step has made.
        before = self._state.optimizer_step(step) - 1
        rate = learning_rate_at(optimizer, before)
        row = {**values, "learning_rate": rate, "examples_per_second": examples_per_second, **self._log_more(before)}
        self._writer.write(step, row)
        self._progress.show_rate(steps_per_second, examples_per_second, values["loss"])

    def pause(self) -> contextlib.AbstractContextManager[None]:
        """Wraps what is no training: an evaluation, a save."""
        return self._clock.stopped()


class _Clock:
    """Training time alone, without evaluations and saves."""

    def __init__(self, step: int):
        self._step = step
        self._start = time.monotonic()
        self._paused_seconds = 0.0

    def lap(self, step: int) -> float:
        """Steps a second since the last lap."""
        now = time.monotonic()
        seconds = max(now - self._start - self._paused_seconds, 1e-9)
        rate = (step - self._step) / seconds
        self._step, self._start, self._paused_seconds = step, now, 0.0
        return rate

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._paused_seconds += time.monotonic() - start
