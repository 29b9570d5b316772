"""Finds what gin accepts in silence: values of a wrong type, and bindings that nothing uses."""

import collections.abc
import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import gin
import keras

from trainer.config.keras_names import is_keras
from trainer.config.members import COMPARE, TRAIN, bindings_in, member_names, without_member
from trainer.config.messages import macros
from trainer.config.references import is_macro, is_reference, references, resolved
from trainer.suggest import nearest

# What a command calls itself; all else is used only if one of these leads to it.
ENTRY_POINTS = (TRAIN, COMPARE)

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text in quotes",
    type(None): "None",
}


def problems(gin_params: Sequence[str]) -> list[str]:
    """What is wrong with the parsed config, a sentence each.

    gin_params: names that the command line binds. A binding in a file may wait for an optimizer
      that this run does not choose; one that was typed for this very run may not.
    """
    return [*_wrong_types(), *_unused_macros(gin_params), *_unused_scopes(gin_params), *_unused_names(gin_params)]


def _wrong_types() -> Iterator[str]:
    for (scope, selector), bindings in gin.config._CONFIG.items():
        configurable = gin.config._REGISTRY[selector]
        for name, bound in bindings.items():
            value, macro = resolved(bound)
            wrong = _wrong_keras_value if _is_keras(selector) else _wrong_own_value
            expected = wrong(configurable, name, value)
            if expected:
                label = f"{scope}/" * bool(scope) + f"{configurable.name}.{name}"
                source = f" (it comes from %{macro})" if macro else ""
                yield f"{label} must be {expected}, not {value!r}{source}."


def _wrong_own_value(configurable, name: str, value) -> str:
    """What one of our own parameters must be, by its annotation; empty if the value fits."""
    if not str(configurable.wrapped.__module__).startswith("trainer."):
        return ""  # other people's annotations promise nothing
    hint = typing.get_type_hints(configurable.wrapped).get(name, Any)
    if is_reference(value):
        is_builder = not value.evaluate and not _admits_builder(hint)
        return f"{_show(hint)}, so write @{value.selector}() with parentheses" if is_builder else ""
    return "" if value is gin.REQUIRED or _fits(value, hint) else _show(hint)


def _wrong_keras_value(configurable, name: str, value) -> str:
    """What a Keras parameter must be, as far as its default tells; empty if the value may fit."""
    if is_reference(value):
        wanted = not value.evaluate and (_is_keras(value.configurable.selector) or _makes_schedule(value))
        return f"built already, so write @{value.selector}() with parentheses" if wanted else ""
    default = inspect.signature(configurable.wrapped).parameters[name].default
    if isinstance(value, str) and isinstance(default, (bool, int, float)):
        return _show(type(default))
    return ""


def _unused_macros(gin_params: Sequence[str]) -> Iterator[str]:
    used = {reference.config_key[0] for reference in references(gin.config._CONFIG) if is_macro(reference)}
    for name in macros():
        bare = without_member(name, member_names())[1] or name
        near = nearest(bare, used, cutoff=0.8)
        if bare not in used and (near or name in gin_params):
            yield f"The macro {name} is set, but nothing uses %{bare}." + (near or nearest(bare, used, "macros"))


def _unused_scopes(gin_params: Sequence[str]) -> Iterator[str]:
    used = {reference.config_key[0] for reference in references(gin.config._CONFIG) if not is_macro(reference)}
    used -= {""}
    members = member_names()
    # Of a member that has none of its own, the member's name is the slip.
    known = used | {member for member in members if bindings_in(member)}
    # A module of the user's may open a scope in Python, unseen here.
    typed = set() if gin.config._IMPORTS else {name.rpartition("/")[0] for name in gin_params}
    for (scope, selector), bindings in gin.config._CONFIG.items():
        inner = without_member(scope, members)[1]
        if not inner or selector == "gin.macro" or any(f"{other}/".startswith(f"{inner}/") for other in used):
            continue
        # A file's scope may be idle because this run chose other data; one nearly the same is a slip.
        near = nearest(inner, known, cutoff=0.75)
        if near or scope in typed:
            yield (
                f"{scope}/{_short(selector)}.{next(iter(bindings))} is set, but nothing runs in the scope '{scope}'."
                + (near or nearest(inner, known, "scopes"))
            )


def _unused_names(gin_params: Sequence[str]) -> Iterator[str]:
    entries = [selector for _, selector in gin.config._CONFIG if selector in ENTRY_POINTS]
    # A module of the user's may call anything from Python, unseen here.
    if not entries or gin.config._IMPORTS:
        return
    reached = _reachable(entries)
    for name in gin_params:
        if "." in name:
            selector = gin.config._REGISTRY.get_match(name.split("/")[-1].rpartition(".")[0]).selector
            if selector not in reached:
                in_use = ", ".join(sorted(_short(other) for other in reached if other != "gin.macro"))
                yield f"{name} is set by --gin_param, but this run does not use {_short(selector)}; it uses {in_use}."


def _reachable(entries: Sequence[str]) -> set[str]:
    reached: set[str] = set()
    members = member_names()
    waiting = [("", selector) for selector in entries]
    seen = set()
    while waiting:
        scope, selector = waiting.pop()
        if (scope, selector) in seen:
            continue
        seen.add((scope, selector))
        reached.add(selector)
        for (other_scope, other), bindings in gin.config._CONFIG.items():
            name = without_member(other_scope, members)[1] or other_scope
            if other == selector and (selector != "gin.macro" or name == scope):
                waiting += [reference.config_key for reference in references(bindings)]
    return reached


def _is_keras(selector: str) -> bool:
    return is_keras(gin.config._REGISTRY[selector].wrapped)


def _makes_schedule(reference) -> bool:
    """Whether what it refers to is one of our own schedules; Keras would call it as a rate itself."""
    made = getattr(reference.configurable.wrapped, "__annotations__", {}).get("return")
    return isinstance(made, type) and issubclass(made, keras.optimizers.schedules.LearningRateSchedule)


def _short(selector: str) -> str:
    return gin.config._REGISTRY.minimal_selector(selector)


def _fits(value, hint) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    # What a reference gives is looked at where it is used.
    if hint is Any or (is_reference(value) and value.evaluate):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin is tuple:
        pair = isinstance(value, (tuple, list)) and len(value) == len(arguments)
        return pair and all(_fits(part, choice) for part, choice in zip(value, arguments, strict=True))
    if origin in (list, collections.abc.Sequence):
        return isinstance(value, (tuple, list)) and all(
            is_reference(part) or _fits(part, arguments[0]) for part in value
        )
    if hint is int or hint is float:
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _admits_builder(hint) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_admits_builder(choice) for choice in typing.get_args(hint))
    return hint is Any or collections.abc.Callable in (hint, typing.get_origin(hint))


def _show(hint) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_show(choice) for choice in arguments if choice is not type(None)))
    if origin in (list, collections.abc.Sequence):
        return f"a list of {_show(arguments[0]).removeprefix('a ')}"
    if origin is tuple:
        return f"({', '.join(_show(choice) for choice in arguments)})"
    if _admits_builder(hint):
        return "a reference such as @name"
    if hint is collections.abc.Mapping or origin is collections.abc.Mapping:
        return "a dict {'name': value}"
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"
