"""Names that no model has, pipes in place of files, and text that would steer a terminal."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from commands import run_command
from conftest import full
from fuzz_bench import FORMATS, Bench
from test_hostile import refused

import trainer
from trainer.restore import open_checkpoint

RED, BIDI = "\x1b[31m", "\u202e"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("levels", [2_000, full(100_000)])
@pytest.mark.parametrize("kind", ["names", "safetensors", "npz"])
def test_a_name_of_thousands_of_levels_is_refused_at_once(levels, kind, tmp_path):
    name = "/".join(["a"] * min(levels, 30_000 if kind == "npz" else levels))
    path = write_one(tmp_path, kind, name)
    refused(path, r"the name a/a/a/a.* has [0-9,]+ levels and [0-9,]+ letters, where at most 256 .* are read")


def write_one(folder: Path, kind: str, name: str) -> str:
    value = np.ones([4, 4], np.float32)
    path = str(folder / {"names": "m-1", "safetensors": "m.safetensors", "npz": "m.npz"}[kind])
    if kind == "names":
        tf.raw_ops.SaveV2(prefix=path, tensor_names=[name], shape_and_slices=[""], tensors=[value])
    elif kind == "safetensors":
        safetensors.numpy.save_file({name: value}, path)
    else:
        np.savez(path, **{name: value})
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pipe_in_place_of_any_file_is_refused_and_not_waited_for(kind, bench, tmp_path):
    whole = [file for file in (bench.folder / kind).rglob("*") if file.is_file()]
    for number, file in enumerate(whole):
        victim = bench.copied(kind, tmp_path / str(number))
        there = victim / file.relative_to(bench.folder / kind)
        there.unlink()
        os.mkfifo(there)
        end, said = bench.end_of(victim)
        # What no restore needs is not looked at.
        assert (end, "is a pipe (FIFO)" in said) == ("refused", True) or not needed(file), f"{file}: {end}: {said}"


def needed(file: Path) -> bool:
    return file.name not in ("checkpoint", "fingerprint.pb", "saved_model.pb")


def test_text_that_would_steer_a_terminal_is_escaped_in_every_report(tmp_path):
    name = f"{RED}head{BIDI}/ker\nnel/é漢"
    for kind in ("names", "safetensors", "npz"):
        source = open_checkpoint(write_one(tmp_path, kind, name))
        assert [entry.name for entry in source.entries] == [r"\x1b[31mhead\u202e/ker\nnel/é漢"]
        message = refused(source.path, "fits no variable")
        assert r"\x1b[31mhead\u202e/ker\nnel/é漢" in message
        assert is_clean(message)


def is_clean(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


def test_a_rule_may_name_what_is_shown_of_an_odd_name(tmp_path):
    kernel = np.ones([4, 2], np.float32)
    path = str(tmp_path / "m.safetensors")
    safetensors.numpy.save_file({f"{RED}/kernel": kernel, f"{RED}/bias": kernel[0]}, path)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2, name="head")])
    report = trainer.restore_weights(model, path, rename=[(r"^\\x1b\[31m/", "head/")])
    assert np.array_equal(model.layers[0].kernel.numpy(), kernel)
    assert is_clean(str(report)) and RED not in report.to_json()


@pytest.mark.full
def test_the_commands_print_odd_names_escaped(tmp_path):
    path = write_one(tmp_path, "safetensors", f"{RED}a{BIDI}\r\nregraft: done/kernel")
    looked = run_command("launch.inspect", f"--checkpoint={path}")
    assert looked.returncode == 0 and r"\x1b[31ma\u202e\r\nregraft: done/kernel" in looked.stdout
    config = ("--gin_file=configs/runs/linear_adam_to_sgd.gin", f"--gin_param=INIT_CHECKPOINT = '{path}'")
    trained = run_command("launch.train", *config, f"--model_dir={tmp_path / 'run'}")
    assert trained.returncode == 2 and r"\x1b[31ma\u202e" in trained.stderr
    for text in (looked.stdout, looked.stderr, trained.stdout, trained.stderr):
        assert is_clean(text), repr(text)


@pytest.mark.full
def test_a_command_resumes_a_run_whose_folder_looks_like_a_pattern(tmp_path):
    def train(num_steps):
        return run_command(
            "launch.train", "--gin_file=configs/runs/linear_source.gin", f"--gin_param=NUM_STEPS = {num_steps}",
            f"--model_dir={tmp_path / 'run[1]?*'}",
        )  # fmt: skip

    first, second = train(1), train(2)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert "resumed" in second.stdout
