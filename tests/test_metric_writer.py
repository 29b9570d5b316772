"""What a run leaves on record, and that a resumed one records nothing twice."""

import json
import time

import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from trainer.output.atomic_files import write_text
from trainer.output.metric_writer import MetricWriter, read_rows
from trainer.output.summary_plot import draw_summary


def writer(folder, **options):
    return MetricWriter(folder / "metrics.jsonl", {name: folder / name for name in ("train", "eval")}, **options)


def test_rows_are_json_lines_and_evaluations_name_their_split(tmp_path):
    with_rows = writer(tmp_path)
    with_rows.write(10, {"loss": 0.5, "learning_rate": 0.1})
    with_rows.write(10, {"accuracy": 0.75}, split="test")
    with_rows.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "loss": 0.5, "learning_rate": 0.1},
        {"step": 10, "split": "test", "accuracy": 0.75},
    ]


def test_tensorboard_holds_the_same_scalars_and_texts(tmp_path):
    with_rows = writer(tmp_path)
    with_rows.write(10, {"loss": 0.5})
    with_rows.write(10, {"accuracy": 0.75}, split="test")
    with_rows.write_text("operative_config", "SGD.momentum = 0.9")
    with_rows.close()
    found = {}
    for name in ("train", "eval"):
        for path in (tmp_path / name).glob("events.*"):
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    found[name, value.tag] = tf.make_ndarray(value.tensor)
    assert found["train", "loss"] == 0.5 and found["eval", "eval/accuracy"] == 0.75
    assert b"SGD.momentum = 0.9" in found["train", "operative_config"].item()


def points(folder, tag):
    """(step, value) of a scalar as TensorBoard shows them, read by its own reader.

    It reads the files in the order of their names, which begin with the second in which each was made.
    """
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    if tag not in accumulator.Tags()["tensors"]:
        return []
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in accumulator.Tensors(tag)]


def test_tensorboard_shows_no_point_twice_of_a_run_that_was_resumed_or_went_back(tmp_path):
    first = writer(tmp_path)
    for step in (0, 10, 20, 30):
        first.write(step, {"loss": float(step)})
        first.write(step, {"loss": float(step)}, split="test")
    first.flush()  # a kill: it is not closed
    time.sleep(1.1)
    again = writer(tmp_path, start_step=10)
    for step in (20, 30):
        again.write(step, {"loss": -1.0})
    again.write(20, {"loss": -1.0}, split="test")
    again.drop_after(20)
    again.write(30, {"loss": -2.0})
    again.close()
    assert points(tmp_path / "train", "loss") == [(0, 0.0), (10, 10.0), (20, -1.0), (30, -2.0)]
    assert points(tmp_path / "eval", "eval/loss") == [(0, 0.0), (10, 10.0), (20, -1.0)]


def test_tensorboard_shows_nothing_of_a_run_that_was_started_over(tmp_path):
    first = writer(tmp_path)
    first.write(0, {"loss": 1.0})
    first.write(10, {"old": 1.0})
    first.close()
    time.sleep(1.1)
    again = writer(tmp_path)
    again.write(10, {"loss": 2.0})
    again.close()
    assert points(tmp_path / "train", "loss") == [(10, 2.0)] and not points(tmp_path / "train", "old")


def test_a_resumed_run_drops_what_was_written_after_its_checkpoint(tmp_path):
    first = writer(tmp_path)
    for step in (0, 10, 20, 30):
        first.write(step, {"loss": float(step)})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')  # cut short by a kill
    again = writer(tmp_path, start_step=20)
    again.write(30, {"loss": -1.0})
    again.close()
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / "metrics.jsonl")] == [
        (0, 0.0), (10, 10.0), (20, 20.0), (30, -1.0),
    ]  # fmt: skip


def test_a_fresh_start_begins_an_empty_record(tmp_path):
    first = writer(tmp_path)
    first.write(0, {"loss": 1.0})
    first.close()
    writer(tmp_path).close()
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_a_worker_that_is_not_the_chief_writes_nothing(tmp_path):
    silent = MetricWriter(None, {}, enabled=False)
    silent.write(1, {"loss": 1.0})
    silent.write_text("a", "b")
    silent.flush()
    silent.close()
    assert not list(tmp_path.iterdir())


def test_the_plot_is_a_picture_even_without_evaluations(tmp_path):
    rows = [{"step": step, "loss": 1.0 / step, "learning_rate": 0.1} for step in (1, 2, 3)]
    draw_summary(rows, tmp_path / "plain.png", "plain")
    draw_summary([*rows, {"step": 3, "split": "test", "accuracy": 0.5}], tmp_path / "evaluated.png", "evaluated")
    widths = {
        name: tf.io.decode_png((tmp_path / f"{name}.png").read_bytes()).shape[1] for name in ("plain", "evaluated")
    }
    assert widths["evaluated"] > widths["plain"] > 300


def test_a_text_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.gin"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new" and [each.name for each in tmp_path.iterdir()] == ["config.gin"]
