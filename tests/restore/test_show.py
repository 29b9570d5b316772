"""What a person sees of a restore: on the terminal, and in the log."""

import io
import logging

import pytest
from rich.console import Console
from zoo import TwoDense, built, saved, used_adam

import trainer
from trainer.restore import show
from trainer.restore.show import RestoreProgress


@pytest.fixture
def screen(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(show, "Console", lambda **unused: Console(file=text, force_terminal=True, width=100))
    return text


def test_a_restore_of_more_than_two_seconds_shows_a_bar(screen, monkeypatch):
    clock = iter([0.0, 1.9, 2.1])
    monkeypatch.setattr(show.time, "monotonic", lambda: next(clock))
    with RestoreProgress() as progress:
        progress.show(10**9, 3 * 10**9)
        assert screen.getvalue() == ""
        monkeypatch.setattr(show.time, "monotonic", lambda: 2.1)
        progress.show(2 * 10**9, 3 * 10**9)
    assert "restore" in screen.getvalue()
    assert "2.0/3.0 GB" in screen.getvalue()


def test_a_short_one_shows_none(screen):
    with RestoreProgress() as progress:
        progress.show(1, 3)
    assert screen.getvalue() == ""


def test_five_lines_at_info_say_it_all(tmp_path, caplog):
    source = built(TwoDense())
    path = saved(tmp_path, model=source, optimizer=used_adam(source))
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.INFO)
    with caplog.at_level(logging.INFO, logger="absl"):
        trainer.restore_weights(built(TwoDense(), seed=2), path)
    absl_logging.set_verbosity(absl_logging.WARNING)
    lines = [record.getMessage() for record in caplog.records if record.name == "absl"]
    kin = "Adam or a kin, by its slots momentums, velocities"
    assert lines == [
        f"restored from {path} (TensorFlow object checkpoint, Keras 3)",
        "weights: 4 restored, 0 reinitialized, 0 unused, 0 mismatched, 0 missing",
        f"not read: 10 entries of an optimizer ({kin}), 1 counters, 0 others",
        "read: 120 bytes, 0 entries of the optimizer, CRC-32C of every tensor",
        "verified: every variable on 1 replicas, 0 values not finite",
    ]
