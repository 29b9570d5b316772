"""Decides, without touching a variable, which slots of a checkpoint continue in which slots of the new optimizer."""

import dataclasses
from collections.abc import Collection

import keras

from trainer.errors import UserError
from trainer.keras_internals import optimized_variables
from trainer.optimizers.state_transfer.matrix import KIN, NO_PART_OF_THE_RULE, SLOTS, cell, class_of, slot_name
from trainer.optimizers.state_transfer.report import CarriedSlot, FreshSlot, LeftEntry
from trainer.restore import RestoreReport, weights_of
from trainer.restore.source import CheckpointSource, Entry, SavedOptimizer, Slot


@dataclasses.dataclass(frozen=True)
class SlotPlan:
    """pairs: (record, the new optimizer's variable, the file's entry).
    source: the old optimizer's class.
    """

    source: str
    pairs: list[tuple[CarriedSlot, keras.Variable, Entry]]
    fresh: list[FreshSlot]
    left: list[LeftEntry]
    notes: list[str]


def steps_entry(source: CheckpointSource) -> Entry:
    """The entry that holds the old optimizer's step count; raises `UserError` where the file does not say which."""
    found = [saved.steps for saved in source.optimizers if saved.steps is not None]
    if any("_accumulated_gradients" in saved.parts for saved in source.optimizers):
        raise UserError(
            f"Restore.optimizer_state: the optimizer in {source.path} was built with gradient_accumulation_steps, "
            "and so counts "
            "micro-batches, of which the file does not say how many are a step. Take Restore.optimizer_state = 'fresh'."
        )
    if not source.optimizers:
        # A format that only numbers an optimizer's variables: the count is the one that is a whole number.
        found = [entry for entry in source.of_kind("optimizer") if entry.dtype.is_integer and not entry.shape]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} of them" if found else "none"
    raise UserError(
        f"Restore.optimizer_state takes the step count of an optimizer, and {source.path} ({source.format}) holds "
        f"{what}"
        f"{': ' + ', '.join(entry.key for entry in found) if found else ''}. Take Restore.optimizer_state = 'fresh'."
    )


def plan_slots(
    optimizer: keras.optimizers.Optimizer,
    model: keras.Model,
    source: CheckpointSource,
    count: Entry,
    report: RestoreReport,
    row_rules: Collection[str],
) -> SlotPlan:
    """Pairs the slots by what they mean and by the variables that they belong to, never by position.

    optimizer: built, and not one that wraps another.
    count: the entry of the old one's step count.
    report: of the restore, whose pairing of variables holds here.
    row_rules: the rules by which only some rows of a variable were restored.
    Raises `UserError` for a carry that has no meaning, and where the file does not say whose a slot is.
    """
    new = type(optimizer).__name__
    if new not in SLOTS or type(optimizer) is not getattr(keras.optimizers, new):
        raise UserError(
            f"Restore.optimizer_state = 'slots': {type(optimizer).__module__}.{new} is none of the optimizers whose "
            "slots are known, "
            f"{', '.join(SLOTS)}. Take Restore.optimizer_state = 'step', or 'fresh'."
        )
    saved = _whose(count, source)
    old = class_of(saved)
    takes = cell(old, new)
    slots = {slot: variables for slot in SLOTS[new] if (variables := getattr(optimizer, slot, None))}
    if not slots:
        raise UserError(
            f"Restore.optimizer_state = 'slots': this {new} keeps no slots (momentum = 0), so there is nothing to "
            "carry to. "
            "Give it a momentum, or take Restore.optimizer_state = 'step', or 'fresh'."
        )
    return _Pairing(model, saved, report, row_rules, old, takes).plan(new, slots, optimizer)


def _whose(count: Entry, source: CheckpointSource) -> SavedOptimizer:
    """The optimizer that the step count belongs to."""
    for saved in source.optimizers:
        if saved.steps is count:
            return saved
    raise UserError(
        f"Restore.optimizer_state = 'slots': {source.path} ({source.format}) numbers the slots of an optimizer and "
        "does not say whose "
        "they are. A checkpoint that is written by tf.train.Checkpoint(model=model, optimizer=optimizer) does; or take "
        "Restore.optimizer_state = 'step', or 'fresh'."
    )


class _Pairing:
    """The slots of the file by the model's variables, as the restore paired those."""

    def __init__(self, model, saved: SavedOptimizer, report: RestoreReport, row_rules, old: str, takes):
        self._saved, self._old, self._takes = saved, old, takes
        self._row_rules = row_rules
        self._names = {id(weight.variable): weight.name for weight in weights_of(model)}
        self._records = {record.name: record for record in report.records if record.status != "unused"}
        self._there: dict[tuple[str, str], Slot] = {}
        unknown = [slot for slot in saved.slots if slot.variable is None and slot.name not in NO_PART_OF_THE_RULE]
        if unknown:
            raise UserError(
                "Restore.optimizer_state = 'slots': the checkpoint does not say whose the slot "
                f"{unknown[0].entry.key} is: "
                f"{unknown[0].why}. {len(unknown)} of {len(saved.slots)} slots are so. "
                "Take Restore.optimizer_state = 'step', or 'fresh'."
            )
        for slot in saved.slots:
            if slot.variable is not None:
                self._there[slot.variable.key, slot_name(old, saved, slot.name)] = slot

    def plan(self, new: str, slots: dict[str, list], optimizer) -> SlotPlan:
        pairs, fresh = [], []
        taken: set[Entry] = set()
        for name, variables in slots.items():
            for weight, variable in zip(optimized_variables(optimizer), variables, strict=True):
                if variable is None:
                    continue
                home = self._names[id(weight)]
                found, why = self._slot_for(home, name, tuple(variable.shape))
                if found is None:
                    fresh.append(FreshSlot(home, name, why))
                    continue
                taken.add(found.entry)
                record = CarriedSlot(home, name, SLOTS[new][name], found.entry.key, found.entry.shape)
                pairs.append((record, variable, found.entry))
        trained = {self._names[id(variable)] for variable in optimized_variables(optimizer)}
        left = [
            LeftEntry(slot.entry.key, self._why_left(slot, new, trained))
            for slot in self._saved.slots
            if slot.entry not in taken
        ]
        if self._saved.rate is not None:
            left.append(LeftEntry(self._saved.rate.key, "the rate is this run's own"))
        if not pairs:
            why = fresh[0].why if fresh else "there is none"
            raise UserError(
                f"Restore.optimizer_state = 'slots': no slot of the checkpoint's {self._old} belongs to a variable "
                "that is trained "
                f"here ({why}). Take Restore.optimizer_state = 'step', or 'fresh'."
            )
        return SlotPlan(self._old, pairs, fresh, left, self._notes(new, fresh, optimizer))

    def _slot_for(self, home: str, name: str, shape: tuple[int, ...]) -> tuple[Slot | None, str]:
        """The slot of the file for a slot of a variable; or why there is none."""
        record = self._records.get(home)
        if record is None or record.key is None or record.status != "restored":
            return None, "its variable is reinitialized"
        if record.rule in self._row_rules:
            return None, f"only some rows of its variable are restored (rule {record.rule})"
        if name not in self._takes:
            return None, f"{self._old} keeps nothing that means the same"
        for candidate in self._takes[name]:
            slot = self._there.get((record.key, candidate))
            if slot is not None and slot.entry.shape == shape and slot.entry.dtype.is_floating:
                return slot, ""
            if slot is not None:
                return None, f"the checkpoint's is {slot.entry.dtype.name}{list(slot.entry.shape)}"
        return None, "the checkpoint's optimizer has none for its variable"

    def _why_left(self, slot: Slot, new: str, trained: set[str]) -> str:
        if slot.name in NO_PART_OF_THE_RULE:
            return NO_PART_OF_THE_RULE[slot.name]
        name = slot_name(self._old, self._saved, slot.name)
        if not any(name in candidates for candidates in self._takes.values()):
            return f"{new} keeps nothing that means the same"
        assert slot.variable is not None
        homes = [record for record in self._records.values() if record.key == slot.variable.key]
        if not homes or homes[0].status != "restored":
            return "its variable is not restored"
        if homes[0].name not in trained:
            return "its variable is not trained here"
        if homes[0].rule in self._row_rules:
            return "only some rows of its variable are restored"
        return f"this {new} is built without it"

    def _notes(self, new: str, fresh: list[FreshSlot], optimizer) -> list[str]:
        notes = []
        if new == "SGD" or (new, self._old) == ("RMSprop", "RMSprop") and optimizer.momentum > 0:
            notes.append(
                "a velocity has the rate of its own steps inside; it moves the weights on by that one, as when a "
                "schedule changes the rate"
            )
        if new == "RMSprop" and self._old in KIN:
            notes.append(
                f"{self._old}'s v is short of the mean square by 1 - beta_2^step, which RMSprop does not correct: "
                "after few steps of the old optimizer the first updates are too long"
            )
        return notes + (late_start(optimizer) if any(record.slot == "_velocities" for record in fresh) else [])


def late_start(optimizer) -> list[str]:
    """Notes on empty slots at a late step; none for optimizers that do not use the step count.

    Of m = (1 - beta_1) g and v = (1 - beta_2) g^2 after one step, uncorrected; Lamb scales its update to the weight.
    """
    if not isinstance(optimizer, keras.optimizers.Adam | keras.optimizers.Nadam):
        return []
    look_ahead = 1 + optimizer.beta_1 if isinstance(optimizer, keras.optimizers.Nadam) else 1
    factor = look_ahead * (1 - optimizer.beta_1) / (1 - optimizer.beta_2) ** 0.5
    return [
        f"{type(optimizer).__name__} corrects empty slots by its step count, which does not begin at 0 here: first "
        f"updates of what starts fresh are up to about {factor:.2g} times the rate; Restore.rewarmup_steps "
        "softens them"
    ]
