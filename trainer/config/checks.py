"""Finds what gin accepts in silence: values of a wrong type, and bindings that nothing uses."""

import inspect
import math
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import gin
import keras

from trainer.config import gin_tables
from trainer.config.gin_tables import MACRO, in_scope, references, shown
from trainer.config.keras_names import is_keras
from trainer.config.members import COMPARE, TRAIN, bindings_in, member_config, member_names, without_member
from trainer.config.messages import macros, parameters_of
from trainer.config.references import is_macro, is_reference, is_required, resolved
from trainer.config.settings import DECLARED, FLAGS
from trainer.config.types import admits_builder, fits, in_words
from trainer.errors import UserError
from trainer.suggest import nearest


def settle_required_macros() -> set[str]:
    """Raises `UserError` for `MODEL = %gin.REQUIRED` that the run reaches and nothing else sets.

    One that it does not reach is set to None, and returned: gin refuses it otherwise, even where nothing reads it. A
    comparison does not where each member sets it.
    """
    required = [key for key, bindings in gin_tables.bindings().items() if _is_required(key, bindings)]
    configs: list[Mapping] = [member_config(member) for member in member_names()] or [gin_tables.bindings()]
    reached = {
        key for config in configs for key in _reachable([TRAIN], config) if _is_required(key, config.get(key, {}))
    }
    missing = [scope for scope, selector in required if (scope, selector) in reached]
    if missing:
        checkpoint = " (or train.restore = None, for random weights)" if "INIT_CHECKPOINT" in missing else ""
        raise UserError(f"The config does not set {', '.join(missing)}{checkpoint}.")
    for scope, selector in required:
        gin.bind_parameter((scope, selector, "value"), None)
    return {scope for scope, _ in required}


def _is_required(key: tuple[str, str], bindings: Mapping) -> bool:
    return key[1] == MACRO and is_required(bindings.get("value"))


def check_run_is_complete() -> None:
    """Raises `UserError` for parameters of `train`, and of what it takes, that are not bound and have no default."""
    owners = [TRAIN, *(f"settings.{name}" for name in DECLARED)]
    reached = sorted(_reachable([TRAIN], gin_tables.bindings()), key=lambda key: (key[1] != TRAIN, key))
    missing = [
        shown(scope, selector, name)
        for scope, selector in reached
        if selector in owners
        for name, parameter in parameters_of(selector).items()
        if parameter.default is parameter.empty
        and name not in gin.get_bindings(in_scope(scope, selector), resolve_references=False)
    ]
    if missing:
        raise UserError(f"The config does not set {', '.join(missing)}, and there is no default.")


def problems(gin_params: Sequence[str], settled: Collection[str] = ()) -> list[str]:
    """The faults of the parsed config, a sentence each.

    settled: macros that nothing reads, and whose value says nothing.
    gin_params: names that the command line binds. A binding in a file may wait for an optimizer that this run does not
      choose; one that was typed for this very run may not.
    """
    return [
        *_set_by_flag(),
        *_not_finite(),
        *_wrong_types(settled),
        *_unused_macros(gin_params),
        *_unused_scopes(gin_params),
        *_unused_names(gin_params),
    ]


def _set_by_flag() -> Iterator[str]:
    for (_, selector), bindings in gin_tables.bindings().items():
        for parameter in bindings:
            name = shown("", selector, parameter)
            if name in FLAGS:
                how = f"give {FLAGS[name]}" if FLAGS[name] else "the command sets it itself"
                yield f"{name} is no part of a config: {how}."


def _not_finite() -> Iterator[str]:
    """Infinite numbers, `1e999`: gin writes none back, so that no record of the run would hold them."""
    for (scope, selector), bindings in gin_tables.bindings().items():
        for name, bound in bindings.items():
            if any(isinstance(part, float) and not math.isfinite(part) for part in _parts(bound)):
                label = shown(scope, selector, name)
                yield f"{label} = {bound!r} is not finite; leave it out, or give a number."


def _parts(value) -> Iterator:
    """The value itself, or all that stand in a list, tuple or dict, at any depth."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _parts(part)
    else:
        yield value


def _wrong_types(settled: Collection[str]) -> Iterator[str]:
    for (scope, selector), bindings in gin_tables.bindings().items():
        configurable = gin_tables.configurable(selector)
        for name, bound in bindings.items():
            value, macro = resolved(bound)
            if macro in settled:
                continue
            wrong = _wrong_keras_value if _is_keras(selector) else _wrong_own_value
            expected = wrong(configurable, name, value)
            if expected:
                label = f"{scope}/" * bool(scope) + f"{configurable.name}.{name}"
                source = f" (it comes from %{macro})" if macro else ""
                yield f"{label} must be {expected}, not {value!r}{source}."


def _wrong_own_value(configurable, name: str, value) -> str:
    """The expected value of one of our own parameters, by its annotation; empty if the value fits."""
    if not str(configurable.wrapped.__module__).startswith("trainer."):
        return ""  # other people's annotations promise nothing
    hint = typing.get_type_hints(configurable.wrapped).get(name, Any)
    if is_reference(value):
        is_builder = not value.evaluate and not admits_builder(hint)
        return f"{in_words(hint)}, so write @{value.selector}() with parentheses" if is_builder else ""
    return "" if is_required(value) or fits(value, hint) else in_words(hint)


def _wrong_keras_value(configurable, name: str, value) -> str:
    """The expected value of a Keras parameter, as far as its default shows it; empty if the value may fit."""
    if is_reference(value):
        wanted = not value.evaluate and (_is_keras(value.configurable.selector) or _makes_schedule(value))
        return f"built already, so write @{value.selector}() with parentheses" if wanted else ""
    default = inspect.signature(configurable.wrapped).parameters[name].default
    if isinstance(value, str) and isinstance(default, (bool, int, float)):
        return in_words(type(default))
    return ""


def _unused_macros(gin_params: Sequence[str]) -> Iterator[str]:
    used = {reference.config_key[0] for reference in references(gin_tables.bindings()) if is_macro(reference)}
    for name in macros():
        bare = without_member(name, member_names())[1] or name
        near = nearest(bare, used, cutoff=0.8)
        if bare not in used and (near or name in gin_params):
            yield f"The macro {name} is set, but nothing uses %{bare}." + (near or nearest(bare, used, "macros"))


def _unused_scopes(gin_params: Sequence[str]) -> Iterator[str]:
    used = {reference.config_key[0] for reference in references(gin_tables.bindings()) if not is_macro(reference)}
    used -= {""}
    members = member_names()
    # Of a member that has none of its own, the member's name is the slip.
    known = used | {member for member in members if bindings_in(member)}
    # A module of the user's may open a scope in Python, unseen here.
    typed = set() if gin_tables.imported_modules() else {name.rpartition("/")[0] for name in gin_params}
    for (scope, selector), bindings in gin_tables.bindings().items():
        inner = without_member(scope, members)[1]
        if not inner or selector == MACRO or any(f"{other}/".startswith(f"{inner}/") for other in used):
            continue
        # A file's scope may be idle because this run chose other data; one nearly the same is a slip.
        near = nearest(inner, known, cutoff=0.75)
        if near or scope in typed:
            name = shown(scope, selector, next(iter(bindings)))
            yield (
                f"{name} is set, but nothing runs in the scope '{scope}'." + (near or nearest(inner, known, "scopes"))
            )


def _unused_names(gin_params: Sequence[str]) -> Iterator[str]:
    entries = [selector for _, selector in gin_tables.bindings() if selector == COMPARE or _is_run(selector)]
    # A module of the user's may call anything from Python, unseen here.
    if not entries or gin_tables.imported_modules():
        return
    reached = _reachable(entries, gin_tables.bindings())
    selectors, macros_used = {selector for _, selector in reached}, {scope for scope, each in reached if each == MACRO}
    known = {reference.config_key[0] for reference in references(gin_tables.bindings()) if is_macro(reference)}
    # A path is short for a `Restore`, whose rules are read.
    if isinstance(gin_tables.bindings().get(("", TRAIN), {}).get("restore"), str):
        selectors.add("settings.Restore")
    for name in gin_params:
        bare = without_member(name, member_names())[1] or name
        if "." in name:
            selector = gin_tables.match(name.split("/")[-1].rpartition(".")[0]).selector
            if selector not in selectors:
                in_use = ", ".join(sorted(gin_tables.short(other) for other in selectors if other != MACRO))
                unused = gin_tables.short(selector)
                yield f"{name} is set by --gin_param, but this run does not use {unused}; it uses {in_use}."
        elif bare in known - macros_used:
            users = ", ".join(_users_of(bare))
            yield f"{name} is set by --gin_param, but this run does not use {users}, where it would be read."


def _is_run(selector: str) -> bool:
    """Whether the config says something of `train` beside that it takes the settings classes."""
    taken = {declared.parameter for declared in DECLARED.values()}
    return selector == TRAIN and not taken.issuperset(gin_tables.bindings()["", TRAIN])


def _users_of(macro: str) -> list[str]:
    return [
        shown(scope, selector, name)
        for (scope, selector), bindings in gin_tables.bindings().items()
        for name, value in bindings.items()
        if any(is_macro(each) and each.config_key[0] == macro for each in references(value))
    ]


def _reachable(entries: Sequence[str], config: Mapping) -> set[tuple[str, str]]:
    """(scope, selector) of what references lead to; the scope of a macro is its name."""
    members = member_names()
    waiting = [("", selector) for selector in entries]
    seen: set[tuple[str, str]] = set()
    while waiting:
        scope, selector = waiting.pop()
        if (scope, selector) in seen:
            continue
        seen.add((scope, selector))
        for (other_scope, other), bindings in config.items():
            name = without_member(other_scope, members)[1] or other_scope
            if other == selector and (selector != MACRO or name == scope):
                waiting += [reference.config_key for reference in references(bindings)]
    return seen


def _is_keras(selector: str) -> bool:
    return is_keras(gin_tables.configurable(selector).wrapped)


def _makes_schedule(reference) -> bool:
    """Whether what it refers to is one of our own schedules; Keras would call it as a rate itself."""
    made = getattr(reference.configurable.wrapped, "__annotations__", {}).get("return")
    return isinstance(made, type) and issubclass(made, keras.optimizers.schedules.LearningRateSchedule)
