"""Scopes that are configs of their own: the members of a comparison, each with its bindings over those of all.

`adam/SGD.momentum = 0.9` means that the runs of the member `adam` are those of a config that says
`SGD.momentum = 0.9`. That is more than gin's scopes do: a macro can be set for one member too, what a macro
refers to is in the member's hands, and a thread of TensorFlow's sees what the main thread sees. Therefore a member's
run is a process of its own, which parses the text that `text_of` gives.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import gin

from trainer.config import gin_tables
from trainer.config.files import find_files, text_in_scope
from trainer.config.gin_tables import MACRO, references, shown
from trainer.config.references import is_macro, is_reference, resolved
from trainer.config.settings import DECLARED
from trainer.errors import UserError

COMPARE = "comparison.compare"
TRAIN = "experiment.train"


def member_names() -> list[str]:
    """The scopes that `compare.members` names; none in a config that compares nothing."""
    value, _ = resolved(gin_tables.bindings().get(("", COMPARE), {}).get("members", ()))
    return [name for name in value if isinstance(name, str)] if isinstance(value, (list, tuple)) else []


def take_member_files(folders: Sequence[str]) -> None:
    """A member that is a gin file, `configs/optimizers/lora.gin`, becomes the scope `lora` with the file's bindings.

    What the config itself binds in that scope wins over the file.
    folders: where files are looked for.
    Raises `UserError` for a file that is not there, and for one whose name is no scope, or another member's.
    """
    names = member_names()
    for name in [each for each in names if each.endswith(".gin")]:
        (path,) = find_files([name], folders, "compare.members: ")
        scope = Path(name).stem
        if not re.fullmatch(r"[A-Za-z_]\w*", scope) or scope in names:
            why = "two members would be called so" if scope in names else "it must be letters, digits and _"
            raise UserError(f"compare.members: {name} cannot be the member {scope!r}: {why}. Rename the file.")
        before = [
            (f"{scope}/{within}".strip("/"), selector, parameter, value)
            for (within, selector), bindings in _own(scope).items()
            for parameter, value in bindings.items()
        ]
        gin.parse_config(text_in_scope(path, scope, folders))
        for own_scope, selector, parameter, value in before:
            gin.bind_parameter((own_scope, selector, parameter), value)
        names[names.index(name)] = scope
        gin.bind_parameter("compare.members", names)


def without_member(scope: str, names: Sequence[str]) -> tuple[str, str]:
    """(member, scope within it) of a scope, which a macro's name is one of; ("", scope) where no member has it."""
    first, slash, rest = scope.partition("/")
    return (first, rest) if first in names else ("", scope)


def bindings_in(member: str) -> dict[str, str]:
    """{`SGD.momentum`: `0.9`}: what the config sets for one member, as gin writes it."""
    found: dict[str, str] = {}
    for (scope, selector), bindings in _own(member).items():
        found |= {shown(scope, selector, parameter): repr(value) for parameter, value in bindings.items()}
    return dict(sorted(found.items(), key=lambda item: (item[0].split(".")[0] not in ("train", *DECLARED), item[0])))


def scopes_with_bindings() -> list[str]:
    """The first words of all scopes in which the config sets something, macros' names left out."""
    return sorted({_first_scope(*key) for key in gin_tables.bindings()} - {""})


def scopes_in_use(names: Sequence[str]) -> set[str]:
    """First words of the scopes that something outside of these members' own bindings refers to."""
    shared = [
        bindings for (scope, selector), bindings in gin_tables.bindings().items() if not _is_own(scope, selector, names)
    ]
    return {
        reference.config_key[0].partition("/")[0] for reference in references(shared) if not is_macro(reference)
    } - {""}


def changes_of(member: str, parameters: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """{a binding of the member: which of these parameters it changes}, as far as the config tells.

    parameters: selector -> names. Counted as changed is one that is bound, and one whose value leads, over references
      and macros, to a configurable or a macro that is bound; past none of these selectors, whose other parameters may
      be changed.
    """
    config = member_config(member)
    changed: dict[str, str] = {}
    for owner, names in parameters.items():
        for name in names:
            values = [bindings[name] for (_, each), bindings in config.items() if each == owner and name in bindings]
            macros, selectors = _reached(values, config, set(parameters))
            for (scope, selector), bindings in _own(member).items():
                for bound in bindings:
                    is_led_to = scope in macros if selector == MACRO else selector in selectors
                    if is_led_to or (selector == owner and bound == name):
                        changed.setdefault(shown(scope, selector, bound), f"{gin_tables.short(owner)}.{name}")
    return changed


def text_of(member: str, seed: int, with_source_data: bool = False) -> str:
    """The config of one member's run with one seed, as gin text: an ordinary one, in which nothing is compared.

    seed: what `train.seed` is, or the macro that it stands for.
    with_source_data: leaves `compare.source_data` in, and what it refers to.
    """
    config = member_config(member)
    compared = config.pop(("", COMPARE), {})
    if with_source_data and "source_data" in compared:
        config["", COMPARE] = {"source_data": compared["source_data"]}
    _set_seed(config, seed)
    used = _scopes_led_to(config) if not gin_tables.imported_modules() else None
    lines = [line for line in gin.config_str().splitlines() if line.startswith(("import ", "from "))]
    for (scope, selector), bindings in config.items():
        # Of a scope that only the source data lead to nothing is left in a run without them.
        if used is None or _first_scope(scope, selector) in used or (scope, selector) in _own(member):
            lines += [f"{shown(scope, selector, name)} = {value!r}" for name, value in bindings.items()]
    return "\n".join(lines) + "\n"


def member_config(member: str) -> dict[tuple[str, str], dict]:
    names = member_names()
    config = {
        (scope, selector): dict(bindings)
        for (scope, selector), bindings in gin_tables.bindings().items()
        if not _is_own(scope, selector, names)
    }
    for key, bindings in _own(member).items():
        config.setdefault(key, {}).update(bindings)
    if gin_tables.imported_modules():  # a module of the user's may open a scope in Python, unseen here
        return config
    # What is left of one that is no member any more would make the run another one.
    used = _scopes_led_to(config)
    return {key: bindings for key, bindings in config.items() if _first_scope(*key) in used or key in _own(member)}


def _scopes_led_to(config: Mapping) -> set[str]:
    """First words of the scopes, "" among them, that references lead to from what stands in none."""
    used: set[str] = set()
    found = {""}
    while not found <= used:
        used |= found
        held = [bindings for key, bindings in config.items() if _first_scope(*key) in used]
        found = {reference.config_key[0].partition("/")[0] for reference in references(held)}
    return used


def _first_scope(scope: str, selector: str) -> str:
    """Empty for a macro without one, whose name stands where other bindings have their scope."""
    return scope.partition("/")[0] if selector != MACRO or "/" in scope else ""


def _own(member: str) -> dict[tuple[str, str], dict]:
    """The bindings of one member, under (scope within it, selector)."""
    return {
        (scope.partition("/")[2], selector): bindings
        for (scope, selector), bindings in gin_tables.bindings().items()
        if _is_own(scope, selector, [member])
    }


def _is_own(scope: str, selector: str, names: Sequence[str]) -> bool:
    return _first_scope(scope, selector) in names


def _reached(values, config: Mapping, ends: Collection[str]) -> tuple[set[str], set[str]]:
    """Names of the macros, and selectors, that values lead to, without `ends`; of a configurable in whatever scope."""
    macros: set[str] = set()
    selectors: set[str] = set()
    waiting = list(references(values))
    while waiting:
        reference = waiting.pop()
        scope, selector = reference.config_key
        seen, key = (macros, scope) if is_macro(reference) else (selectors, selector)
        if key in seen or key in ends:
            continue
        seen.add(key)
        for (other_scope, other), bindings in config.items():
            if other == selector and (not is_macro(reference) or other_scope == scope):
                waiting += references(bindings)
    return macros, selectors


def _set_seed(config: dict, seed: int) -> None:
    key, name = ("", TRAIN), "seed"
    value = config.get(key, {}).get(name)
    while is_reference(value) and is_macro(value) and value.config_key in config:
        key, name = value.config_key, "value"
        value = config[key][name]
    config.setdefault(key, {})[name] = seed
