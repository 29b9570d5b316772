"""Turns the groups of a Keras `.weights.h5` file into the tree of objects that was saved."""

from collections import Counter

from trainer.restore.errors import RestoreError
from trainer.restore.matching.names import join, normalize, normalize_siblings
from trainer.restore.readers.config_names import LAYER_LISTS
from trainer.restore.readers.hdf5 import Group
from trainer.restore.readers.keras_kinds import is_optimizer, is_seed_name, kind_of_part, variable_kind
from trainer.restore.source import Entry, Node


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
        """What an attribute holds. Keras gives every object its `vars`, and lists, dicts and tuples none."""
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
