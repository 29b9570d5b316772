"""Carries out a restore plan: reads everything, then assigns, then compares what every replica holds."""

import numpy as np

from trainer.replicas import replica_values
from trainer.restore.live import LiveVariable
from trainer.restore.plan import Plan
from trainer.restore.report import RestoreError
from trainer.restore.source import CheckpointSource


def apply_plan(plan: Plan, source: CheckpointSource) -> None:
    """Fills the model's variables on every replica and completes `plan.report`.

    All or nothing: each tensor is read, with its checksum, before the first variable changes, so a
    damaged file leaves the model as it was. Afterwards each replica's copy is compared bit for bit.
    Raises `RestoreError` for a file that can't be read, and for a copy that differs.
    """
    try:
        values = [(weight, _cast(source.read(entry), weight)) for weight, entry in plan.pairs]
    except RestoreError as error:
        error.report = plan.report
        raise
    for weight, value in values:
        weight.variable.assign(value)
    replicas = 1
    for weight, value in values:
        copies = replica_values(weight.variable)
        replicas = len(copies)
        for index, copy in enumerate(copies):
            if copy.tobytes() != value.tobytes():
                raise RestoreError(
                    f"{weight.name} differs from the checkpoint on replica {index} after it was written.",
                    plan.report,
                )
    report = plan.report
    read = set(source.keys_read)
    report.optimizer_keys_read = len(read.intersection(report.optimizer_keys))
    report.bytes_read = source.bytes_read
    report.replicas_verified = replicas


def _cast(value: np.ndarray, weight: LiveVariable) -> np.ndarray:
    dtype = weight.dtype.as_numpy_dtype
    if value.dtype == dtype:
        return value
    with np.errstate(over="ignore"):  # told below, with the variable's name
        cast = value.astype(dtype)
    lost = int(np.sum(np.isfinite(value) & ~np.isfinite(cast)))
    if lost:
        raise RestoreError(
            f"{weight.name}: {lost} of {value.size} values are too large for {weight.dtype.name}; no variable was "
            "changed. Restore into a wider dtype, e.g. bfloat16 or float32."
        )
    return cast
