"""Random numbers of layers in training: other ones on every replica, or for each example those of one replica."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import tensorflow as tf

from trainer import keras_internals
from trainer.errors import UserError

KINDS = ("per_replica", "per_example")
_BY_SHAPE = ("normal", "truncated_normal", "uniform", "randint")
_NOT_BY_ROW = ("binomial", "beta", "categorical", "gamma", "shuffle")
_here = threading.local()  # MirroredStrategy traces every replica in a thread of its own


@contextlib.contextmanager
def drawing(kind: str, num_rows: int) -> Iterator[None]:
    """Sets how the layers of Keras draw inside, in a replica's part of the train step.

    kind: `per_replica` folds the replica's number into every seed, which Keras leaves the same on all of them.
      `per_example` draws for the rows of all replicas and takes this replica's, so that masks and noise are those of
      one replica, for N times the work of drawing.
    num_rows: examples in this replica's micro-batch.

    Numbers that a layer draws without Keras (`tf.random`) are its own affair, and so is noise on weights
    whose first axis is as long as the micro-batch: it is taken for rows.
    Raises `UserError` for `per_example` with one example a replica, where any axis could be the rows.
    """
    _install()
    context = tf.distribute.get_replica_context()
    if kind == "per_example" and num_rows == 1 and context.num_replicas_in_sync > 1:
        raise UserError(
            "random_numbers = 'per_example' needs two or more examples a replica and micro-batch: "
            "a larger global_batch_size, or fewer accumulation_steps."
        )
    before = getattr(_here, "drawing", None)
    _here.drawing = (kind, context.replica_id_in_sync_group, context.num_replicas_in_sync, num_rows)
    try:
        yield
    finally:
        _here.drawing = before


@functools.cache
def _install() -> None:
    """Puts a step between Keras and TensorFlow's generators that does nothing outside of `drawing`.

    Every random layer and `keras.random` function of Keras draws by the functions of one module, each
    of them with a seed from its `draw_seed`.
    """
    module = keras_internals.RANDOM
    module.draw_seed = _folded(module.draw_seed)
    module.dropout = _dropout_by_row(module.dropout)
    for name in _BY_SHAPE:
        setattr(module, name, _by_row(getattr(module, name)))
    for name in _NOT_BY_ROW:
        setattr(module, name, _refused_by_row(name, getattr(module, name)))


def _drawing(kind: str) -> tuple | None:
    """(replica, number of replicas, rows) where numbers are to be drawn so, and there is more than one replica."""
    found = getattr(_here, "drawing", None)
    return found[1:] if found and found[0] == kind and found[2] > 1 else None


def _folded(draw_seed: Callable) -> Callable:
    @functools.wraps(draw_seed)
    def draw(seed):
        drawn = draw_seed(seed)
        now = _drawing("per_replica")
        if now is None:
            return drawn
        # Seeds are int64 in Keras' variables, where the generators under XLA take int32.
        small = tf.cast(tf.math.floormod(drawn, tf.cast(tf.int32.max - 1, drawn.dtype)), tf.int32)
        return tf.random.experimental.stateless_fold_in(small, tf.cast(now[0], tf.int32))

    return draw


def _by_row(draw: Callable) -> Callable:
    @functools.wraps(draw)
    def drawn(shape, *arguments, **options):
        now = _drawing("per_example")
        sizes = tuple(shape) if now else ()
        if now is None or not sizes or not _is_of_rows(sizes[0], now[2]):
            return draw(shape, *arguments, **options)
        replica, replicas, _ = now
        rows = int(sizes[0])
        return _rows_of(draw((rows * replicas, *sizes[1:]), *arguments, **options), replica, rows)

    return drawn


def _dropout_by_row(dropout: Callable) -> Callable:
    @functools.wraps(dropout)
    def dropped(inputs, rate, noise_shape=None, seed=None):
        now = _drawing("per_example")
        if now is None or not 0.0 < rate < 1.0:
            return dropout(inputs, rate, noise_shape, seed)
        inputs = tf.convert_to_tensor(inputs)
        shape = list(inputs.shape) if noise_shape is None else list(noise_shape)
        shape = [size if given is None else given for size, given in zip(inputs.shape, shape, strict=True)]
        # A mask for all rows in common is one on every replica by its seed.
        if shape[0] != inputs.shape[0] or not _is_of_rows(shape[0], now[2]):
            return dropout(inputs, rate, noise_shape, seed)
        replica, replicas, _ = now
        rows = int(shape[0])
        mask = _rows_of(dropout(tf.ones([rows * replicas, *shape[1:]], inputs.dtype), rate, None, seed), replica, rows)
        return inputs * mask

    return dropped


def _is_of_rows(size, num_rows: int) -> bool:
    """Whether an axis holds the examples, or each of them several times as where time was folded into the batch."""
    return isinstance(size, int) and size >= num_rows and size % num_rows == 0


def _rows_of(drawn: tf.Tensor, replica, rows: int) -> tf.Tensor:
    return tf.slice(drawn, [replica * rows] + [0] * (drawn.shape.rank - 1), [rows, *drawn.shape[1:]])


def _refused_by_row(name: str, draw: Callable) -> Callable:
    @functools.wraps(draw)
    def refused(*arguments, **options):
        if _drawing("per_example") is not None:
            raise UserError(
                f"A layer draws by keras.random.{name}, whose numbers can't be drawn for each example. "
                "Set Step.random_numbers = 'per_replica'."
            )
        return draw(*arguments, **options)

    return refused
