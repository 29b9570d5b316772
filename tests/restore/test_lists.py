"""By order: lists with integer scalars, beside other things, and with rules that excuse a part of them."""

import ast
import re

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from conftest import full
from zoo import FOUR, InLists, TwoDense, built, layers, saved, used_adam, values

import trainer


class Counting(keras.Model):
    """Normalization, whose `count` is an integer scalar, and a counter of the model's own beside a weight."""

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.scaled, self.body, self.norm = layers.Normalization(), layers.Dense(4), layers.BatchNormalization()
        self.drop, self.head = layers.Dropout(0.3), layers.Dense(num_classes)
        self.steps = self.add_weight(shape=(), dtype="int32", name="steps", trainable=False)
        self.scale = self.add_weight(shape=[4], name="scale")

    def call(self, x, training=None):
        return self.head(self.drop(self.norm(self.body(self.scaled(x)) * self.scale, training=training)))


def counting(num_classes: int = 3, seed: int = 1) -> Counting:
    model = Counting(num_classes)
    trainer.restore.build_model(model, FOUR)
    return built(model, seed=seed)


def arrays(variables) -> list[np.ndarray]:
    return [np.asarray(variable.numpy()) for variable in variables]


def saved_npz(folder, *places, **names) -> str:
    np.savez(folder / "m.npz", *places, **names)
    return str(folder / "m.npz")


def saved_safetensors(folder, named) -> str:
    safetensors.numpy.save_file(named, folder / "m.safetensors")
    return str(folder / "m.safetensors")


def exported(folder, model) -> str:
    model.export(str(folder / "export"), verbose=False)
    return str(folder / "export")


LISTS = {
    "weights": lambda f, m: saved(f, weights=m.weights),
    "variables": lambda f, m: saved(f, variables=m.variables),
    "weights called variables": lambda f, m: saved(f, variables=m.weights),
    "trained and others": lambda f, m: saved(f, a=m.trainable_weights, b=m.non_trainable_weights),
    "with a step and an optimizer": lambda f, m: saved(f, v=m.weights, step=tf.Variable(3), optimizer=used_adam(m)),
    "optimizer first": lambda f, m: saved(f, a=used_adam(m), weights=m.weights),
    "in an object": lambda f, m: saved(f, state=tf.train.Checkpoint(of=tf.train.Checkpoint(w=m.weights))),
    "lists in a list": lambda f, m: saved(f, v=[m.weights[:3], [], m.weights[3:]]),
    "plain variables": lambda f, m: saved(f, v=[tf.Variable(value) for value in arrays(m.weights)]),
    "npz": lambda f, m: saved_npz(f, *arrays(m.weights)),
    "npz of variables": lambda f, m: saved_npz(f, *arrays(m.variables)),
    "npz with a step": lambda f, m: saved_npz(f, *arrays(m.weights), step=np.int64(3)),
    "npz w0": lambda f, m: saved_npz(f, **{f"w{i}": value for i, value in enumerate(arrays(m.weights))}),
    "npz weight_01": lambda f, m: saved_npz(f, **{f"weight_{i + 1:02}": v for i, v in enumerate(arrays(m.weights))}),
    "safetensors": lambda f, m: saved_safetensors(f, {str(i): value for i, value in enumerate(arrays(m.weights))}),
    "export": exported,
}
IN_MAKE_TEST = ("weights", "npz", "export", "trained and others", "with a step and an optimizer")


@pytest.mark.parametrize("name", [name if name in IN_MAKE_TEST else full(name) for name in LISTS])
def test_a_list_may_hold_integer_scalars(name, tmp_path):
    source, model = counting(), counting(seed=2)
    report = trainer.restore_weights(model, LISTS[name](tmp_path, source), match="order")
    assert values(model) == values(source)
    assert {record.note for record in report.restored} == {"by order"}
    assert report.optimizer_keys_read == 0


@pytest.mark.parametrize("name", [name if name in ("weights", "npz") else full(name) for name in LISTS])
def test_a_head_of_other_classes_does_not_hide_a_list(name, tmp_path):
    source, model = counting(), counting(num_classes=5, seed=2)
    fresh = values(model)
    report = trainer.restore_weights(model, LISTS[name](tmp_path, source), match="order", reinitialize=["^head/"])
    assert values(model) == values(source)[:-2] + fresh[-2:]
    assert [record.name for record in report.reinitialized] == ["head/kernel", "head/bias"]


def test_a_list_of_the_backbone_alone_fits_a_model_with_a_fresh_head(tmp_path):
    source, model = counting(), counting(num_classes=5, seed=2)
    path = saved_npz(tmp_path, *arrays(source.weights[:-2]))
    trainer.restore_weights(model, path, match="order", reinitialize=["^head/"])
    assert values(model)[:-2] == values(source)[:-2]


def test_entries_that_are_ignored_do_not_count_in_a_list(tmp_path):
    source, model = built(TwoDense()), built(TwoDense(), seed=2)
    path = saved_npz(tmp_path, np.ones([4], np.float32), *arrays(source.weights))
    with pytest.raises(trainer.RestoreError, match="arr, 5 long: the model has 4 weights"):
        trainer.restore_weights(model, path, match="order")
    report = trainer.restore_weights(model, path, match="order", ignore=["^arr_0$"])
    assert values(model) == values(source)
    assert [(record.key, record.rule) for record in report.unused] == [("arr_0", "^arr_0$")]


def test_rows_are_taken_from_a_list_too(tmp_path):
    source, model = counting(), counting(num_classes=5, seed=2)
    path = saved_npz(tmp_path, *arrays(source.weights))
    trainer.restore_weights(model, path, match="order", grow=["^head/"])
    np.testing.assert_array_equal(model.head.kernel.numpy()[:, :3], source.head.kernel.numpy())


def pasted(error: trainer.RestoreError) -> list[dict]:
    """The proposals of a message, each as the rule that gin would bind."""
    lines = re.findall(r"^  Restore\.(\w+) = (.+)$", str(error), re.MULTILINE)
    return [{rule: ast.literal_eval(value)} for rule, value in lines]


def test_each_line_that_is_proposed_settles_which_list_is_meant(tmp_path):
    model = built(TwoDense())
    lists = {name: [tf.Variable(v) for v in arrays(built(model, seed=seed).weights)] for seed, name in enumerate("abc")}
    path = saved(tmp_path, a=lists["a"], b=lists["b"], rest=tf.train.Checkpoint(c=lists["c"]))
    before = values(model)
    with pytest.raises(trainer.RestoreError, match="fit the model, and hold different weights: a, b, rest/c") as caught:
        trainer.restore_weights(model, path, match="order")
    assert values(model) == before
    proposed = pasted(caught.value)
    assert proposed == [{"root": "a"}, {"root": "b"}, {"root": "rest/c"}]
    others = [{"ignore": ["^b/", "^rest/"]}, {"ignore": ["^a/", "^rest/c/"]}, {"ignore": ["^[ab]/"]}]
    for rule, name in zip(proposed + others, "abcabc", strict=True):
        trainer.restore_weights(model, path, match="order", **rule)
        assert values(model) == [v.numpy().tobytes() for v in lists[name]]


def test_a_list_of_trained_variables_in_an_optimizer_can_be_chosen_by_a_proposed_line(tmp_path):
    source = built(InLists())
    others = [tf.Variable(2 * weight.numpy()) for weight in source.weights]
    path = saved(tmp_path, average=others, optimizer=used_adam(source))
    model = built(InLists(), seed=2)
    with pytest.raises(trainer.RestoreError, match="several lists") as caught:
        trainer.restore_weights(model, path, match="order")
    found = []
    for rule in pasted(caught.value):
        trainer.restore_weights(model, path, match="order", **rule)
        found.append(values(model))
    assert sorted(found) == sorted([values(source), [v.numpy().tobytes() for v in others]])


def test_an_integer_does_not_stand_for_a_float(tmp_path):
    source, model = counting(), counting(seed=2)
    content = arrays(source.weights)
    (place,) = [place for place, value in enumerate(content) if value.dtype == np.int32]
    content[place] = np.float32(2)
    with pytest.raises(trainer.RestoreError, match=f"number {place} is float32, and .*steps int32"):
        trainer.restore_weights(model, saved_npz(tmp_path, *content), match="order")


class Block(layers.Layer):
    def __init__(self):
        super().__init__()
        self.first, self.second = layers.BatchNormalization(), layers.BatchNormalization()

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x):
        return self.second(self.first(x))


def test_equal_shapes_in_two_orders_are_refused(tmp_path):
    """Keras 3 lists a layer's parts one after the other, Keras 2 what is trained first."""

    def stack(seed):
        return built(keras.Sequential([keras.Input([4]), Block(), layers.Dense(4), Block()]), seed=seed)

    source, model = stack(1), stack(2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match="it fits the weights and the .* in another order each"):
        trainer.restore_weights(model, saved_npz(tmp_path, *arrays(source.weights)), match="order")
    assert values(model) == before
