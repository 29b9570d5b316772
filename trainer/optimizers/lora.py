"""LoRA: chosen layers learn a change of low rank, and everything else of the checkpoint stays as it is."""

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar

import gin
import keras

from trainer.errors import UserError
from trainer.optimizers.groups import find_pattern
from trainer.restore import RestoreReport, find_checkpoint, is_lora_matrix, layer_paths, open_checkpoint, weights_of
from trainer.suggest import nearest


@dataclasses.dataclass(frozen=True)
class Lora:
    """Made by `lora`."""

    made_by: ClassVar = "lora"  # for messages

    rank: int
    alpha: float | None = None
    layers: Sequence[str] = ()
    also_trained: Sequence[str] = ()


@gin.register(module="lora")
def lora(rank: int, alpha: float | None = None, layers: Sequence[str] = (), also_trained: Sequence[str] = ()) -> Lora:
    """Trains, for each chosen layer, kernel + alpha / rank * A B, with A [inputs, rank] and B [rank, outputs] alone.

    A is drawn at random and B is 0: the model begins as it was restored. Whatever is written for use holds the
    merged kernels (`final.weights.h5`); checkpoints of the run hold the kernels as they were, A and B.

    A kernel's regularizer is then one of A and B, as Keras has it.

    rank: of the change.
    alpha: None for `rank`, a factor of 1.
    layers: regexes of layers' names; all that can learn in this way (Dense, EinsumDense, Embedding, convolutions) where
      none is given.
      also_trained: regexes of other variables that are trained as a whole, such as a new head.
    Source: Hu et al., 2021; made by Keras' own `enable_lora`.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"lora.rank = {rank!r} must be a whole number, 1 or more.")
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0):
        raise UserError(f"lora.alpha = {alpha!r} must be above 0, or None for lora.rank.")
    for name, patterns in (("layers", layers), ("also_trained", also_trained)):
        if isinstance(patterns, str):
            raise UserError(f"lora.{name} is a list of patterns; write lora.{name} = [{patterns!r}].")
    return Lora(rank, alpha, tuple(layers), tuple(also_trained))


def add_lora(model: keras.Model, chosen: Lora) -> list[str]:
    """Gives the chosen layers of a built model their matrices; call in the strategy's scope, after the restore.

    Returns the layers' names. Raises `UserError` for a pattern that finds no layer which can learn in this way.
    """
    layers = layer_paths(model)
    can = {path: layer for path, layer in layers.items() if hasattr(layer, "enable_lora") and layer.built}
    names = list(can)
    for pattern in chosen.layers:
        found = find_pattern("lora.layers", pattern, names)
        if not found:
            others = find_pattern("lora.layers", pattern, list(layers))
            if others:
                raise UserError(
                    f"lora.layers: {pattern!r} finds {', '.join(others[:4])}, which cannot learn a change of low rank: "
                    f"that can {', '.join(names[:8]) or 'no layer of this model'}."
                )
            raise UserError(f"lora.layers: {pattern!r} matches no layer.{nearest(pattern, names, 'layers')}")
    if chosen.layers:
        can = {path: layer for path, layer in can.items() if _chosen(path, chosen.layers)}
    if not can:
        raise UserError("Finetune.lora: the model has no layer that can learn a change of low rank.")
    for path, layer in can.items():
        # Of one of the user's own, too: Keras refuses kernels with a constraint and layers that have LoRA already.
        try:
            layer.enable_lora(chosen.rank, lora_alpha=chosen.alpha)
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"Finetune.lora: the layer {path!r} cannot have it: {error}") from error
    return list(can)


def lora_variables(
    model: keras.Model, variables: Sequence[keras.Variable], chosen: Lora, report: RestoreReport | None
) -> list[keras.Variable]:
    """The variables to train: LoRA's matrices, and what `also_trained` names.

    Raises `UserError` for a pattern that finds none, and for a variable that starts fresh and would stay so.
    """
    here = {id(variable) for variable in variables}
    named = {weight.name: weight.variable for weight in weights_of(model) if id(weight.variable) in here}
    kept = {name for name in named if is_lora_matrix(name)}
    for pattern in chosen.also_trained:
        found = find_pattern("lora.also_trained", pattern, list(named))
        if not found:
            raise UserError(
                f"lora.also_trained: {pattern!r} matches no variable that can be trained; there are "
                f"{', '.join(list(named)[:8])}."
            )
        kept.update(found)
    if not kept:
        raise UserError(
            "Finetune.lora: Finetune.frozen leaves none of its matrices to train; name layers, not all kernels."
        )
    fresh = [record.name for record in report.reinitialized] if report else []
    untrained = [name for name in fresh if name in named and name not in kept]
    if untrained:
        raise UserError(
            f"{', '.join(untrained[:6])} {'start' if len(untrained) > 1 else 'starts'} fresh, and with Finetune.lora "
            "would stay at random values: name it in lora.also_trained, e.g. "
            f"lora.also_trained = ['^{re.escape(untrained[0].rpartition('/')[0] or untrained[0])}']."
        )
    return [variable for name, variable in named.items() if name in kept]


def finds_trainable(model: keras.Model, pattern: str) -> bool:
    """Whether the regex finds a variable that could be trained."""
    trainable = {id(variable) for variable in model.trainable_variables}
    names = [weight.name for weight in weights_of(model) if id(weight.variable) in trainable]
    return bool(find_pattern("frozen", pattern, names))


def holds_matrices(checkpoint) -> bool:
    """Whether a checkpoint's kernels are to be read with matrices beside them.
    checkpoint: path, as restored from."""
    with contextlib.closing(open_checkpoint(find_checkpoint(checkpoint))) as source:
        return any(is_lora_matrix(entry.name) for entry in source.entries)


def describe_lora(model: keras.Model, paths: Sequence[str], chosen: Lora) -> str:
    """Describes in a line what was done to the model."""
    count = sum(int(variable.shape.num_elements()) for variable in _matrices(model))
    shown = f"{', '.join(paths[:4])}{', ...' * (len(paths) > 4)}"
    scale = (chosen.rank if chosen.alpha is None else chosen.alpha) / chosen.rank
    return f"rank {chosen.rank} on {shown}, {count:,} weights, times {scale:g}; merged into final.weights.h5"


def _matrices(model: keras.Model):
    return [weight.variable.value for weight in weights_of(model) if is_lora_matrix(weight.name)]


def _chosen(path: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)
