"""Which slots of one optimizer mean the same in another one: the carry matrix, as data, and as a table."""

import re

from trainer.errors import UserError
from trainer.restore.source import SavedOptimizer

# Attribute that lists a slot in Keras -> what the slot is, by the update rules in keras/src/optimizers.
SLOTS: dict[str, dict[str, str]] = {
    "SGD": {"momentums": "velocity"},
    "Adam": {"_momentums": "mean gradient", "_velocities": "mean square", "_velocity_hats": "largest mean square"},
    "AdamW": {"_momentums": "mean gradient", "_velocities": "mean square", "_velocity_hats": "largest mean square"},
    "Nadam": {"_momentums": "mean gradient", "_velocities": "mean square"},
    "Lamb": {"_momentums": "mean gradient", "_velocities": "mean square"},
    "Adamax": {"_m": "mean gradient", "_u": "largest gradient"},
    "RMSprop": {"_velocities": "mean square", "_momentums": "velocity", "_average_gradients": "mean gradient"},
    "Lion": {"_momentums": "mean gradient"},
    "Adagrad": {"_accumulators": "sum of squares"},
    "Adadelta": {"_accumulated_grads": "mean square", "_accumulated_delta_vars": "mean square of the updates"},
    "Ftrl": {"_accumulators": "sum of squares", "_linears": "sum of gradients"},
}  # fmt: skip
KIN = ("Adam", "AdamW", "Nadam", "Lamb")

# All four keep m <- m + (1 - beta_1)(g - m) and v <- v + (1 - beta_2)(g^2 - v), both begun at zero and uncorrected
# in the slot; what they do with weight decay, with Nesterov's momentum or with the weight's norm comes after it.
# The corrections go by the step count, which is carried for that reason. Nadam's product of momenta is a number
# of the step count alone and is computed again (`momentum_product`); Keras 2's legacy Nadam keeps another product.
# amsgrad's largest v: the last v is the largest that a file without it knows.
_KIN_TO_KIN: dict[str, tuple[str, ...]] = {"_momentums": ("_momentums",), "_velocities": ("_velocities",)}
_TO_AMSGRAD: dict[str, tuple[str, ...]] = _KIN_TO_KIN | {"_velocity_hats": ("_velocity_hats", "_velocities")}
# RMSprop's mean square is the same recursion with rho for beta_2, and without a correction. Its momentum is a sum
# of whole updates, where Adam's m is one of gradients: it begins at zero. So does the average gradient of a
# centered one: a mean over a longer window than the square's could exceed it, and the root be that of a negative.
_KIN_TO_RMSPROP: dict[str, tuple[str, ...]] = {"_velocities": ("_velocities",)}

#: (class of the file's optimizer, class of the new one) -> {slot of the new one: the file's slots that mean the
#: same, of which the first that is there is taken}. What is not in it is refused.
MATRIX: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    **{(old, new): _TO_AMSGRAD if new in ("Adam", "AdamW") else _KIN_TO_KIN for old in KIN for new in KIN},
    **{(old, "RMSprop"): _KIN_TO_RMSPROP for old in KIN},
    # Keras keeps velocity <- momentum * velocity - rate * g, with nesterov or without: only what is added to the
    # weight differs. The rate of each gradient is inside, as it is when a schedule changes the rate in mid run.
    # Keras 2's legacy SGD (ResourceApplyKerasMomentum) keeps the same; the Momentum of TensorFlow 1, which leaves
    # the rate out, has no step count and is refused for that.
    ("SGD", "SGD"): {"momentums": ("momentums",)},
    # Of one class, everything that both keep.
    **{(one, one): {slot: (slot,) for slot in SLOTS[one]} for one in SLOTS if one not in (*KIN, "SGD", "Ftrl")},
}

_CORRECTED = "corrects m and v for their start by one step count, which would be wrong for the one that starts fresh"
#: Why a pair that looks related is refused.
REASONS: dict[tuple[str, str], str] = {
    **{("RMSprop", new): f"{new} {_CORRECTED}" for new in KIN},
    **{
        (old, "Adamax"): "Adamax divides m by the largest gradient of the same steps, which the file does not have; "
        "a carried m over a new largest gradient can be of any size"
        for old in KIN
    },
    **{("Adamax", new): f"{new} {_CORRECTED}; Adamax keeps no v" for new in KIN},
    **{(old, "SGD"): "SGD's velocity is a sum of updates with the rate inside, not a mean of gradients" for old in KIN},
    **{("SGD", new): f"a velocity without its rate is no mean gradient, and {new} needs v as well" for new in KIN},
    ("Ftrl", "Ftrl"): "Ftrl computes the weights themselves from its sums and the rate; another rate would move them",
    ("RMSprop", "SGD"): "RMSprop's momentum is a sum of gradients that were divided by their size",
    ("SGD", "RMSprop"): "SGD's velocity is a sum of gradients that were not divided by their size",
    **{
        (old, "Lion"): "Lion's mean is over about a hundred gradients, m over ten, and it weighs that against one more"
        for old in KIN
    },
}  # fmt: skip

# What a file calls a slot -> what Keras 3 does, where Keras 2 had another name for it; classes that it had.
_LEGACY = {
    "SGD": {"momentum": "momentums"},
    "Adam": {"m": "_momentums", "v": "_velocities", "vhat": "_velocity_hats"},
    "Nadam": {"m": "_momentums", "v": "_velocities"},
    "Adamax": {"m": "_m", "v": "_u"},
    "RMSprop": {"rms": "_velocities", "momentum": "_momentums", "mg": "_average_gradients"},
    "Adagrad": {"accumulator": "_accumulators"},
    "Adadelta": {"accum_grad": "_accumulated_grads", "accum_var": "_accumulated_delta_vars"},
    "Ftrl": {"accumulator": "_accumulators", "linear": "_linears"},
}
_KERAS_2 = {"Lion": {"momentums": "_momentums"}, "Lamb": {}}  # the one as SGD, and not there
_KEPT_IF_ASKED = {"momentums", "_velocity_hats", "_average_gradients"}
# An attribute, if only an empty list or a number, of this class alone.
_MARKS = {"Nadam": "_u_product", "RMSprop": "_average_gradients"}
#: A list beside the slots: Keras' own averages of the weights (use_ema).
NO_PART_OF_THE_RULE = {"_model_variables_moving_average": "an average of the weights, no part of the update"}
# How Keras 3 spells a class in the names of its variables. Those that are in no cell must be known by name too:
# ScheduleFreeAdamW has Adam's lists, and keeps a copy of the weights in one of them.
_SPELLED = {
    "sgd": "SGD", "adam": "Adam", "adam_w": "AdamW", "nadam": "Nadam", "lamb": "Lamb", "adamax": "Adamax",
    "rm_sprop": "RMSprop", "rmsprop": "RMSprop", "lion": "Lion", "adagrad": "Adagrad", "adadelta": "Adadelta",
    "ftrl": "Ftrl", "adafactor": "Adafactor", "muon": "Muon", "schedule_free_adam_w": "ScheduleFreeAdamW",
}  # fmt: skip


def class_of(saved: SavedOptimizer) -> str:
    """The class of a saved optimizer, by its name in the file and the slots that it has; raises `UserError`."""
    lists = {slot.name for slot in saved.slots} - set(NO_PART_OF_THE_RULE)
    called = saved.called if saved.called in SLOTS else re.sub(r"_\d+$", "", saved.called)
    known = called if called in _SPELLED.values() else _SPELLED.get(called.lower(), "")
    if known and known not in SLOTS:
        return known
    if not lists:
        raise UserError(
            f"Restore.optimizer_state = 'slots': the file's optimizer {saved.called or saved.place!r} keeps no "
            "slots, as plain SGD. "
            "Take Restore.optimizer_state = 'step', or 'fresh'."
        )
    fitting = [one for one in SLOTS if _fits(one, saved, lists)]
    if known in fitting:
        return known
    # In the matrix Adam and AdamW are alike; in Keras 3 ScheduleFreeAdamW has the same slots.
    if not known and (len(fitting) == 1 or (saved.style == "Keras 2" and fitting == ["Adam", "AdamW"])):
        return fitting[0]
    kin = [*fitting, *["ScheduleFreeAdamW"] * ("Adam" in fitting and saved.style == "Keras 3")]
    raise UserError(
        f"Restore.optimizer_state = 'slots': the file calls its optimizer {saved.called or 'nothing'!r}, and by its "
        "slots, "
        f"{', '.join(sorted(lists))}, it may be {' or '.join(kin) or 'none that is known here'}. What these slots mean "
        "is not certain, so nothing is carried. Take Restore.optimizer_state = 'step', or 'fresh'."
    )


def slot_name(old: str, saved: SavedOptimizer, name: str) -> str:
    """Keras 3's name of a slot that the file calls `name`."""
    return _names(old, saved.style).get(name, name)


def cell(old: str, new: str) -> dict[str, tuple[str, ...]]:
    """The cell of the matrix for two classes; raises `UserError` for one that is not there."""
    if (old, new) in MATRIX:
        return MATRIX[old, new]
    targets = [target for source, target in MATRIX if source == old]
    why = REASONS.get((old, new), f"{old} keeps {_kept(old)}, {new} keeps {_kept(new)}, and none means the other")
    raise UserError(
        f"Restore.optimizer_state = 'slots': nothing can be carried from {old} to {new}: {why}. "
        + (f"From {old} slots can go to {', '.join(targets)}. " if targets else "")
        + "Take Restore.optimizer_state = 'step', or 'fresh'."
    )


def matrix_table() -> str:
    """The matrix in Markdown: a row for what is in the file, a column for the new optimizer."""
    groups = {"Adam, AdamW, Nadam, Lamb": "Adam"} | {one: one for one in SLOTS if one not in KIN}
    lines = [
        "| from \\ to | " + " | ".join(groups) + " |",
        "|---" * (len(groups) + 1) + "|",
    ]
    for row, old in groups.items():
        cells = [_in_words(old, new) for new in groups.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _in_words(old: str, new: str) -> str:
    carried = MATRIX.get((old, new), {})
    return ", ".join(SLOTS[new][slot] for slot in carried) or "refused"


def _names(one: str, style: str) -> dict[str, str]:
    """{a slot's name in files of this style: its name in Keras 3} of a class; {} for one that was not there."""
    if style == "Keras 2 legacy":
        return _LEGACY.get(one, {})
    known = _KERAS_2.get(one) if style == "Keras 2" else None
    return {slot: slot for slot in SLOTS.get(one, ())} if known is None else known


def _fits(one: str, saved: SavedOptimizer, lists: set[str]) -> bool:
    """Whether a class keeps just these slots, some of which it keeps only if it is asked to."""
    marked = {owner for owner, mark in _MARKS.items() if mark in saved.parts}
    if saved.style != "Keras 2 legacy" and marked != {one} & set(_MARKS):
        return False
    names = _names(one, saved.style)
    optional = _KEPT_IF_ASKED | ({"_momentums"} if one == "RMSprop" else set())
    return {name for name, slot in names.items() if slot not in optional} <= lists <= set(names)


def _kept(one: str) -> str:
    return " and ".join(dict.fromkeys(SLOTS[one].values())) if one in SLOTS else "slots of its own"
