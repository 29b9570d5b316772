"""Chooses the reader for a checkpoint by what stands at its path."""

import importlib

import tensorflow as tf

from trainer.restore.source import CheckpointSource

# By the ends that `find.WEIGHT_FILES` lists, in any case; whatever ends otherwise is a TensorFlow prefix. By name,
# and imported when a file needs it: the libraries behind them take longer to import than a small model to train.
_READERS = [
    (".weights.json", "keras_archive.open_weights"),
    (".weights.h5", "keras_hdf5.open_hdf5"),
    (".keras", "keras_archive.KerasArchiveSource"),
    (".h5", "keras_hdf5.open_hdf5"),
    (".hdf5", "keras_hdf5.open_hdf5"),
    (".safetensors", "safetensors_files.SafetensorsSource"),
    (".safetensors.index.json", "safetensors_files.SafetensorsSource"),
    (".npz", "npz.NpzSource"),
]
_PREFIX_READER = "tensorflow_checkpoint.TensorFlowSource"


def open_checkpoint(path: str) -> CheckpointSource:
    """Opens what `find_checkpoint` gave; raises `RestoreError` if it is damaged."""
    reader = next((reader for end, reader in _READERS if path.lower().endswith(end)), _PREFIX_READER)
    if tf.io.gfile.exists(path + ".index"):  # `find_checkpoint` takes it for a prefix, too, whatever its end
        reader = _PREFIX_READER
    module, _, name = reader.partition(".")
    return getattr(importlib.import_module(f"trainer.restore.readers.{module}"), name)(path)
