"""Exact metrics over one split: every example counts once, on any number of replicas."""

from collections.abc import Callable, Iterable

import tensorflow as tf

from trainer.cluster.strategy import num_workers, worker_index
from trainer.data.batches import eval_batches
from trainer.data.data import Data
from trainer.errors import UserError
from trainer.step.micro_batches import replica_share
from trainer.tasks.task import Task, naming_wrong_labels


def build_evaluate(
    strategy: tf.distribute.Strategy, model, task: Task, batch_size: int
) -> Callable[..., dict[str, float]]:
    """Returns evaluate(data, wrap_batches) -> {metric name: value}, with `loss` and `num_examples` among them.

    wrap_batches: what the batches go through, as `Preemption.until_received`, which may end it.

    batch_size: global; must divide over the replicas. Filled-up rows of the last batch weigh nothing.
    The metric variables live on the replicas and are summed when they are read.
    """
    with strategy.scope():
        metrics = task.new_metrics()

    def replica_update(batch, weight):
        task.update_metrics(metrics, model, *replica_share((batch, weight), strategy))

    @tf.function(autograph=False)
    def update(batch, weight):
        strategy.run(replica_update, args=(batch, weight))

    def evaluate(data: Data, wrap_batches: Callable[[Iterable], Iterable] = iter) -> dict[str, float]:
        for metric in metrics.values():
            metric.reset_state()
        batches = eval_batches(data, batch_size, num_workers(strategy), worker_index(strategy))
        with naming_wrong_labels(data):
            for batch, weight in wrap_batches(data.elements(batches)):
                update(batch, weight)
        results = {name: tf.convert_to_tensor(metric.result()).numpy() for name, metric in metrics.items()}
        several = [name for name, value in results.items() if value.ndim]
        if several:
            raise UserError(
                f"The metric {several[0]!r} gives {results[several[0]].shape} values; one number is needed."
            )
        return {name: float(value) for name, value in results.items()} | {"num_examples": float(data.num_examples)}

    return evaluate
