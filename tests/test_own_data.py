"""Data of the user's own: what is wrong with them ends in one message, and every command takes them in each form."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import run_command
from grouped import train_with

import trainer
from trainer.output.metric_writer import read_rows

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=[40, 4]).astype(np.float32)
LABEL = (np.arange(40) % 3).astype(np.int64)


def classifier():
    return keras.Sequential([keras.layers.Dense(3, name="head")])


def crossentropy(**options):
    return trainer.supervised(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics={"accuracy": keras.metrics.SparseCategoricalAccuracy}, **{"inputs": "x", "target": "label", **options},
    )  # fmt: skip


def train(**options):
    given = dict(
        model=classifier, task=crossentropy(), optimizer=lambda: keras.optimizers.SGD(0.1),
        train_data={"x": X, "label": LABEL}, global_batch_size=8, num_steps=4, strategy=tf.distribute.get_strategy(),
    )  # fmt: skip
    return train_with(**(given | options))


def refused(**options) -> str:
    with pytest.raises(trainer.UserError) as error:
        train(**options)
    return str(error.value)


# In any form, for every command

MODULE = """
import gin, keras, numpy as np, tensorflow as tf

X = np.random.RandomState(0).rand(24, 3).astype("float32")
LABEL = (X[:, 0] > 0.5).astype("int64")


@gin.register
def net():
    return keras.Sequential([keras.layers.Dense(2)])


@gin.register
def as_dict():
    return {"x": X, "label": LABEL}


@gin.register
def as_dataset():
    return tf.data.Dataset.from_tensor_slices(as_dict())
"""

CONFIG = """
include 'configs/base.gin'
import my_data
MODEL = @net
TASK = @supervised()
supervised.loss = @SparseCategoricalCrossentropy()
SparseCategoricalCrossentropy.from_logits = True
supervised.metrics = {'accuracy': @SparseCategoricalAccuracy}
supervised.inputs = 'x'
TRAIN_DATA = @as_dict()
EVAL_DATA = @as_dataset()
OPTIMIZER = @SGD
SGD.learning_rate = 0.1
train.restore = None
NUM_STEPS = 4
GLOBAL_BATCH_SIZE = 8
"""


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_data.py").write_text(MODULE)
    (folder / "my.gin").write_text(CONFIG)
    done = run_command("launch.train", "--gin_file=my.gin", "--model_dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("eval_data", ["@as_dataset()", "@as_dict()"])
@pytest.mark.parametrize("continuous", [[], ["--continuous"]], ids=["once", "continuous"])
def test_evaluate_takes_what_train_takes(own_folder, eval_data, continuous, tmp_path):
    done = run_command(
        "launch.evaluate", "--gin_file=my.gin", f"--gin_param=EVAL_DATA = {eval_data}", "--model_dir=run", *continuous,
        cwd=own_folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    # A follower evaluates a step once; the second finds it on record.
    assert all(row["num_examples"] == 24 for row in rows) and (rows or continuous)


# Runs that were stopped


def test_a_stopped_run_reports_its_last_evaluation_with_its_step(tmp_path, monkeypatch, capsys):
    from test_nan import stop_after

    options = dict(eval_data={"x": X, "label": LABEL}, model_dir=tmp_path / "run", num_steps=20, eval_every=4)
    stop_after(monkeypatch, 6)
    result = train(**options)
    said = capsys.readouterr().out
    assert result.step == 6 and not result.finished and result.final_metrics == {}
    step, metrics = result.last_evaluation
    rows = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "split" in row]
    assert step == 4 == rows[-1]["step"] and metrics["accuracy"] == rows[-1]["accuracy"]
    assert f"not evaluated since step 4: loss {metrics['loss']:.4f}" in said
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["final_metrics"] == {} and not summary["finished"]
    assert summary["last_evaluation"] == {"step": 4, "metrics": metrics}
    shown = run_command("launch.report", f"--model_dir={tmp_path / 'run'}").stdout
    assert "6 of 20" in shown and f"{metrics['accuracy']:.3f} at step 4" in " ".join(shown.split())


def test_report_tells_runs_of_one_name_apart_and_shows_a_regression(tmp_path):
    for place, loss in (("mine/a", 1.0), ("yours/a", 2.0)):
        (tmp_path / place).mkdir(parents=True)
        summary = dict(
            step=3, num_steps=3, finished=True, optimizer="SGD", init_checkpoint=None,
            initial_metrics={"loss": 9.0, "num_examples": 3.0}, final_metrics={"loss": loss, "num_examples": 3.0},
        )  # fmt: skip
        (tmp_path / place / "summary.json").write_text(json.dumps(summary))
    done = run_command("launch.report", f"--model_dir={tmp_path}/mine/a", f"--model_dir={tmp_path}/yours/a/")
    assert done.returncode == 0, done.stderr
    assert "mine/a" in done.stdout and "yours/a" in done.stdout and "loss on the evaluation split" in done.stdout


# Features


def nested():
    return {"image": X, "objects": {"label": LABEL, "box": {"x": X}}}


def test_nested_features_are_named_by_their_paths():
    task = crossentropy(inputs="objects/box/x", target="objects/label")
    for data in (nested(), tf.data.Dataset.from_tensor_slices(nested())):
        assert train(train_data=data, eval_data=data, task=task).step == 4
    assert "has no feature 'objects/boxes/x'" in refused(
        train_data=nested(), task=crossentropy(inputs="objects/boxes/x")
    )


def test_a_feature_without_one_shape_is_named():
    ragged = tf.data.Dataset.from_tensor_slices({"x": tf.ragged.constant([[1.0], [2.0, 3.0]]), "label": [0, 1]})
    assert "the feature 'x' (RaggedTensorSpec) has no one shape" in refused(train_data=ragged)


def test_a_missing_feature_says_of_which_data():
    assert "The training data (train_data) has no feature 'y'; it has x, label." in refused(
        task=crossentropy(inputs="y")
    )
    assert "The evaluation data (eval_data) has no feature 'x'; it has z, label." in refused(
        eval_data={"z": X, "label": LABEL}
    )


# Labels


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["train_data", "eval_data"])
def test_labels_outside_of_the_classes_are_refused_before_the_first_step(streamed, kind, tmp_path):
    wrong = {"x": X, "label": LABEL + 1}
    data = tf.data.Dataset.from_tensor_slices(wrong) if streamed else wrong
    said = refused(**{kind: data}, model_dir=tmp_path / "run")
    assert "The labels 'label' run from 1 to 3, but the model has 3 outputs, for classes 0 to 2." in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["train_data", "eval_data"])
def test_a_label_that_comes_late_in_a_stream_is_one_message(kind):
    late = {"x": np.zeros([200, 4], np.float32), "label": np.array([0] * 199 + [7])}
    said = refused(**{kind: tf.data.Dataset.from_tensor_slices(late)}, num_steps=30)
    assert f"The data {kind} have the label 7, but the model has 3 outputs, for classes 0 to 2." in said


def test_labels_that_are_texts_and_a_list_of_targets_are_refused_by_name():
    texts = {"x": X, "label": np.array(["a", "b"] * 20)}
    for data in (texts, tf.data.Dataset.from_tensor_slices(texts)):
        assert "has texts in the target 'label'" in refused(train_data=data)
    with pytest.raises(trainer.UserError, match=r"supervised.target names one feature, 'label'; it is \['a', 'b'\]"):
        crossentropy(target=["a", "b"])


# Schedules


class Rsqrt(keras.optimizers.schedules.LearningRateSchedule):
    """The transformer tutorial's, which has no get_config."""

    def __init__(self, casts=True, scale=64.0):
        super().__init__()
        self.casts, self.scale = casts, tf.cast(scale, tf.float32)

    def __call__(self, step):
        if self.casts:
            step = tf.cast(step, tf.float32)
        return tf.math.rsqrt(self.scale) * tf.math.minimum(tf.math.rsqrt(step), step * 400**-1.5)


def test_a_schedule_without_get_config_trains_and_a_changed_one_is_another_run(tmp_path):
    options = dict(model_dir=tmp_path / "run", optimizer=lambda: keras.optimizers.Adam(Rsqrt()))
    assert train(**options).step == 4
    assert train(**options | {"num_steps": 6}).step == 6
    changed = refused(**options | {"optimizer": lambda: keras.optimizers.Adam(Rsqrt(scale=16.0)), "num_steps": 8})
    assert "train.optimizer.learning_rate.scale = 64.0" in changed and "16.0" in changed


def test_a_schedule_that_takes_the_root_of_an_integer_is_one_message(tmp_path):
    said = refused(optimizer=lambda: keras.optimizers.Adam(Rsqrt(casts=False)), model_dir=tmp_path / "run")
    assert "The schedule Rsqrt cannot be computed at step 0, an integer" in said
    assert "step = tf.cast(step, tf.float32)" in said and not (tmp_path / "run").exists()


# Numbers that are not finite


@pytest.mark.parametrize("streamed", [False, True])
def test_data_that_are_not_finite_are_named_and_no_rate_is_blamed(tmp_path, streamed):
    bad = X.copy()
    bad[[5, 31]] = np.nan
    data = {"x": bad, "label": LABEL}
    data = tf.data.Dataset.from_tensor_slices(data) if streamed else data
    said = refused(train_data=data, model_dir=tmp_path / "run", checkpoint_every=1, num_steps=20, log_every=1)
    assert "the feature 'x' is not finite in example" in said and ("5" in said or "31" in said)
    assert "Mend these examples" in said and "learning rate" not in said


def test_a_last_update_that_makes_weights_infinite_leaves_no_final_weights(tmp_path):
    # The loss and the gradient of the only step are finite; the rate makes the update overflow.
    options = dict(model_dir=tmp_path / "run", optimizer=lambda: keras.optimizers.SGD(3e38), num_steps=1)
    task = trainer.supervised(loss=keras.losses.MeanSquaredError(), inputs="x", target="y")
    data = {"x": X * 100, "y": X[:, :1] * 1000}
    said = refused(**options, model=lambda: keras.Sequential([keras.layers.Dense(1)]), task=task, train_data=data)
    assert "is not finite after the update" in said
    assert not (tmp_path / "run/final.weights.h5").exists()


def test_a_last_evaluation_that_is_not_finite_finishes_no_run(tmp_path):
    bad = X.copy()
    bad[3] = math.inf
    said = refused(eval_data={"x": bad, "label": LABEL}, model_dir=tmp_path / "run")
    assert "The last evaluation's loss is nan" in said and not (tmp_path / "run/final.weights.h5").exists()


# What is written down


def test_the_logged_rate_is_the_steps_own_and_evaluations_have_tags_of_their_own(tmp_path):
    decay = keras.optimizers.schedules.PolynomialDecay(1.0, 4, end_learning_rate=0.0)
    train(
        optimizer=lambda: keras.optimizers.SGD(decay), model_dir=tmp_path / "run", log_every=1,
        eval_data={"x": X, "label": LABEL},
    )  # fmt: skip
    rows = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "split" not in row]
    assert [row["learning_rate"] for row in rows] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    tags = {
        value.tag
        for path in (tmp_path / "run").glob("*/events.*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {"loss", "eval/loss", "eval/accuracy"} <= tags and "accuracy" not in tags


def test_configurables_have_a_line_of_description():
    done = run_command("launch.configurables", "in_memory")
    name, summary = done.stdout.splitlines()
    assert name.startswith("pipeline.in_memory(") and summary.startswith("    Data given outright")


class TakesNames(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(3)

    def call(self, inputs):
        return self.head(inputs["x"])


def test_a_model_that_takes_names_and_is_given_a_list_is_one_plain_message():
    said = refused(model=TakesNames, task=crossentropy(inputs=["x"]))
    assert "list indices must be integers or slices, not str" in said and "a list or dict of them" in said
    assert "\x1b" not in said and "Arguments received" not in said and "KerasTensor" not in said
    assert train(model=TakesNames, task=crossentropy(inputs={"x": "x"})).step == 4
