"""TensorFlow's private names that we use: of what a `tf.data.Dataset` is made.

TensorFlow has no public way to them. `check` names the first one that an upgrade has changed.
"""

from collections.abc import Iterator

import tensorflow as tf

_NAMES = ("_inputs", "_functions")


def check() -> None:
    """Raises `RuntimeError` where TensorFlow is not what this module was written for."""
    missing = [name for name in _NAMES if not hasattr(tf.data.Dataset, name)]
    if missing:
        raise RuntimeError(
            f"TensorFlow {tf.__version__}: a tf.data.Dataset has no {', '.join(missing)} any more; see {__file__}."
        )


def chain_of(dataset: tf.data.Dataset) -> Iterator[tf.data.Dataset]:
    """The data set and all that it is made from, the last transformation first."""
    yield dataset
    for source in dataset._inputs():
        yield from chain_of(source)


def kind_of(dataset: tf.data.Dataset) -> str:
    """The transformation that made it: `_ShuffleDataset` is "Shuffle"."""
    return type(dataset).__name__.strip("_").removesuffix("Dataset")


def graphs_of(dataset: tf.data.Dataset) -> Iterator[tf.compat.v1.GraphDef]:
    """The graphs of the functions that this one transformation calls."""
    for wrapper in dataset._functions():
        yield wrapper.function.graph.as_graph_def()


def reshuffles(dataset: tf.data.Dataset) -> bool:
    """Whether a shuffle has another order each time: it has no seed, or is asked to by `reshuffle_each_iteration`."""
    seeds = (int(getattr(dataset, "_seed", 0)), int(getattr(dataset, "_seed2", 0)))
    return seeds == (0, 0) or bool(getattr(dataset, "_reshuffle_each_iteration", True))


check()
