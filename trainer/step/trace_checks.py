"""Traces the task's loss and metrics on the batches' specification, and refuses what does not fit; computes nothing."""

import os
import re
import traceback
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from trainer.data.batches import eval_batches
from trainer.data.data import Data
from trainer.errors import UserError, message_of
from trainer.tasks.loss_terms import added_terms
from trainer.tasks.task import Task

_FIRST_EXAMPLES = 64  # looked at before the first step


def try_task(
    model: keras.Model, task: Task, train_data: Data, eval_data: Data | None, batch_size: int, parts: int = 1
) -> None:
    """Traces the loss, and the metrics if they will be asked for, on the batches' specification; computes nothing.

    batch_size: examples of one of the `parts` that a global batch is cut into, by replicas and micro-batches.

    Raises `UserError` for a loss or metric that can't be computed on such a batch, for a metric that is not one
    number, for values that don't fit the model's outputs, and for a loss whose parts would not add up. Call
    outside the strategy's scope.
    """
    outputs = None
    if eval_data is None and len(task.new_metrics()) > 1:
        _try_metrics(model, task, train_data, batch_size)  # for a later `launch.evaluate`
    for data in [train_data] if eval_data is None else [train_data, eval_data]:
        # Train and evaluation data mostly are alike, and a trace takes its time.
        if data is train_data or data.batch_spec != train_data.batch_spec:
            outputs = trace_loss(model, task, data, batch_size).structured_outputs[-1]
        if data is train_data and parts > 1 and added_terms(model):
            _check_parts_add_up(model, task, data, batch_size)
        if data is eval_data:
            _try_metrics(model, task, data, batch_size)
        if isinstance(outputs, tf.TensorSpec | tf.Tensor):
            for examples in (_untouched(data), _first(data)):
                task.check_values(tf.TensorSpec(outputs.shape), examples)


def trace_loss(model: keras.Model, task: Task, data: Data, batch_size: int):
    """The concrete function (batch, weight) -> (loss sum, weight sum, outputs), training; raises as `try_task` does."""

    def loss(batch, weight):
        return task.loss_and_outputs(model, batch, weight, training=True)

    return _trace("loss", loss, data, batch_size)


def _check_parts_add_up(model: keras.Model, task: Task, data: Data, batch_size: int) -> None:
    """Tests a model's own losses: each is a mean over the examples, and such means add up where all weigh the same."""

    def loss(batch, weight):
        _, weight_sum, _ = task.loss_and_outputs(model, batch, None, training=True)
        if not isinstance(weight_sum, float):
            raise UserError(
                "The model adds to the loss by add_loss or an activity regulariser, and not all examples weigh the "
                "same (sample_weight, class_weight, a mask, ignore_class or lengths that differ): in parts, by "
                "replicas or accumulation_steps, that is not the loss of the whole batch. Write both into a "
                "custom_loss, leave one of them out, or train on one replica without accumulation."
            )
        return weight_sum

    _trace("loss", loss, data, batch_size)


def _try_metrics(model: keras.Model, task: Task, data: Data, batch_size: int) -> None:
    metrics = task.new_metrics()
    trace_metrics(model, task, data, batch_size, metrics)
    for name, metric in metrics.items():
        shape = tf.convert_to_tensor(metric.result()).shape
        if shape.rank:
            raise UserError(f"The metric {name!r} gives {shape} values; one number is needed.")


def trace_metrics(model: keras.Model, task: Task, data: Data, batch_size: int, metrics: Mapping | None = None):
    """The concrete function (batch, weight) -> None that adds a batch to metrics, new ones by default."""
    metrics = task.new_metrics() if metrics is None else metrics
    return _trace("metrics", lambda batch, weight: task.update_metrics(metrics, model, batch, weight), data, batch_size)


def _untouched(data: Data) -> dict:
    """The features in memory that `preprocess` leaves as they are, judged by the first few examples."""
    if data.examples is None or data.preprocess is None:
        return dict(data.examples or {})
    few = {key: value[:8] for key, value in data.examples.items()}
    after = data.preprocess({key: tf.constant(value) for key, value in few.items()})
    return {key: data.examples[key] for key, value in few.items() if key in after and _equal(after[key], value)}


def _first(data: Data) -> dict:
    """The first examples of data that are streamed or preprocessed, as the task sees them; of others `_untouched` has
    all."""
    if data.examples is not None and data.preprocess is None:
        return {}
    batch, _ = next(data.elements(eval_batches(data, min(_FIRST_EXAMPLES, data.num_examples)).take(1)))
    return {name: value.numpy() for name, value in batch.items() if isinstance(value, tf.Tensor)}


def _equal(tensor, value: np.ndarray) -> bool:
    return isinstance(tensor, tf.Tensor) and tensor.dtype == value.dtype and np.array_equal(tensor.numpy(), value)


def batch_specs(data: Data, batch_size: int) -> tuple[dict, tf.TensorSpec]:
    """The specifications of a batch and of its weight, [batch_size] float32."""

    def sized(spec):
        dense = isinstance(spec, tf.TensorSpec) and spec.shape.rank is not None
        return tf.TensorSpec([batch_size, *spec.shape[1:]], spec.dtype) if dense else spec

    return {key: sized(spec) for key, spec in data.batch_spec.items()}, tf.TensorSpec([batch_size], tf.float32)


def _trace(what: str, function: Callable, data: Data, batch_size: int):
    batch, weight = batch_specs(data, batch_size)
    try:
        return tf.function(function, autograph=False).get_concrete_function(batch, weight)
    except UserError:
        raise
    except Exception as error:
        specs = ", ".join(f"{key} {spec.dtype.name}{spec.shape}" for key, spec in batch.items())
        reason = error_with_place(error)
        raise UserError(f"The task's {what} cannot be computed on a batch of {specs}:\n{reason}") from error


def error_with_place(error: Exception) -> str:
    """Kind, message and the user's own line, without the frames that AutoGraph writes into a message."""
    kind, text = type(error).__name__, message_of(error)
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    named = re.findall(r'File "([^"]+)", line (\d+)', text)
    places = [place for place in named or frames if not _is_ours(place[0])]
    message = text.rsplit(f"{kind}: ", 1)[-1] if text.startswith("in user code:") else text
    return f"{kind}: {message}" + (f"\n({places[-1][0]}, line {places[-1][1]})" if places else "")


def _is_ours(path: str) -> bool:
    return "site-packages" in path or path.startswith(os.path.dirname(os.path.dirname(__file__)))
