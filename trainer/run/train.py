"""Builds every part of a run in the strategy's scope, and has it run."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gin
import keras
import tensorflow as tf

from trainer.checkpoints.finder import newest_checkpoint
from trainer.checkpoints.manager import Checkpoints
from trainer.checkpoints.train_state import new_train_state
from trainer.cluster.collectives import Agreement
from trainer.cluster.strategy import build_strategy, is_chief
from trainer.data.batches import replica_batch_size
from trainer.data.data import as_data
from trainer.errors import RunAgain, UserError
from trainer.optimizers.build import OptimizerProof, build_optimizer, prove_new, trained_variables
from trainer.optimizers.ema import check_decay
from trainer.optimizers.groups import ParameterGroup, divide
from trainer.optimizers.lora import Lora, add_lora, check_lora, describe_lora, finds_trainable, lora_variables
from trainer.optimizers.phases import Phase, check_phases, describe_starts, waits_for_plateau
from trainer.optimizers.state_transfer import Handover, check_handover, hand_over, warm_up_again
from trainer.output.model_dir import ModelDir, ModelDirLock
from trainer.restore import RestoreReport, restore_weights
from trainer.run.build import (
    assemble_model,
    describe_batch_norm,
    describe_half_precision,
    freeze_batch_norm,
    refuse_empty_layers,
)
from trainer.run.built import RunParts
from trainer.run.describe import describe_run
from trainer.run.loop import Intervals
from trainer.run.nan_recovery import check_on_nan
from trainer.run.preemption import Preemption, check_grace
from trainer.run.profile import measure_throughput
from trainer.run.resume import Resume, changed_at, check_same_run, may_resume, noting_change, run_identity
from trainer.run.same_inputs import check_same_run_everywhere
from trainer.run.saving import Saving
from trainer.run.session import Session
from trainer.run.start_checks import check_given, check_start
from trainer.run.time_limit import Deadline
from trainer.step.randomness import check_kind
from trainer.step.trace_checks import try_task
from trainer.step.update import check_update
from trainer.step.xla_check import check_xla, describe_fitness
from trainer.tasks.task import Task

_SLOW_DISK_BYTES_PER_SECOND = 50e6  # of a folder that many machines share; until a save was measured


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` leaves behind.

    finished: False if a signal or `max_seconds` stopped the run before `num_steps`; the same call resumes it.
    initial_metrics, final_metrics: evaluations at step 0 and at the last step; empty without eval_data.
    restore_report, optimizer_proof: None where nothing was restored or the run was resumed.
    handover: what went on of the checkpoint's optimizer; None for nothing, and where the run was resumed.
    tpu_obstacles: with jit_compile, the operations that XLA compiles here and a TPU would refuse.
    """

    model: keras.Model
    step: int
    finished: bool
    initial_metrics: dict[str, float]
    final_metrics: dict[str, float]
    restore_report: RestoreReport | None
    optimizer_proof: OptimizerProof | None
    model_dir: Path | None
    handover: Handover | None = None
    tpu_obstacles: Sequence[str] = ()


@gin.register(module="experiment")
def train(
    model: Callable[[], keras.Model] = gin.REQUIRED,
    train_data=gin.REQUIRED,
    task: Task = gin.REQUIRED,
    optimizer: Callable = gin.REQUIRED,
    global_batch_size: int = gin.REQUIRED,
    num_steps: int = gin.REQUIRED,
    model_dir: str | os.PathLike | None = None,
    eval_data=None,
    init_checkpoint: str | None = None,
    from_scratch: bool = False,
    rename: Sequence[tuple[str, str]] = (),
    reinitialize: Sequence[str] = (),
    ignore: Sequence[str] = (),
    match: str = "structure",
    root: str | None = None,
    grow: Sequence[str] = (),
    copy_rows: Sequence[tuple[str, dict[int, int]]] = (),
    handover: str = "fresh",
    handover_warmup_steps: int = 0,
    frozen: Sequence[str] = (),
    trained: str = "all",
    lora: Lora | None = None,
    groups: Sequence[ParameterGroup] = (),
    layer_decay: float | None = None,
    layer_blocks: str | None = None,
    phases: Sequence[Phase] = (),
    update_frozen_batch_norm: bool = False,
    accumulation_steps: int = 1,
    ema_decay: float | None = None,
    random_numbers: str = "per_replica",
    jit_compile: bool = False,
    optimizer_update: str = "per_replica",
    synchronize_batch_norm: bool = True,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
    log_every: int = 10,
    eval_every: int = 100,
    checkpoint_every: int = 100,
    steps_per_loop: int = 10,
    checkpoints_to_keep: int = 3,
    keep_every: int = 0,
    best_metric: str | None = None,
    best_mode: str = "max",
    async_checkpoint: bool = True,
    on_save_error: str = "stop",
    max_seconds: float = 0,
    started_at: float | None = None,
    grace_seconds: float = 30,
    on_nan: str = "stop",
    max_rollbacks: int = 3,
    allow_config_change: bool = False,
    dry_run: bool = False,
    timed_steps: int = 0,
) -> TrainResult:
    """Restores the weights, replaces the optimizer, trains, and writes it all down in `model_dir`.

    model: function without required arguments that returns a `keras.Model`, built or not; called in scope.
    train_data, eval_data: `tfds_data(...)`, a dict of arrays, or a finite `tf.data.Dataset` of dicts.
    task: `supervised(...)`, `custom_loss(...)`, `style_transfer(...)`.  optimizer: function that returns a Keras one.
    global_batch_size: examples a step, over all replicas.  num_steps: optimizer updates in all.
    init_checkpoint: whose weights to start from; without it `from_scratch` must be True.
    rename, reinitialize, ignore, match, root, grow, copy_rows: see `restore_weights`.
    handover: what becomes of the checkpoint's optimizer: "fresh" reads nothing of it; "keep_step" takes its step
      count, for schedules that go on; "carry" also its slots that mean the same, or refuses.
    handover_warmup_steps: updates over which the rate is warmed up again after one of the latter two.
    frozen: regexes of variables not to train.
    trained: "all", or a preset: "last_layer", "biases", or "bitfit", which is both.
    lora: made by `lora(...)`: only changes of low rank are trained, which are merged into what is exported.
    groups: what is to be trained at another rate, weight decay or optimizer, or later; made by `group(...)`.
    layer_decay: if given, e.g. 0.8, a layer's rate is this times that of the layer after it.
    layer_blocks: a regex; layers in whose names it finds the same text count as one for `layer_decay`.
    phases: further optimizers, made by `phase(...)`, that take over one after the other within the run.
    update_frozen_batch_norm: whether the statistics of a BatchNormalization of which nothing is trained follow the
      data; by default they stay.
    accumulation_steps: micro-batches that a replica takes a step in; the step stays the same.
    ema_decay: if given, e.g. 0.999, averages of the trained weights are kept, evaluated and exported.
    random_numbers: "per_replica" gives each replica dropout masks and noise of its own; "per_example" those of
      one replica, whatever their number, for more work.
    jit_compile: compiles each replica's forward and backward pass with XLA.
    optimizer_update: "per_replica" makes the update on each replica's own copies of the variables, "once" makes
      it once and sends them to all; the weights are the same.
    synchronize_batch_norm: whether BatchNormalization takes its statistics over all replicas; without, the
      weights depend on their number.
    seed: of initial weights and data order.  strategy: None means `build_strategy("auto")`.
    log_every, eval_every, checkpoint_every: in steps, 0 for only at the end.
    steps_per_loop: steps on the device between two looks of the host.
    checkpoints_to_keep: the newest so many; keep_every: and for good those of a multiple of so many steps.
    best_metric: name of a metric of the evaluation; `checkpoints/best` then holds the checkpoint where it was
      highest (best_mode "max") or lowest ("min").
    async_checkpoint: whether training continues while a checkpoint, whose values are taken, is brought to the disk.
    on_save_error: "stop" ends a run that cannot save, for a full disk say; "continue" prints that and continues.
    max_seconds: after so many the run saves and stops, as at a signal, its last loops shortened; 0 for no end.
    started_at: from when on they count, of `time.monotonic()`; None means now. A command counts from its own start.
    grace_seconds: within so many after SIGTERM or SIGINT the run has saved and left; else it leaves at once, to go on
      from the last whole checkpoint. 0 for no limit. Device loops are shortened to half of it, evaluations are left
      and made up for afterwards. Kubernetes, Slurm and spot machines give 30 s where nothing else is said.
    on_nan: "stop" ends a run whose loss or gradient is not finite, and names step and examples; "rollback" goes
      back to the last checkpoint and leaves that batch out, `max_rollbacks` times at most.
    allow_config_change: resumes a run whose config was another one, from its last step; the changes are printed.
    dry_run: does everything up to the first step, prints it, and writes nothing.
    timed_steps: how many steps a dry run takes, and takes back, to say how fast data and step are, each alone.

    If `model_dir` holds this run's own checkpoint, the run is resumed and `init_checkpoint` is not read.
    Raises `UserError` (`RestoreError` among them) for whatever the caller can fix, before anything is written.
    Raises `RunAgain` if another process wrote to `model_dir` meanwhile.
    """
    check_given(
        model=model,
        train_data=train_data,
        task=task,
        optimizer=optimizer,
        global_batch_size=global_batch_size,
        num_steps=num_steps,
    )
    check_start(model, init_checkpoint, from_scratch, num_steps, seed, checkpoints_to_keep, strategy)
    check_handover(handover, handover_warmup_steps, init_checkpoint, bool(groups) or layer_decay is not None)
    check_lora(lora, trained)
    check_on_nan(on_nan, max_rollbacks)
    check_kind(random_numbers)
    check_update(optimizer_update)
    if ema_decay is not None:
        check_decay(ema_decay)
    saving = Saving(best_metric, best_mode, on_save_error)
    saving.check(task, eval_data, keep_every)
    if phases:
        evaluates = eval_data is not None and eval_every > 0
        check_phases(phases, list(task.new_metrics()), evaluates, groups, layer_decay, handover)
    check_grace(grace_seconds)
    # The other half of the grace time is for saving.
    deadline = Deadline(max_seconds, longest_loop_seconds=grace_seconds / 2 or math.inf, started_at=started_at)
    intervals = Intervals(log_every, eval_every, checkpoint_every, steps_per_loop)
    strategy = strategy or build_strategy("auto")
    replica_batch = replica_batch_size(global_batch_size, strategy.num_replicas_in_sync, accumulation_steps)
    train_data = as_data(train_data, "train_data")
    eval_data = None if eval_data is None else as_data(eval_data, "eval_data")
    keras.utils.set_random_seed(seed)

    rules: dict[str, Any] = {
        "rename": rename, "reinitialize": reinitialize, "ignore": ignore, "match": match, "root": root, "grow": grow,
        "copy_rows": copy_rows,
    }  # fmt: skip
    # Those of the optimizer are in its own config.
    tuning = {
        name: value
        for name, value in (
            ("trained", trained),
            ("update_frozen_batch_norm", update_frozen_batch_norm),
            ("lora", lora and dataclasses.asdict(lora)),
            ("phases", describe_starts(phases, eval_every) or None),
        )
        if value not in ("all", False, None)
    }
    files = ModelDir(Path(model_dir)) if model_dir else None
    agreement = Agreement(strategy)
    check_same_run_everywhere(
        agreement, train_data, eval_data, global_batch_size=global_batch_size, num_steps=num_steps, seed=seed,
        init_checkpoint=init_checkpoint, accumulation_steps=accumulation_steps, **rules,
    )  # fmt: skip
    resuming = files is not None and _all_resume(files, agreement)
    # After the comparison: what is computed is not the same to the last bit on every kind of machine.
    train_data = task.completed(train_data)
    eval_data = None if eval_data is None else task.completed(eval_data)

    with strategy.scope():
        built_model = assemble_model(model, task, train_data, strategy, synchronize_batch_norm)
        variables = trained_variables(built_model, frozen, trained)
        report = None
        if init_checkpoint and not resuming:
            report = restore_weights(built_model, init_checkpoint, **rules)
        if not resuming:
            refuse_empty_layers(built_model)
        with_lora = []
        if lora:  # on the restored kernels, which have no place for it in the checkpoint
            with_lora = add_lora(built_model, lora)
            # A kernel that has matrices beside it is frozen by them, and no pattern finds it any more.
            still_frozen = [pattern for pattern in frozen if finds_trainable(built_model, pattern)]
            variables = lora_variables(built_model, trained_variables(built_model, still_frozen), lora, report)
        variable_groups = divide(built_model, variables, groups, layer_decay, layer_blocks)
        notes = task.notes() | freeze_batch_norm(built_model, variables, update_frozen_batch_norm)
        if lora:
            notes["lora"] = describe_lora(built_model, with_lora, lora)

        def build(variables):
            return build_optimizer(optimizer, variables, variable_groups, phases)

        new_optimizer = build(variables)
        proof = None if resuming else prove_new(new_optimizer, build, variables, report)
        state = new_train_state(built_model, new_optimizer, variables, ema_decay, handover != "fresh")
        handed_over = None
        if report is not None and state.steps_before is not None:
            row_rules = {*grow, *(pattern for pattern, _ in copy_rows)}
            handed_over = hand_over(
                handover, new_optimizer, built_model, report, row_rules, num_steps, handover_warmup_steps
            )
            state.steps_before.assign(handed_over.step)
    parts_of_a_step = strategy.num_replicas_in_sync * accumulation_steps
    try_task(built_model, task, train_data, eval_data, replica_batch, parts_of_a_step)
    if strategy.num_replicas_in_sync > 1 and not synchronize_batch_norm:
        notes |= describe_batch_norm(built_model, replica_batch)
    notes |= describe_half_precision(built_model, new_optimizer)
    obstacles = []
    if jit_compile:
        obstacles = check_xla(built_model, task, train_data, replica_batch, variables, strategy, eval_data)
        notes["xla"] = describe_fitness(obstacles)
    parts = RunParts(
        strategy=strategy,
        task=task,
        train_data=train_data,
        eval_data=eval_data,
        state=state,
        variables=variables,
        report=report,
        proof=proof,
        global_batch_size=global_batch_size,
        replica_batch_size=replica_batch,
        accumulation_steps=accumulation_steps,
        num_steps=num_steps,
        steps_per_loop=steps_per_loop,
        init_checkpoint=os.fspath(init_checkpoint) if init_checkpoint else None,
        seed=seed,
        rules=rules
        | {"frozen": frozen, "synchronize_batch_norm": synchronize_batch_norm}
        | tuning
        | ({} if handover == "fresh" else {"handover": handover, "handover_warmup_steps": handover_warmup_steps}),
        step_options={
            "random_numbers": random_numbers,
            "jit_compile": jit_compile,
            "optimizer_update": optimizer_update,
        },
        ema_decay=ema_decay,
        max_rollbacks=max_rollbacks if on_nan == "rollback" else 0,
        notes=notes,
        groups=variable_groups,
        phases=phases,
        handover=handed_over,
        handover_warmup_steps=handover_warmup_steps,
    )
    identity = run_identity(parts)
    changed = "" if files is None else check_same_run(files, identity, allow_config_change, waits_for_plateau(phases))
    # The chief's word: what a late worker would compare with may be of this process already.
    changes, last_change = agreement.broadcast_from_chief([bool(changed), changed_at(files) if files else -1])
    if not changes:
        changed = ""
    elif not changed:
        changed = "as the chief tells"
    change = -1 if not resuming else math.inf if changed else int(last_change)
    if changed:
        notes["config changed"] = f"and allowed to:\n{changed}"

    def result(finished: bool, initial: dict[str, float], final: dict[str, float], path: Path | None) -> TrainResult:
        return TrainResult(
            built_model, state.current_step(), finished, initial, final, report, proof, path, handed_over, obstacles
        )

    if dry_run:
        if files is not None and resuming:
            resume = Resume(Checkpoints(state, files.checkpoints), new_optimizer, change)
            parts = dataclasses.replace(parts, resumed_step=_resumed_step(resume, num_steps))
        warm_up_again(new_optimizer, state.optimizer_step(0), handover_warmup_steps)
        if timed_steps:
            notes["speed"] = str(measure_throughput(parts, timed_steps))
        print(describe_run(parts))
        return result(False, {}, {}, None)
    if files is None:
        with Preemption(strategy, grace_seconds) as preemption:
            session = Session(parts, None, None, None, intervals, deadline, preemption, saving, identity)
            return result(*session.run(), None)
    with _writing(files, resuming, notes) if is_chief(strategy) else contextlib.nullcontext():
        checkpoints = Checkpoints(
            state, files.checkpoints, checkpoints_to_keep, is_chief(strategy), keep_every, async_checkpoint,
            agreement if agreement.workers > 1 else None,
        )  # fmt: skip
        first_save_seconds = 1 + state.size_bytes() / _SLOW_DISK_BYTES_PER_SECOND
        deadline.reserved = lambda: checkpoints.longest_seconds or first_save_seconds
        resume = Resume(checkpoints, new_optimizer, change)
        if resuming:
            parts = dataclasses.replace(parts, resumed_step=_resumed_step(resume, num_steps))
            if checkpoints.skipped:
                notes["checkpoints"] = "; ".join(checkpoints.skipped)
        checkpoints.tidy()
        # Closed before the folder is another's; a signal waits from here on until the run is on the disk.
        preemption = Preemption(strategy, grace_seconds, lambda: newest_checkpoint(files.checkpoints))
        with contextlib.closing(checkpoints), preemption:
            identity = noting_change(identity, resume.changed_at)
            session = Session(parts, files, checkpoints, resume, intervals, deadline, preemption, saving, identity)
            return result(*session.run(), files.path)


@contextlib.contextmanager
def _writing(files: ModelDir, resuming: bool, notes: dict[str, str]) -> Iterator[None]:
    """Makes and locks the folder: nothing of ours is on disk before every part of the run was built.

    Raises `RunAgain` where another process went on with the run meanwhile.
    """
    files.create()
    with ModelDirLock(files) as lock:
        if (newest_checkpoint(files.checkpoints) is not None) != resuming:
            raise RunAgain(f"model_dir {files.path} was written by another process just now. Run the command again.")
        if lock.left_by:
            notes["lock"] = (
                f"{lock.left_by} did not let go of it; killed, or still at work where locks do not reach other hosts"
            )
        yield


def _all_resume(files: ModelDir, agreement: Agreement) -> bool:
    """Whether there is something to go on with, which all workers must see."""
    resuming = may_resume(files)
    (seen,) = agreement.all_reduce_sum([resuming])
    if seen not in (0, agreement.workers):
        raise UserError(
            f"{seen} of {agreement.workers} workers see a checkpoint of the run in {files.path}, and this one sees "
            f"{'one' if resuming else 'none'}: model_dir must be a folder that all workers share."
        )
    return resuming


def _resumed_step(resume: Resume, num_steps: int) -> int:
    step = resume()
    if step > num_steps:
        raise UserError(f"The run is at step {step} already, past num_steps = {num_steps}; it cannot go back.")
    return step
