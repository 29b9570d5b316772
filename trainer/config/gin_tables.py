"""gin's private tables: what is bound, what can be bound, and where files are looked for.

gin 0.5 has no public way to list its bindings, nor to say where includes come from. All use of its private names is
here, and `check` names the first one that an upgrade has changed.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config as _gin

MACRO = "gin.macro"  # the selector of every macro, whose scope is its name

_NAMES = {
    "_CONFIG": dict,
    "_REGISTRY": object,
    "_IMPORTS": set,
    "_LOCATION_PREFIXES": list,
    "_FILE_READERS": list,
}
_REGISTRY_METHODS = ("get_match", "minimal_selector", "items", "__getitem__")


def check() -> None:
    """Raises `RuntimeError` where gin is not what this module was written for."""
    for name, kind in _NAMES.items():
        if not isinstance(getattr(_gin, name, None), kind):
            raise RuntimeError(f"gin {_version()}: gin.config.{name} is no {kind.__name__} any more; see {__file__}.")
    for name in _REGISTRY_METHODS:
        if not hasattr(_gin._REGISTRY, name):
            raise RuntimeError(f"gin {_version()}: gin.config._REGISTRY has no {name} any more; see {__file__}.")
    if not hasattr(_gin, "ConfigurableReference"):
        raise RuntimeError(f"gin {_version()}: gin.config.ConfigurableReference is gone; see {__file__}.")


def bindings() -> Mapping[tuple[str, str], dict[str, Any]]:
    """{(scope, selector): {parameter: value}} of all that was parsed; a macro's scope is its name."""
    return _gin._CONFIG


def configurable(selector: str):
    """The configurable of a full selector; its `wrapped` is the function or class itself."""
    return _gin._REGISTRY[selector]


def match(name: str):
    """The configurable that a selector, full or not, stands for."""
    return _gin._REGISTRY.get_match(name)


def short(selector: str) -> str:
    """The shortest name that stands for a selector."""
    return _gin._REGISTRY.minimal_selector(selector)


def in_scope(scope: str, selector: str) -> str:
    """`a/Restore`, or the selector alone where there is no scope."""
    return f"{scope}/{selector}" if scope else selector


def shown(scope: str, selector: str, parameter: str) -> str:
    """A binding's name as the config writes it, `a/Restore.rename`; a macro's has no parameter."""
    return scope if selector == MACRO else in_scope(scope, f"{short(selector)}.{parameter}")


def selectors() -> list[str]:
    """Full names of all that can be bound."""
    return [selector for selector, _ in _gin._REGISTRY.items()]


def imported_modules() -> list[str]:
    """The modules of the config's import lines, which may use what no binding refers to."""
    return sorted({statement.module for statement in _gin._IMPORTS})


def is_reference(value) -> bool:
    """Whether it is `@name`, `@name()` or `%MACRO`."""
    return isinstance(value, _gin.ConfigurableReference)


def references(value) -> Iterator:
    """All that stand in a value, nested ones too."""
    return _gin.iterate_references(value)


@contextlib.contextmanager
def reading_from(folders: Sequence[str]) -> Iterator[None]:
    """gin looks for includes in these folders alone while this lasts.

    Left to itself, gin keeps every search path of the process, and asks Python for a package named
    like the folder of each include: that prints errors for files that are found a moment later.
    """
    prefixes, readers = _gin._LOCATION_PREFIXES, _gin._FILE_READERS
    saved = list(prefixes), list(readers)
    prefixes[:], readers[:] = list(folders), [(open, os.path.isfile)]
    try:
        yield
    finally:
        prefixes[:], readers[:] = saved


def _version() -> str:
    return getattr(gin, "__version__", "of this installation")


check()
