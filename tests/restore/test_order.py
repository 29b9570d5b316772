"""By order, on request: lists whose places are all that the file says."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import FOUR, InLists, Plain, TwoDense, built, layers, saved, used_adam, values

import trainer


def test_a_list_of_another_length_is_refused_with_both_counts(tmp_path):
    source = built(Plain())
    np.savez(tmp_path / "m.npz", *source.get_weights()[:-1])
    model = built(Plain(), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=r"no list in .* has the model's 8 weights.*\n.*arr, 7 long"):
        trainer.restore_weights(model, tmp_path / "m.npz", match="order")
    assert values(model) == before


def test_a_list_of_other_shapes_is_refused_with_the_first_that_differs(tmp_path):
    np.savez(tmp_path / "m.npz", *reversed(built(TwoDense(num_classes=4)).get_weights()))
    model = built(TwoDense(num_classes=4), seed=2)
    with pytest.raises(trainer.RestoreError, match=r"number 0 is \(4,\), and .*kernel \(4, 4\)"):
        trainer.restore_weights(model, tmp_path / "m.npz", match="order")


def test_a_leaf_name_that_the_file_knows_must_agree(tmp_path):
    """model.export() keeps leaf names, and a shift by equal shapes shows in them."""

    class TwoNorms(keras.Model):
        def __init__(self, names):
            super().__init__()
            self.scales = [self.add_weight(shape=[4], name=name) for name in names]

        def call(self, x):
            return x * self.scales[0] + self.scales[1]

    source, other = built(TwoNorms(["gamma", "beta"])), built(TwoNorms(["gamma", "scale"]), seed=2)
    source.export(str(tmp_path / "export"), verbose=False)
    with pytest.raises(trainer.RestoreError, match="number 1 is called .*/beta, and the model's is .*/scale"):
        trainer.restore_weights(other, tmp_path / "export", match="order")
    swapped = built(TwoNorms(["beta", "gamma"]), seed=2)
    trainer.restore_weights(swapped, tmp_path / "export", match="order")
    assert values(swapped) == values(source)[::-1], "names are better than an order"


def test_layers_in_lists_come_from_the_optimizer_s_list_of_trained_variables(tmp_path):
    source = built(InLists())
    path = saved(tmp_path, model=source, optimizer=used_adam(source))
    model = InLists()
    report = trainer.restore_weights(model, path, input_spec=FOUR, match="order")
    assert values(model) == values(source)
    assert report.optimizer_keys_read == 0
    assert len([record for record in report.restored if record.note == "by order"]) == 4


def test_a_list_that_contradicts_the_names_is_refused(tmp_path):
    """The optimizer was built on the variables in another order than the model has them."""
    source = built(InLists())
    optimizer = keras.optimizers.Adam()
    optimizer.build([*source.head.trainable_variables, *source.blocks[0].trainable_variables])
    path = saved(tmp_path, model=source, optimizer=optimizer)
    model = built(InLists(), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match="no variable was changed"):
        trainer.restore_weights(model, path, match="order")
    assert values(model) == before


def test_what_names_can_settle_does_not_need_an_order(tmp_path):
    source = built(TwoDense())
    report = trainer.restore_weights(built(TwoDense(), seed=2), saved(tmp_path, model=source), match="order")
    assert {record.note for record in report.restored} == {""}


def test_random_states_in_a_list_are_no_weights(tmp_path):
    source = built(keras.Sequential([keras.Input([4]), layers.Dense(4), layers.Dropout(0.5), layers.Dense(2)]))
    source.export(str(tmp_path / "export"), verbose=False)
    model = built(keras.Sequential([keras.Input([4]), layers.Dense(4), layers.Dropout(0.5), layers.Dense(2)]), seed=2)
    report = trainer.restore_weights(model, tmp_path / "export", match="order")
    assert values(model) == values(source)
    assert report.unused == []


def test_a_word_that_is_no_way_to_match_is_refused(tmp_path):
    path = saved(tmp_path, model=built(TwoDense()))
    with pytest.raises(trainer.RestoreError, match="match = 'position' is neither 'structure' nor 'order'"):
        trainer.restore_weights(built(TwoDense()), path, match="position")


def test_an_exported_model_of_given_names_needs_no_order(tmp_path):
    def stack(first: str, second: str):
        image = keras.Input([4])
        return built(keras.Model(image, layers.Dense(4, name=second)(layers.Dense(4, name=first)(image))))

    source = stack("a", "b")
    source.export(str(tmp_path / "export"), verbose=False)
    model = stack("b", "a")
    for weight in model.weights:
        weight.assign(tf.zeros(weight.shape))
    trainer.restore_weights(model, tmp_path / "export")
    for name in ("a", "b"):
        np.testing.assert_array_equal(model.get_layer(name).kernel.numpy(), source.get_layer(name).kernel.numpy())


def test_a_bare_list_is_not_proposed_to_be_renamed(tmp_path):
    source = built(InLists())
    source.export(str(tmp_path / "export"), verbose=False)
    with pytest.raises(trainer.RestoreError) as caught:
        trainer.restore_weights(built(InLists(), seed=2), tmp_path / "export")
    assert "Restore.match = 'order'" in str(caught.value)
    assert "'^variables/'" not in str(caught.value)


def test_order_settles_what_numbers_of_layers_leave_open(tmp_path):
    def branches(flipped: bool):
        image = keras.Input([4])
        both = [layers.Dense(4)(image), layers.Dense(4)(image)]
        return built(keras.Model(image, layers.Concatenate()(both[::-1] if flipped else both)), seed=1 + flipped)

    source, model = branches(False), branches(True)
    source.save_weights(tmp_path / "m.weights.h5")
    report = trainer.restore_weights(model, tmp_path / "m.weights.h5", match="order")
    assert values(model) == values(source)
    assert {record.note for record in report.restored} == {"by order"}
