"""Optimizers that are no Keras ones are known by their slots in an object checkpoint; no model is taken for one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import full
from zoo import FOUR, TwoDense, built, saved, used_adam, values

import trainer
from trainer.restore import open_checkpoint


def numbers(shapes) -> list[tf.Variable]:
    return [tf.Variable(np.random.rand(*shape).astype(np.float32)) for shape in shapes]


class Holder(tf.Module):
    """An object of some attributes."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def shapes_of(model) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in model.weights]


OPTIMIZERS = {
    "Sonnet's Adam": (("m", "v"), {"step": 3}),
    "Sonnet's RMSProp": (("mom", "ms"), {"mg": []}),
    "Sonnet's Momentum": (("accumulated_momentum",), {"learning_rate": 0.1}),
    "a user's": (("exp_avg", "exp_avg_sq"), {"t": 3, "rate": 0.1}),
}


@pytest.mark.parametrize("name", ["Sonnet's Adam", *map(full, list(OPTIMIZERS)[1:])])
def test_a_plain_optimizer_s_lists_are_no_weights(name, tmp_path):
    source = built(TwoDense())
    lists, scalars = OPTIMIZERS[name]
    parts = {key: value if value == [] else tf.Variable(value) for key, value in scalars.items()}
    optimizer = Holder(**parts, **{key: numbers(shapes_of(source)) for key in lists})
    model = TwoDense()
    report = trainer.restore_weights(model, saved(tmp_path, model=source, trainer=optimizer), input_spec=FOUR)
    assert values(model) == values(source)
    assert report.unused == [] and len(report.optimizer_keys) == 4 * len(lists) + len(parts) - ("mg" in parts)


def test_what_is_called_an_optimizer_may_keep_slots_under_any_name(tmp_path):
    source = built(TwoDense())
    names = [f"{place}:0" for place in range(4)]
    optimizer = Holder(mine=dict(zip(names, numbers(shapes_of(source)), strict=True)))
    model = TwoDense()
    trainer.restore_weights(model, saved(tmp_path, model=source, generator_optimizer=optimizer), input_spec=FOUR)
    assert values(model) == values(source)


def test_the_list_of_weights_is_taken_by_order_and_not_the_slots(tmp_path):
    source = built(TwoDense())
    optimizer = Holder(step=tf.Variable(1), m=numbers(shapes_of(source)), v=numbers(shapes_of(source)))
    model = TwoDense()
    path = saved(tmp_path, params=[tf.Variable(weight.numpy()) for weight in source.weights], opt=optimizer)
    trainer.restore_weights(model, path, input_spec=FOUR, match="order")
    assert values(model) == values(source)


@pytest.mark.parametrize("name", ["shadow", full("optimiser")])
def test_lists_of_unknown_names_are_refused(name, tmp_path):
    source = built(TwoDense())
    average = Holder(num_updates=tf.Variable(1), **{name: numbers(shapes_of(source))})
    with pytest.raises(trainer.RestoreError, match="4 checkpoint weights unused"):
        trainer.restore_weights(built(TwoDense()), saved(tmp_path, model=source, average=average))


class Mixture(keras.Model):
    """Means and variances in lists `m` and `v`, and a step counter."""

    def __init__(self):
        super().__init__()
        self.step = self.add_weight(shape=(), dtype="int32", trainable=False, name="step")
        self.m = [self.add_weight(shape=(3,), name="m") for _ in range(2)]
        self.v = [self.add_weight(shape=(3,), name="v") for _ in range(2)]

    def call(self, x):
        return x * self.m[0] * self.v[0] + self.m[1] * self.v[1]


@pytest.mark.parametrize("beside", ["nothing", "optimizer", full("teacher")])
def test_a_model_with_lists_m_and_v_is_no_optimizer(beside, tmp_path):
    spec = tf.TensorSpec([None, 3])
    source = built(Mixture(), spec)
    parts = {}
    if beside == "optimizer":
        parts = {"optimizer": used_adam(source)}
    elif beside == "teacher":
        parts = {"teacher": Holder(step=tf.Variable(1), m=numbers([(3,)] * 2), v=numbers([(3,)] * 2))}
    lists = {name: [tf.Variable(x.numpy()) for x in getattr(source, name)] for name in "mv"}
    path = saved(tmp_path, model=Holder(step=tf.Variable(7), **lists), **parts)
    model = built(Mixture(), spec, seed=2)
    trainer.restore_weights(model, path, root="model")
    assert values(model)[:-1] == values(source)[:-1] and int(model.step.numpy()) == 7


def test_the_step_of_a_plain_optimizer_is_listed_and_it_is_described(tmp_path):
    source = built(TwoDense())
    optimizer = Holder(step=tf.Variable(3), m=numbers(shapes_of(source)), v=numbers(shapes_of(source)))
    opened = open_checkpoint(saved(tmp_path, model=source, optimizer=optimizer))
    assert opened.optimizer == "Adam or a kin, by its slots m, v"
    assert opened.optimizers == []
    assert [entry.name for entry in opened.of_kind("optimizer") if not entry.shape] == ["optimizer/step"]
