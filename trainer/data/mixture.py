"""Several data sets drawn by weight, and one whose classes are drawn by weight."""

import dataclasses
import math
from collections.abc import Sequence

import gin
import numpy as np
import tensorflow as tf

from trainer.data.data import Data
from trainer.data.given import as_indexed
from trainer.data.order import Mixed
from trainer.errors import UserError


@gin.register(module="pipeline")
def mixture(
    data: Sequence,
    weights: Sequence[float] | None = None,
    temperature: float = 1.0,
    name: str = "mixture",
) -> Data:
    """Training examples from several data sets, each with its share of the draws.

    data: data sets of equal features, each as `train_data` takes them; each has its own `preprocess` and `augment`.
      None of them may be a stream: an example must be reached by its number.
    weights: of the data sets, above 0; they need not add up to 1. None weighs each by its number of examples.
    temperature: T raises each weight to 1/T (Devlin et al. 2019): above 1, small data sets come more often.

    Every stretch of a run from its start holds each data set's share, rounded. Which example comes when is a function
    of seed and step, and each data set is gone through once before it begins again in another order.
    Evaluated alone: bind EVAL_DATA to one of the data sets, or to a mixture of evaluation splits, of which every
    example counts once.
    """
    parts = [as_indexed(part, f"mixture.data[{number}]") for number, part in enumerate(data)]
    if len(parts) < 2:
        raise UserError("mixture.data needs two data sets or more.")
    if weights is None:
        weights = [part.num_examples for part in parts]
    _check_weights("mixture.weights", weights, len(parts))
    for part in parts:
        if _shapes(part) != _shapes(parts[0]):
            raise UserError(
                f"mixture: the features of {parts[0].label} and {part.label} differ:\n  {_shapes(parts[0])}\n  "
                f"{_shapes(part)}\nBring them to one form by `preprocess`."
            )
    shares = _tempered(weights, temperature)
    sizes = [part.num_examples for part in parts]
    starts = np.cumsum([0, *sizes])

    def read(numbers, seeds):
        """Each part's rows from the part itself, put back in their places."""
        places, found = [], []
        for number, part in enumerate(parts):
            is_own = (numbers >= starts[number]) & (numbers < starts[number + 1])
            rows = tf.cast(tf.where(is_own)[:, 0], tf.int32)
            own_seeds = None if seeds is None else tf.gather(seeds, rows)
            places.append(rows)
            found.append(part.preprocessed(part.look_up(tf.gather(numbers, rows) - starts[number], own_seeds)))
        return {name: tf.dynamic_stitch(places, [batch[name] for batch in found]) for name in found[0]}

    text = ", ".join(f"{part.label} {share:.3g}" for part, share in zip(parts, shares, strict=True))
    return Data(
        f"{name} of {text}", sum(sizes), read=read, order=Mixed(sizes, shares),
        contents="; ".join(part.fingerprint for part in parts),
    )  # fmt: skip


@gin.register(module="pipeline")
def balanced(data, label: str = "label", temperature: float | None = None) -> Data:
    """Training data whose classes are drawn equally often, whatever their number of examples.

    data: data with integer labels, in memory: as `in_memory`, `table`, or a small `tfds_data` or `image_folder` gives.
    label: the feature that holds the class.
    temperature: None draws the classes equally often, 1 as often as their examples come; between lies above 1.
    """
    given = as_indexed(data, "balanced.data")
    if given.examples is None or label not in given.examples:
        raise UserError(f"balanced: {given.label} must be in memory and have the feature {label!r}.")
    labels = np.asarray(given.examples[label])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"balanced: the feature {label!r} must hold one integer an example, not {labels.dtype}.")
    _, sizes = np.unique(labels, return_counts=True)
    members = np.argsort(labels, kind="stable")
    order = Mixed([int(size) for size in sizes], _tempered(sizes, temperature or math.inf), members)
    return dataclasses.replace(given, order=order)


def _tempered(weights, temperature: float) -> list[float]:
    if not temperature > 0:
        raise UserError(f"temperature = {temperature} must be above 0.")
    raised = (np.asarray(weights, float) / np.sum(weights)) ** (1 / temperature)
    return [float(share) for share in raised / raised.sum()]


def _check_weights(what: str, weights: Sequence[float], count: int) -> None:
    if len(weights) != count or not all(np.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"{what} = {list(weights)} must hold a number above 0 for each of {count} data sets.")


def _shapes(data: Data) -> str:
    return ", ".join(f"{name} {spec.dtype.name}{spec.shape}" for name, spec in sorted(data.batch_spec.items()))
