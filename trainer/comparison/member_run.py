"""Runs in a member's process: makes one run as though it were alone, and notes how it ended and what it took."""

import dataclasses
import os
import time
from typing import Any

import gin
import tensorflow as tf

from trainer.comparison.folder import ComparisonDir
from trainer.comparison.memory import peak_device_memory_bytes, peak_memory_bytes
from trainer.comparison.process import MISTAKE, Devices
from trainer.comparison.record import RunRecord, read_record
from trainer.comparison.source_task import measure_forgetting
from trainer.config import parse_text
from trainer.errors import RunAgain, UserError, message_of
from trainer.run.loop import LossNotFinite


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a comparison.

    config: of the run, as gin text.
    source_config: the same with `compare.source_data`, None without such data.
    metric: which is measured on the source data.
    at_a_time: processes that share the machine.
    """

    files: ComparisonDir
    member: str
    seed: int
    config: str
    source_config: str | None
    metric: str
    devices: Devices
    at_a_time: int


def make_run(job: Job) -> int:
    """Trains one member with one seed, or resumes it; returns the exit status.

    A run that diverges is a result, one that fails otherwise is noted with its message; neither raises.
    What is no mistake of the user's is raised: a bug, say.
    """
    path = job.files.record(job.member, job.seed)
    before = read_record(path)
    record = RunRecord(
        config=job.config,
        wall_seconds=before.wall_seconds if before else 0.0,
        whole_wall_seconds=before is None or (before.whole_wall_seconds and before.state != "running"),
        at_a_time=job.at_a_time,
    )
    record.write(path)
    if job.at_a_time > 1:  # else the first of them would take all of a GPU's memory
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    parse_text(job.config)
    strategy = job.devices.build()
    record = _trained(record, job, strategy)
    # What was trained is noted before anything that may still go wrong.
    record.write(path)
    if record.state == "finished" and job.source_config is not None:
        record = _with_forgetting(record, job, strategy)
        record.write(path)
    return {"stopped": RunAgain.exit_status, "failed": MISTAKE}.get(record.state, 0)


def _trained(record: RunRecord, job: Job, strategy: tf.distribute.Strategy) -> RunRecord:
    start = time.monotonic()
    try:
        train = gin.get_configurable("experiment.train")
        result = train(model_dir=job.files.run(job.member, job.seed).path, strategy=strategy)
        ended: dict[str, Any] = {"state": "finished" if result.finished else "stopped"}
    except UserError as error:
        ended = _failure(error)
    return dataclasses.replace(
        record,
        **ended,
        wall_seconds=record.wall_seconds + time.monotonic() - start,
        peak_memory_bytes=peak_memory_bytes(),
        peak_device_memory_bytes=peak_device_memory_bytes(),
    )


def _failure(error: UserError) -> dict[str, Any]:
    message = message_of(error)
    print(f"regraft: {message}", flush=True)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, LossNotFinite):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return {"state": "failed", "message": message}
    return {"state": "diverged", "message": message, "diverged_at": cause.step}


def _with_forgetting(record: RunRecord, job: Job, strategy: tf.distribute.Strategy) -> RunRecord:
    assert job.source_config is not None
    final_weights = job.files.run(job.member, job.seed).final_weights
    try:
        parse_text(job.source_config)
        data, before, after, message = measure_forgetting(job.metric, final_weights, job.seed, strategy)
    except (UserError, tf.errors.OpError) as error:
        return dataclasses.replace(record, message=f"compare.source_data cannot be evaluated: {error}")
    return dataclasses.replace(record, source_data=data, source_before=before, source_after=after, message=message)
