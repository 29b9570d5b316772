"""Keras' private parts that we need: a layer's own variables, an optimizer's parts, the functions that draw.

Keras 3 has no public way to any of them. All use of its private names is here or in a subclass of its own
(`GroupedOptimizer`, `PhasedOptimizer`). `check` names the first one that an upgrade has changed.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

#: The base class of the layers that change images, random or not.
IMAGE_LAYER: type = keras.layers.RandomFlip.__base__

#: The module by whose functions every random layer and every function of `keras.random` draws.
RANDOM = keras.src.backend.random

# Those of its functions that draw, and those that do not.
_DRAWING = {
    "beta", "binomial", "categorical", "draw_seed", "dropout", "gamma", "normal", "randint", "shuffle",
    "truncated_normal", "uniform",
}  # fmt: skip
_OTHERS = {"floatx", "make_default_seed", "standardize_dtype"}

# By which Keras and TensorFlow list the variables of an optimizer: an attribute that begins so. Each of the variables
# is somewhere else too, where the optimizer itself looks for it.
OPTIMIZER_LISTS = ("_variables", "_self_")
UPDATE_STEP, STRATEGY = "_backend_update_step", "_distribution_strategy"


def check() -> None:
    """Raises `RuntimeError` where Keras is not what this module was written for. Makes no variable."""
    functions = {name for name, _ in inspect.getmembers(RANDOM, inspect.isfunction) if not name.startswith("_")}
    changed = functions ^ (_DRAWING | _OTHERS)
    if changed:
        names = ", ".join(sorted(changed))
        raise RuntimeError(
            f"Keras {keras.__version__} draws random numbers by other functions: {names}. Each has "
            f"to be given a replica's own numbers, see trainer/step/randomness.py and {__file__}."
        )
    if IMAGE_LAYER in (keras.Layer, object) or not issubclass(keras.layers.Resizing, IMAGE_LAYER):
        raise RuntimeError(f"Keras {keras.__version__}: image layers have another base class; see {__file__}.")
    for owner, name in ((keras.optimizers.Optimizer, UPDATE_STEP), (keras.Layer, "_flatten_layers")):
        if not hasattr(owner, name):
            raise RuntimeError(f"Keras {keras.__version__}: {owner.__name__} has no {name} any more; see {__file__}.")


def trainable_variables_of(layer: keras.Layer) -> list[keras.Variable]:
    """Those that the layer itself made to be trained, frozen or not; without those of its sub-layers."""
    return list(layer._trainable_variables)


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Those that the layer itself made, without those of its sub-layers; the ones made to be trained first."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def sub_layers(layer: keras.Layer) -> list[keras.Layer]:
    """All layers inside, at any depth, without the layer itself."""
    return list(layer._flatten_layers(include_self=False))


class _GivenSeeds(keras.random.SeedGenerator):
    """Draws seeds from a tensor, [2] int64, in place of a variable that is counted up."""

    def __init__(self, seed):
        # Not `super().__init__`, which makes a variable.
        self._given, self._count = seed, 0

    def next(self, ordered: bool = True):
        self._count += 1
        mixed = tf.random.experimental.stateless_fold_in(self._given, self._count)
        return tf.cast(tf.bitwise.bitwise_and(mixed, 2**31 - 1), tf.int32)


@contextlib.contextmanager
def drawing_from(layer: keras.Layer, seed) -> Iterator[None]:
    """A random layer that is called within draws from `seed`, [2] int64, not from its own generator."""
    own = layer.__dict__.get("generator")
    if own is None:  # nothing is drawn
        yield
        return
    # Past Keras' attribute tracking, which would make the stand-in a part of the layer.
    layer.__dict__["generator"] = _GivenSeeds(seed)
    try:
        yield
    finally:
        layer.__dict__["generator"] = own


def step_count(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The variable itself; `iterations` is a property that may give what it wraps."""
    return optimizer._iterations


def optimized_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that a built optimizer was built for, in its order."""
    return list(optimizer._trainable_variables)


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable | None]:
    """With `use_ema`, the averages of `optimized_variables`, in the same order."""
    return list(optimizer._model_variables_moving_average)


def momentum_product(optimizer: keras.optimizers.Nadam) -> keras.Variable:
    """The product of the momenta of all steps so far."""
    return optimizer._u_product


def update_step(optimizer: keras.optimizers.Optimizer) -> Callable:
    """The function that applies gradients once they are clipped: (gradients, variables, learning rate)."""
    return getattr(optimizer, UPDATE_STEP)


check()
