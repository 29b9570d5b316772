"""Says what a run will do before a step is taken."""

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from trainer.cluster.strategy import describe_strategy
from trainer.optimizers.grouped_optimizer import GroupedOptimizer
from trainer.optimizers.groups import is_bias_or_scale
from trainer.optimizers.learning_rate import rate_at, rate_of, sample_rate
from trainer.optimizers.phased_optimizer import PhasedOptimizer
from trainer.optimizers.phases import Swats, in_words
from trainer.optimizers.schedules import disagreement
from trainer.output.block_plot import block_plot
from trainer.restore import weights_of
from trainer.run.built import RunParts
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


_WIDTH = 64  # columns of the plot


def describe_rates(parts: RunParts) -> str:
    """Five points of the optimizer's rate and, unless it is constant, its plot over the run.

    Of phases the plot alone, where the step of each is known; the points are printed with each of them.
    """
    columns = min(_WIDTH, max(parts.num_steps, 2))
    if parts.phases:
        spans = _spans(parts)
        if any(span is None for _, span in spans):
            return "that of its phase"
        points = "that of its phase"
        last = max(parts.num_steps - 1, 0)
        sampled = [_rate_in(spans, last * column // (columns - 1)) for column in range(columns)]
    else:
        rate, before = rate_of(parts.state.optimizer), parts.state.optimizer_step(0)
        points = _points(rate, parts.num_steps, before=before)
        sampled = [value for _, value in sample_rate(rate, parts.num_steps, columns, before)]
    if min(sampled) == max(sampled):
        return points
    stretched = [sampled[column * len(sampled) // _WIDTH] for column in range(_WIDTH)]
    top = f"{max(sampled):.3g}"
    lines = [f"{label:>9} |{line}" for label, line in zip([top, "", "", "0"], block_plot(stretched), strict=True)]
    return "\n".join([points, *lines, f"{'':>9}  step 0{parts.num_steps - 1:>{_WIDTH - 6},}"])


def describe_phases(parts: RunParts) -> dict[str, str]:
    """For each phase, under a heading, its optimizer, its beginning, its rate and its weight decay."""
    rows = {}
    for number, (optimizer, span) in enumerate(_spans(parts)):
        begins = in_words(parts.phases[number - 1].start) if number else "from step 0 on"
        rate = rate_of(optimizer)
        if number and isinstance(parts.phases[number - 1].start, Swats):
            sentences = f"rate as found, {rate_at(rate, 0):g} until then"
        elif span is None:
            sentences = f"rate of its own steps {_points(rate, parts.num_steps)}"
        else:
            sentences = f"rate {_points(rate, max(span[1] - span[0], 1), span[0])}"
        decay = f", weight decay {optimizer.weight_decay:g}" if optimizer.weight_decay else ""
        rows[f"phase {number + 1}"] = f"{_kind(optimizer)} {begins}, {sentences}{decay}"
    return rows


def describe_parts(parts: RunParts) -> dict[str, str]:
    """For each group, under a heading, its variables, optimizer, rate, weight decay and beginning."""
    inner = getattr(parts.state.optimizer, "inner_optimizer", parts.state.optimizer)
    if isinstance(inner, PhasedOptimizer):  # whose others divide the variables in the same way
        inner = inner.optimizers[0]
    rows = {}
    for number, (part, optimizer) in enumerate(zip(parts.groups, getattr(inner, "optimizers", ()), strict=False)):
        first = part.group.unfreeze_at
        sentences = [
            f"{part.label}: {len(part.variables)} variables",
            f"{type(optimizer).__name__}",
            f"rate x {part.multiplier:.3g}" * (part.multiplier != 1.0),
            f"rate {_points(rate_of(optimizer), max(parts.num_steps - first, 1), first)}",
            f"from step {first:,} on" * bool(first),
            _decay_of(optimizer, len(part.no_decay), len(part.variables)),
        ]
        rows[f"group {number + 1}"] = ", ".join(text for text in sentences if text)
    return rows


def describe_decay(parts: RunParts) -> str:
    """What the weight decay of an optimizer without groups touches; nothing where it has none."""
    optimizer = getattr(parts.state.optimizer, "inner_optimizer", parts.state.optimizer)
    if isinstance(optimizer, GroupedOptimizer) or not optimizer.weight_decay:
        return ""
    trained = {id(variable) for variable in parts.variables}
    weights = [weight for weight in weights_of(parts.state.model) if id(weight.variable) in trained]
    vectors = [weight.name for weight in weights if is_bias_or_scale(weight.name, weight.variable)]
    text = f"{optimizer.weight_decay:g} on all {len(weights)} trained variables"
    if vectors:
        text += f", {len(vectors)} biases and norm scales among them; train.groups leaves these out"
    return text


def warn_of_schedules(parts: RunParts) -> list[str]:
    """A sentence for each schedule that disagrees with `num_steps`, and for each group that is never trained."""
    inner = getattr(parts.state.optimizer, "inner_optimizer", parts.state.optimizer)
    if parts.phases:
        sentences = _warn_of_phases(parts)
    else:
        sentences = [disagreement(rate_of(inner), parts.state.optimizer_step(parts.num_steps))]
    for part in parts.groups:
        if part.group.learning_rate is not None:
            sentences.append(disagreement(part.group.learning_rate, parts.num_steps))
        if part.group.unfreeze_at >= parts.num_steps:
            sentences.append(
                f"the group {part.label} begins at step {part.group.unfreeze_at:,}, and the run ends at "
                f"{parts.num_steps:,}: it is never trained"
            )
    return list(dict.fromkeys(text for text in sentences if text))


def _warn_of_phases(parts: RunParts) -> list[str]:
    sentences = []
    for number, (optimizer, span) in enumerate(_spans(parts)):
        if span is not None and span[0] >= parts.num_steps:
            sentences.append(
                f"phase {number + 1} begins at step {span[0]:,}, and the run ends at {parts.num_steps:,}: it never "
                "begins"
            )
        elif span is not None:
            text = disagreement(rate_of(optimizer), span[1] - span[0])
            sentences.append(f"in the steps of phase {number + 1}, {text}" if text else "")
    return sentences


def _spans(parts: RunParts) -> list[tuple[keras.optimizers.Optimizer, tuple[int, int] | None]]:
    """Each phase's optimizer and its first step and the one after its last; None where a criterion decides."""
    inner = getattr(parts.state.optimizer, "inner_optimizer", parts.state.optimizer)
    ends = [0, *(phase.start for phase in parts.phases), max(parts.num_steps, 1)]
    return [
        (optimizer, (first, max(min(end, parts.num_steps), first)))
        if isinstance(first, int) and isinstance(end, int)
        else (optimizer, None)
        for optimizer, first, end in zip(inner.optimizers, ends[:-1], ends[1:], strict=True)
    ]


def _rate_in(spans, step: int) -> float:
    optimizer, (first, _) = next((each for each in spans if step < each[1][1]), spans[-1])
    return rate_at(rate_of(optimizer), step - first)


def _kind(optimizer: keras.optimizers.Optimizer) -> str:
    in_groups = optimizer.optimizers if isinstance(optimizer, GroupedOptimizer) else [optimizer]
    return " and ".join(dict.fromkeys(type(each).__name__ for each in in_groups))


def _points(rate, num_steps: int, first: int = 0, before: int = 0) -> str:
    points = sample_rate(rate, num_steps, before=before)
    if len({value for _, value in points}) == 1 and first == 0 and isinstance(rate, keras.Variable):
        points = points[:1]
    return ", ".join(f"step {first + step}: {value:.3g}" for step, value in points)


def _decay_of(optimizer: keras.optimizers.Optimizer, no_decay: int, variables: int) -> str:
    if not optimizer.weight_decay or no_decay == variables:
        return "no weight decay"
    left_out = f", but none on {no_decay} of them, biases and norm scales" if no_decay else ""
    return f"weight decay {optimizer.weight_decay:g}{left_out}"
