"""Turns gin's messages into ours: the fault, its place, the nearest right name."""

import inspect
import re
import traceback
from collections.abc import Mapping

from trainer.config import gin_tables
from trainer.config.gin_tables import selectors
from trainer.config.settings import DECLARED, fields_by_name
from trainer.suggest import nearest


def explain(error: BaseException) -> str:
    """gin's message about a config in our words; a name that it does not know gets the nearest one."""
    # A KeyError's text is the repr of its message; gin's lines about where follow after a line break.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = text.strip().strip('"')
    said, place = text.partition("\n  In ")[0].strip(), _place(text)
    if isinstance(error, SyntaxError):
        return _syntax(error)
    if re.search(r"\n  In [^\n]* line \d+\n\s*(import|from) ", text):
        return _failed_import(error, said, place)
    parameter = re.search(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", said)
    if parameter:
        known = parameters_of(parameter[1])
        # Of `train` and its settings classes, whichever has it.
        fields = fields_by_name() if parameter[1] in ("train", *DECLARED) else {}
        near = nearest(parameter[2], {*known, *fields} if fields else known, "parameters of " + parameter[1])
        for name, label in fields.items():
            near = near.replace(f"'{name}'", label)
        return f"{parameter[1]} has no parameter '{parameter[2]}'{place}.{near}"
    unknown = re.search(
        r"No configurable matching (?:reference )?'@?([^']+?)(?:\(\))?'\.?( In binding for '.*')?", said
    )
    if unknown:
        near = nearest(re.split(r"[/.]", unknown[1])[-1], [selector.split(".")[-1] for selector in selectors()])
        used = (unknown[2] or "").replace(" In binding for", ", used by").replace("'", "").replace("gin.macro.", "")
        advice = near or " `python -m launch.configurables` lists what can be bound."
        return f"There is no configurable '{unknown[1]}'{used}{place}.{advice}"
    macro = re.search(r"No bindings specified for '([^']+)/(?:gin\.)?macro'", text)
    if macro:
        return f"The macro %{macro[1]} is used but never set." + nearest(macro[1], macros(), "macros")
    return said + place


def parameters_of(configurable: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a configurable that can be bound, by name; of a class, those of its `__init__`."""
    # What gin wraps around a class takes anything.
    return inspect.signature(gin_tables.match(configurable).wrapped).parameters


def macros() -> list[str]:
    """Names of the macros that the config sets."""
    return [scope for scope, selector in gin_tables.bindings() if selector == gin_tables.MACRO]


def _failed_import(error: BaseException, said: str, place: str) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"The config imports a module that is not there{place}: {said}."
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename}, line {frame.lineno}"
    return f"A module that the config imports{place} fails: {type(error).__name__}: {said} ({where})."


def _place(text: str) -> str:
    # The first place is the innermost: what follows are the includes that led there.
    found = re.search(r'In (?:file "([^"]+)",|bindings string) line (\d+)\n\s*(.*)', text)
    if not found:
        return ""
    return f" ({found[1]}, line {found[2]})" if found[1] else f" (--gin_param: {found[3].strip()})"


def _syntax(error: SyntaxError) -> str:
    line = (error.text or "").strip()
    place = f"{error.filename}, line {error.lineno}" if error.filename else "--gin_param"
    said = (error.msg or "").splitlines()[0].rstrip(".")
    if said.startswith("malformed node") or said == "Unable to parse value":
        said = "the value cannot be read; text needs 'quotes', a configurable @, a macro %"
    return f"The config cannot be read at {place}: {line!r}: {said}."
