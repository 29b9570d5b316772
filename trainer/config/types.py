"""Whether a value is what an annotation asks for, and what that is in words."""

import collections.abc
import numbers
import types
import typing
from typing import Any

from trainer.config.references import is_reference

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text in quotes",
    type(None): "None",
}


def fits(value, hint) -> bool:
    """Whether a value may stand where `hint` is the annotation; what a reference gives is tested where it is used."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (is_reference(value) and value.evaluate):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in arguments)
    if origin is tuple:
        pair = isinstance(value, (tuple, list)) and len(value) == len(arguments)
        return pair and all(fits(part, choice) for part, choice in zip(value, arguments, strict=True))
    if origin in (list, collections.abc.Sequence):
        return isinstance(value, (tuple, list)) and all(
            is_reference(part) or fits(part, arguments[0]) for part in value
        )
    if hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def admits_builder(hint) -> bool:
    """Whether the annotation is of something that is called later, `@SGD` instead of `@SGD()`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(admits_builder(choice) for choice in typing.get_args(hint))
    return hint is Any or collections.abc.Callable in (hint, typing.get_origin(hint))


def in_words(hint) -> str:
    """The annotation in words: `a whole number`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(in_words(choice) for choice in arguments if choice is not type(None)))
    if origin in (list, collections.abc.Sequence):
        return f"a list of {in_words(arguments[0]).removeprefix('a ')}"
    if origin is tuple:
        return f"({', '.join(in_words(choice) for choice in arguments)})"
    if admits_builder(hint):
        return "a reference such as @name"
    if hint is collections.abc.Mapping or origin is collections.abc.Mapping:
        return "a dict {'name': value}"
    if hasattr(hint, "made_by"):
        return f"@{hint.made_by}()"
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"
