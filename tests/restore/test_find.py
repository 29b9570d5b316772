"""A path leads to the newest whole checkpoint, or to a message that says what is there."""

import os
import re
from pathlib import Path

import pytest
import tensorflow as tf
from zoo import TwoDense, built, saved, values

import trainer
from trainer.restore import find_checkpoint


def checkpoint(folder: Path, name: str) -> str:
    return tf.train.Checkpoint(step=tf.Variable(1)).write(str(folder / name))


@pytest.mark.parametrize("path", ["", None, 7, b""])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(trainer.RestoreError, match="init_checkpoint is .*name a checkpoint prefix or a folder"):
        trainer.restore_weights(built(TwoDense()), path)


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001"])
def test_a_prefix_and_each_of_its_files_lead_to_the_checkpoint(suffix, tmp_path):
    source, model = built(TwoDense()), built(TwoDense(), seed=2)
    trainer.restore_weights(model, Path(saved(tmp_path, model=source) + suffix))
    assert values(model) == values(source)


def test_a_folder_without_a_checkpoint_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(trainer.RestoreError, match=r"no checkpoint in the folder .*it holds: notes\.txt"):
        find_checkpoint(tmp_path)


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(trainer.RestoreError, match="it holds: nothing"):
        find_checkpoint(tmp_path)


def test_a_prefix_that_is_not_there_names_those_that_are(tmp_path):
    checkpoint(tmp_path, "ckpt-3")
    checkpoint(tmp_path, "ckpt-20")
    with pytest.raises(trainer.RestoreError, match=r"no checkpoint at .*ckpt-4\. .*: ckpt-3, ckpt-20\."):
        find_checkpoint(tmp_path / "ckpt-4")


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(trainer.RestoreError, match=f"the folder {re.escape(str(tmp_path / 'no'))} does not exist"):
        find_checkpoint(tmp_path / "no" / "ckpt-1")


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        trainer.RestoreError, match="not a TensorFlow checkpoint: .*Other files are known by their ends"
    ):
        find_checkpoint(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "name", ["m.weights.h5", "m.keras", "m.h5", "m.hdf5", "m.safetensors", "m.npz", "m.weights.json"]
)
def test_a_file_of_weights_is_found_by_its_name_and_by_its_folder(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").write_bytes(b"{}")
    assert find_checkpoint(tmp_path / name) == str(tmp_path / name)
    assert find_checkpoint(tmp_path) == str(tmp_path / name)


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("m.safetensors.index.json", "m-00001-of-00002.safetensors"),
        ("m.weights.json", "m_00000.weights.h5"),
        ("m-00000-of-00002.npz", "m-00000-of-00002.npz"),
    ],
)
def test_a_shard_leads_to_its_index(index, shard, tmp_path):
    for name in (index, shard, shard.replace("00000", "00001").replace("00001-", "00002-")):
        (tmp_path / name).write_bytes(b"")
    assert find_checkpoint(tmp_path / shard) == str(tmp_path / index)
    assert find_checkpoint(tmp_path) == str(tmp_path / index)


def test_of_several_files_of_weights_one_must_be_named(tmp_path):
    for name in ("tf_model.h5", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        trainer.RestoreError, match="several files of weights: model.safetensors, tf_model.h5. Name one"
    ):
        find_checkpoint(tmp_path)
    with pytest.raises(trainer.RestoreError, match="Whole checkpoints in .*: model.safetensors, tf_model.h5"):
        find_checkpoint(tmp_path / "model.h5")


def test_a_missing_shard_is_named(tmp_path):
    prefix = checkpoint(tmp_path, "ckpt-1")
    os.remove(prefix + ".data-00000-of-00001")
    with pytest.raises(trainer.RestoreError, match="not whole: ckpt-1.data-00000-of-00001 is missing"):
        find_checkpoint(prefix)


def test_one_missing_shard_of_several_is_named(tmp_path):
    prefix = checkpoint(tmp_path, "ckpt-1")
    os.rename(prefix + ".data-00000-of-00001", prefix + ".data-00000-of-00003")
    (tmp_path / "ckpt-1.data-00002-of-00003").write_bytes(b"")
    with pytest.raises(trainer.RestoreError, match="not whole: ckpt-1.data-00001-of-00003 is missing"):
        find_checkpoint(prefix)


def test_a_folder_gives_the_checkpoint_that_its_state_file_names(tmp_path):
    checkpoint(tmp_path, "ckpt-1")
    checkpoint(tmp_path, "ckpt-2")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"\n')
    assert find_checkpoint(tmp_path) == str(tmp_path / "ckpt-1")


def test_a_state_file_that_names_a_deleted_checkpoint_falls_back_to_the_newest_whole_one(tmp_path):
    for number in (9, 10):
        checkpoint(tmp_path, f"ckpt-{number}")
    checkpoint(tmp_path, "ckpt-11")
    os.remove(tmp_path / "ckpt-11.data-00000-of-00001")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-12"\n')
    assert find_checkpoint(tmp_path) == str(tmp_path / "ckpt-10")


@pytest.mark.parametrize("garbage", [b"\xff\xfe\x00\x80", b"what is this", b""])
def test_a_state_file_of_garbage_is_not_believed(garbage, tmp_path):
    checkpoint(tmp_path, "ckpt-1")
    (tmp_path / "checkpoint").write_bytes(garbage)
    assert find_checkpoint(tmp_path) == str(tmp_path / "ckpt-1")


def test_a_copied_folder_gives_its_own_checkpoint_and_not_the_one_it_was_copied_from(tmp_path):
    (tmp_path / "old").mkdir()
    checkpoint(tmp_path / "old", "ckpt-1")
    (tmp_path / "new").mkdir()
    checkpoint(tmp_path / "new", "ckpt-1")
    checkpoint(tmp_path / "new", "ckpt-2")
    (tmp_path / "new" / "checkpoint").write_text(f'model_checkpoint_path: "{tmp_path / "old" / "ckpt-1"}"\n')
    assert find_checkpoint(tmp_path / "new") == str(tmp_path / "new" / "ckpt-1")


def test_a_folder_with_brackets_in_its_name_is_read(tmp_path):
    folder = tmp_path / "run[1]*"
    folder.mkdir()
    prefix = checkpoint(folder, "ckpt-1")
    assert find_checkpoint(folder) == find_checkpoint(prefix) == prefix


def test_a_model_dir_leads_to_its_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    prefix = checkpoint(tmp_path / "checkpoints", "ckpt-5")
    assert find_checkpoint(str(tmp_path) + "/") == prefix


def test_a_relative_path_is_read(tmp_path, monkeypatch):
    checkpoint(tmp_path, "ckpt-5")
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("ckpt-5") == "ckpt-5"
    assert find_checkpoint(".") == "./ckpt-5"


def test_a_file_system_that_is_not_there_is_no_traceback():
    with pytest.raises(trainer.RestoreError, match="^nowhere://bucket/ckpt-1 cannot be looked at"):
        find_checkpoint("nowhere://bucket/ckpt-1")
