"""The ways to train that are compared: each a function that takes steps, on a model and data of its own."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf
from workloads import Workload, optimizer

from trainer.checkpoints.train_state import new_train_state
from trainer.cluster.strategy import is_chief, local_replicas, num_workers, worker_index
from trainer.data.batches import train_batches
from trainer.data.data import in_memory
from trainer.optimizers.build import build_optimizer
from trainer.output.metric_writer import MetricWriter
from trainer.output.progress import StepProgress
from trainer.run.loop import TrainingLog, run_loop
from trainer.run.preemption import Preemption
from trainer.run.settings import Intervals
from trainer.run.time_limit import Deadline
from trainer.step.micro_batches import part_of
from trainer.step.train_step import build_train_loop
from trainer.tasks.supervised import supervised
from trainer.tasks.task import Task

STEPS_PER_LOOP = 50

TakeSteps = Callable[[int], None]


def task() -> Task:
    return supervised(loss=_loss(), inputs="x", target="y")


def regraft(
    workload: Workload, strategy: tf.distribute.Strategy, update: str = "per_replica", accumulation_steps: int = 1
) -> TakeSteps:
    """This trainer's loop as `train()` runs it, 50 steps at a time: it shuffles, and logs at the end of a round."""
    folder = Path(tempfile.mkdtemp())
    data = in_memory(examples=workload.arrays())
    with strategy.scope():
        model = workload.build()
        state = new_train_state(model, build_optimizer(optimizer, model.trainable_variables))
    batches = train_batches(
        data, workload.batch_size, 0, 0, num_workers(strategy), worker_index(strategy), accumulation_steps,
        steps_per_loop=50,
    )  # fmt: skip
    train_loop = build_train_loop(
        strategy, state, task(), model.trainable_variables, workload.batch_size, batches, accumulation_steps,
        update=update,
    )  # fmt: skip
    run = _Round(state, train_loop, batches, folder, workload, strategy)
    return lambda steps: run_loop(run, state.current_step() + steps, Intervals(0, 0, 0, STEPS_PER_LOOP))


class _Round:
    """What the loop of `train()` calls, without a folder of checkpoints and without data to evaluate."""

    def __init__(self, state, train_loop, batches, folder: Path, workload: Workload, strategy):
        self.state, self._train_loop, self._batches = state, train_loop, batches
        writer = MetricWriter(folder / "metrics.jsonl", {"train": folder / "train"}, is_chief(strategy))
        self._progress = StepProgress(1, 0, visible=False)
        self._log = TrainingLog(state, workload.batch_size, writer, self._progress)
        self._preemption, self._deadline = Preemption(strategy), Deadline()

    def next_steps(self, due_in: int) -> int:
        return self._preemption.next_steps(due_in, self._deadline.steps_left())

    def train(self, num_steps: int, end: int):
        loops = [self._train_loop(*steps) for steps in self._batches.take(num_steps)]
        self._progress.advance(end)
        self._deadline.made(num_steps)
        return loops

    def log(self, step: int, values: dict[str, float]) -> None:
        self._log.write(step, values)

    def evaluate(self, step: int) -> None:
        pass

    def save(self) -> None:
        pass

    def leave(self) -> None:
        pass


def floor(workload: Workload, strategy: tf.distribute.Strategy) -> TakeSteps:
    """The least that a step can be: in one graph, on batches that lie in memory in order, nothing measured."""
    images, labels = _batches(workload, strategy)
    step = _minimal_step(workload, strategy)

    @tf.function
    def loop(first, num_steps):
        for i in tf.range(first, first + num_steps):
            step(images[i % workload.num_batches], labels[i % workload.num_batches], share=True)

    def calls(steps: int) -> None:
        for first in range(0, steps, STEPS_PER_LOOP):
            loop(tf.constant(first), tf.constant(min(STEPS_PER_LOOP, steps - first)))

    return calls


def fed_floor(workload: Workload, strategy: tf.distribute.Strategy) -> TakeSteps:
    """The floor's step, fed by a (distributed) tf.data iterator."""
    iterator = iter(_distributed(workload, strategy))
    step = _minimal_step(workload, strategy)

    @tf.function
    def loop(iterator, num_steps):
        for _ in tf.range(num_steps):
            step(*next(iterator))

    def calls(steps: int) -> None:
        for first in range(0, steps, STEPS_PER_LOOP):
            loop(iterator, tf.constant(min(STEPS_PER_LOOP, steps - first)))

    return calls


def naive(workload: Workload, strategy: tf.distribute.Strategy) -> TakeSteps:
    """A Python loop around a traced step, that reads the loss each time to show it."""
    iterator = iter(_distributed(workload, strategy))
    step = tf.function(_minimal_step(workload, strategy))

    def loop(steps: int) -> None:
        for _ in range(steps):
            float(step(*next(iterator)))

    return loop


def orbit(workload: Workload, strategy: tf.distribute.Strategy) -> TakeSteps:
    """Orbit's Controller with a StandardTrainer, 50 inner steps."""
    import orbit as library

    class Trainer(library.StandardTrainer):
        def __init__(self):
            self.step = _minimal_step(workload, strategy)
            with strategy.scope():
                self.global_step = library.utils.create_global_step()
            super().__init__(_distributed(workload, strategy))

        def train_step(self, iterator):
            self.step(*next(iterator))
            self.global_step.assign_add(1)

    trainer = Trainer()
    controller = library.Controller(
        global_step=trainer.global_step, trainer=trainer, strategy=strategy, steps_per_loop=STEPS_PER_LOOP
    )
    return lambda steps: controller.train(int(trainer.global_step.numpy()) + steps)


def fit(workload: Workload, strategy: tf.distribute.Strategy, steps_per_execution: int = 1) -> TakeSteps:
    """Keras' own loop, its data in order and not shuffled."""
    with strategy.scope():
        model = workload.build()
        model.compile(optimizer(), _loss(), steps_per_execution=steps_per_execution)
    dataset = _dataset(workload)
    return lambda steps: model.fit(dataset, steps_per_epoch=steps, epochs=1, verbose=0)


def fit_50(workload: Workload, strategy: tf.distribute.Strategy) -> TakeSteps:
    """The same with 50 steps an execution."""
    return fit(workload, strategy, STEPS_PER_LOOP)


PEERS = {
    "floor": floor,
    "regraft": regraft,
    "fed floor": fed_floor,
    "orbit 50": orbit,
    "fit 50": fit_50,
    "fit 1": fit,
    "naive": naive,
}
# Only where --peer asks for them.
MORE_PEERS = {"update once": functools.partial(regraft, update="once")}


def _minimal_step(workload: Workload, strategy: tf.distribute.Strategy) -> Callable:
    """step(images, labels) -> loss: as TensorFlow's tutorial on custom training writes it.

    share: whether each replica takes its part of what it is given.
    """
    with strategy.scope():
        model = workload.build()
        replaced = optimizer()
        replaced.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def on_replica(images, labels, share):
        if share:
            count = local_replicas(strategy)
            index = tf.distribute.get_replica_context().replica_id_in_sync_group % count
            images, labels = part_of((images, labels), index, count)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(loss_of(labels, model(images, training=True))) / workload.batch_size
        replaced.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    def step(images, labels, share=False):
        return strategy.reduce("sum", strategy.run(on_replica, args=(images, labels, share)), axis=None)

    return step


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _batches(workload: Workload, strategy: tf.distribute.Strategy) -> tuple[tf.Tensor, tf.Tensor]:
    """This worker's part of every batch, [num_batches, batch / workers, ...]."""
    arrays = workload.arrays()
    size = workload.batch_size // num_workers(strategy)
    here = slice(worker_index(strategy) * size, (worker_index(strategy) + 1) * size)
    stacked = {
        name: tf.constant(value.reshape([workload.num_batches, workload.batch_size, *value.shape[1:]])[:, here])
        for name, value in arrays.items()
    }
    return stacked["x"], stacked["y"]


def _dataset(workload: Workload) -> tf.data.Dataset:
    """Whole batches in order: nothing is cheaper to feed."""
    arrays = workload.arrays()
    shape = [workload.num_batches, workload.batch_size]
    whole = tuple(value.reshape([*shape, *value.shape[1:]]) for value in (arrays["x"], arrays["y"]))
    dataset = tf.data.Dataset.from_tensor_slices(whole).repeat().prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def _distributed(workload: Workload, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    if strategy.num_replicas_in_sync == 1:
        return _dataset(workload)
    return strategy.experimental_distribute_dataset(_dataset(workload))
