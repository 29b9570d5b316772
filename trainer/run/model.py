"""Builds the model for the task's inputs, and sets what its normalisation layers do."""

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from trainer.data.data import Data
from trainer.errors import UserError
from trainer.restore import build_model, empty_layers, layers_of
from trainer.step.trace_checks import error_with_place
from trainer.tasks.task import Task

_NO_SETTINGS = ("name", "seed", "trainable", "synchronized", "vocabulary", "vocabulary_size", "idf_weights")


def assemble_model(
    model: Callable, task: Task, data: Data, strategy: tf.distribute.Strategy, synchronize_batch_norm: bool = True
) -> keras.Model:
    """Calls the builder and builds the model's variables for the task's inputs; call in the strategy's scope.

    synchronize_batch_norm: whether, with several replicas, every BatchNormalization takes its statistics over all.
    """
    try:
        built = model()
    except (TypeError, ValueError) as error:
        raise UserError(f"The model cannot be made: {error_with_place(error)}") from error
    if not isinstance(built, keras.Model):
        raise UserError(f"The model builder must return a keras.Model; it returned {type(built).__name__}.")
    task.check_features(data.batch_spec)
    build_model(built, task.model_inputs(data.batch_spec))
    if strategy.num_replicas_in_sync > 1:
        for layer in _batch_norms(built):
            layer.synchronized = synchronize_batch_norm
    return built


def layer_settings(model: keras.Model) -> dict[str, str]:
    """{"4.Dropout": "rate=0.5"} of each layer, by place and class: two models may differ in these alone.

    Names and seeds are left out, since Keras chooses new ones in each process; vocabularies, which a restore may fill;
    and what depends on the number of replicas. A layer without `get_config` shows no settings.
    """
    found = {}
    for place, layer in enumerate(layers_of(model)):
        try:
            config = layer.get_config()
        except NotImplementedError:
            config = {}
        if "layers" not in config:  # else its settings are those of its layers, which come as well
            found[f"{place}.{type(layer).__name__}"] = _in_short({**config, "dtype": layer.dtype_policy.name})
    return found


def _in_short(config) -> str:
    """A config of Keras as text: objects as `Class(name=value)`, what is no plain value by its class alone."""
    if isinstance(config, Mapping):
        if "class_name" in config:
            is_code = config["class_name"] == "__lambda__"  # bytes that hold the path of a file
            return "lambda" if is_code else f"{config['class_name']}({_in_short(config.get('config') or {})})"
        kept = {name: value for name, value in config.items() if name not in _NO_SETTINGS}
        return ", ".join(f"{name}={_in_short(value)}" for name, value in kept.items())
    if isinstance(config, list | tuple):
        return f"[{', '.join(map(_in_short, config))}]"
    return str(config) if isinstance(config, str | bool | int | float | None) else type(config).__name__


def refuse_empty_layers(model: keras.Model) -> None:
    """Raises `UserError` for a lookup without a vocabulary and the like, at which the first step would fail."""
    empty = empty_layers(model)
    if empty:
        raise UserError(
            f"The model has no {', '.join(empty)}. Give the layer one as its argument, by set_vocabulary() or by "
            "adapt() in the function that builds the model; or restore from a file that has one, as .keras archives do."
        )


def describe_batch_norm(model: keras.Model, batch_size: int) -> dict[str, str]:
    """Describes the cost of not synchronising, under a heading; nothing for a model without BatchNormalization."""
    names = [layer.name for layer in _batch_norms(model) if layer.trainable]
    if not names:
        return {}
    return {
        "batch norm": f"NOT synchronised in {', '.join(names[:4])}{', ...' * (len(names) > 4)}: each replica "
        f"normalises by its own {batch_size} examples, the weights depend on the number of replicas, and of the moving "
        "statistics, which drift apart, the first replica's are saved. Step.synchronize_batch_norm = True mends it."
    }


def describe_half_precision(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> dict[str, str]:
    """Describes the cost of float16 without a loss scale, under a heading; nothing for other models, and with one."""
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

    trained: the variables that are.
    update_frozen_batch_norm: leaves those layers as they are, in training mode.
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
            "frozen norm": f"{names}: the moving statistics follow the data, as Finetune.update_frozen_batch_norm asks"
        }
    for layer in frozen:
        layer.trainable = False
        layer.synchronized = False  # it has nothing to send, and what is compiled by XLA need not wait
    return {
        "frozen norm": f"{names} in inference mode: the moving statistics stay. "
        "Finetune.update_frozen_batch_norm = True lets them follow the data"
    }


def _batch_norms(model: keras.Model) -> list[keras.Layer]:
    return [layer for layer in layers_of(model) if isinstance(layer, keras.layers.BatchNormalization)]
