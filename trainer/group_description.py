"""Says at which rates a run will train, and what each group of its variables has of its own."""

import keras

from trainer.grouped_optimizer import GroupedOptimizer
from trainer.parameter_groups import is_bias_or_scale
from trainer.restore import weights_of
from trainer.run_parts import RunParts
from trainer.schedules import block_plot, disagreement, rate_of, sample_rate

_WIDTH = 64  # columns of the plot


def describe_rates(parts: RunParts) -> str:
    """Five points of the optimizer's rate and, unless it is constant, its plot over the run."""
    rate, before = rate_of(parts.state.optimizer), parts.state.optimizer_step(0)
    points = _points(rate, parts.num_steps, before=before)
    sampled = [value for _, value in sample_rate(rate, parts.num_steps, min(_WIDTH, max(parts.num_steps, 2)), before)]
    if min(sampled) == max(sampled):
        return points
    stretched = [sampled[column * len(sampled) // _WIDTH] for column in range(_WIDTH)]
    top = f"{max(sampled):.3g}"
    lines = [f"{label:>9} |{line}" for label, line in zip([top, "", "", "0"], block_plot(stretched), strict=True)]
    return "\n".join([points, *lines, f"{'':>9}  step 0{parts.num_steps - 1:>{_WIDTH - 6},}"])


def describe_parts(parts: RunParts) -> dict[str, str]:
    """For each group, under a heading, its variables, optimizer, rate, weight decay and beginning."""
    inner = getattr(parts.state.optimizer, "inner_optimizer", parts.state.optimizer)
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
