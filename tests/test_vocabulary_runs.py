"""Runs of models with a vocabulary that only the restored file has: trained, resumed, evaluated."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import make_strategy
from grouped import train_with

import trainer
from trainer.run.evaluate_checkpoint import load_and_evaluate

sys.path.insert(0, str(Path(__file__).parent / "restore"))
from zoo import text_model  # noqa: E402

WORDS = ["good", "bad", "film", "plot"]
DATA = {"text": np.array(["good film", "bad film", "good good", "bad bad plot"] * 4), "label": np.tile([1, 0], 8)}


def task():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return trainer.supervised(loss=loss, inputs="text", target="label")


def train(model=text_model, num_steps=2, checkpoint=None, strategy=None, **settings):
    strategy = strategy or make_strategy(1)
    return train_with(
        model=model, train_data=DATA, eval_data=DATA, task=task(), optimizer=lambda: keras.optimizers.SGD(0.1),
        global_batch_size=6, num_steps=num_steps, checkpoint=checkpoint, checkpoint_every=1,
        strategy=strategy, **settings,
    )  # fmt: skip


@pytest.fixture
def source(tmp_path) -> str:
    keras.utils.set_random_seed(3)
    text_model(WORDS).save(tmp_path / "source.keras")
    return str(tmp_path / "source.keras")


def test_a_resumed_run_has_the_vocabulary_of_the_restored_file(source, tmp_path, strategy):
    settings = {"checkpoint": source, "strategy": strategy}
    train(model_dir=tmp_path / "broken", **settings)
    resumed = train(model_dir=tmp_path / "broken", num_steps=4, **settings)
    unbroken = train(model_dir=tmp_path / "unbroken", num_steps=4, **settings)
    assert resumed.model.get_layer("vec").get_vocabulary()[2:] == WORDS
    assert resumed.final_metrics == unbroken.final_metrics
    for ours, theirs in zip(resumed.model.weights, unbroken.model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.full
def test_checkpoints_and_final_weights_fill_the_vocabulary_again(source, tmp_path):
    result = train(model_dir=tmp_path / "run", checkpoint=source)
    for path in ("run", "run/checkpoints/ckpt-2", "run/final.weights.h5"):
        report, metrics = load_and_evaluate(text_model, task(), DATA, str(tmp_path / path), 6, make_strategy(1))
        assert [table.status for table in report.tables] == ["filled"]
        assert metrics["loss"] == pytest.approx(result.final_metrics["loss"], abs=1e-6)
    reported = json.loads((tmp_path / "run/restore_report.json").read_text())["tables"]
    assert [(table["name"], table["status"]) for table in reported] == [("vec/vocabulary", "filled")]
    text_model(WORDS).load_weights(tmp_path / "run/final.weights.h5")  # Keras reads it as before


@pytest.mark.full
def test_a_resume_with_another_vocabulary_is_refused(source, tmp_path):
    train(model_dir=tmp_path / "run", checkpoint=source)
    with pytest.raises(trainer.UserError, match="vec/vocabulary is not that of the run"):
        train(lambda: text_model(texts=["plot plot film"]), 4, source, model_dir=tmp_path / "run")


def test_a_run_without_any_vocabulary_ends_before_its_first_step(tmp_path):
    with pytest.raises(trainer.UserError, match="The model has no vec/vocabulary"):
        train(model_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
