"""Resumes a run: tells whether a model_dir holds this very run, and takes it back to its newest checkpoint."""

import json
import re
from collections.abc import Iterator, Mapping

import gin
import keras

from trainer.checkpoints.finder import checkpoint_faults, newest_checkpoint
from trainer.checkpoints.manager import Checkpoints
from trainer.config import differing_lines
from trainer.errors import UserError
from trainer.optimizers.build import constant_rates
from trainer.output.metric_writer import read_rows
from trainer.output.model_dir import ModelDir
from trainer.run.built import RunParts

_MAX_LINES = 8  # of two configs that have nothing in common, more are no help
_CHANGED_AT = "# changed at step "  # a comment, which is no difference between two configs


def run_identity(parts: RunParts) -> str:
    """What decides the weights of a run, a line each: the config's bindings, or what a program gave to `train`.

    Only the bindings where there are some: they say `decay_steps = %NUM_STEPS`, so that a longer
    run is still the same run, where the numbers that came of it differ.
    """
    from_config = gin.get_bindings("experiment.train", resolve_references=False)
    return gin.config_str() if from_config else _arguments(parts)


def may_resume(files: ModelDir) -> bool:
    """Whether the folder holds a whole checkpoint of a run; raises `UserError` if it holds only broken ones.

    A folder that holds checkpoints of another program, which would get mixed with ours, is refused.
    """
    if any(files.path.glob("*.index")):
        raise UserError(
            f"model_dir {files.path} holds checkpoints that no run wrote; choose a folder of its own for the run."
        )
    if newest_checkpoint(files.checkpoints) is not None:
        return True
    broken = checkpoint_faults(files.checkpoints)
    if broken:
        raise UserError(
            f"model_dir {files.path} holds no whole checkpoint any more: {'; '.join(broken)}. "
            "Bring the files back, or choose another --model_dir; starting over would erase the run's record."
        )
    return False


def check_same_run(files: ModelDir, identity: str, allow_change: bool = False, evaluation_decides: bool = False) -> str:
    """What differs, line by line, if the folder holds steps of a run with another identity; "" if nothing does.

    evaluation_decides: whether evaluations decide the weights, as where a phase waits for a plateau.

    Raises `UserError` with these lines unless a change is allowed.
    """
    has_steps = newest_checkpoint(files.checkpoints) or any(row["step"] for row in read_rows(files.metrics))
    if not has_steps or not files.run_identity.exists():
        return ""
    changed = differing_lines(files.run_identity.read_text(), identity, evaluation_too=evaluation_decides)
    lines = "\n".join(f"  was: {old}\n  now: {new}" for old, new in changed[:_MAX_LINES])
    if len(changed) > _MAX_LINES:
        lines += f"\n  and {len(changed) - _MAX_LINES} more lines of {files.run_identity.name}"
    if changed and not allow_change:
        raise UserError(
            f"model_dir {files.path} holds a run of another config:\n{lines}\n"
            "Choose another --model_dir, go back to the config that the run was started with, or go on with the new "
            "one from the run's last step by --allow_config_change."
        )
    return lines


def changed_at(files: ModelDir) -> int:
    """The step at which the folder's config was changed last, -1 if it never was."""
    text = files.run_identity.read_text() if files.run_identity.exists() else ""
    found = re.search(rf"^{_CHANGED_AT}(\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else -1


def noting_change(identity: str, step: float) -> str:
    """The identity as it is written down, with the step at which the config was changed last, -1 for never."""
    return identity if step < 0 else f"{identity}{_CHANGED_AT}{step:.0f}\n"


def _arguments(parts: RunParts) -> str:
    optimizer, model, data = parts.state.optimizer, parts.state.model, parts.train_data
    given = {
        "init_checkpoint": parts.init_checkpoint,
        "model": f"{type(model).__name__}, {len(model.weights)} weights, {model.count_params()} numbers",
        "task": parts.task.describe(),
        "optimizer": {"class": type(optimizer).__name__, **optimizer.get_config()},
        "train_data": f"{data.label}, {data.num_examples} examples",
        "preprocess": getattr(data.preprocess, "__qualname__", None),
        "global_batch_size": parts.global_batch_size,
        "accumulation_steps": parts.accumulation_steps,
        "seed": parts.seed,
        **parts.rules,
        **parts.step_options,
        "ema_decay": parts.ema_decay,
    }
    return "".join(f"{name} = {text}\n" for name, text in _flat("train", given))


def _flat(name: str, value) -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every value in nested dicts, without names: Keras numbers those by process."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key != "name":
                yield from _flat(f"{name}.{key}", part)
    else:
        yield name, re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value, default=str))


class Resume:
    """Call it, on every worker, to load the newest whole checkpoint; returns its step.

    optimizer: with the constant rates of the config, before anything was loaded.
    changed_at: the step at which the config was changed last, -1 for one that never was; `math.inf` if it is changed
      now, which the first call makes a step of.

    A checkpoint holds the optimizer's rate, which for one up to that step is the rate of another config. One from
    after it has the right one, which the optimizer itself may have changed since.
    """

    def __init__(self, checkpoints: Checkpoints, optimizer: keras.optimizers.Optimizer, changed_at: float = -1):
        self._checkpoints = checkpoints
        self._configured = constant_rates(optimizer)
        self.changed_at = changed_at

    def __call__(self) -> int:
        step = self._checkpoints.resume()
        self.changed_at = min(self.changed_at, step)
        if step <= self.changed_at:
            for variable, value in self._configured:
                variable.assign(value)
        return step
