"""One run from its first step to its last: trains, evaluates, saves, and leaves when it is asked to."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

from trainer.checkpoints.manager import Checkpoints
from trainer.cluster.collectives import Agreement
from trainer.cluster.strategy import is_chief
from trainer.optimizers.state_transfer import warm_up_again
from trainer.output.metric_writer import read_rows
from trainer.output.model_dir import ModelDir
from trainer.output.progress import StepProgress
from trainer.run.built import RunParts
from trainer.run.describe import describe_start
from trainer.run.loop import Intervals, LoopParts, LossNotFinite, run_loop
from trainer.run.nan_recovery import batches_from_here, recover
from trainer.run.outputs import finish_files, recorded_metrics, start_files
from trainer.run.phase_switch import PhaseWatch
from trainer.run.preemption import Interrupted, Preemption
from trainer.run.resume import Resume
from trainer.run.saving import Saving
from trainer.run.time_limit import Deadline
from trainer.step.evaluate import build_evaluate
from trainer.step.train_step import build_train_loop


@dataclasses.dataclass
class Session:
    """Trains one run from where its state is to its end, or to where a signal or the time ends it.

    files, checkpoints, resume: None for a run that writes nothing.
    identity: by which the same command, given again, recognises the run.
    """

    parts: RunParts
    files: ModelDir | None
    checkpoints: Checkpoints | None
    resume: Resume | None
    intervals: Intervals
    deadline: Deadline
    preemption: Preemption
    saving: Saving
    identity: str

    def run(self) -> tuple[bool, dict[str, float], dict[str, float]]:
        """Whether the run came to its end, and its first and last evaluation on record; these are empty for none."""
        self._start()
        with self._progress:
            finished = self._make_up_evaluation() and self._train()
        self._finish(finished)
        return finished, self._initial, self._final

    def _start(self) -> None:
        """Writes what the run starts from, evaluates it at step 0, and builds the training loop."""
        parts, state = self.parts, self.parts.state
        self._is_chief = is_chief(parts.strategy)
        # After a resume, which brings the step count that the warm-up begins at.
        warm_up_again(state.optimizer, state.optimizer_step(0), parts.handover_warmup_steps)
        self._writer = start_files(parts, self.files if self._is_chief else None, self.identity)
        self._progress = StepProgress(parts.num_steps, state.current_step(), visible=self._is_chief)
        self._progress.say(describe_start(parts))
        self._phase_watch = PhaseWatch(state.optimizer, parts.phases, self._progress.say)
        self._evaluate = build_evaluate(parts.strategy, state.model, parts.task, parts.global_batch_size)
        self._split = parts.eval_data.split_label if parts.eval_data else ""
        self._initial: dict[str, float] = {}
        self._final: dict[str, float] = {}
        if state.current_step() == 0:
            self._evaluate_the_start()
        self._batches = batches_from_here(parts)
        self._train_loop = build_train_loop(
            parts.strategy, state, parts.task, parts.variables, parts.global_batch_size, self._batches,
            parts.accumulation_steps, **parts.step_options,
        )  # fmt: skip

    def _evaluate_the_start(self) -> None:
        self._write_artifacts()
        if self.parts.eval_data is None:
            return
        with contextlib.suppress(Interrupted):  # the loop then leaves at its first look
            self._initial = self._final = self._evaluate(self.parts.eval_data, self.preemption.until_received)
            self._writer.write(0, self._initial, split=self._split)
            self._progress.say(f"step 0           {_show(self._initial)}")

    def _train(self) -> bool:
        """Whether it came to the last step."""
        while True:
            try:
                return run_loop(self._loop_parts(), self.parts.num_steps, self.parts.global_batch_size, self.intervals)
            except LossNotFinite as error:
                self._go_back(error)

    def _loop_parts(self) -> LoopParts:
        return LoopParts(
            state=self.parts.state,
            train=functools.partial(self._batches.run, self._train_loop),
            evaluate=self._evaluate_and_keep,
            log_more=self._phase_watch.row,
            save=lambda: self.saving.guarded(self._save, self._progress.say),
            writer=self._writer,
            progress=self._progress,
            preemption=self.preemption,
            deadline=self.deadline,
            split=self._split,
        )

    def _go_back(self, error: LossNotFinite) -> None:
        """Goes back to the last checkpoint, and past the batch whose loss is not finite."""
        # It may come again, and time for it is left from now on.
        with self.deadline.pause(), _saying_skipped(self.checkpoints, self._progress.say):
            self._batches, text = recover(
                self.parts, self.resume, self._train_loop, error, self.parts.max_rollbacks, self._evaluate_again
            )
        self._writer.drop_after(self.parts.state.current_step())
        self._progress.say(text)

    def _save(self) -> None:
        self._phase_watch.row()  # a run that is resumed from here does not report again which phases had begun
        self._writer.flush()
        if self.checkpoints is not None:
            self.checkpoints.save()

    def _evaluate_and_keep(self) -> dict[str, float] | None:
        """Evaluates the current weights, and keeps the checkpoint if it is the best; None without eval_data."""
        state, data = self.parts.state, self.parts.eval_data
        # One that may begin a phase is of the step's state, and too late once that is saved.
        decides = self._phase_watch.decides_at(state.current_step(), self.intervals.eval_every)
        with state.evaluated_weights():
            self._write_artifacts()
            if data is None:
                return None
            self._final = self._evaluate(data, iter if decides else self.preemption.until_received)
        if decides:
            self._phase_watch.look_at(self._final)
        name = self.saving.best_metric
        if self.checkpoints is not None and name is not None:
            # Before the step's own checkpoint, which marks the step as done.
            keep = functools.partial(
                self.checkpoints.save_best, self._final[name], name, self.saving.best_mode == "max"
            )
            self.saving.guarded(keep, self._progress.say)
        return self._final

    def _make_up_evaluation(self) -> bool:
        """Makes the evaluation that a signal made an earlier process leave; False where one does so again."""
        step = self.parts.state.current_step()
        if not _evaluation_is_missing(self.parts, self.files, step, self.intervals, self._phase_watch):
            return True
        try:
            evaluated = self._evaluate_and_keep()
        except Interrupted:
            return False
        assert evaluated is not None, "none is missing where there are no data"
        self._writer.write(step, evaluated, split=self._split)
        return True

    def _evaluate_again(self) -> None:
        state, data = self.parts.state, self.parts.eval_data
        if data is not None and self._phase_watch.decides_at(state.current_step(), self.intervals.eval_every):
            with state.evaluated_weights():
                self._phase_watch.look_at(self._evaluate(data))

    def _write_artifacts(self) -> None:
        parts = self.parts
        if self._is_chief and self.files is not None:
            data = parts.train_data if parts.eval_data is None else parts.eval_data
            parts.task.write_artifacts(parts.state.model, data, self.files.images, parts.state.current_step())

    def _finish(self, finished: bool) -> None:
        """Waits until all is on the disk, writes what the run reached, and says where it is."""
        files, say = self.files, self._progress.say
        self._writer.flush()
        if self.checkpoints is not None:
            self.saving.guarded(self.checkpoints.wait, say)
        if self._is_chief and files is not None:
            rows = read_rows(files.metrics)
            self._initial, self._final = recorded_metrics(rows, self._initial, self._final)
            finish_files(self.parts, files, self._writer, self._initial, self._final, finished)
        self._writer.close()
        step = self.parts.state.current_step()
        say(f"{'step' if finished else 'preempted at'} {step:<11} {_show(self._final)}")
        if not finished:
            say("Run the same command again to go on from here.")
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


def _evaluation_is_missing(
    parts: RunParts, files: ModelDir | None, step: int, intervals: Intervals, phase_watch: PhaseWatch
) -> bool:
    """Whether the run that is resumed at `step` saved it without the evaluation that was due, as the chief finds."""
    every = intervals.eval_every
    is_due = step == parts.num_steps or (every > 0 and step % every == 0)
    if files is None or parts.eval_data is None or not step or not is_due or phase_watch.decides_at(step, every):
        return False
    evaluated = [row["step"] for row in read_rows(files.metrics) if row.get("split") == parts.eval_data.split_label]
    return bool(Agreement(parts.strategy).broadcast_from_chief([step not in evaluated])[0])


def _show(metrics: dict[str, float]) -> str:
    return (
        "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "num_examples") or "not evaluated"
    )
