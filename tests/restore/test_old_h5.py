"""Old `.h5` files: variables that attributes call otherwise, and layers that Keras numbered in another order."""

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from conftest import full
from zoo import SMALL_IMAGE, built, layers, values

import trainer
from trainer.restore import plan_weights


def stem(classes: int = 3, head: str = "predictions"):
    image = keras.Input([8, 8, 3])
    x = layers.Rescaling(2.0)(layers.Normalization()(image))
    x = layers.BatchNormalization(name="stem_bn")(layers.Conv2D(4, 3, name="stem_conv")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(classes, name=head)(x) if head else x)


def statistics(model) -> list[bytes]:
    (layer,) = [layer for layer in model.layers if isinstance(layer, layers.Normalization)]
    return values(layer)


def refused(model, path, message: str, **rules) -> None:
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=message):
        trainer.restore_weights(model, path, **rules)
    assert values(model) == before


def by_path(model) -> dict[str, np.ndarray]:
    return {weight.path: np.asarray(weight.numpy()) for weight in model.weights}


WRITERS = {
    "m.h5": lambda model, path: model.save(path),
    "m.npz": lambda model, path: np.savez(path, **by_path(model)),
    "m.safetensors": lambda model, path: safetensors.numpy.save_file(by_path(model), path),
}
HEADS = {
    "the same": ({}, {}),
    "other classes": ({"classes": 5}, {"reinitialize": ["^predictions/"]}),
    "another head": ({"head": "mine"}, {"reinitialize": ["^mine/"], "ignore": ["^predictions/"]}),
    "no head": ({"head": ""}, {"ignore": ["^predictions/"]}),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["m.h5", full("m.npz"), full("m.safetensors")])
def test_normalization_keeps_the_statistics_of_the_file(name, head, tmp_path):
    options, rules = HEADS[head]
    source, model = built(stem(), SMALL_IMAGE), built(stem(**options), SMALL_IMAGE, seed=2)
    WRITERS[name](source, tmp_path / name)
    trainer.restore_weights(model, tmp_path / name, **rules)
    assert statistics(model) == statistics(source)
    if head == "the same":
        image = tf.random.stateless_normal([2, 8, 8, 3], [1, 2])
        np.testing.assert_array_equal(model(image), source(image))


def test_statistics_of_normalization_and_of_batch_normalization_stay_apart(tmp_path):
    source = built(stem(), SMALL_IMAGE)
    source.save(tmp_path / "m.h5")
    model = built(stem(), SMALL_IMAGE, seed=2)
    report = trainer.restore_weights(model, tmp_path / "m.h5")
    keys = {record.name.split("/")[-1]: record.key.split("/")[-1] for record in report.restored}
    assert keys["adapt_mean"] == "mean" and keys["adapt_variance"] == "variance" and keys["count"] == "count"
    assert keys["moving_mean"] == "moving_mean" and keys["moving_variance"] == "moving_variance"


@pytest.mark.parametrize("nested", [False, full(True)])
def test_several_normalizations_are_distinguished(nested, tmp_path):
    def two():
        image = keras.Input([4])
        inner = keras.Sequential([layers.Normalization(), layers.Dense(4)])
        x = inner(image) if nested else layers.Dense(4)(layers.Normalization()(image))
        return keras.Model(image, layers.Normalization()(x))

    source, model = built(two()), built(two(), seed=2)
    source.save(tmp_path / "m.h5")
    trainer.restore_weights(model, tmp_path / "m.h5")
    assert values(model) == values(source)


def test_an_attribute_may_be_called_otherwise_than_its_variable(tmp_path):
    class Scale(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=shape[-1:], name="weight")
            self.b = self.add_weight(shape=shape[-1:], name="w")

        def call(self, x):
            return x * self.w + self.b

    def model(seed):
        return built(keras.Sequential([keras.Input([4]), Scale(), layers.Dense(2)]), seed=seed)

    source, other = model(1), model(2)
    source.save(tmp_path / "m.h5")
    trainer.restore_weights(other, tmp_path / "m.h5")
    assert values(other) == values(source)


def test_a_count_of_fewer_bits_is_widened(tmp_path):
    """Keras counts in int32 on JAX and torch."""
    source, model = built(stem(), SMALL_IMAGE), built(stem(), SMALL_IMAGE, seed=2)
    source.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "a") as file:
        (place,) = _places(file, "count")
        value = file[place][()]
        del file[place]
        file[place] = np.int32(value)
    report = trainer.restore_weights(model, tmp_path / "m.h5")
    assert values(model) == values(source)
    (note,) = [record.note for record in report.restored if "int32" in record.note]
    assert note.startswith("cast from int32 to int64")
    with h5py.File(tmp_path / "m.h5", "a") as file:
        del file[place]
        file[place] = np.float32(value)
    refused(model, tmp_path / "m.h5", "1 mismatched")


def _places(file: h5py.File, leaf: str) -> list[str]:
    found = []
    file.visit(lambda name: found.append(name) if name.endswith(f"/{leaf}") else None)
    return found


def in_order(*sizes: int, seed: int = 1):
    x = image = keras.Input([4])
    for size in sizes:
        x = layers.Dense(size)(x)
    return built(keras.Model(image, x), seed=seed)


def last_first(*sizes: int, seed: int = 1):
    """`Dense(1)(Dense(100)(x))`: Python makes the outer layer first, so that Keras calls it `dense`."""
    x = image = keras.Input([4])
    for layer in reversed([layers.Dense(size) for size in reversed(sizes)]):
        x = layer(x)
    return built(keras.Model(image, x), seed=seed)


def saved_as(end: str, model, folder):
    path = folder / f"m{end}"
    model.save_weights(path) if end == ".weights.h5" else model.save(path)
    return path


@pytest.mark.parametrize("end", [".h5", full(".weights.h5"), full(".keras")])
@pytest.mark.parametrize(("there", "here"), [(last_first, in_order), (in_order, last_first), (last_first, last_first)])
def test_layers_made_in_another_order_are_distinguished_by_their_shapes(there, here, end, tmp_path):
    source, model = there(100, 8, 1), here(100, 8, 1, seed=2)
    trainer.restore_weights(model, saved_as(end, source, tmp_path))
    assert values(model) == values(source)


@pytest.mark.parametrize("end", [".h5", full(".weights.h5"), full(".keras")])
def test_equal_layers_made_in_another_order_are_refused_but_by_order(end, tmp_path):
    sizes = [8] * 31
    source, model = last_first(*sizes), in_order(*sizes, seed=2)
    path = saved_as(end, source, tmp_path)
    refused(model, path, "0 of 62 would be restored")
    report = trainer.restore_weights(model, path, match="order")
    assert values(model) == values(source)
    assert {record.note for record in report.restored} == {"by order"}


def test_only_the_class_in_question_is_left_out(tmp_path):
    def model(made, seed):
        x = image = keras.Input([4])
        for layer in (*made, layers.LayerNormalization(), layers.LayerNormalization()):
            x = layer(x)
        return built(keras.Model(image, x), seed=seed)

    source = model([layers.Dense(4), layers.Dense(4)], seed=1)
    source.save(tmp_path / "m.h5")
    other = model([layers.Dense(4), layers.Dense(4)][::-1], seed=2)
    with pytest.raises(trainer.RestoreError) as caught:
        plan_weights(other, tmp_path / "m.h5")
    assert len(caught.value.report.restored) == 4 and len(caught.value.report.missing) == 4


def test_shapes_tell_layers_apart_in_a_model_inside_of_another(tmp_path):
    def nested(inner):
        image = keras.Input([4])
        return keras.Model(image, layers.Dense(2)(inner(100, 1)(image)))

    source, model = built(nested(last_first)), built(nested(in_order), seed=2)
    source.save(tmp_path / "m.h5")
    trainer.restore_weights(model, tmp_path / "m.h5")
    assert values(model) == values(source)


def test_branches_of_other_shapes_may_be_merged_the_other_way(tmp_path):
    def merged(flipped: bool):
        image = keras.Input([4])
        branches = [layers.Dense(4)(image), layers.Dense(5)(image)]
        return built(
            keras.Model(image, layers.Concatenate()(branches[::-1] if flipped else branches)), seed=1 + flipped
        )

    source, model = merged(False), merged(True)
    source.save(tmp_path / "m.h5")
    trainer.restore_weights(model, tmp_path / "m.h5")
    assert sorted(values(model)) == sorted(values(source))


def test_a_changed_head_does_not_hide_which_layer_is_which(tmp_path):
    """Two readings are left for the last layer, and neither is taken unasked."""
    source, model = last_first(100, 10), in_order(100, 5, seed=2)
    source.save(tmp_path / "m.h5")
    last = model.layers[-1].name
    report = trainer.restore_weights(
        model, tmp_path / "m.h5", reinitialize=[f"^{last}/"], ignore=[f"^{source.layers[-1].name}/"]
    )
    assert values(model)[:2] == values(source)[:2]
    assert len(report.restored) == len(report.reinitialized) == 2
