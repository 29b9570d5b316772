"""Opens the weights that Keras spread over several `.weights.h5` files, by the `.weights.json` that lists them."""

from collections.abc import Callable

from trainer.output.printable import printable
from trainer.restore.errors import RestoreError
from trainer.restore.readers.hdf5 import Group, Hdf5File, natural_order, walk
from trainer.restore.readers.keras_config import parsed


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
