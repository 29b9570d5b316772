"""Every block of README and docs does what it says: gin is parsed and dry-run, Python and commands are run."""

import importlib
import itertools
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from array_record.python import array_record_module
from commands import REPOSITORY, run_command
from conftest import make_strategy

import trainer
from trainer.config import check_run_is_complete, parse_config, register_keras

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
LANGUAGES = ("gin", "python", "sh")


class Block(NamedTuple):
    """A fenced block of a page.

    file: the name under which the page asks to save it.  reason: why it is not run, "" for one that is.
    """

    page: str
    line: int
    language: str
    text: str
    file: str
    reason: str

    def __str__(self):
        return f"{self.page}-{self.line}"


def blocks_of(path: Path) -> list[Block]:
    found = []
    text = path.read_text()
    pattern = (
        r"(?:<!-- (?:file: (?P<file>\S+)|not run: (?P<reason>.+?)) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    )
    for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start("text"))
        found.append(
            Block(path.name, line, match["language"], match["text"], match["file"] or "", match["reason"] or "")
        )
    return found


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
FILES = {block.file: block.text for block in BLOCKS if block.file}


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and not block.reason]


def test_each_block_has_a_language_and_few_are_not_run():
    unknown = [str(block) for block in BLOCKS if block.language not in (*LANGUAGES, "text")]
    assert unknown == []
    assert FILES.keys() == {"my_models.py", "my_text.py", "my.gin", "compare.gin"}
    assert sum(bool(block.reason) for block in BLOCKS) <= 4 and len(BLOCKS) > 25


def test_readme_fits_on_two_screens_and_its_links_lead_somewhere():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for path in PAGES:
        links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
        local = [link for link in links if not link.startswith(("http", "reference/"))]
        missing = [link for link in local if not (path.parent / link).exists()]
        assert missing == [], path.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader stands: the files that the pages ask to save, and a checkpoint of the model with its optimizer."""
    path = tmp_path_factory.mktemp("reader")
    checkpoint = path / "checkpoint"
    for name, text in FILES.items():
        (path / name).write_text(text.replace("/path/to/checkpoint", str(checkpoint)))
    _make_data(path)
    sys.path.insert(0, str(path))
    model, optimizer = importlib.import_module("my_models").my_model(), keras.optimizers.Adam()
    sys.path.remove(str(path))
    model.build((None, 8, 8, 1))
    optimizer.build(model.trainable_variables)
    tf.train.Checkpoint(model=model, optimizer=optimizer).save(str(checkpoint / "ckpt"))
    return path


def _make_data(path: Path) -> None:
    """The photographs, examples and table that the page on data speaks of; small."""
    (path / "people.csv").write_text("age,height,label\n20,1.5,cat\n31,1.6,dog\n42,1.7,cat\n53,1.8,dog\n")
    (path / "reviews.csv").write_text("text,label\n" + "a good film,good\na bad plot,bad\n" * 8)
    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]")).save(str(path / "tokenizer.json"))
    (path / "examples").mkdir()
    written = []
    for number in range(50):
        (path / f"photos/{number % 10}").mkdir(parents=True, exist_ok=True)
        image = tf.fill([8, 8, 1], tf.cast(number, tf.uint8))
        (path / f"photos/{number % 10}/{number}.png").write_bytes(tf.io.encode_png(image).numpy())
        features = {
            "image": tf.train.Feature(float_list=tf.train.FloatList(value=[number / 50] * 64)),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number % 10])),
        }
        written.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    with tf.io.TFRecordWriter(str(path / "examples/all.tfrecord")) as writer:
        for example in written:
            writer.write(example)
    writer = array_record_module.ArrayRecordWriter(str(path / "examples/all.array_record"), "group_size:1")
    for example in written:
        writer.write(example)
    writer.close()


@pytest.fixture
def reader(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def as_pasted(block: Block, folder: Path) -> str:
    return block.text.replace("/path/to/checkpoint", str(folder / "checkpoint"))


def parse(block: Block, folder: Path, *gin_params: str) -> None:
    """The block as a file of its own, or after `my.gin` where it is no whole config."""
    register_keras()
    path = folder / "block.gin"
    path.write_text(as_pasted(block, folder))
    files = [str(path)] if "include " in block.text else ["my.gin", str(path)]
    parse_config(files, gin_params, [str(folder)])


@pytest.mark.parametrize("block", of("gin"), ids=str)
def test_a_gin_block_is_a_config_or_goes_behind_one(block, reader):
    parse(block, reader)
    check_run_is_complete()


@pytest.mark.full
@pytest.mark.parametrize("block", [block for block in of("gin") if block.file != "compare.gin"], ids=str)
def test_a_gin_block_is_a_run_up_to_its_first_step(block, reader, capsys):
    rules = ("Restore.reinitialize = []", "Restore.ignore = []") if block.page == "restore.md" else ()
    parse(block, reader, *rules)
    invocation = trainer.Invocation(dry_run=True)
    gin.get_configurable("experiment.train")(strategy=make_strategy(1), invocation=invocation)
    printed = capsys.readouterr().out
    assert ("from scratch" if "train.restore = None" in block.text else "restored ") in printed


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_a_python_block_runs(block, reader, monkeypatch):
    """`my_model` is there as in `my_models.py`; runs are cut short, and those of data sets see few examples."""
    text = as_pasted(block, reader).replace("num_steps=200", "num_steps=2")
    few = trainer.in_memory({"image": np.zeros([20, 8, 8, 1], np.float32), "label": np.arange(20) % 10})
    monkeypatch.setattr(trainer, "tfds_data", lambda name, split, preprocess=None: few)
    # pytest's process has three logical devices, over which a reader's batch does not divide.
    monkeypatch.setattr("trainer.run.inputs.build_strategy", lambda name: make_strategy(1))
    import my_models

    names: dict = {"__name__": "block", "my_model": my_models.my_model}
    if block.file:
        assert importlib.import_module(block.file.removesuffix(".py")).keras
        return
    exec(compile(text, str(block), "exec"), names)  # noqa: S102
    assert names


def commands_in(block: Block) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in block.text.splitlines()]
    return [words for words in lines if words]


def defined_flags() -> set[str]:
    sources = [path.read_text() for path in (REPOSITORY / "launch").rglob("*.py")]
    return set(itertools.chain.from_iterable(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text) for text in sources))


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=str)
def test_a_command_names_targets_modules_flags_and_files_that_are_there(block):
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for words in commands_in(block):
        if words[0] == "make":
            assert words[1] in targets
        for module in re.findall(r"launch\.(\w+)", " ".join(words)):
            assert (REPOSITORY / "launch" / f"{module}.py").exists() or (REPOSITORY / "launch" / module).is_dir()
        if "launch." in " ".join(words):
            flags = {word[2:].partition("=")[0] for word in words if word.startswith("--") and word != "--"}
            assert flags <= defined_flags()
        for path in (word for word in words if word.startswith("launch/")):
            assert (REPOSITORY / path).exists()


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", ["README.md", *sorted({block.page for block in of("sh")} - {"README.md"})])
def test_the_commands_of_a_page_run_one_after_the_other(page, folder, tmp_path, monkeypatch):
    """As they stand, from the reader's folder; trainings are cut short. `make` targets are other tests'."""
    ran = 0
    for block in (block for block in of("sh") if block.page == page):
        for words in commands_in(block):
            if words[:2] != ["python", "-m"]:
                continue
            arguments = [
                word.replace("/path/to/checkpoint", str(folder / "checkpoint"))
                .replace("runs/", f"{tmp_path}/runs/")
                .replace("=configs/", f"={REPOSITORY}/configs/")
                for word in words[3:]
            ]
            if words[2] in ("launch.train", "launch.evaluate", "launch.compare"):
                arguments.append("--gin_param=NUM_STEPS = 2")
            done = run_command(words[2], *arguments, cwd=folder)
            assert done.returncode == 0, (words, done.stderr)
            ran += 1
    assert ran or page in ("benchmarks.md", "style_transfer.md")
