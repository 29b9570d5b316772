"""A damaged checkpoint is refused before a variable changes; nothing else ever comes of it."""

import os
import random
import shutil
from pathlib import Path

import pytest
import tensorflow as tf
from zoo import Plain, TwoDense, built, saved, used_adam, values

import trainer

DATA, INDEX = ".data-00000-of-00001", ".index"


@pytest.fixture
def path(tmp_path):
    source = built(TwoDense())
    return saved(tmp_path, model=source, optimizer=used_adam(source))


def flip(file: str, place: int) -> None:
    content = bytearray(Path(file).read_bytes())
    content[place] ^= 0xFF
    Path(file).write_bytes(content)


def refused(path, message: str) -> None:
    model = built(TwoDense(), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=message) as caught:
        trainer.restore_weights(model, path)
    assert values(model) == before
    assert "Traceback" not in str(caught.value)


def test_a_flipped_byte_in_a_weight_is_noticed_and_the_weight_is_named(path):
    kernel = tf.train.load_variable(path, "model/head/_kernel/.ATTRIBUTES/VARIABLE_VALUE").tobytes()
    flip(path + DATA, Path(path + DATA).read_bytes().index(kernel) + 5)
    refused(path, "the tensor model/head/_kernel/.* is damaged or not there; no variable was changed")


def test_damage_in_the_optimizer_s_part_of_the_file_harms_nothing(tmp_path):
    source = built(TwoDense())
    optimizer = used_adam(source)
    for slot in optimizer.variables[2:]:
        slot.assign(tf.fill(slot.shape, 0.123))
    path = saved(tmp_path, model=source, optimizer=optimizer)
    slots = tf.fill([16], 0.123).numpy().tobytes()
    flip(path + DATA, Path(path + DATA).read_bytes().index(slots))
    model = built(TwoDense(), seed=2)
    trainer.restore_weights(model, path)
    assert values(model) == values(source)


@pytest.mark.parametrize("kept", [0, 1, 100])
def test_a_data_shard_that_was_cut_off_is_refused(kept, path):
    os.truncate(path + DATA, kept)
    refused(path, "cannot be read|is damaged")


@pytest.mark.parametrize("content", [b"", b"\x00" * 400, b"this is no index\n" * 50], ids=["empty", "zeros", "text"])
def test_an_index_of_garbage_is_refused(content, path):
    Path(path + INDEX).write_bytes(content)
    refused(path, "cannot be read; its index is damaged or of something else")


def test_a_graph_that_is_no_graph_is_refused(tmp_path):
    prefix = str(tmp_path / "ckpt-1")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=["_CHECKPOINTABLE_OBJECT_GRAPH"],
        shape_and_slices=[""],
        tensors=[tf.constant(b"\xff\xff no protocol buffer")],
    )
    refused(prefix, "cannot be read; its index is damaged or of something else")


def test_a_graph_that_names_tensors_which_are_not_there_is_refused(path, tmp_path):
    key = "_CHECKPOINTABLE_OBJECT_GRAPH"
    prefix = str(tmp_path / "graph-1")
    graph = tf.constant(tf.train.load_checkpoint(path).get_tensor(key))
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=[key], shape_and_slices=[""], tensors=[graph])
    refused(prefix, "the object graph names .*, but the file holds no such tensor")


def test_sixty_damaged_copies_end_whole_or_refused(tmp_path):
    """Bytes flipped, files cut, files swapped: all of the writer's values or all of one's own, never another end."""
    source, other = built(Plain()), built(Plain(), seed=3)
    (tmp_path / "other").mkdir()
    whole = saved(tmp_path, model=source, optimizer=used_adam(source))
    foreign = saved(tmp_path / "other", model=other)
    model = built(Plain(), seed=2)
    before, written = values(model), values(source)
    fresh = [weight.numpy() for weight in model.weights]
    dice = random.Random(20)
    ends = {"whole": 0, "refused": 0}
    for case in range(60):
        folder = tmp_path / f"case{case}"
        folder.mkdir()
        for suffix in (DATA, INDEX):
            shutil.copy(whole + suffix, folder / f"ckpt-1{suffix}")
        suffix = dice.choice([DATA, INDEX])
        victim = str(folder / f"ckpt-1{suffix}")
        size = os.path.getsize(victim)
        what = dice.choice(["flip", "flip", "cut", "swap"])
        if what == "flip":
            for _ in range(dice.choice([1, 1, 20])):
                flip(victim, dice.randrange(size))
        elif what == "cut":
            os.truncate(victim, dice.randrange(size))
        else:
            shutil.copy(foreign + suffix, victim)
        try:
            trainer.restore_weights(model, folder)
            assert values(model) == written, f"case {case}: {what} {suffix}"
            ends["whole"] += 1
        except trainer.RestoreError:
            assert values(model) == before, f"case {case}: {what} {suffix}"
            ends["refused"] += 1
        for weight, value in zip(model.weights, fresh, strict=True):
            weight.assign(value)
    assert min(ends.values()) > 0, ends
