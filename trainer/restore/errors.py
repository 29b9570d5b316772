"""Raised where a restore is refused."""

from collections.abc import Sequence
from typing import Any

from trainer.errors import UserError
from trainer.output.printable import printable
from trainer.restore.report import RestoreReport


class RestoreError(UserError):
    """A restore that would leave something unaccounted for; raised before any variable changed.

    report: the plan that could not be carried out, or None where the file could not be read at all.
    """

    def __init__(self, message: str, report: RestoreReport | None = None):
        super().__init__(printable(message, kept="\n"))  # libraries quote what is in a file
        self.report = report


class UndecidedRestore(RestoreError):
    """A restore that could be carried out in several ways, which give different weights.

    choices: for each way, the restore's rules that would choose it, as `{name: value}`.
    """

    def __init__(self, message: str, choices: Sequence[dict[str, Any]]):
        super().__init__(message)
        self.choices = choices


def first_line(error: BaseException) -> str:
    """The error's text for a message of ours; its class where it has none."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0][:300])
