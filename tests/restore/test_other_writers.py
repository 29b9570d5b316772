"""Checkpoints that Keras 3 did not write: Keras 2, plain tf.Modules and name-based files."""

import keras
import pytest
import tensorflow as tf
from zoo import FOUR, InLists, TwoDense, built, layers, saved, values

import trainer


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
