"""Checkpoints on another file system; TensorFlow's `ram://` stands in for `gs://`."""

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from zoo import FOUR, TwoDense, built, saved, used_adam, values

import trainer
from trainer.restore import weights_of


def moved(folder, name: str, place: str) -> str:
    """Copies a file, or all those that begin with its name, to `ram://`."""
    for path in folder.glob(f"{name}*"):
        tf.io.gfile.makedirs(f"ram://{place}")
        tf.io.gfile.copy(str(path), f"ram://{place}/{path.name}", overwrite=True)
    return f"ram://{place}/{name}"


def write(source, folder, name: str) -> None:
    named = {weight.name: weight.variable.numpy() for weight in weights_of(source)}
    if name == "ckpt-1":
        saved(folder, model=source, optimizer=used_adam(source))
    elif name.endswith(".safetensors"):
        safetensors.numpy.save_file(named, folder / name)
    elif name.endswith(".npz"):
        np.savez(folder / name, **named)
    elif name.endswith(".weights.h5"):
        source.save_weights(folder / name)
    else:
        source.save(folder / name)


NAMES = ["ckpt-1", "m.weights.h5", "m.keras", "m.h5", "m.safetensors", "m.npz"]


@pytest.mark.parametrize("name", NAMES)
def test_a_remote_checkpoint_is_restored(name, tmp_path):
    source = built(TwoDense())
    write(source, tmp_path, name)
    model = TwoDense()
    report = trainer.restore_weights(model, moved(tmp_path, name, f"there/{name}"), input_spec=FOUR)
    assert values(model) == values(source)
    assert report.optimizer_keys_read == 0


def test_a_remote_folder_is_looked_into(tmp_path):
    source = built(TwoDense())
    write(source, tmp_path, "ckpt-1")
    path = moved(tmp_path, "ckpt-1", "folder")
    model = TwoDense()
    trainer.restore_weights(model, "ram://folder", input_spec=FOUR)
    assert values(model) == values(source)
    with pytest.raises(trainer.RestoreError, match="There is no checkpoint at ram://folder/ckpt-2.*: ckpt-1"):
        trainer.restore_weights(model, path.replace("-1", "-2"))


def test_a_damaged_remote_checkpoint_changes_nothing(tmp_path):
    source = built(TwoDense())
    write(source, tmp_path, "ckpt-1")
    data = tmp_path / "ckpt-1.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    place = bytes(content).index(source.head.kernel.numpy().tobytes())
    content[place] ^= 1
    data.write_bytes(content)
    model = built(TwoDense(), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match="its checksum does not fit"):
        trainer.restore_weights(model, moved(tmp_path, "ckpt-1", "damaged"))
    assert values(model) == before


def test_a_name_that_no_file_system_has_is_refused():
    with pytest.raises(trainer.RestoreError, match="nowhere://bucket/ckpt"):
        trainer.restore_weights(built(TwoDense()), "nowhere://bucket/ckpt")
