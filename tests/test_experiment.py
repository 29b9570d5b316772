"""`trainer.train` from Python, without gin or flags."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy

import trainer

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
        num_steps=4, from_scratch=True, strategy=make_strategy(1),
    )  # fmt: skip
    return trainer.train(**{**defaults, **options})


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
    with pytest.raises(trainer.UserError, match="no init_checkpoint"):
        train(from_scratch=False)
    with pytest.raises(trainer.UserError, match="Both init_checkpoint and from_scratch"):
        train(init_checkpoint="somewhere")


def test_numbers_that_make_no_run_are_refused():
    for wrong, message in (
        ({"num_steps": 0}, "num_steps = 0"),
        ({"num_steps": 1.5}, "num_steps = 1.5"),
        ({"seed": -1}, "seed = -1"),
        ({"global_batch_size": 0}, "global_batch_size 0"),
    ):
        with pytest.raises(trainer.UserError, match=message):
            train(**wrong)


def test_a_run_does_not_go_back_behind_its_checkpoint(tmp_path):
    train(model_dir=tmp_path / "run", num_steps=4)
    with pytest.raises(trainer.UserError, match="at step 4 already, past num_steps = 3"):
        train(model_dir=tmp_path / "run", num_steps=3)


def test_a_finished_runs_summary_names_where_it_started_even_after_a_resume(tmp_path):
    train(model_dir=tmp_path / "source", num_steps=2)
    options = {"init_checkpoint": str(tmp_path / "source"), "from_scratch": False, "model_dir": tmp_path / "run"}
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
    common = dict(model=lambda: Classifier(3), init_checkpoint=path, from_scratch=False)
    with pytest.raises(trainer.RestoreError) as refused:
        train(**common)
    assert {record.name for record in refused.value.report.mismatched} == {"head/kernel", "head/bias"}
    result = train(**common, reinitialize=["^head/"], frozen=["^body/"])
    assert [record.name for record in result.restore_report.reinitialized] == ["head/kernel", "head/bias"]
    np.testing.assert_array_equal(result.model.body.kernel.numpy(), source.body.kernel.numpy())


def test_a_loss_of_sum_reduction_is_refused():
    with pytest.raises(trainer.UserError, match="always the mean over the global batch"):
        trainer.supervised(loss=keras.losses.MeanSquaredError(reduction="sum"))


@pytest.mark.slow
def test_a_keras_applications_model_trains_on_two_replicas():
    def mobile_net():
        return keras.applications.MobileNetV2(input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=3)

    data = {"x": RANDOM.uniform(size=[8, 32, 32, 3]), "label": RANDOM.integers(0, 3, 8)}
    task = trainer.supervised(loss=keras.losses.SparseCategoricalCrossentropy(), inputs="x", target="label")
    result = train(
        model=mobile_net, train_data=data, task=task, global_batch_size=8, num_steps=2, strategy=make_strategy(2)
    )
    assert result.step == 2 and len(result.model.weights) > 200
