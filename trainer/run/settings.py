"""The settings of a run: frozen dataclasses that gin binds, each tested as soon as it is made.

`Intervals.eval_every = 20` in a config sets a field. A class declares what may be done with its fields: whether a
resumed run may have others, and whether the members of a comparison may differ in them.
"""

import dataclasses
import os
from collections.abc import Sequence

from trainer.config.settings import MAY_DIFFER, OF_EVALUATION, Checked, settings
from trainer.errors import UserError
from trainer.optimizers.groups import ParameterGroup
from trainer.optimizers.lora import Lora
from trainer.optimizers.phases import Phase
from trainer.optimizers.state_transfer import POLICIES
from trainer.restore import Rules
from trainer.step.randomness import KINDS
from trainer.step.update import UPDATES


@settings("restore")
@dataclasses.dataclass(frozen=True)
class Restore(Rules, Checked):
    """Whose weights the run starts from, and by which rules (see `restore_weights`).

    `train.restore = None` starts from random weights.
    """

    checkpoint: str | os.PathLike | None
    """A prefix, one of its files, a folder of checkpoints, a model_dir, a SavedModel or a file of weights."""

    optimizer_state: str = dataclasses.field(default="fresh", metadata=MAY_DIFFER)
    """What is taken of the checkpoint's optimizer: "fresh" reads nothing of it; "step" takes its step count, from
    which schedules continue; "slots" takes also those of its slots that mean the same, or refuses."""

    rewarmup_steps: int = dataclasses.field(default=0, metadata=MAY_DIFFER)
    """Updates over which the learning rate is warmed up again after "step" or "slots"."""

    def check(self) -> None:
        if not self.checkpoint:
            raise UserError(
                "There is no checkpoint to start from. Set INIT_CHECKPOINT = 'path' (it is Restore.checkpoint), or say "
                "train.restore = None if random weights are meant."
            )
        self.one_of("optimizer_state", POLICIES)
        self.at_least(0, "rewarmup_steps", meaning=" (no warm-up)")
        if self.optimizer_state == "fresh" and self.rewarmup_steps:
            raise UserError(
                f"Restore.rewarmup_steps = {self.rewarmup_steps} warms up again where the optimizer's state is taken "
                "over, and Restore.optimizer_state = 'fresh' takes none. Put the warm-up into the optimizer's schedule."
            )

    @property
    def rules(self) -> dict:
        """The arguments of `restore_weights`, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Rules)}


@settings("finetune", may_differ=True)
@dataclasses.dataclass(frozen=True)
class Finetune(Checked):
    """Which variables are trained, and which of them in a way of their own."""

    trained: str = "all"
    """"all", or a preset: "last_layer", "biases", or "bitfit", which is both."""

    frozen: Sequence[str] = ()
    """Regexes of variables not to train."""

    groups: Sequence[ParameterGroup] = ()
    """Variables trained at another rate, weight decay or optimizer, or later; each made by `group(...)`."""

    layer_decay: float | None = None
    """If given, e.g. 0.8, a layer's learning rate is this times that of the layer after it."""

    layer_blocks: str | None = None
    """A regex; layers in whose names it finds the same text count as one for `layer_decay`."""

    lora: Lora | None = None
    """Made by `lora(...)`: only changes of low rank are trained, which are merged into what is exported."""

    phases: Sequence[Phase] = ()
    """Further optimizers, each made by `phase(...)`, that take over one after the other within the run."""

    update_frozen_batch_norm: bool = False
    """Whether the moving statistics of a BatchNormalization of which nothing is trained follow the data."""

    def check(self) -> None:
        if self.lora is not None and self.trained != "all":
            raise UserError(
                f"Finetune.trained = {self.trained!r} and Finetune.lora both say what is trained; name more for it in "
                "lora.also_trained, and leave trained out."
            )

    @property
    def divides(self) -> bool:
        """Whether several optimizers share the variables."""
        return bool(self.groups) or self.layer_decay is not None


@settings("step", may_differ=True)
@dataclasses.dataclass(frozen=True)
class Step(Checked):
    """How one optimizer update is computed."""

    accumulation_steps: int = 1
    """Micro-batches that a replica takes a step in; the step stays the same."""

    ema_decay: float | None = None
    """If given, e.g. 0.999, averages of the trained weights are kept, evaluated and exported."""

    jit_compile: bool = False
    """Whether XLA compiles each replica's forward and backward pass."""

    random_numbers: str = "per_replica"
    """"per_replica" gives each replica dropout masks and noise of its own; "per_example" those of one replica,
    whatever their number, for more work."""

    synchronize_batch_norm: bool = True
    """Whether BatchNormalization takes its statistics over all replicas; without, the weights depend on their
    number."""

    update: str = "per_replica"
    """"per_replica" makes the optimizer's update on each replica's own copies of the variables, "once" makes it once
    and sends it to all; the weights are the same."""

    def check(self) -> None:
        self.at_least(1, "accumulation_steps")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise UserError(f"Step.ema_decay = {self.ema_decay!r} must lie between 0 and 1, e.g. 0.999.")
        self.one_of("random_numbers", KINDS)
        self.one_of("update", UPDATES)


@settings("intervals", may_change=True)
@dataclasses.dataclass(frozen=True)
class Intervals(Checked):
    """How often the host does something, in steps; 0 means only at the end, but for `steps_per_loop`."""

    log_every: int = 10
    """Steps from one row of training metrics to the next."""

    eval_every: int = dataclasses.field(default=100, metadata=OF_EVALUATION)
    """Steps from one evaluation to the next."""

    checkpoint_every: int = 100
    """Steps from one checkpoint to the next."""

    steps_per_loop: int = 10
    """Steps that run on the device between two looks of the host."""

    def check(self) -> None:
        self.at_least(0, "log_every", "eval_every", "checkpoint_every")
        self.at_least(1, "steps_per_loop")

    def steps_to_next_look(self, step: int, num_steps: int, first_step: int = 0) -> int:
        """How far the device may run from `step` without passing a point where the host is due.

        first_step: where this process began; batches come in stacks of `steps_per_loop` from there on.
        """
        ends = [num_steps, step + self.steps_per_loop - (step - first_step) % self.steps_per_loop]
        ends += [
            step - step % every + every for every in (self.log_every, self.eval_every, self.checkpoint_every) if every
        ]
        return min(ends) - step


@settings("saving", may_change=True)
@dataclasses.dataclass(frozen=True)
class Saving(Checked):
    """Which checkpoints are kept, and what becomes of a run that cannot save."""

    keep: int = 3
    """How many of the newest checkpoints stay."""

    keep_every: int = 0
    """Checkpoints of a multiple of so many steps stay for good; 0 for none."""

    best_metric: str | None = None
    """A metric of the evaluation; `checkpoints/best` then holds the checkpoint where it was best."""

    best_mode: str = "max"
    """Whether "max" or "min" is best."""

    in_background: bool = True
    """Whether training continues while a checkpoint, whose values are taken, is brought to the disk."""

    on_error: str = "stop"
    """"stop" ends a run that cannot save, for a full disk say; "continue" prints that and continues."""

    def check(self) -> None:
        self.at_least(1, "keep", meaning=" (a run needs its last one)")
        self.at_least(0, "keep_every")
        self.one_of("best_mode", ("max", "min"))
        self.one_of("on_error", ("stop", "continue"))


@settings("limits", may_change=True)
@dataclasses.dataclass(frozen=True)
class Limits(Checked):
    """Limits that end a run before `num_steps`, and errors that do not."""

    max_seconds: float = 0
    """After so many the run saves and stops, as at a signal, its last loops shortened; 0 for no end."""

    grace_seconds: float = 30
    """Within so many after SIGTERM or SIGINT the run has saved and left; else it leaves at once, and resumes from the
    last whole checkpoint. 0 for no limit. Device loops are shortened to half of it, evaluations are left and made up
    for afterwards. Kubernetes, Slurm and spot machines give 30 s where nothing else is said."""

    on_nan: str = "stop"
    """"stop" ends a run whose loss or gradient is not finite, and names step and examples; "rollback" goes back to
    the last checkpoint and leaves that batch out, `max_rollbacks` times at most."""

    max_rollbacks: int = 3
    """How often "rollback" may go back."""

    def check(self) -> None:
        self.at_least(0, "max_seconds", meaning=" (no end)")
        self.at_least(0, "grace_seconds", meaning=" (no limit)")
        self.one_of("on_nan", ("stop", "rollback"))
        if self.on_nan == "rollback":
            self.at_least(1, "max_rollbacks", meaning=" (on_nan = 'stop' allows none)")


@settings("invocation", may_change=True, by_flag=True)
@dataclasses.dataclass(frozen=True)
class Invocation(Checked):
    """Options of a single command, set by its flags; no config sets them."""

    allow_config_change: bool = dataclasses.field(default=False, metadata={"flag": "--allow_config_change"})
    """Resumes a run whose config was another one, from its last step; the changes are printed."""

    dry_run: bool = dataclasses.field(default=False, metadata={"flag": "--dry_run"})
    """Does everything up to the first step, prints it, and writes nothing."""

    timed_steps: int = dataclasses.field(default=0, metadata={"flag": "--timed_steps"})
    """How many steps a dry run takes, and takes back, to say how fast data and step are, each alone."""

    started_at: float | None = None
    """From when on `Limits.max_seconds` count, of `time.monotonic()`; None means now. A command counts from its own
    start."""

    def check(self) -> None:
        self.at_least(0, "timed_steps")
        if self.started_at is not None:
            self.at_least(0, "started_at")
        if self.timed_steps and not self.dry_run:
            raise UserError("Invocation.timed_steps belongs to a dry run: a run shows its own speed.")
