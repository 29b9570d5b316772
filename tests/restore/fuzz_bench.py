"""Every format with its ways to be damaged, and a bench that restores damaged copies."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy
import tensorflow as tf
from fuzz_bundle_damage import change_a_row, change_the_graph, change_the_header, change_the_rows, change_the_table
from fuzz_damage import (
    Case,
    become_something_else,
    change_a_member,
    change_hdf5,
    change_json_file,
    change_safetensors,
    cut,
    flip_anywhere,
    swap,
)
from fuzz_writers import (
    Odd,
    named,
    write_checkpoint,
    write_keras_folder,
    write_named,
    write_sharded_npz,
    write_sharded_safetensors,
    write_slices,
)
from zoo import built, values

import trainer
from trainer.restore import describe_source, find_checkpoint, open_checkpoint

_ANY = [become_something_else, cut]
_TABLE = [change_a_row, change_a_row, change_a_row, change_the_rows, change_the_table, flip_anywhere, swap]
# How it is written, and how it is damaged. Bytes that no checksum guards stay as they are: nothing could tell.
FORMATS: dict[str, tuple[Callable, list[Callable[[Case], str]]]] = {
    "checkpoint": (write_checkpoint, [*_ANY, *_TABLE, change_the_header, change_the_graph, change_the_graph]),
    "names": (write_named, [*_ANY, *_TABLE]),
    "slices": (write_slices, [*_ANY, *_TABLE]),
    "saved model": (lambda m, path: tf.saved_model.save(m, path), [*_ANY, *_TABLE, change_the_graph]),
    "weights.h5": (lambda m, path: m.save_weights(path / "m.weights.h5"), [*_ANY, change_hdf5]),
    "weights.json": (
        lambda m, path: m.save_weights(path / "m.weights.json", max_shard_size=2e-7),
        [*_ANY, change_hdf5, change_json_file],
    ),
    "keras": (lambda m, path: m.save(path / "m.keras"), [*_ANY, flip_anywhere, change_a_member, change_a_member]),
    "keras folder": (write_keras_folder, [*_ANY, change_hdf5, change_json_file]),
    "h5": (lambda m, path: m.save(path / "m.h5"), [*_ANY, change_hdf5]),
    "safetensors": (
        lambda m, path: safetensors.numpy.save_file(named(m), path / "m.safetensors"),
        [*_ANY, change_safetensors],
    ),
    "safetensors in parts": (write_sharded_safetensors, [*_ANY, change_safetensors, change_json_file]),
    "npz": (lambda m, path: np.savez(path / "m.npz", **named(m)), [*_ANY, flip_anywhere, change_a_member]),
    "npz in parts": (write_sharded_npz, [*_ANY, flip_anywhere, change_a_member]),
}  # fmt: skip


class Bench:
    """Writes the checkpoints once, and restores damaged copies of them into one model."""

    def __init__(self, folder: Path):
        self.folder = folder
        source, other = built(Odd()), built(Odd(num_classes=4), seed=3)
        for name, (write, _) in FORMATS.items():
            for model, place in ((source, folder / name), (other, folder / "other" / name)):
                place.mkdir(parents=True)
                write(model, place)
        self._model = built(Odd(), seed=2)
        self._fresh = [weight.numpy() for weight in self._model.weights]
        self._before, self._written = values(self._model), values(source)

    def damaged(self, name: str, dice: random.Random) -> tuple[Path, str]:
        """(a copy that is damaged, how)."""
        victim = self.copied(name, self.folder / "victim")
        return victim, dice.choice(FORMATS[name][1])(Case(victim, self.folder / "other" / name, dice))

    def copied(self, name: str, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(self.folder / name, folder))

    def end_of(self, victim: Path) -> tuple[str, str]:
        """How the restore of a damaged copy ends, and what was said."""
        try:
            report = trainer.restore_weights(self._model, victim)
            said = f"{report}\n{describe_source(open_checkpoint(find_checkpoint(victim)))}\n{report.to_json()}"
            end = "whole" if values(self._model) == self._written else "silent"
            if set(values(self._model)) & set(self._before):
                end = "partial"
        except trainer.RestoreError as error:
            said = str(error)
            end = "refused" if values(self._model) == self._before else "partial"
        except Exception as error:  # noqa: BLE001  it is what is looked for
            said, end = repr(error), "crash"
        if not all(letter.isprintable() or letter == "\n" for letter in said):
            end = "raw"
        for weight, value in zip(self._model.weights, self._fresh, strict=True):
            weight.assign(value)
        return end, said
