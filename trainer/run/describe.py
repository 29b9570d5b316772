"""Says what a run will do before a step is taken."""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.cluster.strategy import describe_strategy
from trainer.data.data import Data
from trainer.data.first_examples import describe_first
from trainer.optimizers.grouped_optimizer import GroupedOptimizer
from trainer.optimizers.groups import is_bias_or_scale
from trainer.optimizers.learning_rate import rate_at, rate_of, sample_rate
from trainer.optimizers.phased_optimizer import PhasedOptimizer
from trainer.optimizers.phases import Swats, in_words
from trainer.optimizers.schedules import disagreement
from trainer.output.block_plot import block_plot
from trainer.restore import weights_of
from trainer.run.build import Built
from trainer.run.inputs import Settings
from trainer.step.trace_checks import trace_loss


def describe_start(built: Built, notes: Mapping[str, str], resumed_step: int | None) -> str:
    """Describes the run's start: the restore report and the proof that the optimizer is new.

    notes: what else a person should know, by heading.
    resumed_step: None on a fresh run.
    """
    lines = [f"strategy         {describe_strategy(built.inputs.strategy)}"]
    if resumed_step is not None:
        lines.append(f"resumed          this run's own checkpoint of step {resumed_step}; nothing else is read")
    elif built.report is not None:
        lines.append(f"restore          {built.report}")
    else:
        lines.append("from scratch     every weight is fresh; nothing is restored")
    if built.proof is not None:
        lines.append(str(built.proof))
    if built.state_transfer is not None:
        lines.append(str(built.state_transfer))
    lines += [f"{heading:<17}{text}" for heading, text in notes.items()]
    lines += [f"WARNING          {text}" for text in warn_of_schedules(built)]
    return "\n".join(lines)


def describe_run(built: Built, notes: Mapping[str, str], resumed_step: int | None) -> str:
    """The dry run's page: start, sizes, trained variables, learning rate, epochs, memory."""
    return "\n".join([describe_start(built, notes, resumed_step), _as_text(_table(built))])


def memory_estimate_bytes(built: Built) -> dict[str, int]:
    """Bytes on one replica by what they hold; activations are every tensor of the forward pass, an upper bound."""
    model, optimizer = built.state.model, built.state.optimizer
    return {
        "weights": _bytes(model.variables),
        "gradients": _bytes(built.variables),
        "optimizer": _bytes(optimizer.variables),
        "activations": _activation_bytes(built),
    }


def _table(built: Built) -> Table:
    model = built.state.model
    trained = {id(variable) for variable in built.variables}
    others = [weight for weight in weights_of(model) if id(weight.variable) not in trained]
    # Moving averages of normalization layers follow the data; no optimizer and no rule moves them.
    statistics = [weight for weight in others if weight.name.rsplit("/", 1)[-1].startswith("moving_")]
    frozen = [weight for weight in others if weight not in statistics]
    train_data, eval_data = built.inputs.train_data, built.inputs.eval_data
    steps_per_epoch = train_data.num_examples / built.settings.global_batch_size
    epochs = built.settings.num_steps / steps_per_epoch
    memory = memory_estimate_bytes(built)
    micro = f" in {built.settings.step.accumulation_steps} micro-batches" * (built.settings.step.accumulation_steps > 1)

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(min_width=16, no_wrap=True)
    table.add_column(overflow="fold")
    a_replica = built.inputs.replica_batch_size * built.settings.step.accumulation_steps
    weights, trained_count = _count(model.weights), _count(built.variables)
    rows = {
        "batch": f"{built.settings.global_batch_size} examples a step, {a_replica} a replica{micro}",
        **({"settings": text} if (text := describe_settings(built.settings)) else {}),
        "model": f"{model.name}: {weights:,} weights in {len(model.weights)} variables, {_size(_bytes(model.weights))}",
        "trained": f"{trained_count:,} weights in {len(built.variables)} variables",
        "frozen": f"{_count(frozen):,} weights in {len(frozen)} variables" + _names(frozen),
        **({"statistics": f"{len(statistics)} variables" + _names(statistics)} if statistics else {}),
        "learning rate": describe_rates(built),
        **(describe_phases(built) if built.settings.finetune.phases else {}),
        **describe_parts(built),
        **({"weight decay": decay} if (decay := describe_decay(built)) else {}),
        "train data": f"{train_data.label}, {train_data.num_examples:,} examples an epoch{_note(train_data)}",
        "examples": describe_first(train_data),
        "steps": f"{built.settings.num_steps:,}, at {steps_per_epoch:.1f} an epoch {epochs:.1f} epochs",
        "eval data": f"{eval_data.label}, {eval_data.num_examples:,} examples{_note(eval_data)}"
        if eval_data
        else "none",
        "memory a replica": f"about {_size(sum(memory.values()))}: "
        + ", ".join(f"{name} {_size(size)}" for name, size in memory.items()),
    }
    for name, text in rows.items():
        table.add_row(name, Text(text))  # no markup: patterns have brackets of their own
    return table


def _note(data: Data) -> str:
    return f" ({data.note})" if data.note else ""


def describe_settings(settings: Settings) -> str:
    """Each field of the settings classes that is not at its default, but for those that other rows describe."""
    changed = [
        f"{entry.cls.__name__}.{field.name} = {value!r}"
        for entry, field, value in settings.fields()
        if value != field.default and field.name not in _DESCRIBED and not entry.by_flag
    ]
    return ", ".join(changed)


def _activation_bytes(built: Built) -> int:
    graph = trace_loss(
        built.state.model, built.settings.task, built.inputs.train_data, built.inputs.replica_batch_size
    ).graph
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
_DESCRIBED = ("checkpoint", "groups", "phases", "lora", "accumulation_steps")  # fields with a line of their own


def describe_rates(built: Built) -> str:
    """Five points of the optimizer's rate and, unless it is constant, its plot over the run.

    Of phases the plot alone, where the step of each is known; the points are printed with each of them.
    """
    columns = min(_WIDTH, max(built.settings.num_steps, 2))
    if built.settings.finetune.phases:
        spans = _spans(built)
        if any(span is None for _, span in spans):
            return "that of its phase"
        points = "that of its phase"
        last = max(built.settings.num_steps - 1, 0)
        sampled = [_rate_in(spans, last * column // (columns - 1)) for column in range(columns)]
    else:
        rate, before = rate_of(built.state.optimizer), built.state.optimizer_step(0)
        points = _points(rate, built.settings.num_steps, before=before)
        sampled = [value for _, value in sample_rate(rate, built.settings.num_steps, columns, before)]
    if min(sampled) == max(sampled):
        return points
    stretched = [sampled[column * len(sampled) // _WIDTH] for column in range(_WIDTH)]
    top = f"{max(sampled):.3g}"
    lines = [f"{label:>9} |{line}" for label, line in zip([top, "", "", "0"], block_plot(stretched), strict=True)]
    return "\n".join([points, *lines, f"{'':>9}  step 0{built.settings.num_steps - 1:>{_WIDTH - 6},}"])


def describe_phases(built: Built) -> dict[str, str]:
    """For each phase, under a heading, its optimizer, its beginning, its rate and its weight decay."""
    rows = {}
    for number, (optimizer, span) in enumerate(_spans(built)):
        begins = in_words(built.settings.finetune.phases[number - 1].start) if number else "from step 0 on"
        rate = rate_of(optimizer)
        if number and isinstance(built.settings.finetune.phases[number - 1].start, Swats):
            sentences = f"rate as found, {rate_at(rate, 0):g} until then"
        elif span is None:
            sentences = f"rate of its own steps {_points(rate, built.settings.num_steps)}"
        else:
            sentences = f"rate {_points(rate, max(span[1] - span[0], 1), span[0])}"
        decay = f", weight decay {optimizer.weight_decay:g}" if optimizer.weight_decay else ""
        rows[f"phase {number + 1}"] = f"{_kind(optimizer)} {begins}, {sentences}{decay}"
    return rows


def describe_parts(built: Built) -> dict[str, str]:
    """For each group, under a heading, its variables, optimizer, rate, weight decay and beginning."""
    inner = getattr(built.state.optimizer, "inner_optimizer", built.state.optimizer)
    if isinstance(inner, PhasedOptimizer):  # whose others divide the variables in the same way
        inner = inner.optimizers[0]
    rows = {}
    for number, (part, optimizer) in enumerate(zip(built.groups, getattr(inner, "optimizers", ()), strict=False)):
        first = part.group.unfreeze_at
        sentences = [
            f"{part.label}: {len(part.variables)} variables",
            f"{type(optimizer).__name__}",
            f"rate x {part.multiplier:.3g}" * (part.multiplier != 1.0),
            f"rate {_points(rate_of(optimizer), max(built.settings.num_steps - first, 1), first)}",
            f"from step {first:,} on" * bool(first),
            _decay_of(optimizer, len(part.no_decay), len(part.variables)),
        ]
        rows[f"group {number + 1}"] = ", ".join(text for text in sentences if text)
    return rows


def describe_decay(built: Built) -> str:
    """Describes the weight decay of an optimizer without groups; empty where it has none."""
    optimizer = getattr(built.state.optimizer, "inner_optimizer", built.state.optimizer)
    if isinstance(optimizer, GroupedOptimizer) or not optimizer.weight_decay:
        return ""
    trained = {id(variable) for variable in built.variables}
    weights = [weight for weight in weights_of(built.state.model) if id(weight.variable) in trained]
    vectors = [weight.name for weight in weights if is_bias_or_scale(weight.name, weight.variable)]
    text = f"{optimizer.weight_decay:g} on all {len(weights)} trained variables"
    if vectors:
        text += f", {len(vectors)} biases and norm scales among them; Finetune.groups leaves these out"
    return text


def warn_of_schedules(built: Built) -> list[str]:
    """A sentence for each schedule that disagrees with `num_steps`, and for each group that is never trained."""
    inner = getattr(built.state.optimizer, "inner_optimizer", built.state.optimizer)
    if built.settings.finetune.phases:
        sentences = _warn_of_phases(built)
    else:
        sentences = [disagreement(rate_of(inner), built.state.optimizer_step(built.settings.num_steps))]
    for part in built.groups:
        if part.group.learning_rate is not None:
            sentences.append(disagreement(part.group.learning_rate, built.settings.num_steps))
        if part.group.unfreeze_at >= built.settings.num_steps:
            sentences.append(
                f"the group {part.label} begins at step {part.group.unfreeze_at:,}, and the run ends at "
                f"{built.settings.num_steps:,}: it is never trained"
            )
    return list(dict.fromkeys(text for text in sentences if text))


def _warn_of_phases(built: Built) -> list[str]:
    sentences = []
    for number, (optimizer, span) in enumerate(_spans(built)):
        if span is not None and span[0] >= built.settings.num_steps:
            sentences.append(
                f"phase {number + 1} begins at step {span[0]:,}, and the run ends at {built.settings.num_steps:,}: "
                "it never "
                "begins"
            )
        elif span is not None:
            text = disagreement(rate_of(optimizer), span[1] - span[0])
            sentences.append(f"in the steps of phase {number + 1}, {text}" if text else "")
    return sentences


def _spans(built: Built) -> list[tuple[keras.optimizers.Optimizer, tuple[int, int] | None]]:
    """Each phase's optimizer and its first step and the one after its last; None where a criterion decides."""
    inner = getattr(built.state.optimizer, "inner_optimizer", built.state.optimizer)
    ends = [0, *(phase.start for phase in built.settings.finetune.phases), max(built.settings.num_steps, 1)]
    return [
        (optimizer, (first, max(min(end, built.settings.num_steps), first)))
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
