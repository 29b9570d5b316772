"""One run from its first step to its last: trains, evaluates, saves, and leaves when it is asked to."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from trainer.checkpoints.manager import Checkpoints
from trainer.checkpoints.train_state import TrainState
from trainer.cluster.strategy import is_chief
from trainer.errors import UserError
from trainer.optimizers.state_transfer import warm_up_again
from trainer.output.metric_writer import read_rows
from trainer.output.model_dir import ModelDir
from trainer.output.progress import StepProgress
from trainer.run.build import Built, Fit
from trainer.run.describe import describe_start
from trainer.run.inputs import worker_batches
from trainer.run.loop import LossNotFinite, TrainingLog, check_finite_weights, run_loop
from trainer.run.nan_recovery import recover
from trainer.run.outputs import finish_files, recorded_metrics, start_files
from trainer.run.phase_switch import PhaseWatch
from trainer.run.preemption import Interrupted, Preemption
from trainer.run.result import TrainResult
from trainer.run.resume import Resume
from trainer.run.time_limit import Deadline
from trainer.step.evaluate import build_evaluate
from trainer.tasks.task import naming_wrong_labels

_SLOW_DISK_BYTES_PER_SECOND = 50e6  # of a folder that many machines share; until a save was measured


class Session:
    """Trains one run from where its state is to its end, or to where a signal or the time ends it.

    The loop calls `next_steps`, `train`, `log`, `evaluate` and `save`, in this order; at the last step each of them is
    due. It calls `leave` in place of the rest where the run ends before.

    notes: what a person should know before the first step, by heading.
    identity: by which the same command, given again, recognises the run.
    files, checkpoints, resume: None for a run that writes nothing.
    resumed_step: None for a run that begins.
    """

    def __init__(
        self,
        built: Built,
        fit: Fit,
        notes: Mapping[str, str],
        identity: str,
        preemption: Preemption,
        files: ModelDir | None = None,
        checkpoints: Checkpoints | None = None,
        resume: Resume | None = None,
        resumed_step: int | None = None,
    ):
        self.state: TrainState = built.state
        self._built, self._fit, self._settings = built, fit, built.settings
        self._files, self._checkpoints, self._resume = files, checkpoints, resume
        self._resumed_step, self._preemption = resumed_step, preemption
        self._task, self._eval_data = built.settings.task, built.inputs.eval_data
        self._initial: dict[str, float] = {}
        self._evaluated: tuple[int, dict[str, float]] | None = None  # the last evaluation, (step, metrics)
        self._new_steps = 0  # whose time is not counted yet
        self._notes, self._identity = notes, identity
        strategy, state = built.inputs.strategy, self.state
        self._is_chief = is_chief(strategy)
        self._progress = StepProgress(self._settings.num_steps, state.current_step(), visible=self._is_chief)
        self._phase_watch = PhaseWatch(state.optimizer, self._settings.finetune.phases, self._progress.say)
        self._evaluate_all = build_evaluate(strategy, state.model, self._task, self._settings.global_batch_size)
        self._split = self._eval_data.split_label if self._eval_data else ""
        limits = self._settings.limits
        self._deadline = Deadline(
            limits.max_seconds,
            started_at=self._settings.started_at,
            longest_loop_seconds=limits.grace_seconds / 2 or math.inf,  # the other half is for saving
            reserved_seconds=self._save_seconds,
        )

    def run(self) -> TrainResult:
        self._begin()
        if self.state.current_step() == 0:
            self._evaluate_the_start()
        # From the state's step on, without the batches that the run has left out so far.
        next_batch, steps_per_loop = self.state.next_batch(), self._settings.intervals.steps_per_loop
        self._batches = worker_batches(self._settings, self._built.inputs, next_batch, steps_per_loop)
        self._train_loop = self._built.train_loop(self._batches)
        with self._progress:
            finished = self._make_up_evaluation() and self._train_to_the_end()
        self._finish(finished)
        path = self._files.path if self._files else None
        return TrainResult.of(self._built, self._fit.tpu_obstacles, finished, self._initial, self._evaluated, path)

    def next_steps(self, due_in: int) -> int:
        """How many steps to make now, `due_in` or fewer; 0 to leave: for a signal, or at the end of the time."""
        if self._new_steps:
            self._deadline.made(self._new_steps)
        self._new_steps = self._preemption.next_steps(due_in, self._deadline.steps_left())
        return self._new_steps

    def train(self, num_steps: int, end: int) -> Sequence[Mapping]:
        """Makes steps, up to step `end`, and returns the metrics of each loop on the device, which may still compute.

        Nothing is read from the device here: to read its step count would wait for the loop.
        """
        loops = [self._train_loop(*steps) for steps in self._batches.take(num_steps)]
        self._progress.advance(end)
        return loops

    def check_weights(self, step: int) -> None:
        check_finite_weights(self._built.changing_weights(), step)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._log.write(step, values)

    def evaluate(self, step: int) -> None:
        """Evaluates, keeps the checkpoint if it is the best, and writes it down.

        Raises `Interrupted` where a signal came before it was through.
        """
        with self._log.pause(), self._deadline.pause():
            evaluated = self._evaluate_and_keep()
            if evaluated is not None:
                self._writer.write(step, evaluated, split=self._split)

    def save(self) -> None:
        with self._log.pause(), self._deadline.pause():
            self._guard(self._save)

    def leave(self) -> None:
        """Saves what is there; the run ends before its last step."""
        self._guard(self._save)

    def _begin(self) -> None:
        """Writes and shows what the run starts from."""
        state = self.state
        # After a resume, which brings the step count that the warm-up begins at.
        warm_up_again(state.optimizer, state.optimizer_step(0), self._settings.rewarmup_steps)
        files = self._files if self._is_chief else None
        self._writer = start_files(self._built, files, self._identity, self._resumed_step)
        self._progress.say(describe_start(self._built, self._notes, self._resumed_step))

    def _evaluate_the_start(self) -> None:
        self._write_artifacts()
        if self._eval_data is None:
            return
        with contextlib.suppress(Interrupted):  # the loop then leaves at its first look
            self._initial = self._evaluate_all(self._eval_data, self._preemption.until_received)
            self._evaluated = (0, self._initial)
            self._writer.write(0, self._initial, split=self._split)
            self._progress.say(f"step 0           {_show(self._evaluated, 0)}")

    def _train_to_the_end(self) -> bool:
        """Whether it came to the last step."""
        while True:
            self._log = TrainingLog(
                self.state, self._settings.global_batch_size, self._writer, self._progress, self._phase_watch.row
            )
            try:
                with naming_wrong_labels(self._built.inputs.train_data):
                    return run_loop(self, self._settings.num_steps, self._settings.intervals)
            except LossNotFinite as error:
                self._go_back(error)

    def _go_back(self, error: LossNotFinite) -> None:
        """Goes back to the last checkpoint, and past the batch whose loss is not finite."""
        # It may come again, and time for it is left from now on.
        with self._deadline.pause(), _saying_skipped(self._checkpoints, self._progress.say):
            self._batches, text = recover(self._built, self._resume, self._train_loop, error, self._evaluate_again)
        self._writer.drop_after(self.state.current_step())
        self._progress.say(text)

    def _guard(self, save: Callable[[], object]) -> None:
        """Calls `save`; an error ends the run or is printed, as `Saving.on_error` says."""
        try:
            save()
        except UserError as error:
            if self._settings.saving.on_error == "stop":
                raise
            self._progress.say(f"{error} The run continues without (Saving.on_error = 'continue').")

    def _save_seconds(self) -> float:
        """The time of a save at the end of the run, as far as it is known."""
        if self._checkpoints is None:
            return 0.0
        return self._checkpoints.longest_seconds or 1 + self.state.size_bytes() / _SLOW_DISK_BYTES_PER_SECOND

    def _save(self) -> None:
        self._phase_watch.report()  # a run that is resumed from here does not report again which phases had begun
        self._writer.flush()
        if self._checkpoints is not None:
            self._checkpoints.save()

    def _evaluate_and_keep(self) -> dict[str, float] | None:
        """Evaluates the current weights, and keeps the checkpoint if it is the best; None without eval_data."""
        state, data, saving = self.state, self._eval_data, self._settings.saving
        # One that may begin a phase is of the step's state, and too late once that is saved.
        decides = self._phase_watch.decides_at(state.current_step(), self._settings.intervals.eval_every)
        with state.evaluated_weights():
            self._write_artifacts()
            if data is None:
                return None
            metrics = self._evaluate_all(data, iter if decides else self._preemption.until_received)
        self._evaluated = (self.state.current_step(), metrics)
        if self._evaluated[0] == self._settings.num_steps and not math.isfinite(metrics["loss"]):
            raise UserError(
                f"The last evaluation's loss is {metrics['loss']}: the run is not finished, and no final weights are "
                f"written. The weights are finite; look at the evaluation data ({data.label}), and at the loss where "
                "it divides or takes a logarithm."
            )
        if decides:
            self._phase_watch.look_at(metrics)
        name = saving.best_metric
        if self._checkpoints is not None and name is not None:
            # Before the step's own checkpoint, which marks the step as done.
            better = saving.best_mode == "max"
            self._guard(functools.partial(self._checkpoints.save_best, metrics[name], name, better))
        return metrics

    def _make_up_evaluation(self) -> bool:
        """Makes the evaluation that a signal made an earlier process leave; False where one does so again."""
        step = self.state.current_step()
        if not self._evaluation_is_missing(step):
            return True
        try:
            evaluated = self._evaluate_and_keep()
        except Interrupted:
            return False
        assert evaluated is not None, "none is missing where there are no data"
        self._writer.write(step, evaluated, split=self._split)
        return True

    def _evaluation_is_missing(self, step: int) -> bool:
        """Whether `step`, where the run is resumed, was saved without the evaluation that was due; the chief says."""
        every, data = self._settings.intervals.eval_every, self._eval_data
        is_due = step == self._settings.num_steps or (every > 0 and step % every == 0)
        if self._files is None or data is None or not step or not is_due or self._phase_watch.decides_at(step, every):
            return False
        evaluated = [row["step"] for row in read_rows(self._files.metrics) if row.get("split") == data.split_label]
        return bool(self._built.inputs.agreement.broadcast_from_chief([step not in evaluated])[0])

    def _evaluate_again(self) -> None:
        state, data = self.state, self._eval_data
        if data is not None and self._phase_watch.decides_at(state.current_step(), self._settings.intervals.eval_every):
            with state.evaluated_weights():
                self._phase_watch.look_at(self._evaluate_all(data))

    def _write_artifacts(self) -> None:
        if self._is_chief and self._files is not None:
            data = self._built.inputs.train_data if self._eval_data is None else self._eval_data
            self._task.write_artifacts(self.state.model, data, self._files.images, self.state.current_step())

    def _finish(self, finished: bool) -> None:
        """Waits until all is on the disk, writes what the run reached, and says where it is."""
        files, say = self._files, self._progress.say
        self._writer.flush()
        if self._checkpoints is not None:
            self._guard(self._checkpoints.wait)
        if self._is_chief and files is not None:
            rows = read_rows(files.metrics)
            self._initial, self._evaluated = recorded_metrics(rows, self._initial, self._evaluated)
            finish_files(self._built, files, self._writer, self._initial, self._evaluated, finished)
        self._writer.close()
        step = self.state.current_step()
        say(f"{'step' if finished else f'{self._preemption.reason} at'} {step:<11} {_show(self._evaluated, step)}")
        if not finished:
            say("Run the same command again to resume from here.")
        if self._is_chief and files is not None:
            pictures = f"\nimages           {files.images}" if files.images.exists() else ""
            say(f"files            {files.path}\nplot             {files.summary_plot}{pictures}")


@contextlib.contextmanager
def _saying_skipped(checkpoints: Checkpoints | None, say: Callable[[str], None]) -> Iterator[None]:
    """Says which checkpoints are found damaged meanwhile."""
    before = 0 if checkpoints is None else len(checkpoints.skipped)
    try:
        yield
    finally:
        for text in checkpoints.skipped[before:] if checkpoints is not None else []:
            say(text)


def _show(evaluated: tuple[int, Mapping[str, float]] | None, step: int) -> str:
    """The last evaluation, with its step where it is not of `step`."""
    if evaluated is None:
        return "not evaluated"
    values = "  ".join(f"{name} {value:.4f}" for name, value in evaluated[1].items() if name != "num_examples")
    return values if evaluated[0] == step else f"not evaluated since step {evaluated[0]}: {values}"
