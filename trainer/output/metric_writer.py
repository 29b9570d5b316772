"""Scalars, text and plots to TensorBoard and JSON lines; chief only."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from trainer.errors import UserError
from trainer.output.atomic_files import write_text


class MetricWriter:
    """Appends to `metrics.jsonl` and to TensorBoard's `train/` and `eval/` folders.

    metrics_path: the JSON lines file.
    events: folder of each split kind, `train` and `eval`.
    enabled: False on workers that are not the chief; every call is then a no-op.
    start_step: rows of later steps are dropped first. A run that is resumed from its last checkpoint writes them again,
      so the file ends as if nothing had happened. TensorBoard's files keep them, followed by the sign for it to drop
      them.
    """

    def __init__(self, metrics_path, events: dict, enabled: bool = True, start_step: int = 0):
        self._enabled = enabled
        self._events = {}
        self._path = metrics_path
        self._background_error: Exception | None = None
        if not enabled:
            return
        # A fresh start keeps nothing; a resumed one has written the row of its own step already.
        _drop_rows_after(metrics_path, start_step or -1)
        self._file = open(metrics_path, "a")  # noqa: SIM115  held until close()
        self._events = {name: tf.summary.create_file_writer(str(folder)) for name, folder in events.items()}
        self._begin_anew_after(start_step or -1)

    def write(self, step: int, values: dict[str, float], split: str | None = None) -> None:
        """Writes one row. Evaluations name their `split`; a training row has none.

        An error is raised by the next `flush`: a row may be lost, where the run need not be.
        """
        if not self._enabled:
            return
        row = {"step": int(step), **({"split": split} if split else {})}
        row.update({name: float(value) for name, value in values.items()})
        # An evaluation's loss is no batch's loss: under one tag TensorBoard would draw both as one quantity.
        prefix = "eval/" if split else ""
        scalars = tf.compat.v1.Summary(value=[_scalar(f"{prefix}{name}", value) for name, value in values.items()])
        with self._noting():
            self._file.write(json.dumps(row) + "\n")
            with self._events["eval" if split else "train"].as_default():
                # All at once: an operation for each scalar would take as long as some models take for ten steps.
                tf.summary.experimental.write_raw_pb(scalars.SerializeToString(), step=step)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text (a config, a report) to TensorBoard, verbatim, at step 0."""
        if self._enabled:
            with self._noting(), self._events["train"].as_default():
                tf.summary.text(name, "```\n" + text + "\n```", step=0)

    def write_image(self, name: str, path, step: int) -> None:
        """Writes a PNG file to TensorBoard."""
        if self._enabled:
            with self._noting(), self._events["train"].as_default():
                tf.summary.image(name, tf.io.decode_png(tf.io.read_file(str(path)), channels=3)[None], step=step)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Wraps what writes: TensorFlow's writers bring everything to the disk whenever they are left."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self._background_error = error

    def drop_after(self, step: int) -> None:
        """Takes back the rows of later steps, which a run that went back makes again."""
        if self._enabled:
            self._file.close()
            _drop_rows_after(self._path, step)
            self._file = open(self._path, "a")  # noqa: SIM115  held until close()
            self._begin_anew_after(step)

    def _begin_anew_after(self, step: int) -> None:
        """Has TensorBoard drop what it has of later steps, which cannot be taken out of its files.

        At a fresh start too: it takes the first sign in a folder for the beginning alone.
        """
        session_log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        event = tf.compat.v1.Event(wall_time=time.time(), step=step + 1, session_log=session_log)
        with self._noting():
            for writer in self._events.values():
                # In the same file, as TensorBoard reads one after the other; `tf.summary` has no word for it.
                tf.raw_ops.ImportEvent(writer=writer._resource, event=event.SerializeToString())

    def flush(self) -> None:
        """Brings every row to the disk; called before a checkpoint that follows them.

        Raises `UserError` if it cannot; the rows are kept, for the next time.
        """
        if not self._enabled:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            for writer in self._events.values():
                writer.flush()
            background_error, self._background_error = self._background_error, None
            if background_error is not None:
                raise background_error
        except (OSError, tf.errors.OpError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.message
            raise UserError(
                f"{self._path} cannot be written: {reason}. The last checkpoint is whole, and a run resumes from it. "
                "Make room or give the right to write there, and run the same command again."
            ) from error

    def close(self) -> None:
        if self._enabled:
            self.flush()
            self._file.close()
            for writer in self._events.values():
                writer.close()


def _scalar(name: str, value: float):
    """The summary that `tf.summary.scalar` writes for one value."""
    plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin, data_class="DATA_CLASS_SCALAR")
    tensor = tf.make_tensor_proto(value, tf.float32)
    return tf.compat.v1.Summary.Value(tag=name, tensor=tensor, metadata=metadata)


def read_rows(metrics_path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that a kill cut short is left out."""
    rows: list[dict] = []
    if not os.path.exists(metrics_path):
        return rows
    with open(metrics_path) as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def _drop_rows_after(metrics_path, start_step: int) -> None:
    rows = read_rows(metrics_path)
    kept = [row for row in rows if row["step"] <= start_step]
    if os.path.exists(metrics_path):
        write_text(Path(metrics_path), "".join(json.dumps(row) + "\n" for row in kept))
