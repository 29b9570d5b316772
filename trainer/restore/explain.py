"""Says why a restore was refused, and which lines of gin would let it go on."""

import re

from trainer.restore.names import is_lora_matrix
from trainer.restore.report import Record, RestoreReport

_SHOWN = 8
_MOST_PATTERNS = 30  # more than a person would read before pasting them


def explain_problems(report: RestoreReport) -> str:
    """The message of a restore that was refused: counts, the report, and lines of gin that would help."""
    total = len(report.records) - len(report.unused)
    left = [record for record in report.unused if not record.rule]
    matrices = [record for record in left if is_lora_matrix(record.name)]
    if not report.restored and not report.mismatched and not report.reinitialized:
        return _fits_nothing(report, left, matrices, total)
    head = (
        f"The restore was refused, and no variable was changed: {len(report.missing)} of {total} model variables "
        f"would be missing, {len(report.mismatched)} mismatched, {len(left)} checkpoint weights unused."
    )
    lines = [head, str(report), *_bare_list(left), *_lora(matrices)]
    lines.append("To go on, fix the path or the model, or excuse by name:")
    left = [record for record in left if record not in matrices]
    fresh = _covering(report.missing + report.mismatched, report.restored + report.reinitialized)
    spare = _covering(left, [record for record in report.unused if record.rule])
    lines += [_gin_line("reinitialize", fresh)] if fresh else []
    lines += [_gin_line("ignore", spare)] if spare else []
    return "\n".join(lines + _renames(left, report.restored))


def _fits_nothing(report: RestoreReport, left: list[Record], matrices: list[Record], total: int) -> str:
    """No proposal to excuse everything: what is wrong here is the path, the model, or all the names."""
    lines = [
        f"The checkpoint fits no variable of the model: 0 of {total} would be restored, and none was changed.",
        f"  {report.checkpoint}  ({report.format})",
        f"  the model has       {_some([record.name for record in report.missing])}",
        f"  the checkpoint has  {_some([record.name for record in left]) or 'no weights, '}"
        + ("" if left else f"only {len(report.optimizer_keys)} entries of an optimizer and {_others(report)} others"),
    ]
    if not left:
        return "\n".join([*lines, "Name a checkpoint that was written with the model in it."])
    lines += _bare_list(left)
    if matrices:
        return "\n".join(lines + _lora(matrices))
    return "\n".join(
        [*lines, "Name another checkpoint or build its model; if only names differ:", *_renames(left, [], True)]
    )


def _others(report: RestoreReport) -> int:
    return len(report.counter_keys) + len(report.other_keys)


def _lora(matrices: list[Record]) -> list[str]:
    """No proposal to leave them out: the kernels beside them are those from before the training."""
    if not matrices:
        return []
    return [
        f"{len(matrices)} of its weights, such as {matrices[0].name}, are matrices of LoRA, and hold what was learned: "
        "its kernels alone are the old ones. Name the run's final.weights.h5 instead, which holds both merged."
    ]


def _bare_list(left: list[Record]) -> list[str]:
    """A word on weights that stand in the file by number, as `model.export()` and optimizers keep them."""
    numbered = [record for record in left if _is_in_bare_list(record.name)]
    if not numbered:
        return []
    return [
        f"{len(numbered)} of its weights stand in a bare list, such as {numbered[0].name}, and the file does not say "
        "which is which. model.export() and np.savez(*arrays) write such lists, and TensorFlow keeps no names of "
        "layers that a Keras 3 model holds in a Python list. If the model was built by the same code, their order may "
        "be trusted; counts, shapes and the names that are known are compared:",
        "  train.match = 'order'",
    ]


def _is_in_bare_list(name: str) -> bool:
    return bool(re.search(r"(^|/)\w*variables/\d+$|^arr_\d+$", name))


def _gin_line(rule: str, patterns: list[str]) -> str:
    if len(patterns) > _MOST_PATTERNS:
        return (
            f"  train.{rule} = [...]   # {len(patterns)} places, such as {patterns[:3]}: are these the right weights?"
        )
    return f"  train.{rule} = {patterns}"


def _renames(left: list[Record], restored: list[Record], always: bool = False) -> list[str]:
    """Rules for the names that were likely meant, whole prefixes where nothing else stands under them."""
    pairs = []
    for record in left:
        if record.likely_home and not _is_in_bare_list(record.name):
            theirs, ours = _without_common_end(record.name, record.likely_home)
            if theirs.split("/")[-1].isdigit() and "/" in theirs and "/" in ours:
                # Known by its place in its layer: whoever renames the layer brings all that is in it.
                theirs, ours = theirs.rsplit("/", 1)[0], ours.rsplit("/", 1)[0]
            if not theirs or any(other.name.startswith(theirs + "/") for other in restored):
                pairs.append((f"^{re.escape(record.name)}$", record.likely_home))
            else:
                pairs.append((f"^{re.escape(theirs)}/", f"{ours}/" if ours else ""))
    pairs = list(dict.fromkeys(pairs))[:_MOST_PATTERNS]
    if pairs:
        return [f"  train.rename = {pairs}"]
    return ["  train.rename = [('^their_name/', 'our_name/')]"] if always else []


def _without_common_end(theirs: str, ours: str) -> tuple[str, str]:
    a, b = theirs.split("/"), ours.split("/")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return "/".join(a), "/".join(b)


def _covering(wanted: list[Record], others: list[Record]) -> list[str]:
    """Patterns, each as short as it can be, that match every wanted name and none of the others."""
    kept = {prefix for record in others for prefix in _prefixes(record.name)}
    patterns = []
    for record in wanted:
        prefixes = _prefixes(record.name)
        shortest = next((prefix for prefix in prefixes if prefix not in kept), record.name)
        end = "$" if shortest == record.name else "/"
        patterns.append(f"^{re.escape(shortest)}{end}")
    return list(dict.fromkeys(patterns))


def _prefixes(name: str) -> list[str]:
    segments = name.split("/")
    return ["/".join(segments[: count + 1]) for count in range(len(segments))]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
