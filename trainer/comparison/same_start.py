"""Builds every member for real and proves that they start alike: model, restored weights, data, first batches."""

import contextlib
import dataclasses
import io
import zlib
from collections.abc import Mapping

import gin
import numpy as np
import tensorflow as tf

from trainer.cluster.replicas import first_value
from trainer.comparison.plan import Plan
from trainer.comparison.session import clear_session
from trainer.config import bindings_of, config_of
from trainer.data.batches import train_batches
from trainer.data.data import Data, as_data
from trainer.errors import UserError
from trainer.restore import weights_of
from trainer.run.inputs import as_restore
from trainer.run.model import assemble_model
from trainer.run.settings import Invocation

_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Start:
    """What a member starts from, in values that can be compared.

    facts: what -> its value.  weights: name -> checksum of its restored value.  batches: checksum of the first
    global batches, None for data that is not the same twice.
    """

    facts: Mapping[str, str]
    weights: Mapping[str, int]
    batches: int | None
    num_weights: int


def check_same_start(plan: Plan, strategy: tf.distribute.Strategy) -> str:
    """Goes with every member to the point before its first step; returns what they were seen to have in common.

    Raises `UserError` that names two members and the first thing in which they differ, and whatever a run of
    one of them would stop with before its first step.
    """
    starts = {member: _start_of(member, plan.seeds[0], strategy) for member in plan.members}
    first, *others = plan.members
    for other in others:
        _compare(first, starts[first], other, starts[other])
    facts, batches = starts[first].facts, starts[first].batches
    common = min((starts[member].weights for member in plan.members), key=len)
    return "\n".join(
        [
            f"same start       {len(common)} variables with {starts[first].num_weights:,} weights, bit for bit, "
            f"of {facts['init_checkpoint']}",
            f"same data        {facts['train_data']}, {facts['global_batch_size']} a step; the first {_BATCHES} "
            + ("batches are the same" if batches is not None else "batches are drawn again each time: not compared"),
            f"same evaluation  {facts['eval_data']}",
        ]
    )


def _start_of(member: str, seed: int, strategy: tf.distribute.Strategy) -> Start:
    with config_of(member, seed):
        clear_session()
        given = bindings_of(
            "train", "model", "task", "train_data", "eval_data", "restore", "global_batch_size", "num_steps"
        )
        restore = as_restore(given["restore"])
        data = as_data(given["train_data"], "train_data")
        batch_size = given["global_batch_size"]
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                restored = gin.get_configurable("experiment.train")(
                    strategy=strategy, invocation=Invocation(dry_run=True)
                ).model
            except UserError as error:
                raise UserError(f"The member {member!r}: {error}") from error
        with strategy.scope():
            built = assemble_model(given["model"], given["task"], data, strategy)
        shapes = {w.name: f"{tuple(w.variable.shape)} {w.variable.dtype}" for w in weights_of(built)}
        return Start(
            facts={
                "train_data": _describe(data),
                "eval_data": _describe(as_data(given["eval_data"], "eval_data")),
                "init_checkpoint": str(restore.checkpoint if restore else "no checkpoint: random weights"),
                "global_batch_size": str(batch_size),
                "num_steps": str(given["num_steps"]),
                "task": str(given["task"].describe()),
                "regularized variables": _regularized(restored),
                **{f"model variable {name}": shape for name, shape in shapes.items()},
            },
            # A member may have variables beside the model's, or others in place of them.
            weights={w.name: _checksum([first_value(w.variable)]) for w in weights_of(restored) if w.name in shapes},
            batches=_batches_checksum(data, batch_size, seed),
            num_weights=sum(int(np.prod(weight.variable.shape)) for weight in weights_of(built)),
        )


def _regularized(model) -> str:
    """Those that a penalty of the loss is of: LoRA, for one, leaves it to its matrices."""
    found = [w.name for w in weights_of(model) if w.variable.trainable and getattr(w.variable, "regularizer", None)]
    return ", ".join(found) or "none"


def _describe(data: Data) -> str:
    features = ", ".join(f"{name} {spec.dtype.name}{spec.shape}" for name, spec in data.batch_spec.items())
    preprocess = getattr(data.preprocess, "__qualname__", "")
    return f"{data.label}, {data.num_examples:,} examples ({features})" + f", {preprocess}" * bool(preprocess)


def _batches_checksum(data: Data, batch_size: int, seed: int) -> int | None:
    once, twice = (_first_batches(data, batch_size, seed) for _ in range(2))
    return once if once == twice else None


def _first_batches(data: Data, batch_size: int, seed: int) -> int:
    batches = train_batches(data, batch_size, seed, steps_per_loop=_BATCHES)
    arrays: list[np.ndarray] = []

    def note(stack, first, end):
        for index in range(int(first), int(end)):
            batch, _ = batches.look_up(tf.nest.map_structure(lambda value, index=index: value[index], stack))
            arrays.extend(np.asarray(batch[name]) for name in sorted(batch) if isinstance(batch[name], tf.Tensor))

    batches.run(note, _BATCHES)
    return _checksum(arrays)


def _checksum(arrays) -> int:
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum


def _compare(one: str, first: Start, other: str, second: Start) -> None:
    def refuse(what: str, ours: str, theirs: str):
        raise UserError(
            f"The members {one!r} and {other!r} do not start alike, so that nothing can be compared: {what}\n"
            f"  of {one}: {ours}\n  of {other}: {theirs}"
        )

    for what in dict.fromkeys([*first.facts, *second.facts]):
        ours, theirs = first.facts.get(what, "not there"), second.facts.get(what, "not there")
        if ours != theirs:
            refuse(what, ours, theirs)
    for name in first.weights.keys() & second.weights.keys():
        if first.weights[name] != second.weights[name]:
            refuse(
                f"the value of {name} before the first step",
                f"{first.weights[name]:08x}",
                f"{second.weights[name]:08x}",
            )
    if first.batches != second.batches:
        refuse("the first batches of train_data", f"{first.batches}", f"{second.batches}")
