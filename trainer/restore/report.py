"""Reports on every variable of the model and every entry of the file, as text and JSON."""

import dataclasses
import enum
import json

from trainer.output.printable import printable

_MAX_PLACES = 6  # pairs by place that the text names; the JSON has all


STATUSES = ("restored", "reinitialized", "mismatched", "missing", "unused")


class Pairing(str, enum.Enum):
    """How a weight of the model and an entry of the file were brought together."""

    BY_RULE = "by rule"  # `rename`
    BY_PATH = "by path"  # both stand under the same attributes
    BY_NAME = "by name"  # of the layer or of the variable; numbers that Keras gave count by their rank
    BY_PLACE = "by place"  # among the layers of a model, or the variables of a layer
    BY_ORDER = "by order"  # in a list, on request: `match = 'order'`


@dataclasses.dataclass(frozen=True)
class Record:
    """One variable of the model, or one entry of the checkpoint that no variable takes.

    name: normalised name; the model's, or for `unused` the checkpoint's.
    key: the checkpoint key it is read from, if any.
    shape, dtype: the model variable's; checkpoint_shape, checkpoint_dtype: the file's.
    rule: the regex that excuses it or led to it, "" where none was needed.
    likely_home: for `unused`, the variable of the model that it may be meant for.
    note: what a person should know about it, such as a cast.
    paired: how it found its entry, None where it has none.
    checksum: of its bytes in the file, which every replica's copy was compared with.
    not_finite: how many of its values are NaN or infinite; they are restored as they are.
    """

    name: str
    status: str
    key: str | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    checkpoint_shape: tuple[int, ...] | None = None
    checkpoint_dtype: str | None = None
    rule: str = ""
    likely_home: str = ""
    note: str = ""
    paired: Pairing | None = None
    checksum: str = ""
    not_finite: int = 0


@dataclasses.dataclass(frozen=True)
class TableRecord:
    """A vocabulary of the model, or the boundaries, weights or constants of a layer that are no variables.

    name: `vec/vocabulary`; key: the file's name for it, "" where the file has none.
    size: how many values it has.
    status: `equal`, `filled` from the file, `different`, `empty` on both sides, `not in the file`, which for a
      vocabulary is a fault, or `not compared` for what the model's own config says.
    note: the first difference, or how it was paired.
    rule: the regex that excuses it.
    """

    name: str
    status: str
    key: str
    size: int
    note: str = ""
    rule: str = ""

    @property
    def is_problem(self) -> bool:
        return self.status == "empty" or (self.status in ("different", "not in the file") and not self.rule)


@dataclasses.dataclass
class RestoreReport:
    """The plan of a restore, and after it was applied what was seen.

    writer, step, optimizer, checksums: what the file tells of itself, see `CheckpointSource`.
    optimizer_keys, counter_keys, other_keys: entries of the file that are no weights; none is read.
    optimizer_keys_read: counted by the reader, 0 unless something is broken or the new optimizer takes them over.
    transferred_keys: the optimizer's entries that were read for the new optimizer; none in a restore.
    bytes_read: of the tensors that were restored, each counted once.
    replicas_verified: on how many replicas, of all workers, each restored variable was compared with the file; 0 for a
      plan that was not applied.
    workers: how many processes these replicas are in.
    tables: vocabularies and the like, which are no variables.
    casts: {variable: (how many values became 0, how many subnormal)} of casts that did more than round.
    idle_rules: rules that fit nothing, such as `ignore '^pooler/'` where no pooler is left over.
    """

    checkpoint: str
    format: str
    records: list[Record]
    optimizer_keys: list[str]
    counter_keys: list[str]
    other_keys: list[str]
    optimizer_keys_read: int = 0
    bytes_read: int = 0
    replicas_verified: int = 0
    workers: int = 1
    writer: str = ""
    step: int | None = None
    optimizer: str = ""
    checksums: str = ""
    idle_rules: list[str] = dataclasses.field(default_factory=list)
    transferred_keys: list[str] = dataclasses.field(default_factory=list)
    tables: list[TableRecord] = dataclasses.field(default_factory=list)
    casts: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def _of(self, status: str) -> list[Record]:
        return [record for record in self.records if record.status == status]

    @property
    def restored(self) -> list[Record]:
        return self._of("restored")

    @property
    def reinitialized(self) -> list[Record]:
        return self._of("reinitialized")

    @property
    def mismatched(self) -> list[Record]:
        return self._of("mismatched")

    @property
    def missing(self) -> list[Record]:
        return self._of("missing")

    @property
    def unused(self) -> list[Record]:
        return self._of("unused")

    @property
    def not_finite(self) -> int:
        """How many NaN and infinite values were restored."""
        return sum(record.not_finite for record in self.records)

    @property
    def problems(self) -> list[Record | TableRecord]:
        """The records that no rule excuses; with one of them nothing is restored."""
        unused = [record for record in self.unused if not record.rule]
        return [*self.mismatched, *self.missing, *unused, *self.table_problems]

    @property
    def table_problems(self) -> list[TableRecord]:
        return [table for table in self.tables if table.is_problem]

    def __str__(self) -> str:
        lines = [f"{printable(self.checkpoint)}  ({self.format})", *about_lines(self)]
        for status in STATUSES:
            lines += _status_lines(status, self._of(status))
        transferred = len(self.transferred_keys)
        skipped = (
            f"optimizer {len(self.optimizer_keys) - transferred}, counters {len(self.counter_keys)}, "
            f"other {len(self.other_keys)}"
        )
        lines.append(f"not read         entries that are no weights: {skipped}")
        lines += _table_lines(self.tables)
        lines += [f"no effect        {rule}" for rule in self.idle_rules]
        if self.not_finite:
            where = [record.name for record in self.records if record.not_finite]
            lines.append(
                f"not finite       {self.not_finite:,} values are NaN or infinite, in {', '.join(where[:4])}"
                + (f" and {len(where) - 4} more" if len(where) > 4 else "")
            )
        lines += _cast_lines(self.casts)
        if self.replicas_verified:
            replicas = f"{self.replicas_verified} replica" + "s" * (self.replicas_verified > 1)
            replicas += f" of {self.workers} workers" if self.workers > 1 else ""
            lines.append(
                f"verified         {len(self.restored)} variables on {replicas}, "
                f"{self.bytes_read:,} bytes read, {self.optimizer_keys_read} of the optimizer's entries read"
                + (", as the line on the optimizer state says" if transferred else "")
            )
        return "\n".join(lines)

    def to_json(self) -> str:
        """The whole report, a record a variable, as JSON text."""
        return json.dumps(
            {
                "checkpoint": self.checkpoint,
                "format": self.format,
                "writer": self.writer,
                "step": self.step,
                "optimizer": self.optimizer,
                "checksums": self.checksums,
                "counts": {status: len(self._of(status)) for status in STATUSES},
                "records": [dataclasses.asdict(record) for record in self.records],
                "optimizer_keys": self.optimizer_keys,
                "counter_keys": self.counter_keys,
                "other_keys": self.other_keys,
                "optimizer_keys_read": self.optimizer_keys_read,
                "bytes_read": self.bytes_read,
                "replicas_verified": self.replicas_verified,
                "workers": self.workers,
                "not_finite": self.not_finite,
                "idle_rules": self.idle_rules,
                "transferred_keys": self.transferred_keys,
                "tables": [dataclasses.asdict(table) for table in self.tables],
                "casts": {name: {"zero": zero, "subnormal": below} for name, (zero, below) in self.casts.items()},
            },
            indent=2,
        )


def about_lines(file) -> list[str]:
    """Writer, step, optimizer and checksums, as far as a report or a source tells them."""
    known = {
        "written by": file.writer,
        "step": "" if file.step is None else f"{file.step:,}",
        "optimizer": file.optimizer,
        "checksums": file.checksums or "no checksums in this format",
    }
    return [f"{what:<16} {text}" for what, text in known.items() if text]


def _status_lines(status: str, records: list[Record]) -> list[str]:
    head = f"{status:<13} {len(records):>3}"
    if not records:
        return [head]
    if status == "restored":
        return [f"{head}  {_groups(records)}", *(f"{' ' * 19}{text}" for text in _notes(records))]
    shown = [f"{head if i == 0 else ' ' * 17}  {_detail(record)}" for i, record in enumerate(records[:12])]
    if len(records) > len(shown):
        shown.append(f"{' ' * 19}and {len(records) - len(shown)} more")
    return shown


def _notes(records: list[Record]) -> list[str]:
    """How they were paired, then each pair by place with both names, then every other note with its count."""
    ways = [record.paired for record in records if record.paired]
    lines = [", ".join(f"{way.value} {ways.count(way)}" for way in Pairing if way in ways)]
    placed = [record for record in records if record.paired == Pairing.BY_PLACE]
    lines += [f"{record.name}  {record.note}" for record in placed[:_MAX_PLACES]]
    lines += [f"and {len(placed) - _MAX_PLACES} more by place"] if len(placed) > _MAX_PLACES else []
    notes = [record.note for record in records if record.note and record.paired != Pairing.BY_PLACE]
    return [line for line in lines if line] + [f"{note} ({notes.count(note)})" for note in dict.fromkeys(notes)]


def _cast_lines(casts: dict[str, tuple[int, int]]) -> list[str]:
    if not casts:
        return []
    zero, subnormal = (sum(counts) for counts in zip(*casts.values(), strict=True))
    where = [f"{name} ({zero:,} and {below:,})" for name, (zero, below) in casts.items()]
    return [
        f"cast             {zero:,} values became 0 and {subnormal:,} subnormal, in {', '.join(where[:4])}"
        + (f" and {len(where) - 4} more" if len(where) > 4 else "")
    ]


_VOCABULARIES = ("vocabulary", "idf_weights")


def _table_lines(tables: list[TableRecord]) -> list[str]:
    of_words = [table for table in tables if table.name.rpartition("/")[2] in _VOCABULARIES]
    lines = []
    for head, found in (("vocabularies", of_words), ("constants", [t for t in tables if t not in of_words])):
        statuses = [table.status for table in found]
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        lines += [f"{head:<16} {counts}"] if found else []
        shown = [table for table in found if table.status != "equal" or table.note]
        lines += [f"{' ' * 19}{_table_detail(table)}" for table in shown[:12]]
        lines += [f"{' ' * 19}and {len(shown) - 12} more"] if len(shown) > 12 else []
    return lines


def _table_detail(table: TableRecord) -> str:
    text = f"{table.name}  {table.status}" + f", {table.size:,} values" * bool(table.size)
    return text + (f"  rule {table.rule}" if table.rule else "") + (f"  {table.note}" if table.note else "")


def _groups(records: list[Record]) -> str:
    groups: dict[str, int] = {}
    for record in records:
        top = record.name.split("/")[0]
        groups[top] = groups.get(top, 0) + 1
    names = [f"{top}/** ({count})" for top, count in groups.items()]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} groups more" if len(names) > 8 else "")


def _detail(record: Record) -> str:
    text = record.name
    if record.status == "mismatched":
        text += f"  model {record.shape} {record.dtype}, checkpoint {record.checkpoint_shape} {record.checkpoint_dtype}"
    elif record.status == "missing":
        text += f"  {record.shape} {record.dtype}"
    elif record.status == "unused":
        text += f"  {record.checkpoint_shape}"
        text += f"  perhaps for {record.likely_home}" if record.likely_home else ""
    return text + (f"  rule {record.rule}" if record.rule else "") + (f"  {record.note}" if record.note else "")
