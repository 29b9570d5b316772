"""Rows of a CSV or Parquet file as examples, a feature for each column."""

import os
from collections.abc import Callable, Mapping, Sequence

import gin
import numpy as np

from trainer.data.data import Data, in_memory, prepared
from trainer.data.splits import rows_of_split
from trainer.errors import UserError
from trainer.suggest import nearest


@gin.register(module="pipeline")
def table(
    path: str,
    columns: Sequence[str] | None = None,
    stack: Mapping[str, Sequence[str]] | None = None,
    categories: Mapping[str, Sequence] | None = None,
    split: str = "all",
    stratify: str | None = None,
    prepare: Callable | None = None,
    preprocess: Callable | None = None,
    augment: Callable | None = None,
    split_seed: int = 0,
) -> Data:
    """The rows of a table, read whole by pyarrow.

    path: of a file that ends in .csv, .tsv or .parquet; `~` is the home folder.
    columns: which to keep; None keeps all. Numbers become float32 or int64, True and False become int64, texts strings,
      and lists of one length, as Parquet holds them, arrays.
    stack: {"features": ["age", "height"]} puts number columns side by side into one float32 feature.
    categories: {"label": ["cat", "dog"]} numbers the values of a column in this order.
    split: "all", or a part of the rows, drawn by `split_seed`: "[:80%]", "[80%:]".
    stratify: a column of which each part has its share.
    prepare: example -> example, applied once to each row as it is read: tokenizes a text, say.
    preprocess, augment: as `in_memory` has them.

    Raises `UserError` that names the file and the column, and rows, for a missing value, a value that is no category,
    and a column that is not there.
    """
    file = os.path.expanduser(path)
    found = _read(file)
    names = list(found.column_names)
    wanted = list(columns) if columns is not None else names
    needed = {*wanted, *(name for group in (stack or {}).values() for name in group), *(categories or {})}
    needed |= {stratify} - {None}
    unknown = sorted(needed - set(names))
    if unknown:
        near = nearest(unknown[0], names) or f" It has {', '.join(names)}."
        raise UserError(f"{file} has no column {unknown[0]!r}.{near}")
    arrays = {name: _as_numbers(file, name, found.column(name)) for name in names if name in needed}
    for name, values in (categories or {}).items():
        arrays[name] = _numbered(file, name, arrays[name], list(values))
    strata = arrays[stratify] if stratify is not None else np.zeros(found.num_rows)
    for feature, group in (stack or {}).items():
        parts = [arrays[name] for name in group]
        texts = [name for name, part in zip(group, parts, strict=True) if part.dtype == object]
        if texts:
            raise UserError(f"table.stack: the column {texts[0]!r} of {file} holds texts; number it by categories.")
        arrays[feature] = np.stack(parts, axis=1).astype(np.float32)
        wanted = [name for name in wanted if name not in group] + [feature]
    rows = rows_of_split(split, strata, split_seed)
    examples = {name: arrays[name][rows] for name in wanted}
    label = os.path.basename(file) + (f" {split}" if split != "all" else "")
    data = in_memory(examples=examples, name=label, preprocess=preprocess, augment=augment)
    return data if prepare is None else prepared(data, prepare)


def _read(file: str):
    import pyarrow
    from pyarrow import csv, parquet

    ending = os.path.splitext(file)[1].lower()
    readers = {
        ".csv": csv.read_csv,
        ".tsv": lambda path: csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t")),
        ".parquet": parquet.read_table,
    }
    if ending not in readers:
        raise UserError(f"table.path {file} must end in {', '.join(readers)}.")
    try:
        found = readers[ending](file)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"table.path {file} cannot be read: {str(error).splitlines()[0]}") from error
    if not found.num_rows:
        raise UserError(f"{file} has no rows.")
    return found


def _as_numbers(file: str, name: str, column) -> np.ndarray:
    import pyarrow

    if column.null_count:
        missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        shown = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
        raise UserError(
            f"{file}: the column {name!r} has no value in {len(missing)} rows ({shown}, counted from 0). Fill them, or "
            "leave the column out by table.columns."
        )
    kind = column.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind) or pyarrow.types.is_large_list(kind):
        lists = column.to_pylist()
        lengths = {len(each) for each in lists}
        if len(lengths) != 1:
            raise UserError(f"{file}: the lists of the column {name!r} have different lengths; pad them to one.")
        array = np.array(lists)
    else:
        array = column.to_numpy()
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64)
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32)
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_dictionary(kind):
        return np.array(column.to_pylist(), object)
    raise UserError(
        f"{file}: the column {name!r} is {kind}, which is no number, text or list of numbers; leave it out by "
        "table.columns."
    )


def _numbered(file: str, name: str, values: np.ndarray, known: list) -> np.ndarray:
    place = {value: number for number, value in enumerate(known)}
    strange = sorted({str(value) for value in values.tolist() if value not in place})
    if strange:
        raise UserError(
            f"{file}: the column {name!r} holds {', '.join(map(repr, strange[:5]))}, and table.categories names "
            f"{', '.join(map(repr, known))}."
        )
    return np.array([place[value] for value in values.tolist()], np.int64)
