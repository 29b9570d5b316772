"""Says in words what Keras' JSON tells of an optimizer and a version; nothing is built from it."""

import json

from trainer.restore.errors import RestoreError


def parsed(text: str | bytes, where: str) -> dict:
    """A JSON object as a dict; raises `RestoreError` for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RestoreError(f"{where} is damaged: it is no JSON ({str(error).splitlines()[0][:100]}).") from error
    if not isinstance(value, dict):
        raise RestoreError(f"{where} is damaged: it holds no JSON object.")
    return value


def optimizer_words(description: object) -> str:
    """`AdamW (learning_rate 0.001, beta_1 0.9)` from `{"class_name": "AdamW", "config": {...}}`, or ""."""
    if isinstance(description, str):
        return plain(description)
    if not isinstance(description, dict) or not isinstance(description.get("class_name"), str):
        return ""
    config = description.get("config")
    settings = [_setting(key, value) for key, value in config.items()] if isinstance(config, dict) else []
    words = ", ".join(word for word in settings if word)
    # `Custom>Adam`: the package before it is Keras' own note of where to find the class.
    class_name = description["class_name"].rpartition(">")[2]
    return plain(class_name + (f" ({words})" if words else ""))


def plain(text: str, longest: int = 300) -> str:
    """Text of a stranger, fit for a terminal."""
    return "".join(letter for letter in text if letter.isprintable())[:longest]


def _setting(key: str, value: object) -> str:
    if key == "name" or value is None or value is False:
        return ""
    if isinstance(value, float):
        return f"{key} {value:g}"
    if isinstance(value, bool | int | str):
        return f"{key} {value}"
    # A schedule, or an optimizer inside of this one.
    return f"{key} {value['class_name']}" if isinstance(value, dict) and "class_name" in value else ""
