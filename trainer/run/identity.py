"""By what a run is recognised when the same command is given again: the config that decides its weights."""

import dataclasses
import inspect
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping

import gin
import keras
import numpy as np
import tensorflow as tf

from trainer.checkpoints.finder import newest_checkpoint
from trainer.config import differing_lines
from trainer.errors import UserError
from trainer.optimizers.phases import waits_for_plateau
from trainer.output.metric_writer import read_rows
from trainer.output.model_dir import ModelDir
from trainer.run.build import Built
from trainer.run.model import layer_settings
from trainer.run.resume import Start

_MAX_LINES = 8  # of two configs that have nothing in common, more are no help
_CHANGED_AT = "# changed at step "  # a comment, which is no difference between two configs


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity of a run, and what became of it since the run began.

    text: what decides the weights, a line each.
    changes: what was changed now, for a person; "" for nothing.
    changed_at: the step at which the config was changed last, -1 for never, `math.inf` for now.
    """

    text: str
    changes: str = ""
    changed_at: float = -1

    def notes(self) -> dict[str, str]:
        """Notes for a person, by heading."""
        return {"config changed": f"and allowed to:\n{self.changes}"} if self.changes else {}

    def as_file(self, changed_at: float) -> str:
        """The text that is written down, with the step of the last change, -1 for never."""
        return self.text if changed_at < 0 else f"{self.text}{_CHANGED_AT}{changed_at:.0f}\n"


def identify(built: Built, start: Start) -> Identity:
    """The run's identity, compared with what its folder holds; a collective of all workers.

    Raises `UserError`, with the lines that differ, where the folder's run had another one and no change is allowed.
    """
    text = _run_identity(built)
    files, agreement = built.inputs.files, built.inputs.agreement
    changes, last = "", -1
    if files is not None:
        allowed = built.settings.invocation.allow_config_change
        changes = _check_same_run(files, text, allowed, waits_for_plateau(built.settings.finetune.phases))
        last = _changed_at(files)
    # The chief's word: what a late worker would compare with may be of this process already.
    changed, last = agreement.broadcast_from_chief([bool(changes), last])
    if start is not Start.RESUMED:
        return Identity(text, changes if changed else "")
    if changed:
        return Identity(text, changes or "as the chief found", math.inf)
    return Identity(text, "", int(last))


def _run_identity(built: Built) -> str:
    """A line each: the config's bindings, or what a program gave to `train`.

    Only the bindings where there are some: they say `decay_steps = %NUM_STEPS`, so that a longer
    run is still the same run, where the numbers that came of it differ.
    """
    from_config = gin.get_bindings("experiment.train", resolve_references=False)
    return gin.config_str() if from_config else _arguments(built)


def _check_same_run(files: ModelDir, identity: str, allow_change: bool, evaluation_decides: bool) -> str:
    """The differences, line by line, if the folder holds steps of a run with another identity; "" for none.

    evaluation_decides: whether evaluations decide the weights, as where a phase waits for a plateau.

    Raises `UserError` with these lines unless a change is allowed.
    """
    has_steps = newest_checkpoint(files.checkpoints) or any(row["step"] for row in read_rows(files.metrics))
    if not has_steps or not files.run_identity.exists():
        return ""
    changed = differing_lines(files.run_identity.read_text(), identity, evaluation_decides=evaluation_decides)
    lines = "\n".join(f"  was: {old}\n  now: {new}" for old, new in changed[:_MAX_LINES])
    if len(changed) > _MAX_LINES:
        lines += f"\n  and {len(changed) - _MAX_LINES} more lines of {files.run_identity.name}"
    if changed and not allow_change:
        raise UserError(
            f"model_dir {files.path} holds a run of another config:\n{lines}\n"
            "Choose another --model_dir, go back to the config that the run was started with, or continue with the new "
            "one from the run's last step by --allow_config_change."
        )
    return lines


def _changed_at(files: ModelDir) -> int:
    """The step at which the folder's config was changed last, -1 if it never was."""
    text = files.run_identity.read_text() if files.run_identity.exists() else ""
    found = re.search(rf"^{_CHANGED_AT}(\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else -1


def _arguments(built: Built) -> str:
    optimizer, model, data = built.state.optimizer, built.state.model, built.inputs.given_train_data
    given = {
        "train.model": f"{type(model).__name__}, {len(model.weights)} weights, {model.count_params()} numbers",
        **{f"train.model.layers.{name}": text for name, text in layer_settings(model).items()},
        "train.task": built.settings.task.describe(),
        "train.optimizer": {"class": type(optimizer).__name__, **_config_of(optimizer)},
        "train.train_data": data.fingerprint,
        "train.train_data.preprocess": getattr(data.preprocess, "__qualname__", None),
        # Only where there is one: else a run that began before there could be would be another run.
        **({"train.train_data.augment": getattr(data.augment, "__qualname__", "")} if data.augment else {}),
        **built.settings.decisive(),
    }
    return "".join(f"{name} = {text}\n" for key, value in given.items() for name, text in _flat(key, value))


def _config_of(described) -> Mapping:
    """The config of an optimizer or a schedule; of one without `get_config`, its class, code and plain attributes."""
    try:
        return described.get_config()
    except NotImplementedError:
        pass
    attributes = {name.lstrip("_"): value for name, value in vars(described).items()}
    plain = {
        name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for name, value in (
            (name, value.numpy() if tf.is_tensor(value) else value) for name, value in attributes.items()
        )
        if isinstance(value, np.ndarray | np.generic | str | int | float | bool | None)
    }
    schedules = {
        name: _config_of(value)
        for name, value in attributes.items()
        if isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
    }
    try:
        code = f"{zlib.crc32(inspect.getsource(type(described)).encode()):08x}"
    except (OSError, TypeError):  # a class that was typed, not read from a file
        code = "unknown"
    return {"class": f"{type(described).__module__}.{type(described).__qualname__}", "code": code, **plain, **schedules}


def _flat(name: str, value) -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every value in nested dicts, without names: Keras numbers those by process."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key != "name":
                yield from _flat(f"{name}.{key}", part)
    else:
        yield name, re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value, default=str))
