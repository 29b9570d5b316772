"""Makes one run of a comparison as though it were alone, and notes how it ended and what it took."""

import contextlib
import dataclasses
import time
from typing import Any

import gin
import tensorflow as tf

from trainer.comparison.folder import ComparisonDir
from trainer.comparison.memory import peak_device_memory_bytes, peak_memory_bytes, reset_peaks
from trainer.comparison.plan import Plan
from trainer.comparison.record import RunRecord, read_record
from trainer.comparison.session import clear_session
from trainer.comparison.source_task import measure_forgetting
from trainer.config import config_of
from trainer.errors import UserError
from trainer.run.loop import LossNotFinite


def make_run(
    plan: Plan,
    files: ComparisonDir,
    member: str,
    seed: int,
    strategy: tf.distribute.Strategy,
    source_data=None,
    at_a_time: int = 1,
) -> RunRecord:
    """Trains one member with one seed, or resumes it; what it prints goes to its log.

    source_data: of which the metric is taken before and after, or None.

    A run that diverges is a result, one that fails otherwise is noted with its message; neither raises.
    What is no mistake of the user's is raised: a bug, or a lost worker.
    """
    path = files.record(member, seed)
    before = read_record(path)
    with config_of(member, seed):
        record = RunRecord(
            config=gin.config_str(),
            wall_seconds=before.wall_seconds if before else 0.0,
            whole_wall_seconds=before is None or (before.whole_wall_seconds and before.state != "running"),
            at_a_time=at_a_time,
        )
        record.write(path)
        with open(files.log(member, seed), "a", buffering=1) as log, contextlib.redirect_stdout(log):
            record = _trained(record, files, member, seed, strategy)
            # What was trained is noted before anything that may still go wrong.
            record.write(path)
            if record.state == "finished" and source_data is not None:
                record = _with_forgetting(record, plan, files, member, seed, strategy, source_data)
    record.write(path)
    return record


def _trained(record: RunRecord, files: ComparisonDir, member: str, seed: int, strategy) -> RunRecord:
    clear_session()
    peak_is_known = reset_peaks()
    start = time.monotonic()
    try:
        result = gin.get_configurable("experiment.train")(
            model_dir=str(files.run(member, seed).path), strategy=strategy
        )
        ended: dict[str, Any] = {"state": "finished" if result.finished else "stopped"}
    except UserError as error:
        ended = _failure(error)
    return dataclasses.replace(
        record,
        **ended,
        wall_seconds=record.wall_seconds + time.monotonic() - start,
        peak_memory_bytes=peak_memory_bytes() if peak_is_known else None,
        peak_device_memory_bytes=peak_device_memory_bytes(),
    )


def _failure(error: UserError) -> dict[str, Any]:
    message = str(error).split("\n  In call to configurable")[0].strip()
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, LossNotFinite):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return {"state": "failed", "message": message}
    return {"state": "diverged", "message": message, "diverged_at": cause.step}


def _with_forgetting(record, plan: Plan, files: ComparisonDir, member, seed, strategy, source_data):
    try:
        data, before, after, message = measure_forgetting(
            plan.metric, files.run(member, seed).final_weights, seed, strategy, source_data
        )
    except (UserError, tf.errors.OpError) as error:
        return dataclasses.replace(record, message=f"compare.source_data cannot be evaluated: {error}")
    return dataclasses.replace(record, source_data=data, source_before=before, source_after=after, message=message)
