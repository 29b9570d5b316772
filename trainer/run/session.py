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


def run(
    parts: RunParts,
    files: ModelDir | None,
    checkpoints: Checkpoints | None,
    resume: Resume | None,
    intervals: Intervals,
    deadline: Deadline,
    preemption: Preemption,
    saving: Saving,
    identity: str,
) -> tuple[bool, dict[str, float], dict[str, float]]:
    """Trains from where the state is to the end, or to where a signal or the time ends it; leaves all on the disk.

    files, checkpoints, resume: None for a run that writes nothing down.
    identity: by which the same command, given again, knows the run.
    Returns whether it came to its end, and the first and the last evaluation on record, empty for none.
    """
    strategy, state = parts.strategy, parts.state
    chief = is_chief(strategy)
    # After a resume, which brings the step count that the warm-up begins at.
    warm_up_again(state.optimizer, state.optimizer_step(0), parts.handover_warmup_steps)
    writer = start_files(parts, files if chief else None, identity)
    progress = StepProgress(parts.num_steps, state.current_step(), visible=chief)
    progress.say(describe_start(parts))

    phase_watch = PhaseWatch(state.optimizer, parts.phases, progress.say)

    evaluate = build_evaluate(strategy, state.model, parts.task, parts.global_batch_size)
    initial = final = {}
    split = parts.eval_data.split_label if parts.eval_data else ""

    def write_artifacts():
        if chief and files is not None:
            data = parts.train_data if parts.eval_data is None else parts.eval_data
            parts.task.write_artifacts(state.model, data, files.images, state.current_step())

    if state.current_step() == 0:
        write_artifacts()
    if parts.eval_data is not None and state.current_step() == 0:
        with contextlib.suppress(Interrupted):  # the loop then leaves at its first look
            initial = final = evaluate(parts.eval_data, preemption.until_received)
            writer.write(0, initial, split=split)
            progress.say(f"step 0           {_show(initial)}")

    def evaluate_and_keep():
        nonlocal final
        # One that may begin a phase is of the step's state, and too late once that is saved.
        decides = phase_watch.decides_at(state.current_step(), intervals.eval_every)
        with state.evaluated_weights():
            write_artifacts()
            if parts.eval_data is None:
                return None
            final = evaluate(parts.eval_data, iter if decides else preemption.until_received)
        if decides:
            phase_watch.look_at(final)
        if checkpoints is not None and saving.best_metric is not None:
            # Before the step's own checkpoint, which marks the step as done.
            value, name, higher_is_better = final[saving.best_metric], saving.best_metric, saving.best_mode == "max"
            saving.guarded(lambda: checkpoints.save_best(value, name, higher_is_better), progress.say)
        return final

    def make_up_evaluation() -> bool:
        """What a signal made an earlier process leave; False where one does so again."""
        step = state.current_step()
        if not _evaluation_is_missing(parts, files, step, intervals, phase_watch):
            return True
        try:
            writer.write(step, evaluate_and_keep(), split=split)
        except Interrupted:
            return False
        return True

    def evaluate_again():
        if parts.eval_data is not None and phase_watch.decides_at(state.current_step(), intervals.eval_every):
            with state.evaluated_weights():
                phase_watch.look_at(evaluate(parts.eval_data))

    def save():
        phase_watch.row()  # a run that goes on from here does not tell again which phases had begun
        writer.flush()
        if checkpoints is not None:
            checkpoints.save()

    batches = batches_from_here(parts)
    train_loop = build_train_loop(
        strategy, state, parts.task, parts.variables, parts.global_batch_size, batches, parts.accumulation_steps,
        **parts.step_options,
    )  # fmt: skip
    with progress:
        loop_parts = LoopParts(
            state=state,
            train=functools.partial(batches.run, train_loop),
            evaluate=evaluate_and_keep,
            log_more=phase_watch.row,
            save=lambda: saving.guarded(save, progress.say),
            writer=writer,
            progress=progress,
            preemption=preemption,
            deadline=deadline,
            split=split,
        )
        made_up = make_up_evaluation()
        while True:
            try:
                finished = made_up and run_loop(loop_parts, parts.num_steps, parts.global_batch_size, intervals)
                break
            except LossNotFinite as error:
                # It may come again, and time for it is left from now on.
                with deadline.pause(), _saying_skipped(checkpoints, progress.say):
                    batches, told = recover(parts, resume, train_loop, error, parts.max_rollbacks, evaluate_again)
                writer.drop_after(state.current_step())
                progress.say(told)
                loop_parts = dataclasses.replace(loop_parts, train=functools.partial(batches.run, train_loop))
    writer.flush()
    if checkpoints is not None:
        saving.guarded(checkpoints.wait, progress.say)
    if chief and files is not None:
        rows = read_rows(files.metrics)
        initial, final = recorded_metrics(rows, initial, final)
        finish_files(parts, files, writer, initial, final, finished)
    writer.close()
    step = state.current_step()
    progress.say(f"{'step' if finished else 'preempted at'} {step:<11} {_show(final)}")
    if not finished:
        progress.say("Run the same command again to go on from here.")
    if chief and files is not None:
        pictures = f"\nimages           {files.images}" if files.images.exists() else ""
        progress.say(f"files            {files.path}\nplot             {files.summary_plot}{pictures}")
    return finished, initial, final


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
