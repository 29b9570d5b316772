"""Reads the members, the seeds and the metric of a comparison from the config, and checks them without building any."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from trainer.config import bindings_in, bindings_of, bound_value, changes_of, scopes_in_use, scopes_with_bindings
from trainer.config.messages import parameters_of
from trainer.config.settings import DECLARED
from trainer.errors import UserError
from trainer.suggest import nearest


def _fixed() -> dict[str, list[str]]:
    """{configurable: parameters} of what all members have in common: all but the optimizer and what may differ.

    The settings classes say so themselves, see `trainer.config.settings`.
    """
    classes = {entry.parameter for entry in DECLARED.values()}
    of_train = [name for name in parameters_of("experiment.train") if name not in classes | {"optimizer"}]
    fixed = {f"settings.{name}": entry.fixed_fields for name, entry in DECLARED.items()}
    taken = [entry.parameter for entry in DECLARED.values() if not entry.may_differ]
    return {
        "experiment.train": [*of_train, *taken],
        "comparison.compare": list(parameters_of("comparison.compare")),
        **fixed,
    }


@dataclasses.dataclass(frozen=True)
class Plan:
    """One comparison.

    bindings: member -> {binding: value}, what its config says beyond that of all, as gin writes it.
    metric: of the evaluation data.
    target: value of it that is to be reached, or None.
    has_source_data: whether it is measured what is forgotten of the checkpoint's task.
    """

    bindings: Mapping[str, Mapping[str, str]]
    seeds: Sequence[int]
    metric: str
    higher_is_better: bool
    target: float | None
    num_steps: int
    has_source_data: bool = False

    @property
    def members(self) -> list[str]:
        return list(self.bindings)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(member, seed), seed by seed: when it stops half-way, as much is known of one member as of another."""
        return [(member, seed) for seed in self.seeds for member in self.members]

    def reached(self, value: float) -> bool:
        """Whether a value of the metric is at the target or beyond."""
        return self.target is not None and (value >= self.target if self.higher_is_better else value <= self.target)


def read_plan(members: Sequence[str], num_seeds: int, metric: str, mode: str, target: float | None) -> Plan:
    """The comparison that the config describes; raises `UserError` for what cannot be compared."""
    if isinstance(members, str) or not members:
        raise UserError(
            "The config compares nothing: name the members, e.g. compare.members = ['adam', 'sgd'], and set "
            "adam/train.optimizer = @Adam, adam/Adam.learning_rate = 1e-3, and so on."
        )
    _check_names(members)
    if num_seeds < 1:
        raise UserError(f"compare.num_seeds = {num_seeds} must be 1 or more.")
    if mode not in ("max", "min"):
        raise UserError(f"compare.mode = {mode!r} must be 'max' or 'min'.")
    if metric == "loss" and mode == "max":
        raise UserError("compare.metric = 'loss' is the better the lower it is: set compare.mode = 'min'.")
    for member in members:
        _check_bindings(member)
    given = bindings_of("train", "seed", "num_steps")
    first = given["seed"]
    if not isinstance(first, int) or not 0 <= first <= 2**32 - num_seeds:
        raise UserError(f"seed = {first!r} must be a whole number from 0 to 2**32 - {num_seeds}.")
    return Plan(
        bindings={member: bindings_in(member) for member in members},
        seeds=range(first, first + num_seeds),
        metric=metric,
        higher_is_better=mode == "max",
        target=target,
        num_steps=given["num_steps"],
        has_source_data=bound_value("compare", "source_data")[0] is not None,
    )


def _check_names(members: Sequence[str]) -> None:
    for name in members:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(
                f"compare.members: {name!r} must be made of letters, digits and _, as a scope of gin and a folder are."
            )
    twice = [name for name in members if list(members).count(name) > 1]
    if twice:
        raise UserError(f"compare.members names {twice[0]!r} twice.")
    if len(members) < 2:
        raise UserError(f"compare.members names {members[0]!r} alone; a comparison needs two or more.")
    taken = [name for name in members if name in scopes_in_use(members)]
    if taken:
        raise UserError(
            f"compare.members: the config uses the scope {taken[0]!r} for something that all members have in common; "
            "give the member another name."
        )


def _check_bindings(member: str) -> None:
    if not bindings_in(member):
        near = nearest(member, set(scopes_with_bindings()) - {member}, cutoff=0.6)
        raise UserError(
            f"compare.members: nothing is set for {member!r}.{near} A member is what is bound in the scope of its "
            f"name, e.g. {member}/train.optimizer = @Adam."
        )
    changed = changes_of(member, _fixed())
    if changed:
        lines = "".join(f"\n  {member}/{binding} changes {parameter}" for binding, parameter in changed.items())
        raise UserError(
            "The members of a comparison may differ in what optimizes, and have model, data, order and budget in "
            f"common:{lines}\nSet it without {member}/, for all members."
        )
