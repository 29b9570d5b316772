"""Compares data and settings with those of the other workers before a variable is made."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tensorflow as tf

from trainer.cluster.collectives import Agreement
from trainer.cluster.rendezvous import unlike
from trainer.data.data import Data
from trainer.errors import UserError


def check_same_run_everywhere(
    agreement: Agreement, train_data: Data, eval_data: Data | None, settings: Mapping[str, Any]
) -> None:
    """Compares with the chief's what decides the steps, before a variable is made; a collective of all workers.

    settings: `Restore.rename` -> its value, and so on.
    Raises `UserError`, on all workers, where one of them has other data or settings.
    """
    if agreement.workers == 1:
        return
    card = {"the training data": contents_of(train_data)}
    if eval_data is not None:
        card["the evaluation data"] = contents_of(eval_data)
    card |= {name: _in_one_line(value) for name, value in settings.items()}
    texts = agreement.gather_texts("".join(f"{what}\t{value}\n" for what, value in card.items()))
    cards = [dict(line.split("\t", 1) for line in text.splitlines()) for text in texts]
    for index, other in enumerate(cards):
        differences = unlike(cards[0], other, "worker 0", f"worker {index}")
        if differences:
            raise UserError(differences)


def _in_one_line(value) -> str:
    """The same on every worker: no addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value)).replace("\n", " ").replace("\t", " ")


def contents_of(data: Data) -> str:
    """Name and size of data, and a checksum of what is in memory, or of names and sizes of the files."""
    if data.examples is not None:
        total = google_crc32c.Checksum()
        for key, values in sorted(data.examples.items()):
            total.update(f"{key} {values.dtype} {values.shape}".encode())
            total.update(_bytes_of(values))
        seen = f"CRC-32C {total.hexdigest().decode()}"
    elif data.records is not None:
        sizes = [
            (Path(path).name, skip, take, tf.io.gfile.stat(path).length) for path, skip, take in data.records.segments
        ]
        seen = f"{len(sizes)} files, names and sizes {hashlib.sha256(repr(sizes).encode()).hexdigest()[:12]}"
    else:
        seen = f"{data.batch_spec}".replace("\n", " ")
    return f"{data.label}, {data.num_examples} examples, {seen}"


def _bytes_of(values: np.ndarray) -> bytes:
    return repr(values.tolist()).encode() if values.dtype == object else np.ascontiguousarray(values).tobytes()
