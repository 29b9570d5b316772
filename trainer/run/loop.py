"""The outer loop: steps; at intervals log, evaluate, save; leave when done or asked to."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras

from trainer.checkpoints.train_state import TrainState
from trainer.errors import UserError
from trainer.optimizers.learning_rate import learning_rate_at
from trainer.output.metric_writer import MetricWriter
from trainer.output.progress import StepProgress
from trainer.run.preemption import Interrupted, Preemption
from trainer.run.time_limit import Deadline

_MAX_UNSEEN = 100  # loops whose metrics are held before they are looked at, where nothing else is due


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often, in steps; 0 means only at the end.

    steps_per_loop: steps that run on the device between two looks of the host.
    """

    log_every: int = 10
    eval_every: int = 100
    checkpoint_every: int = 100
    steps_per_loop: int = 10

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 0 or (name == "steps_per_loop" and value < 1):
                raise UserError(f"{name} = {value} must be {1 if name == 'steps_per_loop' else 0} or more.")

    def steps_to_next_look(self, step: int, num_steps: int, first_step: int = 0) -> int:
        """How far the device may run from `step` without passing a point where the host is due.

        first_step: where this process began; batches come in stacks of `steps_per_loop` from there on.
        """
        ends = [num_steps, step + self.steps_per_loop - (step - first_step) % self.steps_per_loop]
        ends += [
            step - step % every + every for every in (self.log_every, self.eval_every, self.checkpoint_every) if every
        ]
        return min(ends) - step


class LossNotFinite(UserError):
    """Raised at the first look of the host that finds a loss, or a gradient, that is not finite.

    Nothing was logged, evaluated or saved of it.  what: which of the two, and what it is.  step: of the look; it may
    be of a step before.
    """

    def __init__(self, what: str, step: int):
        super().__init__(f"{what}, seen at step {step}; training further would only spread it.")
        self.what, self.step = what, step


def finite_metrics(loops: Sequence[Mapping], step: int, optimizer: keras.optimizers.Optimizer) -> dict[str, float]:
    """What the last of some loops on the device gave, as numbers of the host; raises `LossNotFinite`.

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


@dataclasses.dataclass(frozen=True)
class LoopParts:
    """What the loop calls.

    train(num_steps) -> metrics of each loop on the device;  evaluate() -> metrics or None, or raises `Interrupted`;
    save() -> None, what was written and the checkpoint.  log_more() -> what else a logged row holds.
    """

    state: TrainState
    train: Callable
    evaluate: Callable[[], dict[str, float] | None]
    save: Callable[[], None]
    writer: MetricWriter
    progress: StepProgress
    preemption: Preemption
    deadline: Deadline
    split: str
    log_more: Callable[[], Mapping[str, float]] = dict


def run_loop(parts: LoopParts, num_steps: int, global_batch_size: int, intervals: Intervals) -> bool:
    """Trains to `num_steps`; returns True when it got there, False when it was asked to stop earlier.

    Always in this order: step, log, evaluate, save, leave. So what a checkpoint holds is on record
    when it is written, and a resumed run repeats nothing and misses nothing.

    Raises `LossNotFinite` before any of what follows a step would be done with it.
    """
    state, step = parts.state, parts.state.current_step()
    unseen: list[Mapping] = []  # of the loops since the last look
    clock, first_step = _Clock(step), step
    while step < num_steps:
        due_in = intervals.steps_to_next_look(step, num_steps, first_step)
        count = parts.preemption.next_steps(due_in, parts.deadline.steps_left())
        if not count:
            break
        unseen += parts.train(count)
        step += count
        parts.progress.advance(step)

        def due(every: int, step=step) -> bool:
            return step == num_steps or (every > 0 and step % every == 0)

        looks = (intervals.log_every, intervals.eval_every, intervals.checkpoint_every)
        if any(map(due, looks)) or len(unseen) >= _MAX_UNSEEN:
            values = finite_metrics(unseen, step, state.optimizer)
            unseen = []
        if due(intervals.log_every):
            steps_per_second = clock.lap(step)
            # The schedule at `step`: what the next update uses, and what one plots a schedule against.
            values["learning_rate"] = learning_rate_at(state.optimizer, state.optimizer_step(step))
            values["examples_per_second"] = steps_per_second * global_batch_size
            values.update(parts.log_more())
            parts.writer.write(step, values)
            parts.progress.show_rate(steps_per_second, values["examples_per_second"], values["loss"])
        parts.deadline.made(count)
        if due(intervals.eval_every):
            try:
                with clock.stopped(), parts.deadline.pause():
                    evaluated = parts.evaluate()
                    if evaluated is not None:
                        parts.writer.write(step, evaluated, split=parts.split)
            except Interrupted:
                # It is not on record, by which the run that is resumed from here knows to make up for it.
                parts.save()
                return False
        if due(intervals.checkpoint_every):
            with clock.stopped(), parts.deadline.pause():
                parts.save()
    if step < num_steps:
        if unseen:  # steps between two looks
            finite_metrics(unseen, step, state.optimizer)
        parts.save()
    return step >= num_steps


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
