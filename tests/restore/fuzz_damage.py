"""Ways to damage a checkpoint, also behind right checksums."""

import json
import os
import random
import shutil
import struct
import zipfile
from pathlib import Path

import h5py

NUMBERS = [-1, -(2**63), 2**63 - 1, 2**62, 2**31, 0, 1, 3]
NAMES = ["a", "a/kernel/x", "\x1b[31mred", "two\nlines", "\u202e", "/" * 3000, "x" * 70_000, "a//b", "..", "é漢", ""]


class Case:
    """A copy of a checkpoint that is to be damaged. files: all of it, by name.  other: another model's."""

    def __init__(self, folder: Path, other: Path, dice: random.Random):
        self.folder, self.other, self.dice = folder, other, dice
        self.files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def file(self, *ends: str) -> Path:
        return self.dice.choice([path for name, path in self.files.items() if name.endswith(ends or ("",))])

    @property
    def prefix(self) -> str:
        return str(next(path for path in self.files.values() if path.suffix == ".index")).removesuffix(".index")


# --- damage to any file


def become_something_else(case: Case) -> str:
    path = case.file()
    path.unlink()
    kind = case.dice.choice(["pipe", "folder", "nothing", "circle", "device"])
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "nothing": lambda: None,
        "circle": lambda: path.symlink_to(path.name),
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    return f"{path.name} becomes a {kind}"


def flip(path: Path, places: list[int], dice: random.Random) -> str:
    content = bytearray(path.read_bytes())
    chosen = dice.sample(places, min(len(places), dice.choice([1, 1, 2, 20])))
    for place in chosen:
        content[place] ^= dice.randrange(1, 256)
    path.write_bytes(content)
    return f"{path.name}: flips at {chosen[:3]}"


def flip_anywhere(case: Case) -> str:
    path = case.file()
    return flip(path, list(range(path.stat().st_size)), case.dice)


def cut(case: Case) -> str:
    path = case.file()
    kept = case.dice.randrange(path.stat().st_size)
    os.truncate(path, kept)
    return f"{path.name}: cut to {kept}"


def swap(case: Case) -> str:
    name = case.dice.choice(list(case.files))
    if not (case.other / name).is_file():
        return "nothing to swap"
    shutil.copy(case.other / name, case.files[name])
    return f"{name} is of another model"


# --- JSON, in files and before the tensors of .safetensors


def change_json(value, dice: random.Random):
    """Changes one thing somewhere in a JSON object."""
    while isinstance(value, dict | list) and value:
        places = list(value) if isinstance(value, dict) else range(len(value))
        place = dice.choice(list(places))
        if isinstance(value[place], dict | list) and value[place] and dice.random() < 0.8:
            value = value[place]
            continue
        if isinstance(value, dict) and dice.random() < 0.4:
            value[dice.choice(NAMES)] = value.pop(place)
        else:
            value[place] = dice.choice([*NUMBERS, *NAMES, None, [], {}, 1.5, "../x", [[]] * 3, "F64"])
        return


def change_json_file(case: Case) -> str:
    path = case.file(".json")
    content = json.loads(path.read_text())
    change_json(content, case.dice)
    path.write_text(json.dumps(content))
    return f"{path.name}: JSON changed"


def change_safetensors(case: Case) -> str:
    path = case.file(".safetensors")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if case.dice.random() < 0.4:
        return flip(path, list(range(8 + length)), case.dice)
    header = json.loads(content[8 : 8 + length])
    change_json(header, case.dice)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return f"{path.name}: header changed"


# --- zip archives


def change_a_member(case: Case) -> str:
    path, dice = case.file(".npz", ".keras"), case.dice
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = dice.choice(list(members))
    content = members.pop(name)
    what = "called otherwise"
    if name.endswith(".json"):
        value = json.loads(content)
        change_json(value, dice)
        content, what = json.dumps(value).encode(), "JSON changed"
    elif name.endswith(".h5"):
        inner = case.folder / "inner.h5"
        inner.write_bytes(content)
        what = change_hdf5_file(inner, dice)
        content = inner.read_bytes()
        inner.unlink()
    elif dice.random() < 0.6:
        text = content[10:128].decode("latin-1")
        old, new = dice.choice(
            [("<f4", "|O"), ("<f4", "<i4"), ("<f4", "<f8"), (", ", ",9"), ("(", "(-"), ("shape", "shade")]
        )
        content, what = (
            content[:10] + text.replace(old, new)[:118].ljust(118).encode("latin-1") + content[128:],
            f"{old} {new}",
        )
    else:
        name = dice.choice(NAMES)[:60_000] + ".npy"
    with zipfile.ZipFile(path, "w") as archive:
        for other, kept in {**members, name: content}.items():
            archive.writestr(other, kept)
    return f"{path.name}: {name!r}: {what}"


# --- HDF5


def change_hdf5(case: Case) -> str:
    path = case.file(".h5")
    if case.dice.random() < 0.5:
        return change_hdf5_file(path, case.dice)
    data = set()
    with h5py.File(path) as file:
        for _, dataset in _datasets(file):
            start = dataset.id.get_offset()
            data |= set(range(start, start + dataset.id.get_storage_size())) if start is not None else set()
    return flip(path, [place for place in range(path.stat().st_size) if place not in data], case.dice)


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    found: list[tuple[str, h5py.Dataset]] = []
    file.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    return found


def change_hdf5_file(path: Path, dice: random.Random) -> str:
    what = dice.choice(["gone", "shape", "dtype", "moved", "link", "outside", "attribute", "circle", "deep"])
    with h5py.File(path, "r+") as file:
        name, dataset = dice.choice(_datasets(file))
        groups = [file, *(item for item in (file[name] for name in _group_names(file)))]
        group = dice.choice(groups)
        if what in ("gone", "shape", "dtype", "outside", "link"):
            shape = dataset.shape
            del file[name]
            if what == "shape":
                file.create_dataset(name, (*shape[::-1], 2)[dice.randrange(2) :])
            elif what == "dtype":
                file.create_dataset(name, shape, dice.choice(["i4", "f8", "S3", "c8", h5py.string_dtype()]))
            elif what != "gone":
                file[name] = h5py.ExternalLink("/etc/passwd", "/x") if what == "outside" else h5py.SoftLink("/")
        elif what == "moved":
            file.move(name, dice.choice([f"{name}_moved", "elsewhere/0", "a\x1bb"]))
        elif what == "attribute":
            holder = dice.choice([*groups, dataset])
            named = [*holder.attrs, "name", "layer_names", "weight_names"]
            value = dice.choice(
                [dice.choice([name for name in NAMES if len(name) < 60_000]), [b"a", b"\xff"], 7, h5py.Empty("f4")]
            )
            holder.attrs[dice.choice(named)] = value
        elif what == "circle":
            group["round"] = file["/"]
        else:
            group.create_dataset("/".join(["deep"] * dice.choice([90, 400])) + "/vars/0", (2,))
    return f"{path.name}: {name}: {what}"


def _group_names(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Group) else None)
    return found
