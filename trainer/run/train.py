"""The main path of a run: read what it is given, build it, try it, and train."""

import os
import time
from collections.abc import Callable

import gin
import keras
import tensorflow as tf

from trainer.checkpoints.manager import Checkpoints
from trainer.config.settings import may_change, set_by_flag
from trainer.optimizers.state_transfer import warm_up_again
from trainer.run.build import Built, Fit, build, check_it_fits
from trainer.run.describe import describe_run
from trainer.run.identity import Identity, identify
from trainer.run.inputs import Settings, as_restore, load_inputs
from trainer.run.open_session import open_session
from trainer.run.profile import measure_throughput
from trainer.run.result import TrainResult
from trainer.run.resume import Resume, Start, find_start
from trainer.run.settings import Finetune, Intervals, Invocation, Limits, Restore, Saving, Step
from trainer.run.start_checks import whole_number
from trainer.tasks.task import Task

may_change("train", "num_steps")
may_change("train", "eval_data", of_evaluation=True)
set_by_flag("train", model_dir="--model_dir", strategy="--strategy", invocation="--dry_run and its like")


@gin.register(module="experiment")
def train(
    model: Callable[[], keras.Model],
    task: Task,
    optimizer: Callable[[], keras.optimizers.Optimizer],
    train_data,
    num_steps: int,
    global_batch_size: int,
    restore: Restore | str | os.PathLike | None,
    eval_data=None,
    model_dir: str | os.PathLike | None = None,
    strategy: tf.distribute.Strategy | None = None,
    seed: int = 0,
    finetune: Finetune = Finetune(),
    step: Step = Step(),
    intervals: Intervals = Intervals(),
    saving: Saving = Saving(),
    limits: Limits = Limits(),
    invocation: Invocation = Invocation(),
) -> TrainResult:
    """Restores the weights, replaces the optimizer, trains, and writes it all down in `model_dir`.

    model: function without required arguments that returns a `keras.Model`, built or not; called in scope.
    task: `supervised(...)`, `custom_loss(...)`, `style_transfer(...)`.
    optimizer: function that returns a Keras optimizer.
    train_data, eval_data: `tfds_data(...)`, a dict of arrays, or a finite `tf.data.Dataset` of dicts.
    num_steps: optimizer updates in all.
    global_batch_size: examples a step, over all replicas.
    restore: `Restore(...)`, or a path for short; None starts from random weights.
    model_dir: folder that the run writes; None for a run that writes nothing.
    strategy: None for `build_strategy("auto")`.
    seed: of fresh weights and of the order of the data.
    finetune, step, intervals, saving, limits, invocation: see these classes, field by field.

    If `model_dir` holds this run's own checkpoint, the run is resumed and `restore` is not read.
    Raises `UserError` for whatever the caller can fix: for arguments, data and a restore (`RestoreError`) before
    anything is written; later for a loss that is not finite, a save that fails, and a data file that cannot be read.
    Raises `RunAgain` if another process wrote to `model_dir` meanwhile.
    """
    settings = Settings(
        model=model,
        task=task,
        optimizer=optimizer,
        train_data=train_data,
        num_steps=whole_number("num_steps", num_steps, 1),
        global_batch_size=whole_number("global_batch_size", global_batch_size, 1),
        restore=as_restore(restore),
        eval_data=eval_data,
        model_dir=model_dir,
        strategy=strategy,
        seed=whole_number("seed", seed, 0, 2**32),
        finetune=finetune,
        step=step,
        intervals=intervals,
        saving=saving,
        limits=limits,
        invocation=invocation,
        started_at=time.monotonic() if invocation.started_at is None else invocation.started_at,
    )
    settings.check()
    inputs = load_inputs(settings)  # the same on all workers
    start = find_start(settings, inputs)
    built = build(settings, inputs, start)
    fit = check_it_fits(built)
    identity = identify(built, start)
    if invocation.dry_run:
        return dry_run(built, fit, start, identity)
    with open_session(built, fit, start, identity) as session:
        return session.run()


def dry_run(built: Built, fit: Fit, start: Start, identity: Identity) -> TrainResult:
    """Prints what the run would do, and writes nothing; a run that would be resumed is taken to its last step."""
    settings, optimizer, files = built.settings, built.state.optimizer, built.inputs.files
    resumed_step = None
    if files is not None and start is Start.RESUMED:
        checkpoints = Checkpoints(built.state, files.checkpoints)
        resumed_step = Resume(checkpoints, optimizer, settings.num_steps, identity.changed_at)()
    warm_up_again(optimizer, built.state.optimizer_step(0), settings.rewarmup_steps)
    notes = {**built.notes, **fit.notes, **identity.notes()}
    if settings.invocation.timed_steps:
        notes["speed"] = str(measure_throughput(built, settings.invocation.timed_steps))
    print(describe_run(built, notes, resumed_step))
    return TrainResult.of(built, fit.tpu_obstacles)
