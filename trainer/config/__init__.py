"""gin files and bindings -> one checked configuration; a typo stops here and names the nearest name."""

import contextlib
import copy
import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gin

from trainer.config.checks import problems
from trainer.config.files import bound_names, check_brackets, find_files
from trainer.config.keras_names import register_keras
from trainer.config.members import bindings_in, changes_of, config_of, scopes_in_use, scopes_with_bindings
from trainer.config.messages import explain, selectors
from trainer.errors import UserError

__all__ = [
    "REPOSITORY",
    "bindings_in",
    "bindings_of",
    "changes_of",
    "config_of",
    "configurables",
    "differing_lines",
    "missing_binding",
    "operative_config",
    "parse_config",
    "register_keras",
    "scopes_in_use",
    "scopes_with_bindings",
]

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# Bindings that may change between two starts of one run without making it another run.
HARMLESS = (
    "num_steps",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "checkpoints_to_keep",
    "steps_per_loop",
    "keep_every",
    "best_metric",
    "best_mode",
    "on_save_error",
    "async_checkpoint",
    "on_nan",
    "max_rollbacks",
    "max_seconds",
    "grace_seconds",
    "download",
    "data_dir",
    "implementation",
    "bytes_per_pack",
    "timeout_seconds",
)
EVALUATION = ("EVAL_DATA", "train.eval_data", "supervised.metrics", "custom_loss.metrics")


def parse_config(gin_files: Sequence[str], gin_params: Sequence[str], search_paths: Sequence[str] = ()) -> None:
    """Parses files, then bindings (later ones win), checks the whole, and locks the configuration.

    search_paths: folders where files and their includes are looked for, after the working folder;
      the folder that holds `configs/` is always the last.
    Raises `UserError` for a file that is not there, a syntax error, an unknown name or parameter
    (naming the nearest), a value of a wrong type, an undefined macro, a binding that nothing uses,
    or a module that cannot be imported.
    """
    folders = ["", *search_paths, str(REPOSITORY)]
    paths = find_files(gin_files, folders)
    for text in gin_params:
        check_brackets(text, f"--gin_param {text!r}")
    typed = [name for text in gin_params for name in bound_names(text)]
    with _reading_from(folders):
        try:
            gin.parse_config_files_and_bindings(
                paths,
                list(gin_params),
                skip_unknown=False,
                finalize_config=False,
                print_includes_and_imports=False,
            )
            gin.finalize()
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a config or its modules raise is one message, no traceback
            raise UserError(explain(error)) from error
    wrong = problems(typed)
    if wrong:
        raise UserError("\n".join(wrong))


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

    Raises `UserError` for one that has no default and is not bound.
    """
    bound = gin.get_bindings(configurable, resolve_references=False)
    defaults = inspect.signature(gin.get_configurable(configurable)).parameters
    for name in names:
        if name not in bound and defaults[name].default is gin.REQUIRED:
            raise UserError(f"The config does not set {configurable}.{name}, and there is no default.")
    # A copy of a reference is what it refers to, built: only what was asked for is.
    return {name: copy.deepcopy(bound[name]) if name in bound else defaults[name].default for name in names}


def differing_lines(
    old: str, new: str, harmless_too: bool = False, evaluation_too: bool = False
) -> list[tuple[str, str]]:
    """(old, new) of each binding that differs between two config texts, harmless ones left out unless asked for.

    evaluation_too: what evaluations are made of, and when, is not harmless this time.
    """
    before, after = _bindings(old), _bindings(new)
    names = [
        name
        for name in dict.fromkeys([*before, *after])
        if harmless_too or not _is_harmless(name) or (evaluation_too and _is_of_evaluation(name))
    ]
    return [
        (before.get(name, f"{name} is not set"), after.get(name, f"{name} is not set"))
        for name in names
        if before.get(name) != after.get(name)
    ]


def configurables() -> list[tuple[str, str]]:
    """(selector, parameters with defaults) of all that can be bound, sorted by selector."""
    return [
        (selector, _signature_text(gin.get_configurable(selector)))
        for selector in sorted(selectors())
        if not selector.startswith("gin.")
    ]


@contextlib.contextmanager
def _reading_from(folders: Sequence[str]) -> Iterator[None]:
    """gin looks for includes in these folders alone while this lasts.

    Left to itself, gin keeps every search path of the process, and asks Python for a package named
    like the folder of each include: that prints errors for files that are found a moment later.
    """
    prefixes, readers = gin.config._LOCATION_PREFIXES, gin.config._FILE_READERS
    saved = list(prefixes), list(readers)
    prefixes[:], readers[:] = list(folders), [(open, os.path.isfile)]
    try:
        yield
    finally:
        prefixes[:], readers[:] = saved


def _signature_text(target: Callable) -> str:
    parameters = inspect.signature(target).parameters.values()
    return ", ".join(
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={_plain(parameter.default)}"
        for parameter in parameters
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
        elif line.startswith(("import", "from", "#")) or not line.strip():
            name = ""
    return found


def _is_harmless(name: str) -> bool:
    """Whether a binding decides nothing about the weights: how long, how often, from where, how it is evaluated."""
    return _is_of_evaluation(name) or name.split(".")[-1].lower() in HARMLESS


def _is_of_evaluation(name: str) -> bool:
    return name.startswith("eval/") or name in EVALUATION or name.split(".")[-1].lower() == "eval_every"
