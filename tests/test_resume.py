"""A resumed run continues with everything: optimizer, step, data order, random generators, statistics."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy
from grouped import train_with

import trainer
from trainer.checkpoints.finder import newest_checkpoint
from trainer.cluster.replicas import first_value
from trainer.errors import RunAgain
from trainer.output.metric_writer import read_rows
from trainer.output.model_dir import ModelDir, ModelDirLock

RANDOM = np.random.default_rng(0)
DATA = {"x": RANDOM.normal(size=[40, 4]), "label": RANDOM.integers(0, 3, 40)}


class Everything(keras.Model):
    """Dropout, batch statistics, and layers in a Python list that TensorFlow does not track."""

    def __init__(self):
        super().__init__()
        self.blocks = [keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization()]
        self.dropout = keras.layers.Dropout(0.5)
        self.head = keras.layers.Dense(3)

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(x, training=training))


def run(model_dir, num_steps, strategy, **more):
    options = dict(
        model=Everything,
        train_data=DATA,
        eval_data=DATA,
        task=trainer.supervised(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label"
        ),
        optimizer=lambda: keras.optimizers.Adam(0.01),
        global_batch_size=8,
        num_steps=num_steps,
        model_dir=model_dir,
        strategy=strategy,
        log_every=1,
        checkpoint_every=3,
        steps_per_loop=2,
    )
    return train_with(**{**options, **more})


def bits(result):
    return [first_value(variable).tobytes() for variable in result.model.variables]


def test_a_run_in_two_parts_ends_with_the_bits_of_an_unbroken_one(tmp_path, strategy):
    whole = run(tmp_path / "whole", 11, strategy)
    run(tmp_path / "parts", 4, strategy)
    rest = run(tmp_path / "parts", 11, strategy)
    assert bits(rest) == bits(whole)
    assert rest.final_metrics == whole.final_metrics and rest.initial_metrics == whole.initial_metrics
    rows = {
        name: [row.get("loss") for row in read_rows(tmp_path / name / "metrics.jsonl") if "split" not in row]
        for name in ("whole", "parts")
    }
    assert rows["parts"] == rows["whole"]


@pytest.mark.full
@pytest.mark.parametrize("name", ["run[1]", "run*?", "a\\b"])
def test_a_run_in_a_folder_that_looks_like_a_pattern_resumes(name, tmp_path, monkeypatch):
    strategy = make_strategy(1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "job[7]"))  # as schedulers name it in an array of jobs
    (tmp_path / "job[7]").mkdir()
    run(tmp_path / name, 3, strategy)
    assert run(tmp_path / name, 6, strategy).step == 6


@pytest.mark.full
def test_a_run_under_loss_scaling_resumes_to_the_bits_of_an_unbroken_one(tmp_path):
    """The scale falls at steps that are skipped, and grows again after every other one."""
    strategy = make_strategy(2)

    def optimizer():
        return keras.optimizers.LossScaleOptimizer(
            keras.optimizers.Adam(0.01), initial_scale=2.0**127, dynamic_growth_steps=2
        )

    whole = run(tmp_path / "whole", 11, strategy, optimizer=optimizer)
    updates = tf.train.load_checkpoint(str(tmp_path / "whole/checkpoints")).get_tensor(
        "optimizer/inner_optimizer/_iterations/.ATTRIBUTES/VARIABLE_VALUE"
    )
    assert 0 < updates < 10, "else nothing is tested"
    for step in (1, 4):
        run(tmp_path / str(step), step, strategy, optimizer=optimizer)
        rest = run(tmp_path / str(step), 11, strategy, optimizer=optimizer)
        assert bits(rest) == bits(whole)
        assert state_of(tmp_path / str(step)) == state_of(tmp_path / "whole")


def state_of(model_dir):
    """Every tensor of the last checkpoint."""
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints"))
    names = [name for name in reader.get_variable_to_shape_map() if not name.startswith("_CHECKPOINTABLE")]
    return {name: np.asarray(reader.get_tensor(name)).tobytes() for name in names}


def test_a_run_continues_with_another_number_of_replicas(tmp_path):
    # Without dropout, whose masks are those of each replica unless they are drawn by example.
    def plain():
        return keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)])

    whole = run(tmp_path / "whole", 8, make_strategy(1), model=plain)
    run(tmp_path / "parts", 4, make_strategy(2), model=plain)
    rest = run(tmp_path / "parts", 8, make_strategy(1), model=plain)
    for first, second in zip(whole.model.weights, rest.model.weights, strict=True):
        np.testing.assert_allclose(first_value(first), first_value(second), atol=1e-6)


@pytest.mark.full
def test_resume_wins_over_restore_and_does_not_read_the_old_file_again(tmp_path, strategy):
    run(tmp_path / "source", 3, strategy)
    options = {"checkpoint": str(tmp_path / "source")}
    first = run(tmp_path / "run", 3, strategy, **options)
    assert first.restore_report is not None and first.optimizer_proof is not None
    for file in (tmp_path / "source/checkpoints").iterdir():
        file.unlink()
    second = run(tmp_path / "run", 6, strategy, **options)
    assert second.step == 6 and second.restore_report is None and second.optimizer_proof is None


@pytest.mark.full
def test_the_checkpoint_is_an_ordinary_one_that_tensorflow_reads_alone(tmp_path):
    result = run(tmp_path / "run", 3, make_strategy(2))
    reader = tf.train.load_checkpoint(str(tmp_path / "run/checkpoints"))
    keys = reader.get_variable_to_shape_map()
    np.testing.assert_array_equal(
        reader.get_tensor("model/head/_kernel/.ATTRIBUTES/VARIABLE_VALUE"), first_value(result.model.head.kernel)
    )
    assert "train_state/seed_generators/0/.ATTRIBUTES/VARIABLE_VALUE" in keys, "a resumed Dropout needs its generator"
    assert "train_state/step/.ATTRIBUTES/VARIABLE_VALUE" in keys


@pytest.mark.full
def test_the_state_of_a_model_with_listed_layers_can_be_somebodys_init_checkpoint(tmp_path):
    source = run(tmp_path / "source", 3, make_strategy(2))
    model = Everything()
    report = trainer.restore_weights(model, tmp_path / "source", input_spec=tf.TensorSpec([None, 4], tf.float32))
    assert len(report.restored) == len(model.weights) == 8
    for ours, theirs in zip(model.weights, source.model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), first_value(theirs))


@pytest.mark.full
def test_another_optimizer_in_the_same_model_dir_is_named_and_nothing_is_lost(tmp_path):
    run(tmp_path / "run", 3, make_strategy(1))
    before = newest_checkpoint(tmp_path / "run/checkpoints")
    with pytest.raises(trainer.UserError, match="holds a run of another config") as refused:
        run(tmp_path / "run", 3, make_strategy(1), optimizer=lambda: keras.optimizers.SGD(0.01))
    assert "Adam" in str(refused.value) and "SGD" in str(refused.value)
    assert newest_checkpoint(tmp_path / "run/checkpoints") == before


def test_a_second_writer_is_reported_who_holds_the_folder(tmp_path):
    files = ModelDir(tmp_path / "run")
    files.create()
    with ModelDirLock(files), pytest.raises(trainer.UserError, match=r"is being written by process \d+ on"):
        run(tmp_path / "run", 3, make_strategy(1))
    assert run(tmp_path / "run", 3, make_strategy(1)).finished, "a lock that was left is no lock"


@pytest.mark.full
def test_the_newest_whole_checkpoint_is_taken_when_a_later_one_lost_a_file(tmp_path):
    run(tmp_path / "run", 6, make_strategy(1), checkpoint_every=2)
    (tmp_path / "run/checkpoints/ckpt-6.data-00000-of-00001").unlink()
    again = run(tmp_path / "run", 6, make_strategy(1), checkpoint_every=2)
    assert again.step == 6
    assert bits(again) == bits(run(tmp_path / "other", 6, make_strategy(1), checkpoint_every=2))


@pytest.mark.full
def test_a_resumed_run_normalises_with_the_statistics_that_it_was_restored_with(tmp_path):
    adapted = keras.layers.Normalization()
    adapted.adapt(DATA["x"] * 9.0 + 50.0)
    source = keras.Sequential([keras.Input([4]), adapted, keras.layers.Dense(3)])
    source.save_weights(tmp_path / "source.weights.h5")

    def build():
        return keras.Sequential([keras.Input([4]), keras.layers.Normalization(), keras.layers.Dense(3)])

    options = dict(model=build, checkpoint=str(tmp_path / "source.weights.h5"))
    whole = run(tmp_path / "whole", 8, make_strategy(1), **options)
    run(tmp_path / "parts", 4, make_strategy(1), **options)
    rest = run(tmp_path / "parts", 8, make_strategy(1), **options)
    assert bits(rest) == bits(whole)
    assert rest.final_metrics == whole.final_metrics


@pytest.mark.full
def test_dropout_by_example_continues_with_another_number_of_replicas(tmp_path):
    whole = run(tmp_path / "whole", 9, make_strategy(1), random_numbers="per_example")
    run(tmp_path / "parts", 4, make_strategy(2), random_numbers="per_example")
    rest = run(tmp_path / "parts", 9, make_strategy(1), random_numbers="per_example")
    for first, second in zip(whole.model.weights, rest.model.weights, strict=True):
        np.testing.assert_allclose(first_value(first), first_value(second), atol=1e-5, rtol=0, err_msg=first.path)


@pytest.mark.full
def test_a_run_that_another_process_began_meanwhile_is_to_be_started_again(tmp_path):
    run(tmp_path / "other", 3, make_strategy(1))

    def build():
        # While this one is being built, long before it locks the folder.
        shutil.copytree(tmp_path / "other", tmp_path / "run", dirs_exist_ok=True)
        return Everything()

    with pytest.raises(RunAgain, match="was written by another process just now. Run the command again"):
        run(tmp_path / "run", 6, make_strategy(1), model=build)
    assert run(tmp_path / "run", 6, make_strategy(1)).step == 6
