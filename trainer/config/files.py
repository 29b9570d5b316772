"""Finds config files and all that they include, before gin reads them: none missing, no line twice."""

import io
import os
import re
import tokenize
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import UserError
from trainer.suggest import nearest

_INCLUDE = re.compile(r"^include\s+(['\"])(.+?)\1", re.MULTILINE)


def find_files(gin_files: Sequence[str], folders: Sequence[str], named_by: str = "--gin_file=") -> list[str]:
    """Paths of the files, each found in the first of the folders that holds it.

    named_by: what names them, for messages.
    Raises `UserError` for a file or an include that is nowhere, naming the nearest that is there,
    for files that include each other in a circle, and for a name that one file binds twice.
    """
    found = []
    for name in gin_files:
        found.append(_find(os.path.expanduser(name), folders, f"{named_by}{name} is not there"))
        _check(found[-1], folders, ())
    return found


def text_in_scope(path: str, scope: str, folders: Sequence[str]) -> str:
    """The text of a file and of all that it includes, each binding in a scope: `SGD.momentum` is `scope/SGD.momentum`.

    path: as `find_files` gave it.
    """

    text = _with_includes(path, folders)
    return re.sub(r"^(?=[A-Za-z_][\w./]*[ \t]*(=(?!=)|:\s*$))", f"{scope}/", text, flags=re.MULTILINE)


def _with_includes(path: str, folders: Sequence[str]) -> str:
    def included(match: re.Match) -> str:
        missing = f"{path} includes '{match[2]}', which is not there"
        return _with_includes(_find(match[2], folders, missing), folders)

    return _INCLUDE.sub(included, _read(path))


def check_brackets(text: str, place: str) -> None:
    """Raises `UserError` where a bracket or a quote is open at the end; gin itself would not say which."""
    try:
        list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError) as error:
        said = str(error.args[0]) if error.args else str(error)
        raise UserError(f"The config cannot be read at {place}: {said}; is a bracket or a quote not closed?") from error


def bound_names(text: str) -> list[str]:
    """The names that the unindented lines of a gin text bind, in order: `SGD.momentum`, `NUM_STEPS`."""
    return [name for name, _ in _bindings(text)]


def _check(path: str, folders: Sequence[str], parents: tuple[str, ...]) -> None:
    if path in parents:
        raise UserError(f"The config file {path} includes itself: {' -> '.join([*parents, path])}.")
    text = _read(path)
    check_brackets(text, path)
    lines: dict[str, int] = {}
    for name, line in _bindings(text):
        if name in lines:
            raise UserError(f"{path} sets {name} twice, in line {lines[name]} and in line {line}; keep one of them.")
        lines[name] = line
    for match in _INCLUDE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        missing = f"{path}, line {line}, includes '{match[2]}', which is not there"
        _check(_find(match[2], folders, missing), folders, (*parents, path))


def _bindings(text: str) -> list[tuple[str, int]]:
    matches = re.finditer(r"^([A-Za-z_][\w./]*)[ \t]*=(?!=)", text, re.MULTILINE)
    return [(match[1], text.count("\n", 0, match.start()) + 1) for match in matches]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The config file {path} cannot be read: {error}.") from error


def _find(name: str, folders: Sequence[str], missing: str) -> str:
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    searched = list(dict.fromkeys(os.path.abspath(folder) for folder in folders))
    near = nearest(name, _neighbours(name, folders), cutoff=0.6)
    raise UserError(f"{missing} (searched in {', '.join(searched)}).{near}")


def _neighbours(name: str, folders: Sequence[str]) -> list[str]:
    """Config files in the folder that was meant, or else in all folders below `configs`."""
    here = [Path(folder, os.path.dirname(name)) for folder in folders]
    beside = [os.path.join(os.path.dirname(name), path.name) for folder in here for path in folder.glob("*.gin")]
    shipped = [str(path.relative_to(folder)) for folder in folders for path in Path(folder).glob("configs/**/*.gin")]
    return beside or shipped
