"""`trainer.train` for tests: fields of the settings classes as plain arguments, which tests mix and vary freely."""

import dataclasses

import trainer
from trainer.config.settings import DECLARED

_CLASSES = {entry.parameter: entry.cls for entry in DECLARED.values()}
_OWNERS = {field.name: name for name, cls in _CLASSES.items() for field in dataclasses.fields(cls)}
assert len(_OWNERS) == sum(len(dataclasses.fields(cls)) for cls in _CLASSES.values()), "a field's name tells its class"


def train_with(**options) -> trainer.TrainResult:
    """From random weights where no `checkpoint` is among the options."""
    fields: dict[str, dict] = {name: {} for name in _CLASSES}
    arguments = {}
    if options.get("checkpoint", "") is None:
        del options["checkpoint"]
    for name, value in options.items():
        (fields[_OWNERS[name]] if name in _OWNERS else arguments)[name] = value
    restore = fields.pop("restore")
    assert not restore or "checkpoint" in restore, "rules, and no checkpoint"
    arguments.setdefault("restore", trainer.Restore(**restore) if restore else None)
    built = {name: _CLASSES[name](**given) for name, given in fields.items() if given}
    return trainer.train(**arguments, **built)
