"""Says at which rates a run will train, and what each phase and each group of its variables has of its own."""

import keras

from trainer.optimizers.grouped_optimizer import GroupedOptimizer
from trainer.optimizers.groups import is_bias_or_scale
from trainer.optimizers.phased_optimizer import PhasedOptimizer
from trainer.optimizers.phases import Swats, in_words
from trainer.optimizers.schedules import block_plot, disagreement, rate_at, rate_of, sample_rate
from trainer.restore import weights_of
from trainer.run.built import RunParts

_WIDTH = 64  # columns of the plot


def describe_rates(parts: RunParts) -> str:
    """Five points of the optimizer's rate and, unless it is constant, its plot over the run.

    Of phases the plot alone, where the step of each is known; the points are told with each of them.
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
            told = f"rate as found, {rate_at(rate, 0):g} until then"
        elif span is None:
            told = f"rate of its own steps {_points(rate, parts.num_steps)}"
        else:
            told = f"rate {_points(rate, max(span[1] - span[0], 1), span[0])}"
        decay = f", weight decay {optimizer.weight_decay:g}" if optimizer.weight_decay else ""
        rows[f"phase {number + 1}"] = f"{_kind(optimizer)} {begins}, {told}{decay}"
    return rows


def describe_parts(parts: RunParts) -> dict[str, str]:
    """For each group, under a heading, its variables, optimizer, rate, weight decay and beginning."""
    inner = getattr(parts.state.optimizer, "inner_optimizer", parts.state.optimizer)
    if isinstance(inner, PhasedOptimizer):  # whose others divide the variables in the same way
        inner = inner.optimizers[0]
    rows = {}
    for number, (part, optimizer) in enumerate(zip(parts.groups, getattr(inner, "optimizers", ()), strict=False)):
        first = part.group.unfreeze_at
        told = [
            f"{part.label}: {len(part.variables)} variables",
            f"{type(optimizer).__name__}",
            f"rate x {part.multiplier:.3g}" * (part.multiplier != 1.0),
            f"rate {_points(rate_of(optimizer), max(parts.num_steps - first, 1), first)}",
            f"from step {first:,} on" * bool(first),
            _decay_of(optimizer, len(part.undecayed), len(part.variables)),
        ]
        rows[f"group {number + 1}"] = ", ".join(text for text in told if text)
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
        told = _warn_of_phases(parts)
    else:
        told = [disagreement(rate_of(inner), parts.state.optimizer_step(parts.num_steps))]
    for part in parts.groups:
        if part.group.learning_rate is not None:
            told.append(disagreement(part.group.learning_rate, parts.num_steps))
        if part.group.unfreeze_at >= parts.num_steps:
            told.append(
                f"the group {part.label} begins at step {part.group.unfreeze_at:,}, and the run ends at "
                f"{parts.num_steps:,}: it is never trained"
            )
    return list(dict.fromkeys(text for text in told if text))


def _warn_of_phases(parts: RunParts) -> list[str]:
    told = []
    for number, (optimizer, span) in enumerate(_spans(parts)):
        if span is not None and span[0] >= parts.num_steps:
            told.append(
                f"phase {number + 1} begins at step {span[0]:,}, and the run ends at {parts.num_steps:,}: it never "
                "begins"
            )
        elif span is not None:
            text = disagreement(rate_of(optimizer), span[1] - span[0])
            told.append(f"in the steps of phase {number + 1}, {text}" if text else "")
    return told


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


def _decay_of(optimizer: keras.optimizers.Optimizer, undecayed: int, variables: int) -> str:
    if not optimizer.weight_decay or undecayed == variables:
        return "no weight decay"
    left_out = f", but none on {undecayed} of them, biases and norm scales" if undecayed else ""
    return f"weight decay {optimizer.weight_decay:g}{left_out}"
