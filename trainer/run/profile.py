"""How fast the data come and how fast a step is, each alone, before a run."""

import dataclasses
import time

import tensorflow as tf

from trainer.data.data import Data
from trainer.data.step_batches import StackedBatches
from trainer.run.build import Built
from trainer.run.inputs import worker_batches

# A stack that lay ready comes in less.
_WAIT_SECONDS = 1e-3
_NO_WAIT_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Seconds a step, each alone: the pipeline drained without a step, the step on batches that are there."""

    data_seconds: float
    step_seconds: float
    global_batch_size: int

    def __str__(self) -> str:
        slower, what = max((self.data_seconds, "data"), (self.step_seconds, "step"))
        times = f"step {_milliseconds(self.step_seconds)}, data {_milliseconds(self.data_seconds)} a step, each alone"
        advice = " (cheaper preprocess, or tfds_data.prepare once)" if what == "data" else ""
        return f"{times}; the {what} is the bottleneck{advice}: {self.global_batch_size / slower:,.0f} examples/s"


def measure_throughput(built: Built, num_steps: int) -> Throughput:
    """Times `num_steps` or more of each, after one that traces; the variables are afterwards what they were.

    Every worker must call it: a step is a collective.
    """
    settings, inputs = built.settings, built.inputs
    # A stack comes whole: of slow data, no more steps are waited for than were asked for.
    batches = worker_batches(settings, inputs, 0, min(settings.intervals.steps_per_loop, num_steps))
    train_loop = built.train_loop(batches)
    data_seconds, stack = _data_seconds(inputs.train_data, batches, num_steps)
    held = tf.nest.flatten(batches.spec)[0].shape[0]
    with built.state.unchanged():

        def steps(count: int) -> None:
            for first in range(0, count, held):
                metrics = train_loop(stack, tf.constant(0), tf.constant(min(held, count - first)))
            metrics["loss"].numpy()  # waits for the device

        steps(1)
        step_seconds = _seconds(lambda: steps(num_steps)) / num_steps
    return Throughput(data_seconds, step_seconds, settings.global_batch_size)


def _data_seconds(data: Data, batches: StackedBatches, num_steps: int):
    """(seconds a step, a stack): drained from a moment where nothing lay ready to another, `num_steps` later or more.

    What lay ready before the first was made before the clock started, what lies ready after the other is not used.
    """
    held = tf.nest.flatten(batches.spec)[0].shape[0]
    looked_up = min(held, num_steps)  # of numbers, a stack holds those of hundreds of steps
    draw = _draw(batches)
    draw.get_concrete_function()  # is traced now, and not in the time that is taken
    stacks = data.elements(batches.dataset)

    longest = 0.0

    def drain(least: int):
        nonlocal longest
        waited = drawn = 0.0
        count, last_wait, more_ready = 0, time.perf_counter(), True
        while count < least or more_ready:
            started = time.perf_counter()
            stack = next(stacks)
            came = time.perf_counter()
            draw(stack, tf.constant(0), tf.constant(looked_up)).numpy()
            ended = time.perf_counter()
            waited, drawn, count = waited + came - started, drawn + ended - came, count + 1
            longest = max(longest, came - started)
            # Stacks are made side by side: one that follows another closely is of the same moment.
            if came - started > max(_WAIT_SECONDS, longest / 10):
                last_wait = came
            # Where nothing is waited for in so long, the data come sooner than they are looked up.
            more_ready = last_wait != came and ended - last_wait < _NO_WAIT_SECONDS
        return waited / (count * held) + drawn / (count * looked_up), stack

    next(stacks)  # for which everything is set up first
    drain(3)
    return drain(-(-num_steps // held))


def _draw(batches: StackedBatches):
    """In a step's place: looks up what a stack holds as numbers, and does nothing with it."""

    number = tf.TensorSpec([], tf.int32)

    @tf.function(input_signature=[batches.spec, number, number])
    def draw(stack, first, end):
        size = 0
        for index in tf.range(first, end):
            examples = batches.look_up(tf.nest.map_structure(lambda value: value[index], stack))  # noqa: B023
            size += tf.add_n([tf.size(value) for value in tf.nest.flatten(examples[0])])
        return size

    return draw


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
