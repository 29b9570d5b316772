"""Whatever happens to the files of a run, it continues from a whole checkpoint, says so, or stops and says why."""

import errno
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import full, make_strategy
from test_resume import bits, run

import trainer
from trainer.checkpoints import files
from trainer.checkpoints.finder import checkpoint_faults, newest_checkpoint
from trainer.checkpoints.manager import Checkpoints
from trainer.checkpoints.train_state import new_train_state

DISK_SIZE = "400k"  # of `small_disk`
DATA = "ckpt-{}.data-00000-of-00001"
INDEX = "ckpt-{}.index"
MANIFEST = "ckpt-{}.manifest.json"


def new_state(units=8):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(units), keras.layers.Dropout(0.5)])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    return new_train_state(model, optimizer)


def at(state, step):
    """The state that stands for this step: every weight is the step."""
    state.step.assign(step)
    for weight in state.model.trainable_variables:
        weight.assign(np.full(weight.shape, step, np.float32))
    return state


def saved(folder, steps, state=None, **options):
    """Checkpoints of these steps, written by one process."""
    state = state or new_state()
    checkpoints = Checkpoints(state, folder, **options)
    for step in steps:
        at(state, step)
        checkpoints.save()
    return checkpoints


def resumed(folder, units=8):
    """Step, weights and what was skipped, as a new process finds them."""
    state = at(new_state(units), -1)
    checkpoints = Checkpoints(state, folder)
    step = checkpoints.resume()
    assert {float(value) for value in np.unique(state.model.trainable_variables[0].numpy())} == {step or -1.0}
    return step, checkpoints.skipped


def steps_in(folder):
    return files.steps_with_files(os.fspath(folder))


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut(path, size_bytes=100):
    path.write_bytes(path.read_bytes()[:size_bytes])


def edit_manifest(path, **changes):
    content = json.loads(path.read_text())
    content["files"][DATA.format(30)] |= changes
    path.write_text(json.dumps(content))


DAMAGES = {
    "data cut off": (lambda f: cut(f / DATA.format(30)), "data-00000-of-00001 has 100 bytes and should have "),
    "data gone": (lambda f: (f / DATA.format(30)).unlink(), "ckpt-30.data-00000-of-00001 is missing"),
    "a bit of the data": (lambda f: flip(f / DATA.format(30)), "the checksum of ckpt-30.data-00000-of-00001 is not"),
    "index is garbage": (lambda f: (f / INDEX.format(30)).write_bytes(b"\0" * 700), "ckpt-30.index has 700 bytes"),
    "a bit of the index": (lambda f: flip(f / INDEX.format(30), 40), "the checksum of ckpt-30.index is not"),
    "index gone": (lambda f: (f / INDEX.format(30)).unlink(), "ckpt-30.index is missing"),
    "manifest is garbage": (lambda f: (f / MANIFEST.format(30)).write_bytes(b"\xff{"), "cannot be read as a manifest"),
    "manifest is another thing": (lambda f: (f / MANIFEST.format(30)).write_text("[1]"), "cannot be read as a manif"),
    "manifest names nothing": (lambda f: (f / MANIFEST.format(30)).write_text('{"files": {}}'), "names no index or no"),
    "size in the manifest": (lambda f: edit_manifest(f / MANIFEST.format(30), bytes=7), "bytes and should have 7"),
    "checksum in the manifest": (lambda f: edit_manifest(f / MANIFEST.format(30), crc32c="0"), "the checksum of ckpt"),
    "no manifest, data cut off": (
        lambda f: [(f / MANIFEST.format(30)).unlink(), cut(f / DATA.format(30))], "ckpt-30 cannot be read",
    ),
    "no manifest, a bit of the data": (
        lambda f: [(f / MANIFEST.format(30)).unlink(), flip(f / DATA.format(30), 0)], "the checksum of ",
    ),
    "no manifest, index cut off": (
        lambda f: [(f / MANIFEST.format(30)).unlink(), cut(f / INDEX.format(30))], "index is damaged",
    ),
    "no manifest, data gone": (
        lambda f: [(f / MANIFEST.format(30)).unlink(), (f / DATA.format(30)).unlink()], "is missing",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    saved(folder, [10, 20, 30])
    return folder


@pytest.fixture
def folder(tmp_path, three_steps):
    """Three whole checkpoints, of the steps 10, 20 and 30."""
    return Path(shutil.copytree(three_steps, tmp_path / "checkpoints"))


def test_a_checkpoint_is_data_index_and_a_manifest_with_sizes_and_checksums(folder):
    assert names_in(folder) == sorted(
        ["checkpoint", *(kind.format(step) for kind in (DATA, INDEX, MANIFEST) for step in (10, 20, 30))]
    )
    content = json.loads((folder / MANIFEST.format(30)).read_text())
    assert content["step"] == 30 and set(content["files"]) == {DATA.format(30), INDEX.format(30)}
    assert content["files"][DATA.format(30)]["bytes"] == (folder / DATA.format(30)).stat().st_size
    assert resumed(folder) == (30, [])


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used_and_it_is_said(folder, damage):
    do, what = DAMAGES[damage]
    do(folder)
    step, skipped = resumed(folder)
    assert step == 20 and len(skipped) == 1
    assert skipped[0].startswith("ckpt-30 is not whole: ") and skipped[0].endswith("; ckpt-20 is used instead")
    assert what in skipped[0]


def test_two_damaged_ones_are_both_named(folder):
    cut(folder / DATA.format(30))
    (folder / INDEX.format(20)).write_bytes(b"")
    step, skipped = resumed(folder)
    assert step == 10 and [text.split()[0] for text in skipped] == ["ckpt-30", "ckpt-20"]
    assert len(checkpoint_faults(folder)) == 2 and "ckpt-20.index has 0 bytes" in checkpoint_faults(folder)[0]


def test_where_none_is_whole_each_fault_is_named_and_nothing_is_deleted(folder):
    for step in (10, 20):
        cut(folder / DATA.format(step))
    flip(folder / DATA.format(30))
    before = names_in(folder)
    with pytest.raises(trainer.UserError, match="holds no whole checkpoint any more") as refused:
        resumed(folder)
    assert all(f"ckpt-{step}: " in str(refused.value) for step in (10, 20, 30))
    assert f"delete {folder} to start over, or choose another --model_dir" in str(refused.value)
    assert names_in(folder) == before


def test_an_empty_folder_and_none_have_nothing_to_resume(tmp_path):
    assert resumed(tmp_path / "none") == (0, [])
    (tmp_path / "checkpoints").mkdir()
    assert resumed(tmp_path / "checkpoints") == (0, [])


def test_a_kill_between_data_and_manifest_loses_nothing_since_the_index_has_checksums(folder):
    (folder / MANIFEST.format(30)).unlink()
    assert resumed(folder) == (30, [])
    for step in (10, 20):
        (folder / MANIFEST.format(step)).unlink()
    assert resumed(folder) == (30, []), "as an earlier version left it"


def test_a_kill_before_the_index_leaves_no_checkpoint(folder):
    (folder / MANIFEST.format(30)).unlink()
    (folder / INDEX.format(30)).unlink()
    assert resumed(folder) == (20, [])
    assert newest_checkpoint(folder) == str(folder / "ckpt-20")


def test_a_damaged_checkpoint_is_overwritten_when_its_step_comes_again_and_counts_for_nothing(folder):
    flip(folder / DATA.format(30))
    state = new_state()
    checkpoints = Checkpoints(state, folder, keep=2)
    assert checkpoints.resume() == 20
    at(state, 25)
    checkpoints.save()
    assert steps_in(folder) == [20, 25, 30], "the damaged one is none of the two"
    at(state, 30)
    checkpoints.save()
    assert steps_in(folder) == [25, 30] and resumed(folder) == (30, [])


def test_a_damaged_checkpoint_whose_step_does_not_come_again_is_deleted_once_it_is_old(folder):
    flip(folder / DATA.format(30))
    state = new_state()
    checkpoints = Checkpoints(state, folder, keep=2)
    checkpoints.resume()
    at(state, 35)
    checkpoints.save()
    assert steps_in(folder) == [20, 35]


def test_a_whole_checkpoint_of_the_step_is_kept_as_it_is(folder):
    before = (folder / DATA.format(30)).stat().st_ino
    saved(folder, [30])
    assert (folder / DATA.format(30)).stat().st_ino == before
    state = new_state()
    checkpoints = Checkpoints(state, folder)
    checkpoints.resume()
    checkpoints.save()
    assert (folder / DATA.format(30)).stat().st_ino == before


def test_what_killed_processes_had_begun_is_removed_and_nothing_else(folder):
    (folder / "ckpt-40_temp").mkdir()
    (folder / "ckpt-40_temp/part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    (folder / ".tmp.checkpoint").write_text("half")
    (folder / ".tmp.mine").write_text("mine")
    (folder / "mine_temp").mkdir()
    (folder / "ckpt-notes.txt").write_text("mine")
    (folder / "model-7.index").write_text("mine")
    resumed(folder)
    assert (folder / "ckpt-40_temp").exists(), "who only reads deletes nothing"
    saved(folder, [40])
    assert not (folder / "ckpt-40_temp").exists()
    assert not (folder / ".tmp.checkpoint").exists()
    assert all((folder / name).exists() for name in ("mine_temp", ".tmp.mine", "ckpt-notes.txt", "model-7.index"))


def test_the_newest_and_every_so_many_steps_are_kept(tmp_path):
    saved(tmp_path, range(10, 80, 10), keep=2, keep_every=30)
    assert steps_in(tmp_path) == [30, 60, 70]
    state = tf.train.get_checkpoint_state(str(tmp_path))
    assert state.model_checkpoint_path == tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-70")
    assert list(state.all_model_checkpoint_paths) == [str(tmp_path / f"ckpt-{step}") for step in (30, 60, 70)]


def test_what_a_kill_left_of_older_checkpoints_is_deleted_too(folder):
    (folder / MANIFEST.format(10)).unlink()
    (folder / INDEX.format(10)).unlink()
    saved(folder, [40], keep=2)
    assert steps_in(folder) == [30, 40]


@pytest.mark.parametrize("removed", [1, 2])
def test_a_half_deleted_checkpoint_is_whole_or_none(folder, removed, monkeypatch):
    unlink, deleted = os.unlink, []

    def dies_later(path):
        deleted.append(unlink(path))
        if len(deleted) == removed:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "unlink", dies_later)
    with pytest.raises(KeyboardInterrupt):
        files.remove(str(folder / "ckpt-30"))
    monkeypatch.undo()
    assert resumed(folder) == ((30, []) if removed == 1 else (20, []))


@pytest.mark.parametrize("moved", range(4))
def test_a_checkpoint_killed_while_it_comes_in_is_whole_or_none(folder, moved, monkeypatch):
    replace, done = os.replace, []

    def dies_later(*paths):
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(replace(*paths))

    monkeypatch.setattr(os, "replace", dies_later)  # 3 times for a checkpoint, then for the state file
    with pytest.raises(KeyboardInterrupt):
        saved(folder, [40])
    monkeypatch.undo()
    assert resumed(folder) == ((30, []) if moved < 2 else (40, []))
    saved(folder, [40])
    assert steps_in(folder) == [20, 30, 40] and resumed(folder) == (40, [])
    assert not (folder / "ckpt-40_temp").exists()


def measured(folder, values, state=None):
    """Runs by the steps 10, 20, ... with these values of a metric, higher is better; which were the best so far."""
    state = state or new_state()
    checkpoints = Checkpoints(state, folder, keep=1)
    start, found = checkpoints.resume() // 10, []
    checkpoints.tidy()
    for number, value in enumerate(values[start:], start + 1):
        at(state, 10 * number)
        found.append(checkpoints.save_best(value, "accuracy"))
        checkpoints.save()
    return found


def best_in(folder):
    info = json.loads((folder / "best/info.json").read_text())
    assert steps_in(folder / "best") == [info["step"]]
    assert tf.train.latest_checkpoint(str(folder / "best")) == str(folder / "best" / info["checkpoint"])
    reader = tf.train.load_checkpoint(str(folder / "best"))
    assert reader.get_tensor("train_state/step/.ATTRIBUTES/VARIABLE_VALUE") == info["step"]
    return info["step"], info["value"]


def test_the_best_is_kept_beside_the_newest_takes_no_room_and_hides_nothing(tmp_path):
    assert measured(tmp_path, [0.5, 0.9, float("nan"), 0.9]) == [True, True, False, False], "the first of equals"
    assert best_in(tmp_path) == (20, 0.9) and steps_in(tmp_path) == [40]
    assert newest_checkpoint(tmp_path) == str(tmp_path / "ckpt-40") and resumed(tmp_path) == (40, [])
    assert trainer.restore.find_checkpoint(tmp_path) == str(tmp_path / "ckpt-40")
    assert measured(tmp_path, [0.5, 0.9, 0.0, 0.9, 0.95]) == [True], "it was read again by a new process"
    assert best_in(tmp_path) == (50, 0.95)
    assert (tmp_path / "best" / DATA.format(50)).samefile(tmp_path / DATA.format(50))
    assert json.loads((tmp_path / "best/info.json").read_text()) == {
        "checkpoint": "ckpt-50", "step": 50, "value": 0.95, "metric": "accuracy", "higher_is_better": True,
    }  # fmt: skip


def test_the_best_may_be_the_lowest(tmp_path):
    state = new_state()
    checkpoints = Checkpoints(state, tmp_path)
    found = []
    for step, loss in ((10, 2.0), (20, 3.0), (30, 1.0)):
        at(state, step)
        checkpoints.save()
        found.append(checkpoints.save_best(loss, "loss", higher_is_better=False))
    assert found == [True, False, True] and best_in(tmp_path) == (30, 1.0)


def test_the_best_is_copied_where_no_links_can_be_made(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    measured(tmp_path, [0.5])
    assert best_in(tmp_path) == (10, 0.5) and resumed(tmp_path) == (10, [])
    assert (tmp_path / "best" / DATA.format(10)).stat().st_nlink == 1


@pytest.mark.parametrize("moment", [moment if moment % 5 == 0 else full(moment) for moment in range(12)])
def test_a_kill_around_the_best_leaves_the_old_or_the_new_one_and_the_same_result(tmp_path, monkeypatch, moment):
    values = [0.5, 0.9, 0.3]
    measured(tmp_path, values[:1])
    replace, done = os.replace, []

    def dies_later(*paths):
        if len(done) == moment:
            raise KeyboardInterrupt
        done.append(replace(*paths))

    monkeypatch.setattr(os, "replace", dies_later)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, values)
    monkeypatch.undo()
    info = json.loads((tmp_path / "best/info.json").read_text())
    assert not files.find_faults(str(tmp_path / "best" / info["checkpoint"])), "never none"
    assert info["value"] == {10: 0.5, 20: 0.9}[info["step"]]
    measured(tmp_path, values)
    assert resumed(tmp_path) == (30, []) and steps_in(tmp_path) == [30] and best_in(tmp_path) == (20, 0.9)


def test_a_run_that_went_back_and_came_to_a_better_state_of_the_same_step_keeps_that_one(tmp_path):
    state = new_state()
    checkpoints = Checkpoints(state, tmp_path)
    at(state, 10)
    checkpoints.save()
    at(state, 20)
    assert checkpoints.save_best(0.5, "accuracy")
    assert checkpoints.resume() == 10
    at(state, 21)
    state.step.assign(20)
    assert checkpoints.save_best(0.6, "accuracy")
    assert best_in(tmp_path) == (20, 0.6)
    assert Checkpoints(state, tmp_path / "best").resume() == 20
    assert (state.model.trainable_variables[0].numpy() == 21).all()


@pytest.mark.parametrize(
    ("call", "moment"),
    [(call, moment) for call, most in (("replace", 6), ("unlink", 5), ("link", 2)) for moment in range(most)],
)
def test_a_kill_while_a_better_state_of_the_same_step_comes_in_leaves_a_whole_best_one(
    tmp_path, monkeypatch, call, moment
):
    state = new_state()
    checkpoints = Checkpoints(state, tmp_path)
    at(state, 20)
    checkpoints.save_best(0.5, "accuracy")
    at(state, 21)
    state.step.assign(20)
    checkpoints = Checkpoints(state, tmp_path)
    original, done = getattr(os, call), []

    def dies_later(*paths, **options):
        if len(done) == moment:
            raise KeyboardInterrupt
        done.append(original(*paths, **options))

    monkeypatch.setattr(os, call, dies_later)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save_best(0.6, "accuracy")
    monkeypatch.undo()
    found = tf.train.load_checkpoint(trainer.restore.find_checkpoint(tmp_path / "best"))
    kernel = found.get_tensor("optimizer/_trainable_variables/0/.ATTRIBUTES/VARIABLE_VALUE")
    assert set(kernel.ravel()) in ({20.0}, {21.0}), "as anybody finds it"
    again = Checkpoints(state, tmp_path)
    again.tidy()
    assert again.skipped == [] and names_in(tmp_path / "best") == sorted(
        ["checkpoint", "info.json", *(kind.format(20) for kind in (DATA, INDEX, MANIFEST))]
    ), names_in(tmp_path / "best")
    assert not files.find_faults(str(tmp_path / "best/ckpt-20"))


def test_a_damaged_best_is_said_and_replaced(tmp_path):
    measured(tmp_path, [0.5, 0.4])
    cut(tmp_path / "best" / DATA.format(10))
    step, skipped = resumed(tmp_path)
    assert step == 20 and "best/ is not whole: ckpt-10.data-00000-of-00001 has 100 bytes" in skipped[0]
    assert measured(tmp_path, [0.5, 0.4, 0.3]) == [True] and best_in(tmp_path) == (30, 0.3)


@pytest.mark.parametrize("short_pages", [1, 2, 3, 20, 40])
def test_a_full_disk_is_named_and_the_older_checkpoint_stays_whole(small_disk, short_pages):
    state = new_state(units=4_000)  # 160 kB a checkpoint
    folder = small_disk / "checkpoints"
    checkpoints = saved(folder, [10], state, keep=2)
    before = names_in(folder)
    needed_bytes = sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.glob("ckpt-10.*"))
    leave_bytes = needed_bytes - 4096 * short_pages
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - leave_bytes))
    at(state, 20)
    with pytest.raises(trainer.UserError, match="The checkpoint of step 20 cannot be written") as refused:
        checkpoints.save()
    assert "ckpt-10 is whole" in str(refused.value) and "space" in str(refused.value).lower()
    assert names_in(folder) == before and resumed(folder, units=4_000) == (10, [])
    (small_disk / "filler").unlink()
    checkpoints.save()
    assert steps_in(folder) == [10, 20] and resumed(folder, units=4_000) == (20, [])


@pytest.mark.parametrize("in_background", [False, True])
def test_a_best_one_that_could_not_be_written_does_not_stand_in_the_way_of_the_next(small_disk, in_background):
    state = new_state(units=4_000)
    checkpoints = Checkpoints(state, small_disk / "checkpoints", keep=1, in_background=in_background)
    at(state, 10)
    assert checkpoints.save_best(0.5, "accuracy")
    checkpoints.wait()
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 40_000))
    at(state, 20)
    with pytest.raises(trainer.UserError, match="The checkpoint of step 20 cannot be written"):
        checkpoints.save_best(0.9, "accuracy")
        checkpoints.wait()
    filler.unlink()
    at(state, 30)
    assert not checkpoints.save_best(0.4, "accuracy") and checkpoints.save_best(0.7, "accuracy")
    checkpoints.wait()
    assert best_in(small_disk / "checkpoints") == (30, 0.7)


def test_what_is_the_best_is_the_word_of_the_chief_whose_disk_may_have_been_full(folder):
    class Chief:
        workers, says = 2, True

        def broadcast_from_chief(self, values):
            return [self.says for _ in values]

    state, chief = at(new_state(), 40), Chief()
    checkpoints = Checkpoints(state, folder, is_chief=False, agreement=chief)
    assert checkpoints.save_best(0.5, "accuracy") and checkpoints.save_best(0.4, "accuracy")
    chief.says = False
    assert not checkpoints.save_best(0.6, "accuracy")


def test_a_read_only_folder_is_named_and_can_be_resumed(small_disk):
    state = new_state()
    checkpoints = saved(small_disk / "checkpoints", [10], state)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    at(state, 20)
    with pytest.raises(trainer.UserError, match="The checkpoint of step 20 cannot be written.*[Rr]ead-only"):
        checkpoints.save()
    assert resumed(small_disk / "checkpoints") == (10, [])
    with pytest.raises(trainer.UserError, match="is not writable"):
        run(small_disk, 3, make_strategy(1))


def test_other_workers_write_nothing_that_stays_and_agree(folder):
    before = names_in(folder)
    state = new_state()
    checkpoints = Checkpoints(state, folder, is_chief=False)
    assert checkpoints.resume() == 30
    at(state, 40)
    assert checkpoints.save_best(0.5, "accuracy") and not checkpoints.save_best(0.5, "accuracy")
    checkpoints.save()
    assert names_in(folder) == before


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of 6 steps with checkpoints at 2, 4 and 6, and what it reached."""
    model_dir = tmp_path_factory.mktemp("unbroken") / "run"
    return model_dir, run(model_dir, 6, make_strategy(1), checkpoint_every=2)


@pytest.mark.parametrize(
    "damage",
    [
        full(lambda f: cut(f / DATA.format(6))),
        lambda f: flip(f / DATA.format(6)),
        full(lambda f: [cut(f / INDEX.format(6)), cut(f / MANIFEST.format(4), 0)]),
    ],
    ids=["cut off", "one bit", "index and a manifest"],
)
def test_a_run_whose_newest_checkpoints_are_damaged_ends_with_the_same_bits(tmp_path, unbroken, damage):
    model_dir = Path(shutil.copytree(unbroken[0], tmp_path / "run"))
    damage(model_dir / "checkpoints")
    again = run(model_dir, 6, make_strategy(1), checkpoint_every=2)
    assert again.step == 6 and bits(again) == bits(unbroken[1]) and again.final_metrics == unbroken[1].final_metrics
    assert steps_in(model_dir / "checkpoints") == [2, 4, 6] and not checkpoint_faults(model_dir / "checkpoints")


@pytest.fixture
def slow_disk(monkeypatch):
    """A disk that brings nothing to an end before it is let go."""
    let_go = threading.Event()
    original = files.write_manifest

    def slow(prefix, step):
        assert let_go.wait(60)
        original(prefix, step)

    monkeypatch.setattr(files, "write_manifest", slow)
    yield let_go
    let_go.set()


def test_in_the_background_the_values_are_those_of_the_moment_and_the_older_one_stays_whole(tmp_path, slow_disk):
    slow_disk.set()
    state = new_state()
    checkpoints = saved(tmp_path, [10], state, in_background=True)
    checkpoints.wait()
    slow_disk.clear()
    at(state, 20)
    checkpoints.save()
    at(state, 21)  # training continues
    assert resumed(tmp_path) == (10, []), "as a process finds it that comes after a kill"
    slow_disk.set()
    checkpoints.wait()
    assert resumed(tmp_path) == (20, [])


def test_a_save_waits_for_the_one_before(tmp_path, slow_disk):
    state = new_state()
    checkpoints = saved(tmp_path, [10], state, in_background=True)
    threading.Timer(0.3, slow_disk.set).start()
    at(state, 20)
    checkpoints.save_best(0.5, "loss")
    checkpoints.save()
    checkpoints.wait()
    assert resumed(tmp_path) == (20, []) and steps_in(tmp_path) == [10, 20] and best_in(tmp_path) == (20, 0.5)


def test_an_error_in_the_background_is_raised_later_and_the_next_is_saved(tmp_path, monkeypatch):
    state = new_state()
    checkpoints = saved(tmp_path, [10], state, in_background=True)
    checkpoints.wait()

    def full(prefix, step):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_manifest", full)
        at(state, 20)
        checkpoints.save()
        checkpoints.close()
    at(state, 30)
    with pytest.raises(trainer.UserError, match="The checkpoint of step 20 cannot be written.*No space left"):
        checkpoints.save()
    checkpoints.wait()
    assert steps_in(tmp_path) == [10, 30] and names_in(tmp_path) == sorted(
        [name.format(step) for name in (DATA, INDEX, MANIFEST) for step in (10, 30)] + ["checkpoint"]
    )


@pytest.mark.full
def test_a_run_waits_for_its_last_checkpoint(tmp_path, slow_disk):
    threading.Timer(2.0, slow_disk.set).start()
    run(tmp_path / "run", 3, make_strategy(1))
    assert newest_checkpoint(tmp_path / "run/checkpoints").endswith("ckpt-3")
    assert not checkpoint_faults(tmp_path / "run/checkpoints")
