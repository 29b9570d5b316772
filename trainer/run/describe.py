"""Says what a run will do before a step is taken."""

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from trainer.cluster.strategy import describe_strategy
from trainer.restore import weights_of
from trainer.run.built import RunParts
from trainer.run.describe_groups import (
    describe_decay,
    describe_parts,
    describe_phases,
    describe_rates,
    warn_of_schedules,
)
from trainer.step.trace_checks import trace_loss


def describe_start(parts: RunParts) -> str:
    """What the run starts from: the restore report and the proof that the optimizer is new."""
    lines = [f"strategy         {describe_strategy(parts.strategy)}"]
    if parts.resumed_step is not None:
        lines.append(f"resumed          this run's own checkpoint of step {parts.resumed_step}; nothing else is read")
    elif parts.report is not None:
        lines.append(f"restore          {parts.report}")
    else:
        lines.append("from scratch     every weight is fresh; nothing is restored")
    if parts.proof is not None:
        lines.append(str(parts.proof))
    if parts.handover is not None:
        lines.append(str(parts.handover))
    lines += [f"{heading:<17}{text}" for heading, text in parts.notes.items()]
    lines += [f"WARNING          {text}" for text in warn_of_schedules(parts)]
    return "\n".join(lines)


def describe_run(parts: RunParts) -> str:
    """The dry run's page: start, sizes, trained variables, learning rate, epochs, memory."""
    return "\n".join([describe_start(parts), _as_text(_table(parts))])


def memory_estimate_bytes(parts: RunParts) -> dict[str, int]:
    """Bytes on one replica by what they hold; activations are every tensor of the forward pass, an upper bound."""
    model, optimizer = parts.state.model, parts.state.optimizer
    return {
        "weights": _bytes(model.variables),
        "gradients": _bytes(parts.variables),
        "optimizer": _bytes(optimizer.variables),
        "activations": _activation_bytes(parts),
    }


def _table(parts: RunParts) -> Table:
    model = parts.state.model
    trained = {id(variable) for variable in parts.variables}
    others = [weight for weight in weights_of(model) if id(weight.variable) not in trained]
    # Moving averages of normalization layers follow the data; no optimizer and no rule moves them.
    statistics = [weight for weight in others if weight.name.rsplit("/", 1)[-1].startswith("moving_")]
    frozen = [weight for weight in others if weight not in statistics]
    steps_per_epoch = parts.train_data.num_examples / parts.global_batch_size
    epochs = parts.num_steps / steps_per_epoch
    memory = memory_estimate_bytes(parts)
    micro = f" in {parts.accumulation_steps} micro-batches" * (parts.accumulation_steps > 1)

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(min_width=16, no_wrap=True)
    table.add_column(overflow="fold")
    a_replica = parts.replica_batch_size * parts.accumulation_steps
    weights, trained_count = _count(model.weights), _count(parts.variables)
    rows = {
        "batch": f"{parts.global_batch_size} examples a step, {a_replica} a replica{micro}",
        "model": f"{model.name}: {weights:,} weights in {len(model.weights)} variables, {_size(_bytes(model.weights))}",
        "trained": f"{trained_count:,} weights in {len(parts.variables)} variables",
        "frozen": f"{_count(frozen):,} weights in {len(frozen)} variables" + _names(frozen),
        **({"statistics": f"{len(statistics)} variables" + _names(statistics)} if statistics else {}),
        "learning rate": describe_rates(parts),
        **(describe_phases(parts) if parts.phases else {}),
        **describe_parts(parts),
        **({"weight decay": decay} if (decay := describe_decay(parts)) else {}),
        "train data": f"{parts.train_data.label}, {parts.train_data.num_examples:,} examples an epoch",
        "steps": f"{parts.num_steps:,}, at {steps_per_epoch:.1f} an epoch {epochs:.1f} epochs",
        "eval data": f"{parts.eval_data.label}, {parts.eval_data.num_examples:,} examples"
        if parts.eval_data
        else "none",
        "memory a replica": f"about {_size(sum(memory.values()))}: "
        + ", ".join(f"{name} {_size(size)}" for name, size in memory.items()),
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _activation_bytes(parts: RunParts) -> int:
    graph = trace_loss(parts.state.model, parts.task, parts.train_data, parts.replica_batch_size).graph
    skipped = ("ReadVariableOp", "Const", "Placeholder", "Identity")
    return sum(
        output.shape.num_elements() * output.dtype.size
        for operation in graph.get_operations()
        if operation.type not in skipped
        for output in operation.outputs
        if output.dtype.is_floating and output.shape.is_fully_defined()
    )


def _as_text(table: Table) -> str:
    console = Console(width=110, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _count(variables) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def _bytes(variables) -> int:
    return sum(int(np.prod(variable.shape)) * tf.as_dtype(variable.dtype).size for variable in variables)


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _names(weights) -> str:
    if not weights:
        return ""
    return ": " + ", ".join(weight.name for weight in weights[:6]) + ", ..." * (len(weights) > 6)
