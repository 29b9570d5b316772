"""What a dry run says of speed, of a TPU that is not here, and of statistics that are not synchronised."""

import os
import re
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import run_command
from conftest import full, make_strategy
from parity.rows import DATA, mixed, net, sgd, train

import trainer
from trainer.cluster.replicas import replica_values


def page_of(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("ema_decay", [full(None), 0.9])
def test_timing_names_the_bottleneck_and_changes_nothing(strategy, capsys, ema_decay):
    options = dict(optimizer=lambda: keras.optimizers.Adam(0.1), dry_run=True, ema_decay=ema_decay)
    timed = train(strategy, timed_steps=5, **options)
    assert "speed step" in page_of(capsys)
    untouched = train(strategy, **options)
    for one, other in zip(timed.model.weights, untouched.model.weights, strict=True):
        for copy in replica_values(one):
            np.testing.assert_array_equal(copy, replica_values(other)[0], err_msg=one.path)
    assert timed.step == 0


@pytest.mark.full
def test_slow_data_are_the_bottleneck(capsys):
    def slow(batch):
        def wait(x):
            time.sleep(0.3)
            return x

        return {**batch, "x": tf.ensure_shape(tf.numpy_function(wait, [batch["x"]], tf.float32), [None, 6, 6, 2])}

    data = trainer.in_memory(examples=dict(DATA.examples), preprocess=slow)
    train(make_strategy(1), train_data=data, eval_data=None, dry_run=True, timed_steps=3)
    page = page_of(capsys)
    assert "the data is the bottleneck (cheaper preprocess, or tfds_data.prepare once)" in page
    # Some are made side by side, on as many cores; how soon one follows the other says nothing.
    assert float(re.search(r"data ([0-9.e+-]+) ms a step", page).group(1)) > 300 / os.cpu_count() / 2


def milliseconds_of_data(capsys, **options) -> float:
    train(make_strategy(1), eval_data=None, dry_run=True, **options)
    return float(re.search(r"data ([0-9.e+-]+) ms a step", page_of(capsys)).group(1))


@pytest.mark.full
def test_what_lies_ready_is_not_counted_as_free(capsys):
    """50 ms a batch, one after the other: whatever else the machine does, they do not come sooner."""
    alone = threading.Lock()

    def slow(batch):
        def wait(x):
            with alone:
                time.sleep(0.05)
            return x

        return {**batch, "x": tf.ensure_shape(tf.numpy_function(wait, [batch["x"]], tf.float32), [None, 6, 6, 2])}

    data = trainer.in_memory(examples=dict(DATA.examples), preprocess=slow)
    assert milliseconds_of_data(capsys, train_data=data, timed_steps=25) > 20


@pytest.mark.full
def test_tracing_is_not_timed(capsys):
    """To trace takes 1 s here, to look up a batch in memory less than a millisecond."""

    def slow_to_trace(batch):
        time.sleep(1)
        return batch

    data = trainer.in_memory(examples=dict(DATA.examples), preprocess=slow_to_trace)
    assert milliseconds_of_data(capsys, train_data=data, timed_steps=1) < 500


@pytest.mark.full
def test_statistics_that_are_not_synchronised_are_reported_and_make_other_weights(capsys):
    batch_norm = net(lambda: keras.layers.BatchNormalization(name="norm"))
    apart = train(make_strategy(2), model=batch_norm, synchronize_batch_norm=False, num_steps=3)
    assert "batch norm NOT synchronised in norm: each replica normalises by its own 6 examples" in page_of(capsys)
    mean = apart.model.get_layer("norm").moving_mean
    assert not np.array_equal(*replica_values(mean)), "the copies drift apart, as the note says"
    train(make_strategy(1), model=batch_norm, synchronize_batch_norm=False, num_steps=1)
    assert "NOT synchronised" not in page_of(capsys), "one replica has nothing to synchronise"


def test_float16_without_a_loss_scale_is_reported(capsys):
    def reported(policy, optimizer=None) -> bool:
        train(make_strategy(1), model=lambda: mixed(policy), optimizer=optimizer or sgd(), dry_run=True)
        return "float16 conv2d without a loss scale" in re.sub(r"conv2d_\d+", "conv2d", page_of(capsys))

    assert reported("mixed_float16")
    assert not reported("mixed_bfloat16")
    assert not reported("mixed_float16", lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    assert not reported("mixed_float16", sgd(loss_scale_factor=128.0))


@pytest.mark.full
def test_a_dry_run_for_a_tpu_compiles_the_step_here(tmp_path):
    arguments = ["launch.train", "--gin_file=configs/runs/digits_source.gin", "--strategy=tpu"]
    arguments.append(f"--model_dir={tmp_path / 'run'}")
    done = run_command(*arguments, "--dry_run", TPU_NAME="")
    assert done.returncode == 0, done.stderr
    assert "no TPU here" in done.stdout and "every shape is static" in " ".join(done.stdout.split())
    done = run_command(*arguments, "--timed_steps=3")
    assert done.returncode == 2 and "--timed_steps belongs to --dry_run" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_functions_of_the_users_may_branch_on_tensors(strategy):
    """Our graphs are traced without AutoGraph; what the user hands over is converted all the same."""

    def loss(model, batch):
        values = keras.losses.sparse_categorical_crossentropy(batch["label"], model(batch["x"]), from_logits=True)
        total = tf.reduce_sum(values)
        while total > 1.0:
            total = total / 2.0
        if total > 0.0:
            values = values * 2.0
        return values

    def preprocess(batch):
        x = batch["x"]
        if tf.reduce_mean(x) > 100.0:
            x = x / 255.0
        return {**batch, "x": x}

    data = trainer.in_memory(examples=dict(DATA.examples), preprocess=preprocess)
    task = trainer.custom_loss(loss=loss, inputs="x", metrics={"double": loss})
    assert train(strategy, train_data=data, eval_data=data, task=task, num_steps=2).final_metrics["double"] > 0.0
