"""Makes every Keras optimizer, schedule, loss, metric, image layer and application bindable by its own name."""

import functools
import inspect
from collections.abc import Callable

import gin
import keras

from trainer.errors import UserError
from trainer.keras_internals import IMAGE_LAYER

_KINDS: tuple[tuple[object, str, type], ...] = (
    (keras.optimizers, "keras.optimizers", keras.optimizers.Optimizer),
    (
        keras.optimizers.schedules,
        "keras.optimizers.schedules",
        keras.optimizers.schedules.LearningRateSchedule,
    ),
    (keras.losses, "keras.losses", keras.losses.Loss),
    (keras.metrics, "keras.metrics", keras.metrics.Metric),
    (keras.layers, "keras.layers", IMAGE_LAYER),
)

_builders: set[Callable] = set()


@functools.cache
def register_keras() -> None:
    """Registers the public names of Keras with gin.

    Each goes by its own name (`SGD`, `CosineDecay`). Where a loss and a metric share one, the bare
    name is the loss's and the metric wants its module in front (`metrics.MeanSquaredError`). What
    gin builds are true Keras objects.
    A `keras.applications` model has `weights=None` unless bound: its weights come from
    `Restore.checkpoint`, and nothing is downloaded without a line of the config.
    """
    for namespace, module, base in _KINDS:
        for name in dir(namespace):
            candidate = getattr(namespace, name)
            if _is_public(candidate, name, base):
                shared = module == "keras.losses" and hasattr(keras.metrics, name)
                _register(candidate, name, "" if shared else module)
    for name in dir(keras.applications):
        candidate = getattr(keras.applications, name)
        if callable(candidate) and not inspect.ismodule(candidate) and not name.startswith("_"):
            _register(candidate, name, "keras.applications", weights=None)


def is_keras(builder: Callable) -> bool:
    """Whether what gin has wrapped is one of the names registered here."""
    return builder in _builders


def _register(target: Callable, name: str, module: str, **defaults) -> None:
    signature = inspect.signature(target)
    # Keras classes take **kwargs, so that gin would accept any misspelt parameter: name the real ones.
    parameters = [
        parameter.replace(default=defaults.get(parameter.name, parameter.default))
        for parameter in signature.parameters.values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]

    def build(*args, **kwargs):
        try:
            return target(*args, **{**defaults, **kwargs})
        except (TypeError, ValueError) as error:
            given = ", ".join([*map(_show, args), *(f"{key}={_show(value)}" for key, value in kwargs.items())])
            raise UserError(f"Keras does not take {name}({given}): {str(error).strip()}") from error

    build.__name__ = build.__qualname__ = name
    build.__doc__ = target.__doc__
    build.__module__ = module or None  # type: ignore[assignment]
    build.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    _builders.add(build)
    gin.external_configurable(build, name=name, module=module or None)


def _is_public(candidate, name: str, base: type) -> bool:
    if not inspect.isclass(candidate) or candidate is base:
        return False  # a base class is nothing to choose
    return issubclass(candidate, base) and name == candidate.__name__


def _show(value) -> str:
    return repr(value) if isinstance(value, (bool, int, float, str, list, tuple, dict)) else type(value).__name__
