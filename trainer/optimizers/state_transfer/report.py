"""Reports on every slot of the new optimizer and every entry of the old one, as text and JSON."""

import dataclasses

_MAX_NAMES = 6


@dataclasses.dataclass(frozen=True)
class CarriedSlot:
    """A slot that is carried over.

    key: of the file.
    checksum: of its bytes there, with which the copy of every replica was compared.
    """

    variable: str
    slot: str
    meaning: str
    key: str
    shape: tuple[int, ...]
    checksum: str = ""


@dataclasses.dataclass(frozen=True)
class FreshSlot:
    """A slot that starts fresh, and why."""

    variable: str
    slot: str
    why: str


@dataclasses.dataclass(frozen=True)
class LeftEntry:
    """An entry of the old optimizer that nothing takes, and why."""

    key: str
    why: str


@dataclasses.dataclass(frozen=True)
class StateTransfer:
    """Report on the old optimizer's state.

    source: class of the optimizer in the file, "" where only its step count is taken.
    target: that of the new one.
    step: the step count that is carried over.
    notes: what a person should know of it.
    entries_read: of the file's optimizer.
    replicas_verified: on how many replicas each was compared with the file.
    first_learning_rate: the rate of the first update, after any warm-up of `warmup_steps`.
    """

    policy: str
    source: str
    target: str
    step: int
    carried: list[CarriedSlot]
    fresh: list[FreshSlot]
    left: list[LeftEntry]
    notes: list[str]
    entries_read: int = 0
    replicas_verified: int = 0
    warmup_steps: int = 0
    first_learning_rate: float = 0.0

    def __str__(self) -> str:
        what = f"step {self.step:,}"
        if self.carried:
            what += f" and {len(self.carried)} slots of the checkpoint's {self.source}"
        plural = "s" * (self.replicas_verified != 1)
        entries = "1 optimizer entry" if self.entries_read == 1 else f"{self.entries_read} optimizer entries"
        lines = [
            f"optimizer state  {self.policy}: {what} continue{'s' * (not self.carried)} in {self.target}, "
            f"{entries} read, compared on {self.replicas_verified} replica{plural}",
            *_grouped("carried", [(f"{record.meaning} ({record.slot})", record.variable) for record in self.carried]),
            *_grouped("starts fresh", [(f"{record.slot}: {record.why}", record.variable) for record in self.fresh]),
            *_grouped("left behind", [(record.why, record.key) for record in self.left]),
            f"first update     learning rate {self.first_learning_rate:g}"
            + (f", warmed up over {self.warmup_steps} steps" if self.warmup_steps else "")
            + "; schedules continue from the step count",
        ]
        return "\n".join(lines + [f"note             {note}" for note in self.notes])


def _grouped(heading: str, records: list[tuple[str, str]]) -> list[str]:
    """A line for each reason, with the names that it holds for."""
    groups: dict[str, list[str]] = {}
    for reason, name in records:
        groups.setdefault(reason, []).append(name)
    return [
        f"{heading if first else '':<13} {len(names):>3}  {reason}: {', '.join(names[:_MAX_NAMES])}"
        + f" and {len(names) - _MAX_NAMES} more" * (len(names) > _MAX_NAMES)
        for first, (reason, names) in ((number == 0, group) for number, group in enumerate(groups.items()))
    ]
