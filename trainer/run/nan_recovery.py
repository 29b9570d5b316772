"""A loss or a gradient that is not finite: which step it came from and which examples, and a way round them."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer.cluster.replicas import first_value
from trainer.cluster.strategy import num_workers, worker_index
from trainer.data.batches import batch_numbers, worker_rows
from trainer.data.step_batches import StackedBatches
from trainer.errors import UserError
from trainer.run.build import Built
from trainer.run.inputs import worker_batches
from trainer.run.loop import LossNotFinite, check_finite_weights, finite_metrics
from trainer.run.resume import Resume

_ADVICE = "Lower the learning rate or clip the gradient (e.g. SGD.global_clipnorm = 1.0)"


def recover(
    built: Built,
    resume: Resume | None,
    train_loop: Callable,
    error: LossNotFinite,
    after_step: Callable[[], None] = lambda: None,
) -> tuple[StackedBatches, str]:
    """Makes the steps since the last checkpoint again, up to the first bad batch, and leaves that one out.

    Bad is one whose loss or gradient is not finite. It alone is left out, so that what is left out does not depend
    on which checkpoints there are: a run that was interrupted has others. Afterwards the state is that of the
    step before it, so what is on record up to there stays true.

    Returns the batches to continue with, and a sentence that tells of it. Every worker must call it.
    after_step: called after each step that is made again.

    Raises `UserError` that names step, checkpoint and examples: with `on_nan = "stop"`, without a checkpoint, after
    `max_rollbacks`, and where the same steps from the same checkpoint are finite.
    """
    state, limits = built.state, built.settings.limits
    if resume is not None:
        resume()
    # Where there is no checkpoint, the state stays where it is; one of step 0 is a checkpoint as well.
    start = state.current_step()
    if resume is None or start >= error.step:
        raise UserError(
            f"{error} There is no checkpoint before it to go back to, or to find the batch from; a model_dir and a "
            f"smaller checkpoint_every make one. {_ADVICE}."
        )
    try:
        _make_again(built, train_loop, error.step, after_step)
    except LossNotFinite as found:
        what, bad_step = found.what, found.step
    else:
        raise UserError(
            f"{error} Made once more from ckpt-{start}, the same steps are finite: this machine does not "
            "compute the same twice. Run the command again; it resumes from that checkpoint."
        )
    bad_batch = state.next_batch() - 1
    report = f"{what} at step {bad_step}, the first after ckpt-{start} where it is not finite"
    report += f"{_examples(built, bad_batch)}."
    faults = _faults_of_the_data(built, bad_batch)
    report += faults and f" {faults}"
    advice = "Mend these examples" if faults else f"{_ADVICE}, look at those examples"
    if limits.on_nan == "stop":
        raise UserError(
            f"{report} The run resumes from ckpt-{start} once it is mended. {advice}, or set "
            "Limits.on_nan = 'rollback' to leave such batches out."
        )
    went_back = int(first_value(state.rollbacks))
    if went_back >= limits.max_rollbacks:
        raise UserError(
            f"{report} The run went back {went_back} times already; Limits.max_rollbacks = {limits.max_rollbacks}."
        )
    state.bad_batches.add(bad_batch)
    resume()
    batches = _make_again(built, train_loop, bad_step - 1, after_step)
    return batches, f"{report} Back at step {bad_step - 1}, to continue without that batch."


def _make_again(built: Built, train_loop: Callable, end: int, after_step: Callable[[], None]) -> StackedBatches:
    """Makes the steps from the state's to `end` without the batches that are known to be bad.

    One by one, as a loop does not say which of its steps was the first that is not finite: raises `LossNotFinite`.
    Returns the batches to continue with.
    """
    state = built.state
    batches = worker_batches(built.settings, built.inputs, state.next_batch(), built.settings.intervals.steps_per_loop)

    def leave_out_bad():
        while state.next_batch() in state.bad_batches:
            list(batches.take(1))
            state.leave_out_next()

    leave_out_bad()
    while state.current_step() < end:
        finite_metrics([train_loop(*steps) for steps in batches.take(1)], state.current_step(), state.optimizer)
        check_finite_weights(built.changing_weights(), state.current_step())
        after_step()
        leave_out_bad()
    return batches


def _faults_of_the_data(built: Built, number: int) -> str:
    """A sentence that names the features of a batch that are not finite, and their examples; a collective."""
    settings, inputs = built.settings, built.inputs
    batches = worker_batches(settings, inputs, number, steps_per_loop=1)
    ((stack, first, _),) = batches.take(1)
    batch, _ = batches.look_up(tf.nest.map_structure(lambda value: value[first], stack))
    rows = worker_rows(
        settings.global_batch_size, num_workers(inputs.strategy), worker_index(inputs.strategy),
        settings.step.accumulation_steps,
    )  # fmt: skip
    numbers = batch_numbers(inputs.train_data, settings.global_batch_size, settings.seed, number)
    sentences = []
    for name in sorted(batch):
        bad = np.zeros(settings.global_batch_size)
        value = batch[name]
        if isinstance(value, tf.Tensor) and value.dtype.is_floating:
            finite = tf.reduce_all(tf.reshape(tf.math.is_finite(value), [tf.shape(value)[0], -1]), axis=1)
            bad[rows] = ~finite.numpy()
        bad = np.array(inputs.agreement.all_reduce_sum(list(bad)))
        if bad.any():
            shown = sorted(int(each) for each in numbers[bad > 0])
            sentences.append(
                f"In the data, before any weight, the feature {name!r} is not finite in "
                f"{'example' if len(shown) == 1 else 'examples'} {', '.join(map(str, shown[:8]))}"
                f"{', ...' * (len(shown) > 8)}."
            )
    return " ".join(sentences)


def _examples(built: Built, batch: int) -> str:
    data, settings = built.inputs.train_data, built.settings
    numbers = np.sort(batch_numbers(data, settings.global_batch_size, settings.seed, batch))
    shown, more = numbers[:32], ", ..." * (len(numbers) > 32)
    if data.records is None:
        return f". Its batch is examples {', '.join(map(str, shown))}{more} of {data.label}, counted from 0"
    places = [f"{', '.join(map(str, records))} of {path}" for path, records in data.records.places(shown).items()]
    return f". Its batch is records {', '.join(places)}{more}, counted from 0"
