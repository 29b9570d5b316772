"""gin files and bindings -> one checked configuration; a typo stops here and names the nearest name."""

import copy
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from trainer.config import gin_tables
from trainer.config.checks import check_run_is_complete, problems, settle_required_macros
from trainer.config.files import bound_names, check_brackets, find_files
from trainer.config.gin_tables import selectors
from trainer.config.keras_names import register_keras
from trainer.config.members import (
    bindings_in,
    changes_of,
    scopes_in_use,
    scopes_with_bindings,
    take_member_files,
    text_of,
)
from trainer.config.messages import explain, parameters_of
from trainer.config.references import is_required, resolved
from trainer.config.settings import DECLARED, decides_weights, default_bindings, is_default
from trainer.errors import UserError

__all__ = [
    "REPOSITORY",
    "bindings_in",
    "bindings_of",
    "bound_value",
    "changes_of",
    "check_run_is_complete",
    "configurables",
    "differing_lines",
    "missing_binding",
    "operative_config",
    "parse_config",
    "parse_text",
    "register_keras",
    "scopes_in_use",
    "scopes_with_bindings",
    "settings_of",
    "text_of",
]

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def parse_config(gin_files: Sequence[str], gin_params: Sequence[str], search_paths: Sequence[str] = ()) -> None:
    """Parses files, then bindings (later ones win), checks the whole, and locks the configuration.

    search_paths: folders where files and their includes are looked for, after the working folder; the folder that holds
      `configs/` is always the last.
    Raises `UserError` for a file that is not there, a syntax error, an unknown name or parameter
    (naming the nearest), a value of a wrong type, an undefined macro, a binding that nothing uses,
    or a module that cannot be imported.
    """
    folders = ["", *search_paths, str(REPOSITORY)]
    paths = find_files(gin_files, folders)
    for text in gin_params:
        check_brackets(text, f"--gin_param {text!r}")
    typed = [name for text in gin_params for name in bound_names(text)]
    with gin_tables.reading_from(folders):
        try:
            gin.parse_config(default_bindings())
            gin.parse_config_files_and_bindings(
                paths,
                list(gin_params),
                skip_unknown=False,
                finalize_config=False,
                print_includes_and_imports=False,
            )
            take_member_files(folders)
            settled = settle_required_macros()
            gin.finalize()
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a config or its modules raise is one message, no traceback
            raise UserError(explain(error)) from error
    wrong = problems(typed, settled)
    if wrong:
        raise UserError("\n".join(wrong))


def parse_text(text: str) -> None:
    """Parses a config that `text_of` gave, of one that was checked; forgets what the process has parsed before."""
    with gin.unlock_config():
        gin.clear_config()
        register_keras()
        gin.parse_config(text)


def operative_config() -> str:
    """The parameters that the program has used so far, as gin text."""
    return gin.operative_config_str()


def missing_binding(error: BaseException) -> str | None:
    """The message for a call that gin made without a value that it needed, or None if that was not it."""
    text = str(error)
    required = re.search(r"Required bindings for `([^`]+)` not provided in config: (\[.*?\])", text)
    unbound = re.search(
        r"No values supplied by Gin or caller for arguments: (\[.*?\]).*?In call to configurable '([^']+)'", text, re.S
    )
    if not required and not unbound:
        return None
    name, missing = (required[1], required[2]) if required else (unbound[2], unbound[1])  # type: ignore[index]
    parameters = ", ".join(f"{name}.{parameter}" for parameter in re.findall(r"'(\w+)'", missing))
    return f"The config does not set {parameters}, and there is no default."


def bindings_of(configurable: str, *names: str) -> dict:
    """The values that the config binds to parameters of a configurable, built; their defaults where it binds none.

    configurable: with the scopes in which it is looked up, `a/Restore`.

    Raises `UserError` for one that has no default and is not bound.
    """
    bound = gin.get_bindings(configurable, resolve_references=False)
    defaults = parameters_of(configurable.rpartition("/")[2])
    for name in names:
        if name not in bound and defaults[name].default in (gin.REQUIRED, inspect.Parameter.empty):
            raise UserError(f"The config does not set {configurable}.{name}, and there is no default.")
    # A copy of a reference is what it refers to, built: only what was asked for is.
    return {name: copy.deepcopy(bound[name]) if name in bound else defaults[name].default for name in names}


def settings_of(parameter: str, *names: str) -> dict:
    """The values of fields of the settings class that `train` takes as a parameter, in whatever scope it is built.

    `train.restore = 'path'` has the rules that are bound to `Restore`; None has the defaults.
    """
    value, _ = resolved(gin.get_bindings("train", resolve_references=False).get(parameter))
    cls = next(name for name, entry in DECLARED.items() if entry.parameter == parameter)
    if gin_tables.is_reference(value):
        return bindings_of(gin_tables.in_scope(value.config_key[0], cls), *names)
    if isinstance(value, str):
        return bindings_of(cls, *names)
    return {name: parameters_of(cls)[name].default for name in names}


def bound_value(configurable: str, parameter: str) -> tuple[Any, str]:
    """The value that the config binds to a parameter, behind macros, and the macro's name; (None, "") for none."""
    value, macro = resolved(gin.get_bindings(configurable, resolve_references=False).get(parameter))
    return (None, "") if is_required(value) else (value, macro)


def differing_lines(
    old: str, new: str, harmless_too: bool = False, evaluation_decides: bool = False
) -> list[tuple[str, str]]:
    """(old, new) of each binding that differs between two config texts, and decides what weights a run ends with.

    harmless_too: what decides no weight as well.
    evaluation_decides: whether the weights depend on what is evaluated, and when.
    """
    before, after = (
        {name: binding for name, binding in _bindings(text).items() if not is_default(name, binding)}
        for text in (old, new)
    )
    return [
        (before.get(name, f"{name} is not set"), after.get(name, f"{name} is not set"))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
        and (harmless_too or decides_weights(name, (before, after), evaluation_decides))
    ]


def configurables() -> list[tuple[str, str]]:
    """(selector, parameters with defaults) of all that can be bound, sorted by selector."""
    return [
        (selector, _signature_text(selector))
        for selector in sorted(selectors())
        if not selector.startswith("gin.") and not _is_by_flag(selector)
    ]


def summary_of(selector: str) -> str:
    """The first sentence of what a configurable's docstring says; "" where it has none."""
    text = inspect.getdoc(gin_tables.configurable(selector).wrapped) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.:]) ", first)[0]


def _is_by_flag(selector: str) -> bool:
    declared = DECLARED.get(selector.rpartition(".")[2])
    return declared is not None and declared.by_flag


def _signature_text(selector: str) -> str:
    return ", ".join(
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={_plain(parameter.default)}"
        for parameter in parameters_of(selector).values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    )


def _plain(value) -> str:
    text = "REQUIRED" if value is gin.REQUIRED else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _bindings(text: str) -> dict[str, str]:
    """name -> the whole binding, its continuation lines joined."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        match = re.match(r"^([\w./]+) = ?", line)
        if match:
            name = match[1]
            found[name] = line
        elif name and line.startswith(" "):
            found[name] += " " + line.strip()
        elif line.startswith(("import ", "from ")):
            name, found[line] = "", line
        elif line.startswith("#") or not line.strip():
            name = ""
    return found
