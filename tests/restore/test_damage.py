"""A damaged checkpoint is refused before a variable changes; nothing else ever comes of it."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from conftest import full
from zoo import Plain, TwoDense, built, saved, used_adam, values

import trainer
from trainer.restore import open_checkpoint, weights_of
from trainer.restore.apply import apply_plan
from trainer.restore.plan import plan_restore
from trainer.restore.rules import Rules

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
    refused(path, "No variable was changed. .*the tensor model/head/_kernel/.* is damaged or not there")


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


def save_checkpoint(model, folder: Path) -> list[str]:
    saved(folder, model=model, optimizer=used_adam(model))
    return [f"ckpt-1{DATA}", f"ckpt-1{INDEX}"]


def save_file(name: str, save):
    def write(model, folder: Path) -> list[str]:
        save(model, folder / name)
        return [name]

    return write


def named(model):
    return {weight.name: weight.variable.numpy() for weight in weights_of(model)}


# how it is written, and how many cases
FORMATS = {
    "checkpoint": (save_checkpoint, 200),
    "weights.h5": (save_file("m.weights.h5", lambda model, path: model.save_weights(path)), 80),
    "keras": (save_file("m.keras", lambda model, path: model.save(path)), 70),
    "old h5": (save_file("m.h5", lambda model, path: model.save(path)), 50),
    "safetensors": (save_file("m.safetensors", lambda m, path: safetensors.numpy.save_file(named(m), path)), 50),
    "npz": (save_file("m.npz", lambda model, path: np.savez(path, **named(model))), 50),
}


@pytest.mark.parametrize("kind", [kind if kind in ("checkpoint", "safetensors") else full(kind) for kind in FORMATS])
def test_five_hundred_damaged_copies_end_whole_or_refused(kind, tmp_path):
    """Bytes flipped, files cut, files swapped: all of the writer's values or all of one's own, never another end.

    Where a format has no checksums a changed value can't be noticed; the report says so, and still
    every variable comes from the file.
    """
    save, cases = FORMATS[kind]
    source, other = built(Plain()), built(Plain(num_classes=4), seed=3)
    for folder in ("whole", "other"):
        (tmp_path / folder).mkdir()
    names = save(source, tmp_path / "whole")
    save(other, tmp_path / "other")
    model = built(Plain(), seed=2)
    before, written = values(model), values(source)
    fresh = [weight.numpy() for weight in model.weights]
    dice = random.Random(20)
    ends = {"whole": 0, "changed": 0, "refused": 0}
    for case in range(cases):
        folder = tmp_path / f"case{case}"
        shutil.copytree(tmp_path / "whole", folder)
        name = dice.choice(names)
        victim, size = str(folder / name), os.path.getsize(folder / name)
        what = dice.choice(["flip", "flip", "flip", "cut", "swap"])
        if what == "flip":
            for _ in range(dice.choice([1, 1, 20])):
                flip(victim, dice.randrange(size))
        elif what == "cut":
            os.truncate(victim, dice.randrange(size))
        else:
            shutil.copy(tmp_path / "other" / name, victim)
        try:
            report = trainer.restore_weights(model, folder)
            assert not set(values(model)) & set(before), f"case {case}: {what} {name}"
            if values(model) == written:
                ends["whole"] += 1
            else:
                assert not report.checksums, f"case {case}: {what} {name}"
                ends["changed"] += 1
        except trainer.RestoreError as error:
            assert values(model) == before, f"case {case}: {what} {name}"
            assert "Traceback" not in str(error)
            ends["refused"] += 1
        for weight, value in zip(model.weights, fresh, strict=True):
            weight.assign(value)
        shutil.rmtree(folder)
    assert ends["refused"] > 0, ends
    assert ends["whole"] + ends["changed"] > 0 or kind == "keras", ends
    if kind in ("checkpoint", "keras", "npz"):
        assert ends["changed"] == 0, ends


def test_the_fuzz_has_five_hundred_cases():
    assert sum(cases for _, cases in FORMATS.values()) == 500


@pytest.mark.parametrize("kind", FORMATS)
def test_a_report_says_which_checksums_guard_the_file(kind, tmp_path):
    FORMATS[kind][0](built(Plain()), tmp_path)
    text = str(trainer.restore_weights(built(Plain(), seed=2), tmp_path))
    assert ("no checksums in this format" in text) == (kind in ("weights.h5", "old h5", "safetensors"))


def test_a_file_that_is_changed_while_it_is_read_is_noticed(tmp_path):
    """The last line of defence: what stands on the replicas is compared with what was tested."""
    path = saved(tmp_path, model=built(TwoDense()))
    source = open_checkpoint(path)
    model = built(TwoDense(), seed=2)
    plan = plan_restore(model, source, Rules())
    tested = []

    def change_in_the_middle(done: int, total: int) -> None:
        tested.append(done)
        if len(tested) == len(model.weights):  # every tensor was tested, none is written yet
            for place in range(os.path.getsize(path + DATA)):
                flip(path + DATA, place)

    with pytest.raises(trainer.RestoreError, match="differs from the checkpoint on replica 0 .*was the file changed"):
        apply_plan(plan, source, change_in_the_middle)


def test_a_file_that_goes_away_while_it_is_written_from_is_told_as_it_is(tmp_path):
    path = saved(tmp_path, model=built(TwoDense()))
    source = open_checkpoint(path)
    model = built(TwoDense(), seed=2)
    plan = plan_restore(model, source, Rules())
    seen = []

    def cut_after_the_second_was_written(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == len(model.weights) + 2:
            os.truncate(path + DATA, 8)

    with pytest.raises(trainer.RestoreError, match="2 of 4 variables are overwritten already. Build the model anew"):
        apply_plan(plan, source, cut_after_the_second_was_written)


def test_a_cast_value_that_changed_between_the_readings_is_noticed(tmp_path):
    path = saved(tmp_path, model=built(TwoDense()))
    source = open_checkpoint(path)
    model = built(TwoDense(dtype="bfloat16"), seed=2)
    plan = plan_restore(model, source, Rules())
    seen = []

    def change_in_the_middle(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == len(model.weights):
            flip(path + DATA, Path(path + DATA).read_bytes().index(built(TwoDense()).head.kernel.numpy().tobytes()))

    with pytest.raises(trainer.RestoreError, match="head/kernel could be read once and not again"):
        apply_plan(plan, source, change_in_the_middle)


def test_a_read_that_fails_in_the_middle_leaves_the_model_as_it_was(tmp_path):
    path = saved(tmp_path, model=built(TwoDense()))
    source = open_checkpoint(path)
    model = built(TwoDense(), seed=2)
    before = values(model)
    plan = plan_restore(model, source, Rules())
    seen = []

    def cut_in_the_middle(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            os.truncate(path + DATA, 8)

    with pytest.raises(trainer.RestoreError, match="No variable was changed. .*damaged or not there") as caught:
        apply_plan(plan, source, cut_in_the_middle)
    assert values(model) == before
    assert caught.value.report is plan.report
