"""`trainer.train` from Python, without gin or flags."""

import dataclasses
import json
import re

import gin
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import full, make_strategy
from grouped import train_with

import trainer
from trainer.config.checks import problems
from trainer.output.metric_writer import read_rows
from trainer.output.model_dir import ModelDir
from trainer.run.preemption import Preemption

RANDOM = np.random.default_rng(0)
DATA = {"x": RANDOM.normal(size=[20, 4]), "label": RANDOM.integers(0, 3, 20)}
TASK = trainer.supervised(
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    inputs="x",
    target="label",
    metrics={"accuracy": keras.metrics.SparseCategoricalAccuracy},
)


def small():
    return keras.Sequential([keras.layers.Dense(3)])


def train(**options):
    defaults = dict(
        model=small, train_data=DATA, task=TASK, optimizer=lambda: keras.optimizers.SGD(0.1), global_batch_size=10,
        num_steps=4, strategy=make_strategy(1),
    )  # fmt: skip
    return train_with(**{**defaults, **options})


def test_without_a_model_dir_nothing_is_written_and_the_model_is_handed_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = train(eval_data=DATA)
    assert result.finished and result.step == 4 and result.model_dir is None
    assert result.final_metrics["loss"] < result.initial_metrics["loss"]
    assert 0.0 <= result.final_metrics["accuracy"] <= 1.0
    assert not list(tmp_path.iterdir())


def test_a_tf_data_set_trains_like_the_arrays_it_was_made_of(tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices({key: np.asarray(value) for key, value in DATA.items()})
    result = train(train_data=dataset, eval_data=dataset)
    assert result.final_metrics["num_examples"] == 20
    assert result.final_metrics["loss"] < result.initial_metrics["loss"]


def test_the_same_seed_is_the_same_run_and_another_is_not():
    weights = [train(seed=seed).model.get_weights()[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_a_run_starts_from_something_that_was_said():
    with pytest.raises(trainer.UserError, match="no checkpoint to start from"):
        trainer.Restore(None)
    with pytest.raises(TypeError, match="restore"):
        trainer.train(small, task=None, optimizer=None, train_data=None, num_steps=1, global_batch_size=1)
    with pytest.raises(trainer.UserError, match="restore must be a path"):
        train(restore=3)


def test_numbers_that_make_no_run_are_refused():
    for wrong, message in (
        ({"num_steps": 0}, "num_steps = 0"),
        ({"num_steps": 1.5}, "num_steps = 1.5"),
        ({"seed": -1}, "seed = -1"),
        ({"global_batch_size": 0}, "global_batch_size = 0"),
    ):
        with pytest.raises(trainer.UserError, match=message):
            train(**wrong)


def test_a_run_does_not_go_back_behind_its_checkpoint(tmp_path):
    train(model_dir=tmp_path / "run", num_steps=4)
    with pytest.raises(trainer.UserError, match="at step 4 already, past num_steps = 3"):
        train(model_dir=tmp_path / "run", num_steps=3)


@pytest.mark.full
def test_a_finished_runs_summary_names_where_it_started_even_after_a_resume(tmp_path):
    train(model_dir=tmp_path / "source", num_steps=2)
    options = {"checkpoint": str(tmp_path / "source"), "model_dir": tmp_path / "run"}
    for num_steps in (2, 4):
        train(**options, num_steps=num_steps)
    assert json.loads((tmp_path / "run/summary.json").read_text())["init_checkpoint"] == str(tmp_path / "source")


def test_a_model_made_outside_the_strategys_scope_is_refused():
    with pytest.raises(trainer.UserError, match="must be a function that builds the model"):
        train(model=small())
    with pytest.raises(trainer.UserError, match="must return a keras.Model"):
        train(model=lambda: 3)


def test_features_that_the_task_wants_and_the_data_lacks_are_named_before_anything_is_written(tmp_path):
    for wrong in ({"inputs": "image"}, {"target": "digit"}, {"sample_weight": "weight"}):
        task = trainer.supervised(
            **{"loss": keras.losses.SparseCategoricalCrossentropy(), "inputs": "x", "target": "label", **wrong}
        )
        with pytest.raises(trainer.UserError, match=f"no feature '{next(iter(wrong.values()))}'"):
            train(task=task, model_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def classification(**options):
    return trainer.supervised(
        **{
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "inputs": "x",
            "target": "label",
            **options,
        }
    )


def refused(message, tmp_path, **options):
    with pytest.raises(trainer.UserError, match=message):
        train(**options, model_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing is written before everything fits"


def test_labels_that_the_model_has_no_output_for_are_named_before_anything_is_written(tmp_path):
    narrow = lambda: keras.Sequential([keras.layers.Dense(2)])  # noqa: E731
    refused("run from 0 to 2, but the model has 2 outputs", tmp_path, model=narrow)


@pytest.mark.full
def test_labels_that_are_ignored_or_shifted_or_texts_at_first_are_no_mistake():
    ignoring = classification(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1))
    assert train(train_data=DATA | {"label": np.where(DATA["label"] == 2, -1, DATA["label"])}, task=ignoring).finished
    shifted = trainer.in_memory(
        examples=DATA | {"label": DATA["label"] + 1}, preprocess=lambda batch: {**batch, "label": batch["label"] - 1}
    )
    assert train(train_data=shifted).finished
    texts = trainer.in_memory(
        examples=DATA | {"label": DATA["label"].astype(str)},
        preprocess=lambda batch: {**batch, "label": tf.strings.to_number(batch["label"], tf.int32)},
    )
    assert train(train_data=texts).finished


class Encoder(keras.Model):
    """A model that is not called with its inputs alone; built by its builder."""

    def __init__(self):
        super().__init__()
        self.unit = keras.layers.Dense(3)
        self.unit.build((None, 4))
        self.built = True

    def call(self, x, temperature):
        return self.unit(x) / temperature


def test_a_loss_of_the_users_own_may_call_the_model_in_its_own_way():
    task = trainer.custom_loss(loss=lambda model, batch: model(batch["x"], temperature=2.0)[:, 0] ** 2, inputs="x")
    assert train(model=Encoder, task=task).finished


def test_a_binding_of_the_users_own_program_is_no_config_of_the_run(tmp_path):
    gin.external_configurable(lambda a: a, name=f"users_thing_{tmp_path.name}")
    gin.bind_parameter(f"users_thing_{tmp_path.name}.a", 3)
    train(model_dir=tmp_path / "run")
    with pytest.raises(trainer.UserError, match="train.seed"):
        train(model_dir=tmp_path / "run", seed=2)


def test_losses_and_metrics_that_cannot_be_are_named_before_anything_is_written(tmp_path):
    refused("task's loss cannot be computed", tmp_path, task=classification(loss=keras.losses.MeanSquaredError()))
    refused("one number is needed", tmp_path, task=classification(metrics={"each": VectorMetric}))
    with pytest.raises(trainer.UserError) as reported:
        train(task=classification(loss=keras.losses.MeanSquaredError()), train_data=DATA | {"label": np.zeros([20, 2])})
    assert "in user code" not in str(reported.value) and len(str(reported.value).splitlines()) < 5
    own = trainer.custom_loss(loss=lambda model, batch: model(batch["x"]) - batch["lable"], inputs="x")
    refused("KeyError: 'lable'", tmp_path, task=own)
    scalar = trainer.custom_loss(
        loss=lambda model, batch: tf.reduce_sum(model(batch["x"]), 1), inputs="x",
        metrics={"mean": lambda model, batch: tf.constant(1.0)},
    )  # fmt: skip
    refused("a value for each example", tmp_path, task=scalar)
    with pytest.raises(trainer.UserError, match="Saving.keep = 0 must be 1"):
        trainer.Saving(keep=0)
    refused("must be a tf.distribute.Strategy", tmp_path, strategy="mirrored")
    for metrics, message in (
        ({"accuracy": keras.metrics.SparseCategoricalAccuracy()}, "is a metric already"),
        ({"accuracy": "accuracy"}, "must be a metric's class"),
        ({"loss": keras.metrics.Mean}, "must not be named 'loss'"),
        (["accuracy"], "maps names to metrics"),
    ):
        with pytest.raises(trainer.UserError, match=message):
            classification(metrics=metrics)
    with pytest.raises(trainer.UserError, match="must be a Keras loss"):
        classification(loss=keras.losses.sparse_categorical_crossentropy)


class VectorMetric(keras.metrics.Mean):
    def result(self):
        return tf.stack([super().result(), super().result()])

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(tf.cast(y_true, tf.float32), sample_weight=sample_weight)


def test_a_model_takes_its_inputs_by_name():
    def build():
        inputs = {"a": keras.Input([4], name="a"), "b": keras.Input([4], name="b")}
        return keras.Model(inputs, keras.layers.Dense(3)(inputs["a"] - inputs["b"]))

    data = {"left": DATA["x"], "right": DATA["x"], "label": DATA["label"]}
    task = classification(inputs={"a": "left", "b": "right"})
    result = train(model=build, train_data=data, eval_data=data, task=task)
    assert result.initial_metrics["loss"] == pytest.approx(np.log(3)), "a - b is 0, and so are the logits"


def test_a_builder_that_fails_is_reported_with_its_line():
    with pytest.raises(
        trainer.UserError, match=r"cannot be made: ValueError: .*units(?s:.*)\(.*test_experiment.py, line \d+\)"
    ):
        train(model=lambda: keras.Sequential([keras.layers.Dense(-1)]))


def test_a_config_gives_a_models_inputs_by_name_too():
    gin.parse_config("supervised.inputs = {'a': 'left'}\nsupervised.loss = @users_loss()")
    assert problems([]) == []
    with pytest.raises(trainer.UserError, match="no feature 'left'"):
        train(task=gin.get_configurable("tasks.supervised")())


@gin.configurable
def users_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_train_and_evaluation_data_of_one_kind_are_traced_once(monkeypatch):
    traced = []
    original = trainer.step.trace_checks.trace_loss
    monkeypatch.setattr(trainer.step.trace_checks, "trace_loss", lambda *args: traced.append(args) or original(*args))
    train(eval_data=DATA)
    assert len(traced) == 1
    with pytest.raises(trainer.UserError, match="run from 7 to 7"):
        train(eval_data=DATA | {"label": np.full(20, 7)})


def test_the_final_weights_hold_no_optimizer_even_of_a_model_that_came_compiled(tmp_path):
    def compiled():
        model = small()
        model.compile(optimizer=keras.optimizers.Adam(), loss="mse")
        model.build((None, 4))
        model.optimizer.build(model.trainable_variables)
        return model

    result = train(model=compiled, model_dir=tmp_path / "run")
    with h5py.File(tmp_path / "run/final.weights.h5") as file:
        assert "optimizer" not in file
    fresh = small()
    fresh.build((None, 4))
    fresh.load_weights(tmp_path / "run/final.weights.h5")
    np.testing.assert_array_equal(fresh.get_weights()[0], result.model.get_weights()[0])


def test_the_default_strategy_trains_too():
    assert train(strategy=tf.distribute.get_strategy()).finished


def test_a_folder_of_somebodys_checkpoints_is_no_model_dir(tmp_path):
    source = small()
    source.build((None, 4))
    tf.train.Checkpoint(model=source).save(str(tmp_path / "ckpt"))
    with pytest.raises(trainer.UserError, match="holds checkpoints that no run wrote"):
        train(model_dir=tmp_path, checkpoint=str(tmp_path))


def test_a_run_whose_checkpoints_lost_their_data_is_not_started_over_in_silence(tmp_path):
    train(model_dir=tmp_path / "run")
    record = (tmp_path / "run/metrics.jsonl").read_text()
    for shard in (tmp_path / "run/checkpoints").glob("*.data-*"):
        shard.unlink()
    with pytest.raises(trainer.UserError, match="ckpt-4: ckpt-4.data-00000-of-00001"):
        train(model_dir=tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_text() == record


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"task": classification(loss=keras.losses.SparseCategoricalCrossentropy())}, "train.task.from_logits"),
        full({"frozen": ["bias"]}, "Finetune.frozen"),
        full({"seed": 5}, "train.seed"),
        full({"global_batch_size": 5}, "train.global_batch_size"),
        ({"optimizer": lambda: keras.optimizers.SGD(0.2)}, "train.optimizer.learning_rate"),
    ],
)
def test_what_would_make_it_another_run_is_named_line_by_line(tmp_path, changed, named):
    train(model_dir=tmp_path / "run")
    with pytest.raises(trainer.UserError, match="holds a run of another config") as refusal:
        train(model_dir=tmp_path / "run", num_steps=8, **changed)
    assert named in str(refusal.value) and str(refusal.value).count("was:") == 1
    assert train(model_dir=tmp_path / "run", num_steps=8, seed=0, frozen=[]).step == 8, (
        "defaults spelled out are no change"
    )


@pytest.mark.full
def test_an_allowed_change_continues_from_the_last_step_with_the_new_rate_and_is_reported(tmp_path, capsys):
    train(model_dir=tmp_path / "run")
    changed = dict(optimizer=lambda: keras.optimizers.SGD(0.25), num_steps=8, model_dir=tmp_path / "run")
    result = train(**changed, allow_config_change=True)
    assert result.step == 8
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"config changed and allowed to: was: train.optimizer.learning_rate = 0.1\d* now: .* = 0.25", said)
    rows = [row for row in read_rows(ModelDir(tmp_path / "run").metrics) if "learning_rate" in row]
    rates = {row["step"]: row["learning_rate"] for row in rows}
    assert rates[max(rates)] == 0.25 and rates[min(rates)] == pytest.approx(0.1)
    assert train(**changed | {"num_steps": 9}).step == 9, "the new config is the run's from now on"


def in_loss_scaling(rate):
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate))


@pytest.mark.full
@pytest.mark.parametrize(
    ("optimizer", "more"),
    [
        (keras.optimizers.SGD, {}),
        (in_loss_scaling, {}),
        (keras.optimizers.SGD, {"groups": [trainer.group("bias", learning_rate_multiplier=0.5)]}),
        (keras.optimizers.Adam, {"phases": [trainer.phase(lambda: keras.optimizers.SGD(0.1), start=50)]}),
    ],
    ids=["plain", "loss scaling", "groups", "phases"],
)
def test_an_allowed_change_of_the_rate_outlives_a_kill_before_the_next_checkpoint(
    tmp_path, monkeypatch, optimizer, more
):
    train(model_dir=tmp_path / "run", optimizer=lambda: optimizer(0.1), **more)
    changed = dict(
        model_dir=tmp_path / "run", optimizer=lambda: optimizer(0.25), num_steps=8, allow_config_change=True,
        log_every=1, **more,
    )  # fmt: skip
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(Preemption, "next_steps", killed)
        train(**changed)
    train(**changed | {"num_steps": 6})
    train(**changed)
    rows = read_rows(ModelDir(tmp_path / "run").metrics)
    rates = {row["step"]: row["learning_rate"] for row in rows if "learning_rate" in row}
    assert [rates[step] for step in (5, 6, 7, 8)] == [0.25] * 4


def killed(self, count, steps_left):
    raise RuntimeError("killed")


class Halving(keras.optimizers.SGD):
    """Its rate is a variable that it changes itself."""

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        self._learning_rate.assign(self._learning_rate * 0.5)


@pytest.mark.full
def test_a_rate_that_an_optimizer_changed_itself_is_resumed(tmp_path):
    options = dict(optimizer=lambda: Halving(0.1), checkpoint_every=2)
    whole = train(model_dir=tmp_path / "whole", **options)
    train(model_dir=tmp_path / "parts", **options, num_steps=3)
    parts = train(model_dir=tmp_path / "parts", **options)
    assert saved_rate(tmp_path / "parts") == saved_rate(tmp_path / "whole") == pytest.approx(0.1 / 2**4)
    for one, two in zip(whole.model.get_weights(), parts.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def saved_rate(model_dir):
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints"))
    return reader.get_tensor("optimizer/_learning_rate/.ATTRIBUTES/VARIABLE_VALUE")


def test_a_head_for_other_classes_starts_fresh_by_rule_and_the_rest_is_restored(tmp_path):
    class Classifier(keras.Model):
        def __init__(self, classes):
            super().__init__()
            self.body = keras.layers.Dense(8)
            self.head = keras.layers.Dense(classes)

        def call(self, x):
            return self.head(self.body(x))

    source = Classifier(5)
    source(np.zeros([1, 4], np.float32))
    path = tf.train.Checkpoint(model=source).save(str(tmp_path / "ckpt"))
    common = dict(model=lambda: Classifier(3), checkpoint=path)
    with pytest.raises(trainer.RestoreError) as refused:
        train(**common)
    assert {record.name for record in refused.value.report.mismatched} == {"head/kernel", "head/bias"}
    result = train(**common, reinitialize=["^head/"], frozen=["^body/"])
    assert [record.name for record in result.restore_report.reinitialized] == ["head/kernel", "head/bias"]
    np.testing.assert_array_equal(result.model.body.kernel.numpy(), source.body.kernel.numpy())


def test_a_loss_of_sum_reduction_is_refused():
    with pytest.raises(trainer.UserError, match="always the mean over the global batch"):
        trainer.supervised(loss=keras.losses.MeanSquaredError(reduction="sum"))


@pytest.mark.full
def test_a_keras_applications_model_trains_on_two_replicas():
    def mobile_net():
        return keras.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=3)

    data = {"x": RANDOM.uniform(size=[8, 32, 32, 3]), "label": RANDOM.integers(0, 3, 8)}
    task = trainer.supervised(loss=keras.losses.SparseCategoricalCrossentropy(), inputs="x", target="label")
    result = train(
        model=mobile_net, train_data=data, task=task, global_batch_size=8, num_steps=1, strategy=make_strategy(2),
        eval_data=None,
    )  # fmt: skip
    assert result.step == 1 and len(result.model.weights) > 100


def test_other_data_of_the_same_size_make_another_run_and_what_a_task_computes_of_them_does_not(tmp_path, monkeypatch):
    def computed(task, data):
        # As on another machine: never the same to the last bit.
        noise = np.random.default_rng().normal(size=[data.num_examples])
        return dataclasses.replace(data, examples={**data.examples, "computed": noise})

    monkeypatch.setattr(type(TASK), "completed", computed)
    train(model_dir=tmp_path / "run", num_steps=2)
    assert train(model_dir=tmp_path / "run", num_steps=4).step == 4
    with pytest.raises(trainer.UserError, match="run of another config:\n  was: train.train_data = .*CRC-32C"):
        train(model_dir=tmp_path / "run", num_steps=6, train_data=DATA | {"x": 2 * DATA["x"]})
