"""A damaged checkpoint is refused before a variable changes; nothing else ever comes of it."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from commands import REPOSITORY
from fuzz_bench import FORMATS, Bench
from fuzz_writers import Odd
from zoo import TwoDense, built, saved, used_adam, values

import trainer
from trainer.restore import open_checkpoint
from trainer.restore.apply import apply_plan
from trainer.restore.matching.plan import plan_restore
from trainer.restore.matching.rules import Rules

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


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_copies_end_whole_or_refused(kind, bench):
    """All of the writer's values or all of one's own, never another end; `fuzz.py` tries thousands."""
    for case in range(6):
        victim, what = bench.damaged(kind, random.Random(f"{kind} {case}"))
        end, said = bench.end_of(victim)
        assert end in ("whole", "refused"), f"case {case}, {what}: {said}"
        assert "Traceback" not in said


@pytest.mark.parametrize("kind", FORMATS)
def test_a_copy_without_damage_ends_whole(kind, bench):
    assert bench.end_of(bench.folder / kind)[0] == "whole"


@pytest.mark.full
def test_hundreds_of_damaged_copies_end_whole_or_refused():
    """In another process, since what is looked for would end this one."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tests/restore/fuzz.py", "600", "7"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "600 cases" in done.stdout


@pytest.mark.parametrize("kind", FORMATS)
def test_a_report_says_which_checksums_guard_the_file(kind, bench):
    text = str(trainer.restore_weights(built(Odd(), seed=2), bench.folder / kind))
    unguarded = kind in ("weights.h5", "weights.json", "keras folder", "h5", "safetensors", "safetensors in parts")
    assert ("no checksums in this format" in text) == unguarded


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


def test_a_file_that_goes_away_while_it_is_written_from_is_reported_as_it_is(tmp_path):
    path = saved(tmp_path, model=built(TwoDense()))
    source = open_checkpoint(path)
    model = built(TwoDense(), seed=2)
    plan = plan_restore(model, source, Rules())
    seen = []

    def cut_after_all_were_tested(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == len(model.weights):
            os.truncate(path + DATA, 8)

    with pytest.raises(trainer.RestoreError, match="read once and not again.* Build the model again"):
        apply_plan(plan, source, cut_after_all_were_tested)


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
    source.threads = 1  # so that not all is read before the cut
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
