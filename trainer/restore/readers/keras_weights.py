"""Reads `.weights.h5` files and their shards: a tree of numbered layers, without names of variables."""

import os
import re
from collections import Counter
from collections.abc import Callable

from trainer.output.printable import printable
from trainer.restore.errors import RestoreError
from trainer.restore.layer_state import OWN_DATASET, LayerState, states_from_json
from trainer.restore.names import join, normalize, normalize_siblings
from trainer.restore.readers.classify import is_optimizer, is_seed_name, kind_of_part, variable_kind
from trainer.restore.readers.hdf5 import Group, Hdf5File, Hdf5Source, natural_order, open_path, walk
from trainer.restore.readers.keras_config import LAYER_LISTS, parsed, plain
from trainer.restore.regular_files import read_whole
from trainer.restore.source import Entry, Node


def open_shards(index: str | bytes, name: str, open_file: Callable[[str], Hdf5File]) -> list[Hdf5File]:
    """The files that the index names, once each and in its order; each must hold what the index says.

    name: of the index, for errors.  open_file: opens a file that lies beside the index.
    """
    places = _places(index, name)
    files = {
        shard: open_file(shard) for shard in dict.fromkeys(shard for shards in places.values() for shard in shards)
    }
    held = {shard: {path for path, group in file.groups.items() if group.entries} for shard, file in files.items()}
    for group, shards in places.items():
        for shard in shards:
            if group not in held[shard]:
                raise RestoreError(
                    f"{name} says that variables of {printable(group)} are in {shard}, but that file holds none. "
                    "The files are not of one save; copy all of them again."
                )
    return list(files.values())


def merged(files: list[Hdf5File]) -> Group:
    """One tree from those of the files; the variables of a layer may lie in several."""
    if len(files) == 1:
        return files[0].top
    top = Group("")
    for file in files:
        _merge(top, file.top, file.name)
    for group in walk(top):
        group.groups = _sorted(group.groups)
        group.entries = _sorted(group.entries)
    return top


def _places(index: str | bytes, name: str) -> dict[str, list[str]]:
    weight_map = parsed(index, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RestoreError(f"{name} lists no files (`weight_map`); it is no index of Keras weights, or was damaged.")
    places = {group: [shards] if isinstance(shards, str) else shards for group, shards in weight_map.items()}
    for shards in places.values():
        if not isinstance(shards, list) or not shards:
            raise RestoreError(f"{name} is damaged: it names no files where it should.")
        for shard in shards:
            if (
                not isinstance(shard, str)
                or not shard.isprintable()
                or shard in ("", ".", "..")
                or set(shard) & set("/\\:")
            ):
                raise RestoreError(f"{name} is refused: it names {shard!r}, which is no file beside it.")
    return places


def _sorted(parts: dict) -> dict:
    return {name: parts[name] for name in sorted(parts, key=natural_order)}


def _merge(into: Group, group: Group, file: str) -> None:
    into.keras_name = into.keras_name or group.keras_name
    for name, entry in group.entries.items():
        if name in into.entries:
            raise RestoreError(f"{file}: {entry.key} is in another of the files too. They are not of one save.")
        into.entries[name] = entry
    for name, part in group.groups.items():
        _merge(into.groups.setdefault(name, Group(part.path)), part, file)


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


MAX_TEXT_BYTES = 256 << 20


class KerasWeightsSource(Hdf5Source):
    """Reads what `model.save_weights` wrote: no names of variables, only their order in each layer.

    file: the file at `path`, where it is open already.
    """

    format = "Keras weights (.weights.h5)"

    def __init__(self, path: str, file: Hdf5File | None = None):
        super().__init__(path)
        with self.opening():
            files = [file] if file else self._open()
            self._take(files)
            top = merged(files)
            self._name_layers(top)
            self._own_states = top.entries.pop(OWN_DATASET, None)
            # Shards are cut where they are full, so the layers' order is that of the whole.
            self.entries = list(dict.fromkeys(entry for group in walk(top) for entry in group.entries.values()))
            self.top = WeightsTree(top, self.path).top
            self.writer = plain(files[0].text("", "keras_version"))
        # A model may hold optimizers of its own beside the one that it was compiled with.
        optimizers = {name: node.keras_name for name, node in self.top.children.items() if node.is_optimizer}
        name = optimizers.get("optimizer") or next(iter(optimizers.values()), "")
        self.optimizer = re.sub(r"_\d+$", "", name)  # Keras numbers them by process

    def _name_layers(self, top: Group) -> None:
        """Sets names of layers that stand beside the weights; Keras 3 writes them into the file itself."""

    def layer_states(self) -> list[LayerState]:
        """Keras writes none into these files; our runs do."""
        if self._own_states is None:
            return []
        with self.opening():
            return states_from_json(self._load(self._own_states).tobytes())

    def _open(self) -> list[Hdf5File]:
        if not self.path.lower().endswith(".json"):
            return [open_path(self.path)]
        index = read_whole(self.path, MAX_TEXT_BYTES)
        folder = os.path.dirname(self.path)
        files = open_shards(index, self.path, lambda shard: open_path(os.path.join(folder, shard)))
        self.format = f"Keras weights (.weights.json, {len(files)} files)"
        return files
