"""Puts model, task and data together, and refuses what does not fit before anything is written."""

import os
import re
import traceback
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from trainer.data import Data
from trainer.errors import UserError
from trainer.loss_terms import added_terms
from trainer.restore import build_model, empty_layers, layers_of
from trainer.tasks import Task


def assemble_model(
    model: Callable, task: Task, data: Data, strategy: tf.distribute.Strategy, synchronize_batch_norm: bool = True
) -> keras.Model:
    """Calls the builder and builds the model's variables for the task's inputs; call in the strategy's scope.

    synchronize_batch_norm: whether, with several replicas, every BatchNormalization takes its statistics over all.
    """
    try:
        built = model()
    except (TypeError, ValueError) as error:
        raise UserError(f"The model cannot be made: {_told(error)}") from error
    if not isinstance(built, keras.Model):
        raise UserError(f"The model builder must return a keras.Model; it returned {type(built).__name__}.")
    task.check_features(data.batch_spec)
    build_model(built, task.model_inputs(data.batch_spec))
    if strategy.num_replicas_in_sync > 1:
        for layer in _batch_norms(built):
            layer.synchronized = synchronize_batch_norm
    return built


def refuse_empty_layers(model: keras.Model) -> None:
    """Raises `UserError` for a lookup without a vocabulary and the like, at which the first step would fail."""
    empty = empty_layers(model)
    if empty:
        raise UserError(
            f"The model has no {', '.join(empty)}. Give the layer one as its argument, by set_vocabulary() or by "
            "adapt() in the function that builds the model; or restore from a file that has one, as .keras archives do."
        )


def describe_batch_norm(model: keras.Model, batch_size: int) -> dict[str, str]:
    """What it costs not to synchronise, under a heading; nothing for a model without BatchNormalization."""
    names = [layer.name for layer in _batch_norms(model) if layer.trainable]
    if not names:
        return {}
    return {
        "batch norm": f"NOT synchronised in {', '.join(names[:4])}{', ...' * (len(names) > 4)}: each replica "
        f"normalises by its own {batch_size} examples, the weights depend on the number of replicas, and of the moving "
        "statistics, which drift apart, the first replica's are saved. train.synchronize_batch_norm = True mends it."
    }


def describe_half_precision(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> dict[str, str]:
    """What float16 costs without a loss scale, under a heading; nothing for other models, and with one."""
    names = [layer.name for layer in layers_of(model) if layer.compute_dtype == "float16" and layer.trainable_variables]
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or optimizer.loss_scale_factor
    if not names or scaled:
        return {}
    return {
        "float16": f"{', '.join(names[:4])}{', ...' * (len(names) > 4)} without a loss scale: gradients below 6e-8 are "
        "lost. OPTIMIZER = @LossScaleOptimizer and LossScaleOptimizer.inner_optimizer = @SGD(), say, mend it"
    }


def freeze_batch_norm(
    model: keras.Model, trained: Sequence[keras.Variable], update_frozen_batch_norm: bool = False
) -> dict[str, str]:
    """Puts every BatchNormalization none of whose variables is trained in inference mode, for good.

    trained: the variables that are.  update_frozen_batch_norm: leaves those layers as they are, in training mode.
    Returns what was done, under a heading; nothing for a model without such layers.

    Else their statistics would follow the new data, while the weights around them stay.
    """
    here = {id(variable) for variable in trained}
    frozen = [
        layer
        for layer in _batch_norms(model)
        if layer.trainable_variables and not any(id(variable) in here for variable in layer.trainable_variables)
    ]
    if not frozen:
        return {}
    names = f"{', '.join(layer.name for layer in frozen[:4])}{', ...' * (len(frozen) > 4)}"
    if update_frozen_batch_norm:
        return {
            "frozen norm": f"{names}: the moving statistics follow the data, as train.update_frozen_batch_norm asks"
        }
    for layer in frozen:
        layer.trainable = False
        layer.synchronized = False  # it has nothing to send, and what is compiled by XLA need not wait
    return {
        "frozen norm": f"{names} in inference mode: the moving statistics stay. "
        "train.update_frozen_batch_norm = True lets them follow the data"
    }


def _batch_norms(model: keras.Model) -> list[keras.Layer]:
    return [layer for layer in layers_of(model) if isinstance(layer, keras.layers.BatchNormalization)]


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
            task.check_values(tf.TensorSpec(outputs.shape), _untouched(data))


def trace_loss(model: keras.Model, task: Task, data: Data, batch_size: int):
    """The concrete function (batch, weight) -> (loss sum, weight sum, outputs), training; raises as `try_task` does."""

    def loss(batch, weight):
        return task.loss_and_outputs(model, batch, weight, training=True)

    return _trace("loss", loss, data, batch_size)


def _check_parts_add_up(model: keras.Model, task: Task, data: Data, batch_size: int) -> None:
    """What a model adds of a batch is a mean over its examples, and such means add up where all weigh the same."""

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
        raise UserError(f"The task's {what} cannot be computed on a batch of {specs}:\n{_told(error)}") from error


def _told(error: Exception) -> str:
    """Kind, message and the user's own line, without the frames that AutoGraph writes into a message."""
    kind, text = type(error).__name__, str(error).strip().partition("\n  In call to configurable")[0]
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    named = re.findall(r'File "([^"]+)", line (\d+)', text)
    places = [place for place in named or frames if not _is_ours(place[0])]
    message = text.rsplit(f"{kind}: ", 1)[-1] if text.startswith("in user code:") else text
    return f"{kind}: {message}" + (f"\n({places[-1][0]}, line {places[-1][1]})" if places else "")


def _is_ours(path: str) -> bool:
    return "site-packages" in path or path.startswith(os.path.dirname(__file__))
