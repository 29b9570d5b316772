"""Makes `Data` of what users hold: a dict of arrays, or a `tf.data.Dataset`."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from trainer.data.autograph import as_it_is
from trainer.data.data import Data, in_memory
from trainer.data.features import flat
from trainer.data.repeatable import check_repeatable
from trainer.errors import UserError
from trainer.tf_internals import chain_of, kind_of

_COUNTED_AT_A_TIME = 1000
# Transformations after which an element is a batch, and those after which it may again be an example.
_BATCHING = ("Batch", "ParallelBatch", "PaddedBatch", "ParallelMapAndBatch", "MapAndBatch", "DenseToRagged")
_FLATTENING = ("Unbatch", "FlatMap", "Interleave", "ParallelInterleave", "GroupByWindow", "Window", "Generator")


def as_data(data: Any, what: str) -> Data:
    """`Data` from what users hold: `Data` itself, a dict of arrays, or a `tf.data.Dataset` of dicts.

    what: the parameter, for people.

    A data set of batches is unbatched, and one of unknown size is counted, once; `Data.note` says so.
    Raises `UserError` for other types, a data set that is endless or empty or drawn at random, and features of no one
    shape.
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, Mapping):
        return in_memory(examples=data, name=what)
    if isinstance(data, tf.data.Dataset):
        return _from_dataset(data, what)
    raise UserError(
        f"{what} must be a dict of arrays, a tf.data.Dataset of dicts, or made by a function such as tfds_data(); "
        f"it is {type(data).__name__}."
    )


def as_indexed(data: Any, what: str, reorders: bool = True) -> Data:
    """The same for a function that makes data from data, whose examples it must reach by number.

    reorders: whether that function decides the order of the draws.

    Raises `UserError` for a stream, and where the order is decided already: it would be lost.
    """
    given = as_data(data, what)
    if not given.is_indexed:
        raise UserError(
            f"{what}: {given.label} is a stream, whose examples cannot be reached by number. Raise its "
            "memory_limit_bytes, or store it as array_record."
        )
    if reorders and given.order is not None:
        raise UserError(
            f"{what}: {given.label} is drawn by weight or length already, and this order would be lost. Leave one of "
            "the two out."
        )
    return given


def _from_dataset(dataset: tf.data.Dataset, what: str) -> Data:
    if not isinstance(dataset.element_spec, Mapping):
        raise UserError(
            f"{what}: a tf.data.Dataset must yield examples as dicts, not {dataset.element_spec}. Name the features: "
            "dataset.map(lambda image, label: {'image': image, 'label': label})."
        )
    check_repeatable(dataset, f"{what}: the tf.data.Dataset")
    notes = []
    if _is_batched(dataset):
        dataset = dataset.unbatch()
        notes.append("unbatched: Regraft makes the batches")
    features = flat(dataset.element_spec)
    for path, spec in features.items():
        if not isinstance(spec, tf.TensorSpec) or not spec.shape.is_fully_defined():
            kind = f"of shape {spec.shape}" if isinstance(spec, tf.TensorSpec) else type(spec).__name__
            raise UserError(
                f"{what}: the feature {path!r} ({kind}) has no one shape, and examples of different lengths cannot be "
                f"batched. Pad it: dataset.map(lambda example: trainer.pad_to(example, {{{path!r}: 128}}))."
            )
    if features.keys() != dataset.element_spec.keys():
        dataset = dataset.map(as_it_is(flat))
    size = int(dataset.cardinality())
    if size == tf.data.INFINITE_CARDINALITY:
        raise UserError(f"{what}: the tf.data.Dataset is endless; leave repeat out, or take(n) of it.")
    if size == tf.data.UNKNOWN_CARDINALITY:
        size = _counted(dataset, what)
        notes.append("counted: assert_cardinality saves the pass")
    if size == 0:
        raise UserError(f"{what}: the tf.data.Dataset is empty.")
    return Data(what, size, stream=lambda: dataset, note="; ".join(notes))


def _is_batched(dataset: tf.data.Dataset) -> bool:
    kinds = [kind_of(each) for each in chain_of(dataset)]  # the last transformation first
    place = next((place for place, kind in enumerate(kinds) if kind in _BATCHING), None)
    return place is not None and not any(kind in _FLATTENING for kind in kinds[:place])


def _counted(dataset: tf.data.Dataset, what: str) -> int:
    """How many examples there are, by reading them all."""
    columns = (SpinnerColumn(), TextColumn("counting {task.description}: {task.completed:,} examples"))
    chunks = dataset.map(as_it_is(lambda example: 0)).batch(_COUNTED_AT_A_TIME)
    console, size = Console(), 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        for chunk in chunks:
            size += int(chunk.shape[0])
            progress.update(task, completed=size)
    return size
