"""Layers are paired by the names that a file has; a place decides only where no name does, and the report says so."""

import json

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from conftest import full
from zoo import FOUR, InLists, built, layers, saved, values

import trainer

LR = ("left", "right")


def stack(*names, seed=1):
    return built(keras.Sequential([keras.Input([4]), *(layers.Dense(4, name=name) for name in names)]), seed=seed)


def branches(names, flipped=False, seed=1):
    image = keras.Input([4])
    both = [layers.Dense(4, name=name)(image) for name in names]
    return built(keras.Model(image, layers.Concatenate()(both[::-1] if flipped else both)), seed=seed)


def towers(flipped=False, seed=1):
    def tower(name):
        image = keras.Input([4])
        return keras.Model(image, layers.Dense(4, name=f"{name}_2")(layers.Dense(4, name=f"{name}_1")(image)))

    image = keras.Input([4])
    both = [tower("left")(image), tower("right")(image)]
    return built(keras.Model(image, layers.Concatenate()(both[::-1] if flipped else both)), seed=seed)


def by_path(model) -> dict[str, bytes]:
    """{full name without the model's: bytes}"""
    return {
        weight.path.split("/", weight.path.count("/") - 1)[-1]: weight.numpy().tobytes() for weight in model.weights
    }


def refused(model, path, **rules) -> trainer.RestoreError:
    before = values(model)
    with pytest.raises(trainer.RestoreError) as caught:
        trainer.restore_weights(model, path, **rules)
    assert values(model) == before
    return caught.value


def ways(report) -> set[str]:
    return {record.paired.value for record in report.restored}


@pytest.mark.parametrize(
    ("kind", "build", "build_other"),
    [
        ("sequential", lambda: stack("a", "b"), lambda: stack("b", "a", seed=2)),
        ("named functional", lambda: branches(LR), lambda: branches(LR, flipped=True, seed=2)),
        full("nested functional", towers, lambda: towers(flipped=True, seed=2)),
    ],
)
def test_layers_in_another_order_are_paired_by_name(kind, build, build_other, tmp_path, zoo_cell):
    source, model = build(), build_other()
    report = trainer.restore_weights(model, saved(tmp_path, model=source))
    assert by_path(model) == by_path(source)
    assert ways(report) == {"by name"}
    zoo_cell("Checkpoint, layers in another order", kind, "whole")


@pytest.mark.parametrize("file", ["checkpoint", "weights", "model.keras"])
def test_layers_of_keras_2_in_another_order_are_paired_by_name(file, written_by_keras_2):
    model = stack("b", "a", seed=2)
    trainer.restore_weights(model, written_by_keras_2 / "named" / file)
    with np.load(written_by_keras_2 / "named" / "values.npz") as expected:
        assert by_path(model) == {name: expected[name].tobytes() for name in expected.files}


@pytest.mark.parametrize("file", ["checkpoint", "model.keras"])
def test_a_keras_2_name_at_another_place_is_refused(file, written_by_keras_2):
    error = refused(stack("b", "c", seed=2), written_by_keras_2 / "named" / file)
    assert {record.name.split("/")[0] for record in error.report.missing} == {"c"}
    assert {record.name.split("/")[0] for record in error.report.unused} == {"a"}


def test_a_name_that_stands_at_another_place_is_refused_and_both_are_named(tmp_path):
    error = refused(stack("b", "c", seed=2), saved(tmp_path, model=stack("a", "b")))
    assert [record.name for record in error.report.missing] == ["c/kernel", "c/bias"]
    assert [record.name for record in error.report.unused] == ["a/kernel", "a/bias"]


def test_a_place_decides_where_no_name_occurs_on_both_sides_and_the_note_has_the_file_s(tmp_path):
    source, model = stack("a", "b"), stack("c", "d", seed=2)
    report = trainer.restore_weights(model, saved(tmp_path, model=source))
    assert values(model) == values(source)
    assert ways(report) == {"by place"}
    assert [record.note for record in report.restored] == [
        f"by place, where the file has {weight.path}" for weight in source.weights
    ]
    assert f"c/kernel  by place, where the file has {source.weights[0].path}" in str(report)


def test_layers_that_keras_numbered_are_paired_by_the_rank_of_their_numbers(tmp_path):
    source = branches((None, None))
    layers.Dense(1)  # Keras counts on in this process
    model = branches((None, None), seed=2)
    report = trainer.restore_weights(model, saved(tmp_path, model=source))
    assert values(model) == values(source)
    assert ways(report) == {"by name"}


def test_numbers_that_disagree_with_the_places_are_ambiguous(tmp_path):
    path = saved(tmp_path, model=branches((None, None)))
    error = refused(branches((None, None), flipped=True, seed=2), path)
    assert {record.note for record in error.report.missing} == {
        "the order of the layers in the file and the numbers that Keras gave them disagree"
    }


def whole(with_head: bool) -> keras.Model:
    """Two named layers and two that Keras numbers, of equal shapes."""
    image = keras.Input([4], name="image")
    x = layers.Dense(4, name="first")(layers.Normalization(name="scaled")(image))
    x = layers.Dense(4)(layers.Dense(4)(x))
    return keras.Model(image, layers.Dense(3, name="head")(x) if with_head else x, name="backbone")


def test_a_backbone_comes_out_of_a_whole_model(tmp_path, zoo_cell):
    source, model = built(whole(True)), built(whole(False), seed=2)
    report = trainer.restore_weights(model, saved(tmp_path, model=source), ignore=["^head/"])
    assert values(model) == values(source)[:-2]
    assert len(report.unused) == 2
    zoo_cell("Checkpoint, into a backbone alone", "named functional", "whole")


def test_a_whole_model_goes_into_a_nested_backbone_by_one_rename(tmp_path, zoo_cell):
    source, backbone = built(whole(True)), whole(False)
    image = keras.Input([4])
    model = built(keras.Model(image, layers.Dense(5, name="classes")(backbone(image))), seed=2)
    report = trainer.restore_weights(
        model, saved(tmp_path, model=source), rename=[("^", "backbone/")], ignore=["^head/"], reinitialize=["^classes/"]
    )
    assert values(backbone) == values(source)[:-2]
    assert ways(report) == {"by rule"}
    zoo_cell("Checkpoint, into a nested backbone", "named functional", "whole")


@pytest.mark.full
@pytest.mark.parametrize("family", ["MobileNetV2", "EfficientNetB0", "InceptionV3", "ResNet50"])
def test_applications_go_into_nested_backbones(family, tmp_path):
    build = getattr(keras.applications, family)
    size = (75, 75, 3) if family == "InceptionV3" else (32, 32, 3)
    source, backbone = (
        build(weights=None, input_shape=size, classes=3),
        build(include_top=False, weights=None, input_shape=size),
    )
    for weight in source.weights:
        weight.assign(tf.random.stateless_normal(weight.shape, [1, 2]) if weight.dtype == "float32" else weight)
    path = saved(tmp_path, model=source)
    image = keras.Input(size)
    model = keras.Model(image, layers.Dense(5, name="classes")(backbone(image)))
    trainer.restore_weights(
        model, path, rename=[("^", f"{backbone.name}/")], ignore=["^predictions/"], reinitialize=["^classes/"]
    )
    assert values(backbone) == values(source)[:-2]
    alone = build(include_top=False, weights=None, input_shape=size)
    trainer.restore_weights(alone, path, ignore=["^predictions/"])


class Numbered(keras.Model):
    """A Functional model by a class of its name, so that Keras numbers it."""

    def __init__(self):
        image = keras.Input([4])
        super().__init__(image, layers.Dense(4)(layers.Dense(4)(layers.LayerNormalization()(image))))


@pytest.mark.parametrize("format", ["checkpoint", full("weights.h5"), "safetensors"])
def test_a_rule_names_a_nested_model_without_the_number_of_this_process(format, tmp_path):
    source = built(Numbered())
    path = saved(tmp_path, model=source) if format == "checkpoint" else tmp_path / f"m.{format}"
    if format == "weights.h5":
        source.save_weights(path)
    elif format == "safetensors":
        safetensors.numpy.save_file({weight.path: weight.numpy() for weight in source.weights}, path)
    for _ in range(2):
        backbone, image = Numbered(), keras.Input([4])
        model = built(keras.Model(image, layers.Dense(2, name="classes")(backbone(image))), seed=2)
        trainer.restore_weights(model, path, rename=[("^", "numbered/")], reinitialize=["^classes/"])
        assert values(backbone) == values(source)


def test_numbers_that_the_file_s_layers_had_are_no_ranks_in_the_model(tmp_path):
    def three():
        image = keras.Input([4])
        return keras.Model(image, layers.Dense(4)(layers.Dense(4)(layers.Dense(4)(image))), name="backbone")

    keras.backend.clear_session()
    layers.Dense(1)  # so that those of the file are 1 to 3, and by rank 0 to 2
    source = built(three())
    path = saved(tmp_path, model=source)
    backbone, image = three(), keras.Input([4])
    model = built(keras.Model(image, layers.Dense(2, name="classes")(backbone(image))), seed=2)
    trainer.restore_weights(model, path, rename=[("^", "backbone/")], reinitialize=["^classes/"])
    assert values(backbone) == values(source)


class Tied(keras.Model):
    def __init__(self, is_tied: bool):
        super().__init__()
        self.embed = layers.Embedding(5, 4)
        self.head = self.embed if is_tied else layers.Embedding(5, 4)

    def call(self, x):
        return self.embed(x) + self.head(x)


def written(folder, model, format) -> str:
    named = {f"{part}/embeddings": getattr(model, part).embeddings.numpy() for part in ("embed", "head")}
    if format == "checkpoint":
        return saved(folder, model=model)
    path = folder / f"m.{format}"
    if format == "weights.h5":
        model.save_weights(path)
    else:
        np.savez(path, **named) if format == "npz" else safetensors.numpy.save_file(named, path)
    return path


@pytest.mark.parametrize("format", ["checkpoint", "weights.h5", "safetensors", "npz"])
def test_two_matrices_for_one_tied_variable_are_refused_unless_their_bytes_are_equal(format, tmp_path):
    tokens = tf.TensorSpec([None, 3], tf.int32)
    source, model = built(Tied(False), tokens), built(Tied(True), tokens, seed=2)
    error = refused(model, written(tmp_path, source, format))
    (record,) = error.report.unused
    assert record.note.startswith("stands for the same variable as embed/")
    source.head.embeddings.assign(source.embed.embeddings)
    report = trainer.restore_weights(model, written(tmp_path, source, format))
    assert values(model) == values(source)[:1]
    assert [record.rule for record in report.unused] == ["the same variable a second time"]


def test_variables_that_a_weights_file_only_numbers_are_paired_by_place(tmp_path):
    source, model = stack("a", "b"), stack("a", "b", seed=2)
    source.save_weights(tmp_path / "m.weights.h5")
    report = trainer.restore_weights(model, tmp_path / "m.weights.h5")
    assert ways(report) == {"by place"}
    assert report.restored[0].note == "by place, where the file has a/0"
    assert json.loads(report.to_json())["records"][0]["paired"] == "by place"


@pytest.mark.parametrize("format", ["npz", full("safetensors")])
def test_files_of_names_are_paired_by_name(format, tmp_path):
    source, model = branches(LR), branches(LR, seed=2)
    named = {weight.path: weight.numpy() for weight in source.weights}
    path = tmp_path / f"m.{format}"
    np.savez(path, **named) if format == "npz" else safetensors.numpy.save_file(named, path)
    report = trainer.restore_weights(model, path)
    assert ways(report) == {"by name"}
    assert {record.note for record in report.restored} == {""}


def test_attributes_rules_and_lists_are_reported_as_such(tmp_path):
    source, model = built(InLists()), built(InLists(), seed=2)
    np.savez(tmp_path / "list.npz", *source.get_weights())
    assert ways(trainer.restore_weights(model, tmp_path / "list.npz", match="order")) == {"by order"}
    path = saved(tmp_path, model=source.head)
    assert ways(trainer.restore_weights(built(layers_of_one(), FOUR), path, rename=[("^", "only/")])) == {"by rule"}
    assert ways(trainer.restore_weights(built(layers_of_one(), FOUR), saved(tmp_path, only=source.head))) == {"by path"}


def layers_of_one() -> keras.Model:
    class One(keras.Model):
        def __init__(self):
            super().__init__()
            self.only = layers.Dense(2)

        def call(self, x):
            return self.only(x)

    return One()
