"""Builds every member for real and proves that they start alike: model, restored weights, data, first batches."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping

import gin
import numpy as np
import tensorflow as tf

from trainer.cluster.replicas import first_value
from trainer.cluster.strategy import describe_strategy
from trainer.comparison.plan import Plan
from trainer.comparison.process import Devices, Process
from trainer.comparison.source_task import check_source
from trainer.config import bindings_of, parse_text, text_of
from trainer.data.batches import train_batches
from trainer.data.data import Data
from trainer.data.given import as_data
from trainer.errors import UserError, message_of
from trainer.restore import weights_of
from trainer.run.inputs import as_restore
from trainer.run.model import assemble_model, layer_settings
from trainer.run.settings import Invocation
from trainer.suggest import nearest

_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Start:
    """A member's start, in values that can be compared.

    facts: what -> its value.
    weights: name -> checksum of its restored value.
    batches: checksum of the first global batches, None for data that is not the same twice.
    metrics: names of what is evaluated, None without data.
    strategy: in words.
    """

    facts: Mapping[str, str]
    weights: Mapping[str, int]
    batches: int | None
    num_weights: int
    metrics: list[str] | None
    strategy: str


def check_same_start(plan: Plan, devices: Devices) -> tuple[Start, str]:
    """Goes with every member to the point before its first step; returns the first's start, and what all share.

    Each member is built in a process of its own.
    Raises `UserError` that names two members and the first thing in which they differ, and whatever a run of
    one of them would stop with before its first step.
    """
    starts: dict[str, Start] = {}
    for member in plan.members:
        config = text_of(member, plan.seeds[0])
        source_config = text_of(member, plan.seeds[0], with_source_data=True) if plan.has_source_data else None
        once = None if starts else source_config
        starts[member] = Process(send_start, member, config, once, plan.seeds[0], devices, answers=True).answer()
        if len(starts) == 1:
            _check_metric(plan, starts[member])
    first, *others = plan.members
    for other in others:
        _compare(first, starts[first], other, starts[other])
    facts, batches = starts[first].facts, starts[first].batches
    common = min((starts[member].weights for member in plan.members), key=len)
    text = "\n".join(
        [
            f"same start       {len(common)} variables with {starts[first].num_weights:,} weights, bit for bit, "
            f"of {facts['init_checkpoint']}",
            f"same data        {facts['train_data']}, {facts['global_batch_size']} a step; the first {_BATCHES} "
            + ("batches are the same" if batches is not None else "batches are drawn again each time: not compared"),
            f"same evaluation  {facts['eval_data']}",
        ]
    )
    return starts[first], text


def _check_metric(plan: Plan, start: Start) -> None:
    if start.metrics is None:
        raise UserError("Nothing can be compared without evaluation data: set EVAL_DATA.")
    if plan.metric not in start.metrics:
        near = nearest(plan.metric, start.metrics, "metrics")
        raise UserError(f"compare.metric = {plan.metric!r} is not evaluated.{near}")


def send_start(
    member: str, config: str, source_config: str | None, seed: int, devices: Devices, answer: Callable
) -> int:
    """Runs in a process of its own: builds a run up to its first step, and sends its `Start`.

    source_config: None for a run without source data; else these are tried as well.
    """
    try:
        parse_text(config)
        strategy = devices.build()
        start = _start_of(seed, strategy)
    except UserError as error:
        raise UserError(f"The member {member!r}: {message_of(error)}") from error
    if source_config is not None:
        parse_text(source_config)
        check_source(strategy)
    answer(start)
    return 0


def _start_of(seed: int, strategy: tf.distribute.Strategy) -> Start:
    given = bindings_of(
        "train", "model", "task", "train_data", "eval_data", "restore", "global_batch_size", "num_steps"
    )
    restore = as_restore(given["restore"])
    data = as_data(given["train_data"], "train_data")
    eval_data = None if given["eval_data"] is None else as_data(given["eval_data"], "eval_data")
    invocation = Invocation(dry_run=True)
    restored = gin.get_configurable("experiment.train")(strategy=strategy, invocation=invocation).model
    with strategy.scope():
        built = assemble_model(given["model"], given["task"], data, strategy)
    shapes = {w.name: f"{tuple(w.variable.shape)} {w.variable.dtype}" for w in weights_of(built)}
    return Start(
        facts={
            "train_data": _describe(data),
            "eval_data": "none" if eval_data is None else _describe(eval_data),
            "init_checkpoint": str(restore.checkpoint if restore else "no checkpoint: random weights"),
            "global_batch_size": str(given["global_batch_size"]),
            "num_steps": str(given["num_steps"]),
            "task": str(given["task"].describe()),
            "regularized variables": _regularized(restored),
            **{f"model variable {name}": shape for name, shape in shapes.items()},
            **{f"settings of layer {name}": text for name, text in layer_settings(built).items()},
        },
        # A member may have variables beside the model's, or others in place of them.
        weights={w.name: _checksum([first_value(w.variable)]) for w in weights_of(restored) if w.name in shapes},
        batches=_batches_checksum(data, given["global_batch_size"], seed),
        num_weights=sum(int(np.prod(weight.variable.shape)) for weight in weights_of(built)),
        metrics=None if eval_data is None else list(given["task"].new_metrics()),
        strategy=describe_strategy(strategy),
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
    for stack, first, end in batches.take(_BATCHES):
        for index in range(int(first), int(end)):
            batch, _ = batches.look_up(tf.nest.map_structure(lambda value, index=index: value[index], stack))
            arrays.extend(np.asarray(batch[name]) for name in sorted(batch) if isinstance(batch[name], tf.Tensor))
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
