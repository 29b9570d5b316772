"""Chooses the reader for a checkpoint by what stands at its path."""

from collections.abc import Callable

import tensorflow as tf

from trainer.restore.readers.keras_archive import KerasArchiveSource
from trainer.restore.readers.keras_hdf5 import open_hdf5
from trainer.restore.readers.keras_weights import KerasWeightsSource
from trainer.restore.readers.npz import NpzSource
from trainer.restore.readers.safetensors_files import SafetensorsSource
from trainer.restore.readers.tensorflow_checkpoint import TensorFlowSource
from trainer.restore.source import CheckpointSource

# By the ends that `find.WEIGHT_FILES` lists, in any case; whatever ends otherwise is a TensorFlow prefix.
_READERS: list[tuple[str, Callable[[str], CheckpointSource]]] = [
    (".weights.json", KerasWeightsSource),
    (".weights.h5", open_hdf5),
    (".keras", KerasArchiveSource),
    (".h5", open_hdf5),
    (".hdf5", open_hdf5),
    (".safetensors", SafetensorsSource),
    (".safetensors.index.json", SafetensorsSource),
    (".npz", NpzSource),
]


def open_checkpoint(path: str) -> CheckpointSource:
    """Opens what `find_checkpoint` gave; raises `RestoreError` if it is damaged."""
    if tf.io.gfile.exists(path + ".index"):  # `find_checkpoint` takes it for a prefix, too, whatever its end
        return TensorFlowSource(path)
    reader = next((reader for end, reader in _READERS if path.lower().endswith(end)), TensorFlowSource)
    return reader(path)
