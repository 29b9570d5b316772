"""Says why a restore was refused, and which lines of gin would let it succeed; each was tried before."""

import dataclasses
from collections.abc import Sequence

from trainer.restore.errors import UndecidedRestore
from trainer.restore.matching.names import is_lora_matrix
from trainer.restore.proposals import choices, proposals, spare_weights, wanting
from trainer.restore.renames import is_in_bare_list, possible_homes, same_kind
from trainer.restore.report import Record, RestoreReport
from trainer.restore.trials import Proposal, Trials

_MAX_SHOWN = 30
_MAX_LAYERS = 8
_QUANTIZED = ("int8", "uint8")


def explain_problems(report: RestoreReport, trials: Trials) -> str:
    """The message of a restore that was refused: counts, the report, and lines of gin that would help."""
    left = [record for record in report.unused if not record.rule]
    fits = report.restored or report.mismatched or report.reinitialized
    lines = _counts(report, left) if fits else _fits_nothing(report, left)
    if not fits and not left:
        return "\n".join([*lines, "Name a checkpoint that was written with the model in it."])
    lines += _bare_list(left) + _tables(report)
    if all(record in report.table_problems and record.status == "empty" for record in report.problems):
        return "\n".join(lines)
    no_rule_helps = _lora(left) or _other_kinds(report)
    if no_rule_helps:
        return "\n".join(lines + no_rule_helps)
    found = proposals(report, trials)
    if found:
        best, count = found[0].left, len(report.problems)
        head = f"Pasted into the config, {_these(found)} {best} of {count} problem{'s' * (count > 1)}:"
        return "\n".join([*lines, head, *_to_paste(found, trials)] + _to_look_at(found[0].report) * (best > 0))
    return "\n".join([*lines, *_no_order(left, trials), *_to_look_at(report)])


def explain_choices(undecided: UndecidedRestore, trials: Trials) -> str:
    """The message of a restore that could go several ways: each of them as lines of gin, or what each lacks."""
    found = choices(undecided, trials)
    if not found:
        return f"{undecided} No variable was changed."
    if found[0].left:
        return "\n".join([f"{undecided} None of them is the whole model. Of the first:", str(found[0].report)])
    head = f"{undecided} {_these(found).capitalize()} 0 problems. Say which one is meant:"
    return "\n".join([head, *_to_paste(found, trials)])


def _counts(report: RestoreReport, left: list[Record]) -> list[str]:
    tables = report.table_problems
    return [
        f"The restore was refused, and no variable was changed: {len(report.missing)} of "
        f"{_total(report)} model variables would be missing, {len(report.mismatched)} mismatched, "
        f"{len(left)} checkpoint weights unused."
        + f" Vocabularies and constants that are not the file's: {len(tables)}."
        * bool(tables),
        str(report),
    ]


def _tables(report: RestoreReport) -> list[str]:
    """Advice on vocabularies, for which there is no rule."""
    statuses = {table.status for table in report.table_problems}
    lines = []
    if "different" in statuses:
        lines.append(
            "The weights were trained with the file's values. Build the layer with these, or without any: then it is "
            "filled from the file."
        )
    if "empty" in statuses:
        lines.append("Give the layer its values before the restore: as an argument, by set_vocabulary() or by adapt().")
    if "not in the file" in statuses:
        lines.append(
            "The file does not say which vocabulary the weights were trained with; .keras archives, SavedModels and "
            "checkpoints of our runs do. If it is the model's, the line below lets it stay."
        )
    return lines


def _fits_nothing(report: RestoreReport, left: list[Record]) -> list[str]:
    """The message where nothing fits: the path is wrong, the model, or all the names."""
    others = len(report.counter_keys) + len(report.other_keys)
    return [
        f"The checkpoint fits no variable of the model: 0 of {_total(report)} would be restored, and none was changed.",
        f"  {report.checkpoint}  ({report.format})",
        f"  the model has       {_some([record.name for record in report.missing])}",
        f"  the checkpoint has  {_some([record.name for record in left]) or 'no weights, '}"
        + ("" if left else f"only {len(report.optimizer_keys)} entries of an optimizer and {others} others"),
    ]


def _total(report: RestoreReport) -> int:
    return sum(record.status != "unused" for record in report.records)


def _these(found: Sequence[Proposal]) -> str:
    return "each of these leaves" if len(found) > 1 else "this leaves"


def _to_paste(found: Sequence[Proposal], trials: Trials) -> list[str]:
    """Lines that gin reads, with what sets them apart as its comments."""
    lines = []
    for number, proposal in enumerate(found):
        remark = ": ".join(filter(None, ("or" * (number > 0), proposal.why)))
        lines += [f"  # {remark}"] if remark else []
        lines += proposal.lines(trials.rules)
    return lines


def _to_look_at(report: RestoreReport) -> list[str]:
    """The decision that is left to a person, where no rule can be proposed."""
    candidates: dict[str, list[str]] = {}
    for variables, weights in possible_homes(wanting(report), spare_weights(report)):
        if not _bare(weights):
            candidates.setdefault(_layer(variables), []).append(_layer(weights))
    if not candidates:
        return ["No rule that was tried helps: is this the right file, and the model that it was written from?"]
    shown = list(candidates.items())[:_MAX_LAYERS]
    return [
        "These variables have no weight, and unused weights of the file have their shapes. Nothing says which is "
        "which; Restore.rename can:",
        *(f"  {layer}: perhaps {_some(others, _MAX_LAYERS)}" for layer, others in shown),
        *[f"  and {len(candidates) - len(shown)} layers more"] * (len(candidates) > len(shown)),
    ]


def _layer(records: Sequence[Record]) -> str:
    layer, _, first = records[0].name.rpartition("/")
    leaves = ", ".join([first, *(record.name.rpartition("/")[2] for record in records[1:])])
    return f"{layer}/({leaves})" if layer and len(records) > 1 else records[0].name


def _bare(weights: list[Record]) -> bool:
    return all(is_in_bare_list(record.name) for record in weights)


def _lora(left: list[Record]) -> list[str]:
    """No proposal to leave them out: the kernels beside them are those from before the training."""
    matrices = [record for record in left if is_lora_matrix(record.name)]
    if not matrices:
        return []
    return [
        f"{len(matrices)} of its weights, such as {matrices[0].name}, are matrices of LoRA, and hold what was learned: "
        "its kernels alone are the old ones. Name the run's final.weights.h5 instead, which holds both merged."
    ]


def _other_kinds(report: RestoreReport) -> list[str]:
    """No proposal for integers in place of floats, or the other way round: they mean other numbers."""
    clash = [record for record in report.mismatched if not same_kind(record)]
    in_model = [record for record in report.records if record.dtype in _QUANTIZED]
    in_file = [record for record in report.records if record.checkpoint_dtype in _QUANTIZED]
    open_in_model = [record for record in in_model if record in clash + report.missing]
    open_in_file = [record for record in in_file if record in clash + report.unused]
    if open_in_model and not in_file:
        unfit = open_in_model
        what = f"is {unfit[0].dtype} in the model, and the checkpoint has floats only"
        advice = "The model is quantized and the checkpoint is not: restore first, quantise afterwards."
    elif open_in_file and not in_model:
        unfit = open_in_file
        what = f"is {unfit[0].checkpoint_dtype} in the checkpoint, and the model has floats only"
        advice = (
            "The checkpoint is quantized and the model is not: name the file from before, or quantise the model first."
        )
    elif clash:
        unfit = clash
        what = f"is {unfit[0].dtype} in the model and {unfit[0].checkpoint_dtype} in the checkpoint"
        advice = "Name another checkpoint, or make the variable of the checkpoint's dtype."
    else:
        return []
    more = f" (so are {len(unfit)} in all)" if len(unfit) > 1 else ""
    return [f"{unfit[0].name} {what}{more}. A restore casts between floats only. {advice}"]


def _no_order(left: list[Record], trials: Trials) -> list[str]:
    """Why the order of a bare list was not proposed."""
    refusal = trials.refusal(dataclasses.replace(trials.rules, match="order")) if _bare(left) else ""
    return [f"The order of the list does not help: {refusal}"] if refusal else []


def _bare_list(left: list[Record]) -> list[str]:
    """A word on weights that stand in the file by number, as `model.export()` and optimizers keep them."""
    numbered = [record for record in left if is_in_bare_list(record.name)]
    if not numbered:
        return []
    return [
        f"{len(numbered)} of its weights stand in a bare list, such as {numbered[0].name}, and the file does not say "
        "which is which. model.export() and np.savez(*arrays) write such lists, and TensorFlow keeps no names of "
        "layers that a Keras 3 model holds in a Python list. If the model was built by the same code, their order may "
        "be trusted; counts, shapes and the names that are known are compared."
    ]


def _some(names: list[str], most: int = _MAX_SHOWN) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
