"""Checks the arguments of `train` one by one, before anything is built of them."""

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


def check_counts(num_steps, seed) -> None:
    """Raises `UserError` for what is no number of steps, and no seed."""
    if not isinstance(num_steps, int) or num_steps < 1:
        raise UserError(f"num_steps = {num_steps!r} must be a whole number, 1 or more.")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed = {seed!r} must be a whole number from 0 to 2**32 - 1.")


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
