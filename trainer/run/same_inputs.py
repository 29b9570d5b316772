"""Compares data and settings with those of the other workers before a variable is made."""

import re
from collections.abc import Mapping
from typing import Any

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
    card = {"the training data": train_data.fingerprint}
    if eval_data is not None:
        card["the evaluation data"] = eval_data.fingerprint
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
