"""Checks the arguments of `train` one by one, before anything is built of them."""

import numbers
import os

import keras
import tensorflow as tf

from trainer.errors import UserError
from trainer.tasks.task import Task


def check_model(model) -> None:
    """Raises `UserError` for a model where the function that builds it is wanted."""
    if isinstance(model, keras.Model) or not callable(model):
        raise UserError(
            "model must be a function that builds the model, not a model: its variables have to be made in "
            "the strategy's scope. Pass e.g. model=lambda: MyModel()."
        )


def check_task(task) -> None:
    """Raises `UserError` for what is no task."""
    if not isinstance(task, Task):
        raise UserError(f"task must be made by supervised(), custom_loss() or style_transfer(), not {task!r}.")


def whole_number(name: str, value, least: int, beyond: int | None = None) -> int:
    """The argument of this name as an int; raises `UserError` for what is none, or not in the range."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < least or (beyond is not None and value >= beyond):
        upper = " or more" if beyond is None else f" to {beyond - 1:,}"
        raise UserError(f"{name} = {value!r} must be a whole number, {least}{upper}.")
    return int(value)


def check_model_dir(model_dir) -> None:
    """Raises `UserError` for what is no path."""
    if model_dir is not None and not isinstance(model_dir, str | os.PathLike):
        raise UserError(f"model_dir must be a path or None, not {model_dir!r}.")


def check_strategy(strategy) -> None:
    """Raises `UserError` for what is no strategy, one whose scope is entered already, and devices that are not there.

    strategy: None for one that is yet to be built.
    """
    if tf.distribute.has_strategy():
        raise UserError(
            "Call train() outside of strategy.scope(), and give it the strategy; it enters the scope itself."
        )
    if strategy is not None and not isinstance(strategy, tf.distribute.Strategy):
        raise UserError(f"strategy must be a tf.distribute.Strategy, not {strategy!r}; build_strategy() makes one.")
    if isinstance(strategy, tf.distribute.MirroredStrategy):
        _check_devices(strategy)


def _check_devices(strategy: tf.distribute.MirroredStrategy) -> None:
    """TensorFlow puts a replica of a device that is not there on another, and the first all-reduce may never end."""

    def short(names):
        specs = [tf.DeviceSpec.from_string(name) for name in names]
        return [f"{spec.device_type}:{spec.device_index}" for spec in specs]

    there = short(device.name for device in tf.config.list_logical_devices())
    missing = [name for name in short(strategy.extended.worker_devices) if name not in there]
    if missing:
        splitting = (
            " tf.config.set_logical_device_configuration, called before anything runs, makes several of the CPU, and "
            "so does --virtual_devices of the commands."
        )
        raise UserError(
            f"The strategy has a replica on {', '.join(missing)}, and this process has {', '.join(there)}. Name "
            "devices that are there, or none, for all GPUs."
            + (splitting if any("CPU" in name for name in missing) else "")
        )
