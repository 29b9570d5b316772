"""Carries out a restore plan: tests every tensor, then streams them into the variables, then compares every replica."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import google_crc32c
import numpy as np

from trainer.cluster.replicas import each_replica_value, first_value
from trainer.restore.all_workers import AllWorkers
from trainer.restore.casts import CastLosses, cast_losses
from trainer.restore.errors import RestoreError
from trainer.restore.matching.plan import Pair, Plan
from trainer.restore.source import SIDE_BY_SIDE_BYTES, CheckpointSource

# A cast is meant to round values. Above one in a hundred, those that vanish are no exceptions any more: the variable
# lies below the dtype's range, as the variances of a normalisation or embeddings of a small scale do.
_MAX_SHARE_TO_ZERO = 0.01
_COMPARING_THREADS = 2
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class _Tested:
    """crc32c: of the tensor's bytes in the file.
    not_finite: how many of its values are NaN or infinite.
    """

    crc32c: int
    not_finite: int
    cast: CastLosses


def apply_plan(
    plan: Plan, source: CheckpointSource, watch: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Fills the model's variables on every replica and completes `plan.report`.

    Every tensor is read once, in pieces and with its checksum, before the first variable changes, so
    a damaged file leaves the model as it was; only one that is damaged in the very moment does not.
    Then they are read again and assigned, large ones one at a time, so that never more than one of them
    is in memory beside the model. At last a checksum of what each replica holds is compared with the file's.
    Each worker reads the file itself; what fails on one of them fails on all.

    watch: called with the bytes that were tested, assigned or compared so far, and with their sum.

    Raises `RestoreError` for a file that can't be read, and for a copy that differs.
    """
    total = 3 * sum(pair.entry.size_bytes for pair in plan.pairs)
    done = 0

    def count(pair: Pair) -> None:
        nonlocal done
        done += pair.entry.size_bytes
        watch(done, total)

    workers = AllWorkers()
    try:
        with workers.all_or_none("read the checkpoint, and no variable was changed"):
            source.check_file()
            tested = []
            tests = _mapped(source.threads, lambda pair: _test_or_say(pair, source), plan.pairs)
            for pair, test in zip(plan.pairs, tests, strict=True):
                tested.append(test)
                count(pair)
            for fill in plan.fills:  # before the variables: what a layer does not take is refused
                fill.apply()
        with workers.all_or_none("fill the model, which must not be used"):
            written: list[int] = []
            largest = max((pair.entry.size_bytes for pair in plan.pairs), default=0)
            threads = source.threads if largest <= SIDE_BY_SIDE_BYTES else 1
            writes = _mapped(threads, lambda pair, test: _write_or_say(pair, source, test), plan.pairs, tested)
            for pair, checksum in zip(plan.pairs, writes, strict=True):
                written.append(checksum)
                count(pair)
            replicas = 1
            compared = _mapped(_COMPARING_THREADS, _compare, plan.pairs, written)
            for pair, holding_it in zip(plan.pairs, compared, strict=True):
                replicas = holding_it
                count(pair)
        _complete(plan, source, tested, replicas)
        workers.complete(plan.report)
    except RestoreError as error:
        error.report = plan.report
        raise


def _mapped(threads: int, function: Callable[..., _Result], *columns: Iterable) -> Iterator[_Result]:
    """As `map`, in order too, with so many calls at a time."""
    if threads == 1:
        yield from map(function, *columns)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="regraft-restore") as pool:
        yield from pool.map(function, *columns)


def _test_or_say(pair: Pair, source: CheckpointSource) -> _Tested:
    try:
        return _test(pair, source)
    except RestoreError as error:
        raise RestoreError(f"No variable was changed. {error}") from error


def _test(pair: Pair, source: CheckpointSource) -> _Tested:
    target = pair.weight.dtype.as_numpy_dtype
    checksum = not_finite = 0
    losses = CastLosses()
    casts = pair.entry.dtype != pair.weight.dtype
    for piece in source.pieces(pair.entry):
        checksum = google_crc32c.extend(checksum, _bytes_of(piece))
        if pair.entry.dtype.is_floating:
            finite = np.isfinite(piece)
            not_finite += finite.size - int(np.count_nonzero(finite))
            if casts:
                losses += cast_losses(piece, finite, target)
    if source.crc32c(pair.entry) not in (None, checksum):
        raise source.damaged(pair.entry, "its checksum does not fit")
    _refuse_lossy(pair, losses)
    return _Tested(checksum, not_finite, losses)


def _refuse_lossy(pair: Pair, losses: CastLosses) -> None:
    name, dtype = pair.weight.name, pair.weight.dtype.name
    if losses.infinite:
        raise RestoreError(
            f"{name}: {losses.infinite} of {int(np.prod(pair.entry.shape))} values are too large for {dtype}. "
            "Restore into a wider dtype, e.g. bfloat16 or float32."
        )
    if losses.zero > _MAX_SHARE_TO_ZERO * losses.nonzero:
        raise RestoreError(
            f"{name}: {losses.zero} of {losses.nonzero} values that are not 0 in the file become 0 in {dtype}, more "
            f"than {_MAX_SHARE_TO_ZERO:.0%}. Restore into a wider dtype, e.g. bfloat16 or float32."
        )


def _write(pair: Pair, source: CheckpointSource, test: _Tested) -> int:
    """Assigns one variable; the checksum that each of its copies must now have."""
    if pair.entry.dtype == pair.weight.dtype and not pair.rows:
        pair.weight.variable.assign(source.tensor(pair.entry))
        return test.crc32c
    read = source.read(pair.entry)
    if google_crc32c.value(_bytes_of(read)) != test.crc32c:
        raise source.damaged(pair.entry, "it was changed while it was read")
    value = read.astype(pair.weight.dtype.as_numpy_dtype)
    if pair.rows:
        value = pair.rows.merged(first_value(pair.weight.variable), value)
    pair.weight.variable.assign(value)
    return google_crc32c.value(_bytes_of(value))


def _write_or_say(pair: Pair, source: CheckpointSource, test: _Tested) -> int:
    try:
        return _write(pair, source, test)
    except RestoreError as error:
        raise RestoreError(
            f"{pair.weight.name} could be read once and not again, and other variables may be overwritten already. "
            f"Build the model again before it is used. ({error})"
        ) from error


def _compare(pair: Pair, checksum: int) -> int:
    """The number of replicas that hold the variable."""
    replicas = 0
    previous: np.ndarray | None = None
    for copy in each_replica_value(pair.weight.variable):
        # Devices that are parts of one CPU may share a variable's memory; a copy that is gone tells nothing.
        is_shared = previous is not None and np.may_share_memory(previous, copy)
        if not is_shared and google_crc32c.value(_bytes_of(copy)) != checksum:
            raise RestoreError(
                f"{pair.weight.name} differs from the checkpoint on replica {replicas} after it was written: "
                "was the file changed meanwhile? Restore again before the model is used."
            )
        previous = copy
        replicas += 1
    return replicas


def _bytes_of(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _complete(plan: Plan, source: CheckpointSource, tested: list[_Tested], replicas: int) -> None:
    report = plan.report
    seen = {pair.weight.name: test for pair, test in zip(plan.pairs, tested, strict=True)}
    report.records = [
        dataclasses.replace(
            record,
            checksum=f"crc32c:{seen[record.name].crc32c:08x}",
            not_finite=seen[record.name].not_finite,
        )
        if record.status == "restored"
        else record
        for record in report.records
    ]
    losses = {name: (test.cast.zero, test.cast.subnormal) for name, test in seen.items()}
    report.casts = {name: counts for name, counts in losses.items() if any(counts)}
    report.optimizer_keys_read = len(source.keys_read.intersection(report.optimizer_keys))
    report.bytes_read = source.bytes_read
    report.replicas_verified = replicas
