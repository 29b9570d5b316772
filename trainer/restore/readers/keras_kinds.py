"""Tells weights from optimizers, metrics, counters and seeds in the files of Keras, by names and shapes."""

import re

from trainer.restore.matching.names import normalize
from trainer.restore.readers.hdf5 import UNREADABLE, Group
from trainer.restore.source import Entry

_METRICS = ("compile_metrics", "loss_tracker", "metrics")
_OPTIMIZERS = (
    "adadelta", "adafactor", "adagrad", "adam", "adam_w", "adamax", "ftrl", "lamb", "lion", "loss_scale_optimizer",
    "muon", "nadam", "rmsprop", "schedule_free_adam_w", "sgd",
)  # fmt: skip
_SEED = re.compile(r"(.*_)?seed_generator(_\d+)?")


def variable_kind(entry: Entry, is_seed: bool = False) -> str:
    """The kind of a variable that belongs to a layer."""
    if entry.dtype == UNREADABLE or (is_seed and entry.dtype.is_integer):
        return "other"
    return "counter" if entry.dtype.is_integer and not entry.shape else "weight"


def is_seed_name(name: str) -> bool:
    return bool(_SEED.fullmatch(name))


def kind_of_part(attribute: str, group: Group) -> str:
    """The kind of all that an attribute of a model holds, "" where each variable in it says its own."""
    if is_optimizer(attribute, group):
        return "optimizer"
    name = normalize(attribute)
    # Metrics that a model keeps under names of its own, such as `total_loss_tracker`.
    is_metric = name.endswith(("_metric", "_tracker")) and _are_scalars(group)
    return "other" if name in _METRICS or is_metric else ""


def is_optimizer(name: str, group: Group) -> bool:
    """An optimizer's first variable is a scalar, its step; a layer of such a name has a kernel there.

    name: of the attribute, or of the class in a list.
    """
    variables = group.groups.get("vars", Group(""))
    first = variables.entries.get("0")
    by_name = normalize(name) == "optimizer" or name.endswith("_optimizer")
    if first is None:
        return by_name and any(is_optimizer(inner, part) for inner, part in group.groups.items() if inner != "vars")
    if by_name:
        return not first.shape
    by_class = variables.keras_name in _OPTIMIZERS or re.sub(r"_\d+$", "", name) in _OPTIMIZERS
    return by_class and not first.shape and first.dtype.is_integer


def _are_scalars(group: Group) -> bool:
    entries = group.groups["vars"].entries.values() if "vars" in group.groups else ()
    return not set(group.groups) - {"vars"} and all(not entry.shape for entry in entries)
