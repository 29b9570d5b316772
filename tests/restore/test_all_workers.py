"""Two workers restore together: on both or on neither, and the report is of both."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from test_damage import DATA, flip
from zoo import TwoDense, built, saved, values

import trainer
from trainer.restore import all_workers


class Seat:
    """Stands in for `Agreement` in one of two threads that are as two workers."""

    workers = 2

    def __init__(self, index: int, table: list, barrier: threading.Barrier):
        self.index, self._table, self._barrier = index, table, barrier

    def all_reduce_sum(self, given):
        self._table[self.index] = np.asarray(given, np.int64)
        self._barrier.wait(60)
        total = self._table[0] + self._table[1]
        self._barrier.wait(60)
        return total

    def broadcast_from_chief(self, given):
        return self.all_reduce_sum(given if self.index == 0 else [0] * len(given))


@pytest.fixture
def restore_on_both(monkeypatch):
    """Restores a path on each of two workers; gives what each returned or raised, and each model."""
    here = threading.local()
    monkeypatch.setattr(all_workers, "Agreement", lambda strategy: here.seat)

    def restore(*paths):
        models = [built(TwoDense(), seed=2) for _ in paths]
        table, barrier = [None, None], threading.Barrier(2)

        def work(index):
            here.seat = Seat(index, table, barrier)
            try:
                return trainer.restore_weights(models[index], paths[index])
            except trainer.RestoreError as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(work, range(2))), models

    return restore


@pytest.fixture
def copies(tmp_path):
    """The same checkpoint twice, as on two machines."""
    source = built(TwoDense())
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return [saved(tmp_path / name, model=source) for name in ("first", "second")], values(source)


def test_the_report_is_of_all_workers(copies, restore_on_both):
    paths, written = copies
    reports, models = restore_on_both(*paths)
    assert [values(model) for model in models] == [written] * 2
    for report in reports:
        assert "verified         4 variables on 2 replicas of 2 workers, 120 bytes read" in str(report)
        assert '"workers": 2' in report.to_json()


def remove(path):
    os.remove(path + ".index")


def spoil(path):
    flip(path + DATA, Path(path + DATA).read_bytes().index(built(TwoDense()).head.kernel.numpy().tobytes()))


def overwrite(path):
    saved(Path(path).parent, model=built(TwoDense(num_classes=3)))


@pytest.mark.parametrize(
    ("harm", "message"),
    [(remove, "find the checkpoint"), (overwrite, "plan the restore"), (spoil, "read the checkpoint")],
)
@pytest.mark.parametrize("which", [0, 1])
def test_what_fails_on_one_worker_fails_on_all_and_changes_nothing(which, harm, message, copies, restore_on_both):
    paths, _ = copies
    harm(paths[which])
    errors, models = restore_on_both(*paths)
    fresh = values(built(TwoDense(), seed=2))
    assert [values(model) for model in models] == [fresh] * 2
    assert all(isinstance(error, trainer.RestoreError) for error in errors)
    assert f"1 of 2 workers could not {message}" in str(errors[1 - which])
    assert "workers could not" not in str(errors[which])


def test_another_file_on_one_worker_is_noticed(copies, restore_on_both):
    paths, _ = copies
    saved(Path(paths[1]).parent, model=built(TwoDense(), seed=5))
    errors, _ = restore_on_both(*paths)
    for error in errors:
        assert "1 of 2 workers restored other values than the chief" in str(error)


def test_a_copy_that_differs_on_one_worker_fails_on_both(copies, restore_on_both, monkeypatch):
    from trainer.restore import apply

    compare, main = apply._compare, []

    def compare_or_fail(pair, checksum):
        main.append(threading.current_thread())
        return compare(pair, checksum + (threading.current_thread() is main[0]))

    monkeypatch.setattr(apply, "_compare", compare_or_fail)
    (first, second), _ = restore_on_both(*copies[0])
    assert {"differs from the checkpoint" in str(first), "differs from the checkpoint" in str(second)} == {True, False}
    assert any("1 of 2 workers could not fill the model, which must not be used" in str(e) for e in (first, second))
