"""Checkpoints that Keras 3 did not write: Keras 2, plain tf.Modules and name-based files."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import FOUR, InLists, Plain, TwoDense, built, functional, layers, saved, sequential, values

import trainer

WRITE_WITH_KERAS_2 = """
import sys
import numpy as np, tensorflow as tf, tf_keras as keras
layers, folder = keras.layers, sys.argv[1]

class Plain(keras.Model):
    def __init__(self):
        super().__init__()
        self.body, self.norm = layers.Dense(4), layers.BatchNormalization()
        self.drop, self.head = layers.Dropout(0.5), layers.Dense(3)
    def call(self, x, training=None):
        return self.head(self.drop(self.norm(self.body(x), training=training), training=training))

class InLists(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = [layers.Dense(4), layers.Dense(4)], layers.Dense(2)
    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)

def functional():
    image = keras.Input([4])
    x = layers.BatchNormalization()(layers.Dropout(0.3)(layers.Dense(4)(image)))
    return keras.Model(image, layers.Dense(2)(layers.Dense(4)(x)))

def sequential():
    return keras.Sequential([layers.Dense(4), layers.Dropout(0.3), layers.BatchNormalization(), layers.Dense(2)])

for build in (Plain, InLists, functional, sequential):
    for optimizer in (keras.optimizers.Adam(), keras.optimizers.legacy.Adam()):
        model = build()
        model(tf.zeros([2, 4]))
        random = np.random.default_rng(1)
        for weight in model.weights:
            weight.assign(random.normal(size=weight.shape))
        optimizer.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
        name = folder + "/" + build.__name__ + ("_legacy" if "legacy" in type(optimizer).__module__ else "")
        tf.train.Checkpoint(model=model, optimizer=optimizer).write(name + "_checkpoint")
        model.save_weights(name + "_weights")
        np.savez(name + ".npz", *[w.numpy() for w in model.weights])
"""


@pytest.fixture(scope="module")
def keras_2_folder(tmp_path_factory):
    pytest.importorskip("tf_keras", reason="Keras 2 is no dependency of ours")
    folder = tmp_path_factory.mktemp("keras_2")
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WITH_KERAS_2, str(folder)],
        capture_output=True, text=True, timeout=200, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("optimizer", ["", "_legacy"])
@pytest.mark.parametrize("kind", ["checkpoint", "weights"])
@pytest.mark.parametrize("build", [Plain, InLists, functional, sequential], ids=lambda build: build.__name__)
def test_a_keras_2_checkpoint_fills_the_keras_3_model(build, kind, optimizer, keras_2_folder):
    name = f"{keras_2_folder}/{build.__name__}{optimizer}"
    with np.load(name + ".npz") as file:
        expected = [file[key].tobytes() for key in file.files]
    model = build()
    report = trainer.restore_weights(model, f"{name}_{kind}", input_spec=FOUR)
    assert values(model) == expected
    assert report.optimizer_keys_read == 0


class Dense(tf.Module):
    """A layer with its variables spelled as Keras 2 spells them."""

    def __init__(self, source):
        super().__init__()
        self.kernel = tf.Variable(source.kernel.numpy())
        self.bias = tf.Variable(source.bias.numpy())


def test_kernel_and_underscored_kernel_are_one_name(tmp_path):
    source = built(TwoDense())
    module = tf.Module()
    module.encoder, module.head = Dense(source.encoder), Dense(source.head)
    model = TwoDense()
    trainer.restore_weights(model, saved(tmp_path, net=module), input_spec=FOUR)
    assert values(model) == values(source)


def test_layers_in_lists_come_from_a_writer_that_tracks_lists(tmp_path):
    source = built(InLists())
    module = tf.Module()
    module.blocks, module.head = [Dense(block) for block in source.blocks], Dense(source.head)
    model = InLists()
    trainer.restore_weights(model, saved(tmp_path, model=module), input_spec=FOUR)
    assert values(model) == values(source)


def test_a_sequence_of_other_length_is_not_shifted_into_place(tmp_path):
    """TensorFlow fills the first layers of equal shape and says nothing."""
    source = built(keras.Sequential([layers.Dense(4) for _ in range(3)]))
    model = built(keras.Sequential([layers.Dense(4) for _ in range(2)]), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match="fits no variable"):
        trainer.restore_weights(model, saved(tmp_path, model=source))
    assert values(model) == before


def test_a_name_based_checkpoint_is_read_by_its_names(tmp_path):
    source = built(TwoDense())
    names = ["encoder/kernel", "encoder/bias", "head/kernel", "head/bias"]
    tensors = [weight.numpy() for weight in source.weights]
    slots = [f"{name}/Adam" for name in names]
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model.ckpt-100"),
        tensor_names=[*names, *slots, "global_step"],
        shape_and_slices=[""] * 9,
        tensors=[*tensors, *tensors, tf.constant(100, tf.int64)],
    )
    model = TwoDense()
    report = trainer.restore_weights(model, tmp_path, input_spec=FOUR)
    assert values(model) == values(source)
    assert report.optimizer_keys == sorted(slots)
    assert report.counter_keys == ["global_step"]
