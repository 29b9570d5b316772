"""Refuses matrices in PyTorch's layout where they would go into a kernel of Keras as they are."""

import re

from trainer.restore.name_tree import is_named_weight
from trainer.restore.report import Record, RestoreReport
from trainer.restore.source import Entry

_NOTE = "PyTorch's layout"
# Variables that have the same layout in both: tables of rows, and per-axis parameters of a normalization. One that
# is itself called `weight` belongs to a layer that was written after PyTorch's.
_SAME_IN_BOTH = re.compile(r"embed|^(gamma|beta|scale|bias|moving_.*|weight)$")
_MAX_SHOWN = 8


def torch_note(name: str, shape: tuple[int, ...], entry: Entry) -> str:
    """Why an entry must not go into the variable `name` as it is, "" where it may.

    A matrix that is not square and fits as it is has Keras' layout, whatever its name, as those of GPT-2 have.
    """
    if not entry.is_torch or len(entry.shape) < 2 or len(shape) < 2 or _SAME_IN_BOTH.search(name.split("/")[-1]):
        return ""
    transposed = _in_keras(entry.shape)
    if shape == entry.shape != transposed:
        return ""
    fits = f"transposed to {transposed} it fits" if transposed == shape else f"transposed it is {transposed}"
    return f"{_NOTE}; {fits}"


def explain_torch_layout(report: RestoreReport) -> str:
    """The message for a restore that `torch_note` stopped, "" for any other."""
    found = [record for record in report.mismatched if record.note.startswith(_NOTE)]
    if not found:
        return ""
    num_square = sum(record.shape == record.checkpoint_shape for record in found)
    lines = [
        f"{report.checkpoint} holds tensors of PyTorch, to tell by its names or its metadata, and no variable was "
        "changed. PyTorch writes a Dense kernel as [out, in] and one of a convolution as [out, in, height, width]; "
        "Keras has [in, out] and [height, width, in, out].",
        f"This concerns {len(found)} of the model's variables"
        + (f", {num_square} of them square: they would fit as they are and be wrong." if num_square else "."),
        *(f"  {_line(record)}" for record in found[:_MAX_SHOWN]),
        *([f"  and {len(found) - _MAX_SHOWN} more"] if len(found) > _MAX_SHOWN else []),
        "A restore of such a file needs to be given its layout, and this version has no setting for that: it cannot "
        "transpose. Write the file again in Keras' layout, with `kernel` in these names for `weight` (and in your "
        "rules); leave the transpose out if the file has Keras' layout already, as that of GPT-2:",
    ]
    return "\n".join([*lines, *_program(report, {record.key for record in found})])


def _program(report: RestoreReport, keys: set[str | None]) -> list[str]:
    """Lines of Python that write the file again."""
    kept = [
        record.key
        for record in report.records
        if record.key and record.key not in keys and is_named_weight(record.key)
        if len(record.checkpoint_shape or ()) > 1
    ]
    path = re.sub(r"(\.(safetensors|index|json|npz))+$", "_keras.npz", report.checkpoint, flags=re.IGNORECASE)
    return [
        "  import re",
        "  import numpy as np",
        "  from trainer.restore import open_checkpoint",
        f"  source = open_checkpoint({report.checkpoint!r})",
        "  tensors = {entry.key: source.read(entry) for entry in source.entries}",
        f"  as_it_is = {sorted(set(kept))}",
        "  for key, value in list(tensors.items()):",
        "      if value.ndim > 1 and re.search('weight[^./]*$', key) and key not in as_it_is:",
        "          kernel = tensors.pop(key).transpose(*range(2, value.ndim), 1, 0)",
        "          tensors[re.sub('weight([^./]*)$', r'kernel\\1', key)] = kernel",
        f"  np.savez({path!r}, **tensors)",
    ]


def _line(record: Record) -> str:
    return f"{record.name} {record.shape} takes {record.key} {record.checkpoint_shape}; {record.note.split('; ')[-1]}"


def _in_keras(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[out, in, *window] as [*window, in, out]."""
    return (*shape[2:], shape[1], shape[0])
