"""Settings classes, and what each declares of itself: from this the rest of the program derives its lists of names."""

import ast
import dataclasses
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence

import gin
import numpy as np

from trainer.config.types import fits, in_words
from trainer.errors import UserError
from trainer.suggest import nearest

# Metadata of a field: that members of a comparison may differ in it, where they may not in the rest of its class; and
# that it says when, or what, is evaluated.
MAY_DIFFER, OF_EVALUATION = {"may_differ": True}, {"of_evaluation": True}


@dataclasses.dataclass(frozen=True)
class Declaration:
    """Declares what may be done with the fields of a settings class.

    parameter: of `train`, which takes an object of the class.
    may_change: whether a run that is resumed may have other values without --allow_config_change.
    may_differ: whether the members of a comparison may have different values.
    by_flag: whether only the command's flags set it, so that a binding is an error.
    """

    cls: type
    parameter: str
    may_change: bool = False
    may_differ: bool = False
    by_flag: bool = False

    @property
    def fields(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self.cls)]

    @property
    def fixed_fields(self) -> list[str]:
        """Those in which the members of a comparison may not differ."""
        if self.may_differ:
            return []
        return [field.name for field in dataclasses.fields(self.cls) if not field.metadata.get("may_differ")]


DECLARED: dict[str, Declaration] = {}  # by the class's name
FLAGS: dict[str, str] = {}  # `train.model_dir` -> the flag by which a command sets it; "" for one that has none
_CHANGING: dict[str, bool] = {}  # `train.num_steps` -> whether it is a setting of the evaluation


def settings(parameter: str, **declared: bool) -> Callable[[type], type]:
    """Makes a frozen dataclass bindable by gin under its own name; `declared` are fields of `Declaration`."""

    def register(cls):
        name, fields = cls.__name__, dataclasses.fields(cls)
        declaration = DECLARED[name] = Declaration(cls, parameter, **declared)
        if declaration.may_change:
            may_change("train", parameter, of_evaluation=any(field.metadata.get("of_evaluation") for field in fields))
            for field in fields:
                may_change(name, field.name, of_evaluation=field.metadata.get("of_evaluation", False))
        if declaration.by_flag:
            set_by_flag(name, **{field.name: field.metadata.get("flag", "") for field in fields})
        return gin.register(module="settings")(cls)

    return register


def may_change(configurable: str, *parameters: str, of_evaluation: bool = False) -> None:
    """Declares parameters that decide no weight: a resumed run may have others.

    of_evaluation: they say what is evaluated, or when, which does decide weights where a phase waits for a plateau.
    """
    _CHANGING.update({f"{configurable}.{parameter}": of_evaluation for parameter in parameters})


def set_by_flag(configurable: str, **flags: str) -> None:
    """Declares parameters that commands set, so that a binding of one is an error that names the flag."""
    FLAGS.update({f"{configurable}.{parameter}": flag for parameter, flag in flags.items()})


def decides_weights(name: str, texts: Sequence[Mapping[str, str]], evaluation_decides: bool = False) -> bool:
    """Whether a binding, by its name in a config's text, decides what weights a run ends with.

    texts: the configs that are compared, {name: binding}.  A macro decides what the bindings decide that use it. One
      that is the `num_steps` of `train` may be used by schedules as well (`decay_steps = %NUM_STEPS`): they follow it
      when a run is longer.
    An import line decides: another module may register another model under the same name.
    """
    return _decides(name, texts, evaluation_decides, ())


def is_default(name: str, text: str) -> bool:
    """Whether a binding, `Finetune.trained = 'all'`, says what the field is without it."""
    cls, _, field_name = name.partition(".")
    if cls not in DECLARED or field_name not in DECLARED[cls].fields:
        return False
    (field,) = (each for each in dataclasses.fields(DECLARED[cls].cls) if each.name == field_name)
    try:
        return ast.literal_eval(text.partition("=")[2].strip()) == field.default
    except (ValueError, SyntaxError):  # a reference or a macro
        return False


def _decides(name: str, texts, evaluation_decides: bool, seen: tuple[str, ...]) -> bool:
    scope, _, bound = name.rpartition("/")
    if name.startswith(("import ", "from ")):
        return True
    if "." in bound:
        if scope and scope.partition("/")[0] in _scopes_of_evaluation(texts):
            return evaluation_decides
        of_evaluation = _CHANGING.get(".".join(bound.split(".")[-2:]))
        return of_evaluation is None or (of_evaluation and evaluation_decides)
    users = {
        user
        for text in texts
        for user, binding in text.items()
        if user != name and user not in seen and name in _macros_in(binding)
    }
    if "train.num_steps" in users:
        users = {user for user in users if not _is_of_schedule(user)}
    return not users or any(_decides(user, texts, evaluation_decides, (*seen, name)) for user in users)


def _is_of_schedule(name: str) -> bool:
    """Whether it is a length of a schedule, such as `CosineDecay.decay_steps`."""
    owner, _, parameter = name.rpartition("/")[2].rpartition(".")
    return parameter.endswith("_steps") and owner not in DECLARED and owner != "train"


def _scopes_of_evaluation(texts: Sequence[Mapping[str, str]]) -> set[str]:
    """First words of the scopes that `train.eval_data` leads to, and that nothing else refers to."""
    bindings = [item for text in texts for item in text.items()]
    chain = {"train.eval_data"}  # and the macros behind it
    while True:
        macros = {macro for name, text in bindings if name in chain for macro in _macros_in(text)}
        shared = {macro for name, text in bindings if name not in chain for macro in _macros_in(text)}
        if macros - shared <= chain:
            break
        chain |= macros - shared
    scopes = {scope for name, text in bindings if name in chain for scope in re.findall(r"@(\w+)/", text)}
    others = [text for name, text in bindings if name not in chain and name.partition("/")[0] not in scopes]
    return scopes - {scope for text in others for scope in re.findall(r"@(\w+)/", text)}


def _macros_in(text: str) -> list[str]:
    return re.findall(r"%([\w./]+)", text)


class Checked:
    """A settings class that tests its values as soon as it is made; `check` is what a class adds to their types."""

    def __post_init__(self):
        for name, hint in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, np.generic):  # a number of NumPy's is the same setting as Python's
                value = value.item()
                object.__setattr__(self, name, value)
            if not fits(value, hint):
                raise UserError(f"{self._label(name)} must be {in_words(hint)}, not {value!r}.")
        self.check()

    def check(self) -> None:
        """Raises `UserError` for values that make no sense together."""

    def one_of(self, name: str, choices: Sequence[str]) -> None:
        value = getattr(self, name)
        if value not in choices:
            near = nearest(value, choices) if isinstance(value, str) else ""
            raise UserError(f"{self._label(name)} = {value!r} must be one of {', '.join(map(repr, choices))}.{near}")

    def at_least(self, least: float, *names: str, meaning: str = "") -> None:
        """meaning: of the least, for the message."""
        for name in names:
            value = getattr(self, name)
            if not least <= value <= sys.maxsize:
                raise UserError(f"{self._label(name)} = {value!r} must be {least}{meaning} or more, and finite.")

    def _label(self, name: str) -> str:
        return f"{type(self).__name__}.{name}"


def default_bindings() -> str:
    """gin text by which `train` takes every settings class with what the config binds to its fields."""
    taken = [entry for entry in DECLARED.values() if not entry.by_flag]
    return "".join(f"train.{entry.parameter} = @{entry.cls.__name__}()\n" for entry in taken)


def fields_by_name() -> dict[str, str]:
    """{`eval_every`: `Intervals.eval_every`}, of every field that a config may set."""
    return {field: f"{cls}.{field}" for cls, entry in DECLARED.items() if not entry.by_flag for field in entry.fields}
