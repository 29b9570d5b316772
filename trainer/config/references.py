"""Finds the references in a value of the config, and the macros that they may hide behind."""

from typing import Any

import gin

from trainer.config import gin_tables
from trainer.config.gin_tables import is_reference


def resolved(value) -> tuple[Any, str]:
    """The value behind macros, and the first macro's name."""
    seen: list[str] = []
    while is_reference(value) and is_macro(value) and value.config_key[0] not in seen:
        seen.append(value.config_key[0])
        value = gin_tables.bindings().get(value.config_key, {}).get("value", gin.REQUIRED)
    return value, seen[0] if seen else ""


def is_required(value) -> bool:
    """Whether it is `%gin.REQUIRED`, which stands for a value that is yet to be set."""
    return value is gin.REQUIRED or (is_reference(value) and value.config_key == ("gin.REQUIRED", "gin.constant"))


def is_macro(reference) -> bool:
    return reference.configurable.selector == gin_tables.MACRO
