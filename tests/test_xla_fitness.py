"""What XLA cannot compile stops a run before it begins; what a TPU would refuse is said in the dry run."""

import keras
import pytest
import tensorflow as tf
from commands import run_command
from conftest import make_strategy
from parity.rows import DATA, INIT, TOKEN_TASK, net, recurrent, train

import trainer


def loss_of(function):
    return trainer.custom_loss(loss=function, inputs="x")


def on_the_host(model, batch):
    values = model(batch["x"])
    tf.print("a look")
    return tf.reduce_mean(values)


def of_the_good_alone(model, batch):
    return tf.reduce_mean(model(tf.boolean_mask(batch["x"], batch["is_bad"] < 1.0)))


class Looking(keras.layers.Layer):
    def call(self, x):
        tf.print("a look")
        return x


def refused(tmp_path, **options) -> str:
    with pytest.raises(trainer.UserError) as caught:
        train(options.pop("strategy", make_strategy(1)), jit_compile=True, model_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def test_an_operation_of_the_host_in_the_loss_is_named_before_anything_is_written(tmp_path):
    message = refused(tmp_path, task=loss_of(on_the_host))
    assert "XLA cannot compile PrintV2, which only the host can run: PrintV2" in message
    assert "outside of any layer" in message


def test_an_operation_of_the_host_in_a_layer_is_named_with_the_layer(tmp_path):
    assert "PrintV2 in the layer looker" in refused(tmp_path, model=net(lambda: Looking(name="looker")))


def test_batch_statistics_over_several_replicas_are_refused(tmp_path):
    message = refused(tmp_path, strategy=make_strategy(2), model=net(keras.layers.BatchNormalization))
    assert "batch_normalization" in message and "takes its statistics over all replicas" in message


@pytest.mark.full
def test_on_one_replica_batch_statistics_compile():
    result = train(make_strategy(1), model=net(keras.layers.BatchNormalization), jit_compile=True, num_steps=2)
    assert result.finished


def test_a_dry_run_says_what_a_tpu_would_refuse(capsys):
    train(make_strategy(1), task=loss_of(of_the_good_alone), jit_compile=True, dry_run=True)
    page = " ".join(capsys.readouterr().out.split())
    assert "xla compiles; a TPU would refuse shapes that depend on values: Where (" in page


def test_a_dry_run_says_that_all_is_static(capsys):
    train(make_strategy(2), model=net(lambda: keras.layers.Conv2D(4, 1, **INIT)), jit_compile=True, dry_run=True)
    assert "xla compiles; every shape is static" in " ".join(capsys.readouterr().out.split())


def test_a_text_feature_is_named_even_if_nothing_uses_it(tmp_path):
    data = {"x": DATA.examples["x"], "label": DATA.examples["label"], "id": ["a"] * 48}
    message = refused(tmp_path, train_data=data, eval_data=None)
    assert "the feature 'id' is text, which XLA cannot take" in message


def test_what_is_dynamic_within_a_loop_is_found(capsys):
    def of_each_example(model, batch):
        logits = model(batch["x"])
        return tf.map_fn(lambda row: tf.reduce_sum(tf.boolean_mask(row, row > 0.0)), logits)

    train(make_strategy(1), task=loss_of(of_each_example), jit_compile=True, dry_run=True)
    page = " ".join(capsys.readouterr().out.split())
    assert "xla compiles; a TPU would refuse shapes that depend on values: Where (" in page


@pytest.mark.full
def test_a_recurrent_layer_is_static(capsys):
    train(make_strategy(1), model=recurrent, task=TOKEN_TASK, jit_compile=True, dry_run=True)
    assert "xla compiles; every shape is static" in " ".join(capsys.readouterr().out.split())


def test_an_evaluation_that_a_tpu_would_refuse_is_reported_as_one(capsys):
    """A mean over a batch can't be freed of filling afterwards, so the real rows are picked: how many depends."""
    scalar = loss_of(lambda model, batch: tf.reduce_mean(model(batch["x"])))
    for eval_data, reported in ((DATA, True), (None, False)):
        train(make_strategy(1), task=scalar, jit_compile=True, dry_run=True, eval_data=eval_data)
        assert ("in evaluations" in capsys.readouterr().out) == reported


PICKING = """
import gin, tensorflow as tf

@gin.configurable(module="picking")
def of_the_bright_alone(model, batch, training):
    logits = model(batch["image"], training=training)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
    return tf.reduce_mean(tf.boolean_mask(losses, tf.reduce_mean(batch["image"], [1, 2, 3]) > 0.1))
"""


@pytest.mark.full
def test_a_step_that_a_tpu_would_refuse_fails_the_check_for_one(tmp_path):
    (tmp_path / "picking.py").write_text(PICKING)
    config = tmp_path / "picking.gin"
    config.write_text(
        "import picking\ninclude 'configs/runs/digits_source.gin'\n"
        "TASK = @custom_loss()\ncustom_loss.loss = @of_the_bright_alone\n"
    )
    arguments = ["launch.train", f"--gin_file={config}", "--dry_run", "--gin_param=Step.jit_compile = True"]
    done = run_command(*arguments, "--strategy=tpu", TPU_NAME="")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("regraft: --strategy=tpu: the step compiles; a TPU would refuse"), done.stderr
    assert "Where (" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert "optimizer        Adam" in done.stdout  # the page stands above the complaint
    # XLA runs it on this machine, where it is reported and no more.
    done = run_command(*arguments, "--strategy=one_device")
    assert done.returncode == 0 and "a TPU would refuse" in done.stdout, done.stderr
