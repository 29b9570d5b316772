"""Turns the groups of a Keras `.weights.h5` file into the tree of objects that was saved, by names, shapes and config.

Names and shapes tell weights, optimizers, metrics, counters and seeds apart. Nothing of a config is built.
"""

import json
import re
from collections import Counter

from trainer.restore.errors import RestoreError
from trainer.restore.matching.model_tree import snake_case
from trainer.restore.matching.names import join, normalize, normalize_siblings, readable_name
from trainer.restore.readers.hdf5 import UNREADABLE, Group
from trainer.restore.source import Entry, Node

_METRICS = ("compile_metrics", "loss_tracker", "metrics")
_OPTIMIZERS = (
    "adadelta", "adafactor", "adagrad", "adam", "adam_w", "adamax", "ftrl", "lamb", "lion", "loss_scale_optimizer",
    "muon", "nadam", "rmsprop", "schedule_free_adam_w", "sgd",
)  # fmt: skip
_SEED = re.compile(r"(.*_)?seed_generator(_\d+)?")
# The list of a model's layers: its name since Keras 2.14, and the one before.
LAYER_LISTS = ("layers", "_layer_checkpoint_dependencies")


class WeightsTree:
    """Builds `top`, and gives each entry its name and kind on the way. file: its name, for errors."""

    def __init__(self, group: Group, file: str):
        self._file = file
        self._named: list[Entry] = []
        self.top = self._object(group, "", "")
        counts = Counter(entry.name for entry in self._named)
        for entry in self._named:
            if counts[entry.name] > 1:
                entry.name = entry.key.strip("/").replace("/vars/", "/").removeprefix("vars/")

    def _object(self, group: Group, path: str, kind: str) -> Node:
        """A model or layer. kind: that of everything inside, "" where each variable says its own."""
        variables = group.groups.get("vars", Group(f"{group.path}/vars"))
        node = Node(is_optimizer=kind == "optimizer", keras_name=variables.keras_name)
        parts = {name: part for name, part in group.groups.items() if name != "vars"}
        if variables.groups:  # not the level that Keras puts in, but an attribute of that name
            parts["vars"] = Group(variables.path, groups=variables.groups)
        lists = [parts.pop(name) for name in LAYER_LISTS if name in parts and "vars" not in parts[name].groups]

        is_seed = is_seed_name(group.path.rpartition("/")[2]) or is_seed_name(variables.keras_name)
        numbered = {key: entry for key, entry in variables.entries.items() if key.isascii() and key.isdecimal()}
        keyed = {key: entry for key, entry in variables.entries.items() if key not in numbered} | group.entries
        names = normalize_siblings([*parts, *keyed])
        if kind != "optimizer":
            self._expect_none_left_out(numbered, group.path)
        for key, entry in numbered.items():
            node.own.append(self._variable(entry, join(path, key), kind, is_seed))
        for name, part in parts.items():
            node.children[names[name]] = self._part(name, part, join(path, names[name]), kind)
        for key, entry in keyed.items():
            variable = self._variable(entry, join(path, names[key]), kind, is_seed)
            # A layer may hold a part and a variable of one name.
            node.children.setdefault(names[key], variable).entry = entry
        for layers in lists:
            self._fill_by_class(node, layers, path, kind)
        return node

    def _part(self, name: str, group: Group, path: str, kind: str) -> Node:
        """The object that an attribute holds. Keras gives every object its `vars`, and lists, dicts and tuples none."""
        kind = kind or kind_of_part(name, group)
        if kind or "vars" in group.groups or group.entries:
            return self._object(group, path, kind)
        container = Node()
        self._fill_by_class(container, group, path, kind)
        return container

    def _fill_by_class(self, node: Node, group: Group, path: str, kind: str) -> None:
        """Puts the items of a list under their classes, and under their own names where those are known."""
        times = Counter(_keras_name(item) for item in group.groups.values())
        taken = set(node.children)
        for name, item in group.groups.items():
            keras_name = _keras_name(item)
            is_known = keras_name != "" and times[keras_name] == 1 and keras_name not in taken
            place = join(path, keras_name if is_known else name)
            if "vars" in item.groups or item.entries:
                below = self._object(item, place, kind or ("optimizer" if is_optimizer(name, item) else ""))
            else:
                below = Node()
                self._fill_by_class(below, item, place, kind)
            # A file may hold both spellings of `layers`.
            node.by_class[name if name not in node.by_class else item.path.strip("/")] = below
            if is_known:
                node.children[keras_name] = below
        for key, entry in group.entries.items():
            variable = self._variable(entry, join(path, key), kind, False)
            node.children.setdefault(normalize(key), variable).entry = entry

    def _variable(self, entry: Entry, name: str, kind: str, is_seed: bool) -> Node:
        entry.kind = variable_kind(entry, is_seed) if kind == "" else kind
        entry.name = name
        self._named.append(entry)
        return Node(entry=entry)

    def _expect_none_left_out(self, numbered: dict[str, Entry], path: str) -> None:
        if [*numbered] != [str(index) for index in range(len(numbered))]:
            raise RestoreError(
                f"{self._file}: the variables of {path or '/'} are numbered {', '.join([*numbered][:20])}, so some are "
                f"not in the file. Copy the checkpoint again, or take another one."
            )


def _keras_name(group: Group) -> str:
    return group.groups["vars"].keras_name if "vars" in group.groups else ""


def variable_kind(entry: Entry, is_seed: bool = False) -> str:
    """The kind of a variable that belongs to a layer."""
    if entry.dtype == UNREADABLE or (is_seed and entry.dtype.is_integer):
        return "other"
    return "counter" if entry.dtype.is_integer and not entry.shape else "weight"


def is_seed_name(name: str) -> bool:
    return bool(_SEED.fullmatch(name))


def kind_of_part(attribute: str, group: Group) -> str:
    """The kind of all that an attribute of a model holds, "" where each variable in it says its own."""
    if is_optimizer(attribute, group):
        return "optimizer"
    name = normalize(attribute)
    # Metrics that a model keeps under names of its own, such as `total_loss_tracker`.
    is_metric = name.endswith(("_metric", "_tracker")) and _are_scalars(group)
    return "other" if name in _METRICS or is_metric else ""


def is_optimizer(name: str, group: Group) -> bool:
    """An optimizer's first variable is a scalar, its step; a layer of such a name has a kernel there.

    name: of the attribute, or of the class in a list.
    """
    variables = group.groups.get("vars", Group(""))
    first = variables.entries.get("0")
    by_name = normalize(name) == "optimizer" or name.endswith("_optimizer")
    if first is None:
        return by_name and any(is_optimizer(inner, part) for inner, part in group.groups.items() if inner != "vars")
    if by_name:
        return not first.shape
    by_class = variables.keras_name in _OPTIMIZERS or re.sub(r"_\d+$", "", name) in _OPTIMIZERS
    return by_class and not first.shape and first.dtype.is_integer


def _are_scalars(group: Group) -> bool:
    entries = group.groups["vars"].entries.values() if "vars" in group.groups else ()
    return not set(group.groups) - {"vars"} and all(not entry.shape for entry in entries)


def name_groups(group: Group, description: object) -> None:
    """Sets `keras_name` on the `vars` groups of a model's layers, where the file has none, as Keras 3 writes it.

    description: the model's part of `config.json`, `{"class_name": ..., "config": {"layers": [...]}}`. Both sides list
      the layers in one order, so that the second Dense of the config is `dense_1` in the weights.
    """
    lists = [group.groups[name] for name in LAYER_LISTS if name in group.groups]
    times: Counter[str] = Counter()
    for layer in _layers(description):
        class_name = snake_case(str(layer.get("class_name")).rpartition(">")[2])
        key = f"{class_name}_{times[class_name]}" if times[class_name] else class_name
        times[class_name] += 1
        for found in (part.groups[key] for part in lists if key in part.groups):
            config = layer.get("config")
            name = config.get("name") if isinstance(config, dict) else None
            if isinstance(name, str) and "vars" in found.groups:
                found.groups["vars"].keras_name = found.groups["vars"].keras_name or readable_name(name)
            name_groups(found, layer)


def _layers(description: object) -> list[dict]:
    config = description.get("config") if isinstance(description, dict) else None
    layers = config.get("layers") if isinstance(config, dict) else None
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


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
