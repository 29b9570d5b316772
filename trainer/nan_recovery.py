"""A loss that is not finite: which step it came from and which examples, and a way round them."""

import math
from collections.abc import Callable

import numpy as np

from trainer.checkpoints import Checkpoints
from trainer.errors import UserError
from trainer.loop import LossNotFinite
from trainer.pipeline import batch_numbers, train_batches
from trainer.replicas import first_value
from trainer.run_parts import RunParts
from trainer.stacked_batches import StackedBatches
from trainer.strategy import num_workers, worker_index

CHOICES = ("stop", "rollback")
_ADVICE = (
    "Lower the learning rate or clip the gradient (e.g. SGD.global_clipnorm = 1.0), look at those examples, or set "
    "train.on_nan = 'rollback' to leave such batches out."
)


def check_on_nan(on_nan: str) -> None:
    """Raises `UserError` for what is none of `CHOICES`."""
    if on_nan not in CHOICES:
        raise UserError(f"on_nan = {on_nan!r} must be one of {', '.join(map(repr, CHOICES))}.")


def batches_from_here(parts: RunParts) -> StackedBatches:
    """This worker's batches from the state's step on, those left out that the run has left out so far."""
    return train_batches(
        parts.train_data,
        parts.global_batch_size,
        parts.seed,
        parts.state.next_batch(),
        num_workers(parts.strategy),
        worker_index(parts.strategy),
        parts.accumulation_steps,
        parts.steps_per_loop,
    )


def recover(
    parts: RunParts, checkpoints: Checkpoints | None, train_loop: Callable, error: LossNotFinite, most_rollbacks: int
) -> tuple[StackedBatches, str]:
    """Goes back to the last checkpoint and leaves out the batches up to the one whose loss was not finite.

    Returns the batches to go on with, and a sentence that tells of it. Every worker must call it.
    most_rollbacks: 0 for a run that stops instead.

    Raises `UserError` that names step, checkpoint and examples: without a checkpoint, after `most_rollbacks`,
    and where the same steps from the same checkpoint give a finite loss.
    """
    state = parts.state
    start = checkpoints.resume() if checkpoints is not None else 0
    if checkpoints is None or not start:
        raise UserError(f"{error} There is no checkpoint before it to go back to, or to find the batch from. {_ADVICE}")
    first_batch = state.next_batch()
    bad_step = _first_bad_step(parts, train_loop, start, error.step)
    if bad_step is None:
        raise UserError(
            f"{error} Made once more from ckpt-{start}, the same steps have a finite loss: this machine does not "
            "compute the same twice. Run the command again; it goes on from that checkpoint."
        )
    bad_batch = first_batch + bad_step - start - 1
    told = (
        f"The loss is {error.loss} at step {bad_step}, the first after ckpt-{start} where it is not finite"
        f"{_examples(parts, bad_batch)}."
    )
    if not most_rollbacks:
        raise UserError(f"{told} The run goes on from ckpt-{start} once it is mended. {_ADVICE}")
    checkpoints.resume()
    if int(first_value(state.rollbacks)) >= most_rollbacks:
        raise UserError(f"{told} The run went back {most_rollbacks} times already, which is train.most_rollbacks.")
    left_out = bad_batch - first_batch + 1
    state.leave_out(left_out)
    return batches_from_here(parts), f"{told} Back at step {start}, without the next {left_out} batches."


def _first_bad_step(parts: RunParts, train_loop: Callable, start: int, end: int) -> int | None:
    """Makes the steps once more, one by one: the loop reads the loss of its last step only."""
    batches = batches_from_here(parts)
    for step in range(start + 1, end + 1):
        if not math.isfinite(float(batches.run(train_loop, 1)["loss"].numpy())):
            return step
    return None


def _examples(parts: RunParts, batch: int) -> str:
    if parts.train_data.examples is None:
        return ""
    numbers = np.sort(batch_numbers(parts.train_data, parts.global_batch_size, parts.seed, batch))
    shown = ", ".join(map(str, numbers[:32])) + ", ..." * (len(numbers) > 32)
    return f". Its batch is examples {shown} of {parts.train_data.label}, counted from 0"
