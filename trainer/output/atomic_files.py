"""Files that are written whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path and renames it onto `path` on success. On an error or a kill the old file stays."""
    temporary = path.with_name(f".tmp.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{path} cannot be written: {os.strerror(error.errno) if error.errno else error}. "
            "What was there before is whole. Make room or give the right to write there, "
            "and run the same command again."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
