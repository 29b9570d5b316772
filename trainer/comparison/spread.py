"""Mean and range over seeds, and what may be said of an order of the members."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from trainer.comparison.plan import Plan
from trainer.comparison.results import Result

# Two seeds part two equal optimizers one time in three.
FEWEST_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean, lowest and highest of several values."""

    mean: float
    low: float
    high: float
    count: int


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Summarises the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return Spread(sum(known) / len(known), min(known), max(known), len(known)) if known else None


def chance_of_parting(num_seeds: int) -> float:
    """How often the ranges of two equal optimizers lie apart: 2 of the (2n choose n) orders of their 2n runs."""
    return 2 / math.comb(2 * num_seeds, num_seeds)


def verdict(plan: Plan, results: Sequence[Result]) -> list[str]:
    """The conclusions that the final values allow, a sentence each.

    Of two members one is above the other only if its worst seed is better than the other's best, with three seeds
    or more that all reached the end. Else no order is claimed.
    """
    finals: Mapping[str, list] = {
        member: [result.final for result in results if result.member == member] for member in plan.members
    }
    sentences = []
    for member in plan.members:
        diverged = [result for result in results if result.member == member and result.state == "diverged"]
        if diverged:
            sentences.append(f"{member} diverged in {len(diverged)} of {len(plan.seeds)} seeds.")
    missing = {member: sum(value is None for value in values) for member, values in finals.items()}
    whole = [member for member in plan.members if not missing[member]]
    for member in plan.members:
        if missing[member]:
            sentences.append(f"{member} is in no order: {missing[member]} of its {len(plan.seeds)} runs have no end.")
    if len(plan.seeds) < FEWEST_SEEDS:
        return [
            *sentences,
            f"No order is claimed: {len(plan.seeds)} seed{'s' * (len(plan.seeds) > 1)} cannot tell a difference from "
            f"chance; compare.num_seeds = {FEWEST_SEEDS} or more can.",
        ]
    apart, overlapping = [], []
    for index, one in enumerate(whole):
        for two in whole[index + 1 :]:
            ours, theirs = spread_of(finals[one]), spread_of(finals[two])
            assert ours is not None and theirs is not None
            if ours.low > theirs.high or theirs.low > ours.high:
                higher = one if ours.low > theirs.high else two
                better = higher if plan.higher_is_better else (two if higher == one else one)
                apart.append(_parted(plan, better, two if better == one else one, finals))
            else:
                overlapping.append(f"{one} and {two}")
    if apart:
        one_in = round(1 / chance_of_parting(len(plan.seeds)))
        sentences += [*apart, f"Two equal optimizers would part like that, by chance, in 1 of {one_in} comparisons."]
    if overlapping:
        sentences.append(f"Within the spread, no order is claimed: {', '.join(overlapping)}.")
    return sentences


def _parted(plan: Plan, better: str, worse: str, finals: Mapping[str, list]) -> str:
    ours, theirs = spread_of(finals[better]), spread_of(finals[worse])
    assert ours is not None and theirs is not None
    worst, best = (ours.low, theirs.high) if plan.higher_is_better else (ours.high, theirs.low)
    return (
        f"{better} ended better than {worse} in all {len(plan.seeds)} seeds: its worst {plan.metric} is {worst:.4g}, "
        f"the other's best {best:.4g}."
    )


def starts_alike(plan: Plan, results: Sequence[Result]) -> list[str]:
    """Whether the members had the same bits at step 0 for each seed; a sentence, or one for each fault."""
    faults, compared, same_bits = [], 0, True
    for seed in plan.seeds:
        known = [result for result in results if result.seed == seed and result.start]
        compared += len(known)
        for other in known[1:]:
            same_bits = same_bits and other.start == known[0].start
            if not _nearly(other.start, known[0].start):
                faults.append(
                    f"NOT THE SAME START with seed {seed}: {known[0].member} had {known[0].start} and {other.member} "
                    f"{other.start}. Nothing below compares the optimizers."
                )
    if faults or not compared:
        return faults
    if not same_bits:
        return [
            f"For each seed all members had the same metrics at step 0, but for rounding, as on different machines "
            f"({compared} runs)."
        ]
    return [f"Proved: for each seed all members had the same metrics at step 0, bit for bit ({compared} runs)."]


def _nearly(one: Mapping[str, float], two: Mapping[str, float]) -> bool:
    return one.keys() == two.keys() and all(math.isclose(one[name], two[name], rel_tol=1e-4) for name in one)
