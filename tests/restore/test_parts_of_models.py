"""A part of a checkpoint into a model, or into a part of one: backbones, other heads, more tokens."""

import ast

import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import FOUR, TOKENS, Text, TwoDense, built, layers, saved, used_adam, values

import trainer
from trainer.replicas import replica_values


@pytest.fixture
def source():
    return built(TwoDense(num_classes=3))


@pytest.fixture
def path(source, tmp_path):
    return saved(tmp_path, model=source, optimizer=used_adam(source))


def test_rows_of_shared_classes_are_copied_and_the_others_stay_fresh(source, path, strategy):
    with strategy.scope():
        model = built(TwoDense(num_classes=5), seed=2)
        kernel, bias = model.head.kernel.numpy(), model.head.bias.numpy()
        report = trainer.restore_weights(model, path, copy_rows=[("^head/", {0: 4, 2: 1})])
    kernel[:, 4], kernel[:, 1] = source.head.kernel.numpy()[:, 0], source.head.kernel.numpy()[:, 2]
    bias[4], bias[1] = source.head.bias.numpy()[0], source.head.bias.numpy()[2]
    for copy in replica_values(model.head.kernel):
        np.testing.assert_array_equal(copy, kernel)
    for copy in replica_values(model.head.bias):
        np.testing.assert_array_equal(copy, bias)
    np.testing.assert_array_equal(model.encoder.kernel.numpy(), source.encoder.kernel.numpy())
    (record, _) = [record for record in report.restored if record.name.startswith("head")]
    assert (record.rule, record.note) == ("^head/", "2 of 5 rows from the checkpoint, the others stay fresh")


def test_rows_are_copied_between_heads_of_one_size_too(source, path):
    model = built(TwoDense(num_classes=3), seed=2)
    fresh = model.head.bias.numpy()
    trainer.restore_weights(model, path, copy_rows=[("^head/", {1: 2})])
    np.testing.assert_array_equal(model.head.bias.numpy(), [fresh[0], fresh[1], source.head.bias.numpy()[1]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({3: 0}, r"copy_rows: '\^head/' names row 3 of head/kernel, and the checkpoint's has 3 \(0 to 2\)"),
        ({0: 5}, r"names row 5 of head/kernel, and the model's has 5 \(0 to 4\)"),
        ({0: -1}, "names row -1"),
        ({0: "1"}, "is not a pair of pattern and rows"),
        ([0, 1], "is not a pair of pattern and rows"),
    ],
)
def test_a_row_that_is_not_there_is_refused(rows, message, path):
    model = built(TwoDense(num_classes=5), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=message):
        trainer.restore_weights(model, path, copy_rows=[("^head/", rows)])
    assert values(model) == before


class Words(keras.Model):
    def __init__(self, tokens: int, width: int = 4):
        super().__init__()
        self.embed = layers.Embedding(tokens, width)
        self.head = layers.Dense(2)

    def call(self, tokens):
        return self.head(self.embed(tokens))


def test_an_embedding_grows_by_new_tokens_at_its_end(tmp_path):
    source = built(Words(6), TOKENS)
    model = built(Words(9), TOKENS, seed=2)
    fresh = model.embed.embeddings.numpy()
    report = trainer.restore_weights(model, saved(tmp_path, model=source), grow=["^embed/"])
    grown = model.embed.embeddings.numpy()
    np.testing.assert_array_equal(grown[:6], source.embed.embeddings.numpy())
    np.testing.assert_array_equal(grown[6:], fresh[6:])
    assert "6 of 9 rows from the checkpoint, the others stay fresh (1)" in str(report)


def test_without_a_rule_a_longer_embedding_is_a_mismatch(tmp_path):
    model = built(Words(9), TOKENS, seed=2)
    with pytest.raises(trainer.RestoreError, match="1 mismatched"):
        trainer.restore_weights(model, saved(tmp_path, model=built(Words(6), TOKENS)))


@pytest.mark.parametrize("sizes", [(6, 4, 5, 4), (6, 4, 9, 8)], ids=["shorter", "wider as well"])
def test_what_did_not_grow_along_one_axis_is_a_mismatch_all_the_same(sizes, tmp_path):
    tokens, width, new_tokens, new_width = sizes
    source, model = built(Words(tokens, width), TOKENS), built(Words(new_tokens, new_width), TOKENS, seed=2)
    with pytest.raises(trainer.RestoreError, match="mismatched"):
        trainer.restore_weights(model, saved(tmp_path, model=source), grow=["^embed/"])


def test_rules_that_fit_nothing_are_named(source, path):
    model = built(TwoDense(num_classes=3), seed=2)
    report = trainer.restore_weights(model, path, rename=[("^backbone/", "encoder/")], ignore=["^pooler/"])
    assert report.idle_rules == ["rename '^backbone/'", "ignore '^pooler/'"]
    assert "no effect        ignore '^pooler/'" in str(report)


def test_a_mistyped_grow_is_refused_with_what_was_meant(path):
    model = built(TwoDense(num_classes=3), seed=2)
    with pytest.raises(trainer.RestoreError, match=r"grow: '\^haed/' matches no variable.*Did you mean '\^head/'"):
        trainer.restore_weights(model, path, grow=["^haed/"])


def test_an_encoder_comes_out_of_a_larger_functional_model_by_the_names_of_its_layers(tmp_path):
    def encoder():
        image = keras.Input([4])
        return keras.Model(image, layers.Dense(4, name="second")(layers.Dense(4, name="first")(image)))

    image = keras.Input([4])
    x = layers.Dense(4, name="second")(layers.Dense(4, name="first")(image))
    whole = built(keras.Model(image, layers.Dense(2, name="head")(x)))
    whole.save_weights(tmp_path / "m.weights.h5")
    whole.save(tmp_path / "m.h5")
    for name in ("m.weights.h5", "m.h5"):
        model = built(encoder(), seed=2)
        with pytest.raises(trainer.RestoreError, match=r"train.ignore = \['\^head/'\]"):
            trainer.restore_weights(model, tmp_path / name)
        trainer.restore_weights(model, tmp_path / name, ignore=["^head/"])
        assert values(model) == values(whole)[:4]


@pytest.mark.parametrize("end", [".weights.h5", ".h5", ".keras"])
def test_a_layer_put_in_between_is_not_shifted_into_place(end, tmp_path):
    """Keras loads a stack of layers by their number, whatever was inserted."""
    source = built(keras.Sequential([keras.Input([4]), layers.Dense(4), layers.Dense(4)]))
    path = tmp_path / f"m{end}"
    source.save_weights(path) if end == ".weights.h5" else source.save(path)
    model = built(keras.Sequential([keras.Input([4]), *(layers.Dense(4) for _ in range(3))]), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match="0 of 6 would be restored"):
        trainer.restore_weights(model, path)
    assert values(model) == before


@pytest.mark.parametrize("end", [".weights.h5", ".h5"])
def test_names_that_somebody_gave_outweigh_the_order(end, tmp_path):
    def stack(*names):
        return keras.Sequential([keras.Input([4]), *(layers.Dense(4, name=name) for name in names)])

    source = built(stack("a", "b"))
    path = tmp_path / f"m{end}"
    source.save_weights(path) if end == ".weights.h5" else source.save(path)
    model = built(stack("b", "a"), seed=2)
    trainer.restore_weights(model, path)
    for name in ("a", "b"):
        np.testing.assert_array_equal(model.get_layer(name).kernel.numpy(), source.get_layer(name).kernel.numpy())


def test_a_subclassed_model_s_attributes_are_not_taken_for_names_that_keras_gave(tmp_path):
    class Attributes(keras.Model):
        def __init__(self):
            super().__init__()
            self.second, self.first = layers.Dense(4), layers.Dense(4)
            self.second.name, self.first.name  # noqa: B018  Keras numbers them in the order of making

        def call(self, x):
            return self.second(self.first(x))

    source = built(Attributes())
    source.save_weights(tmp_path / "m.weights.h5")
    model = Attributes()
    trainer.restore_weights(model, tmp_path / "m.weights.h5", input_spec=FOUR)
    assert values(model) == values(source)


def test_layers_that_another_process_numbered_otherwise_are_paired_by_their_rank(tmp_path):
    source = built(keras.Sequential([keras.Input([4]), *(layers.Dense(4, name=f"dense_{i}") for i in (1, 2, 3))]))
    np.savez(tmp_path / "m.npz", **{weight.path: weight.numpy() for weight in source.weights})
    model = built(
        keras.Sequential([keras.Input([4]), *(layers.Dense(4, name=f"dense_{i}") for i in (2, 3, 10))]), seed=2
    )
    trainer.restore_weights(model, tmp_path / "m.npz")
    assert values(model) == values(source)


def test_a_model_of_two_inputs_is_built_from_two_specs(tmp_path):
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.left, self.right = layers.Dense(4), layers.Dense(4)

        def call(self, a, b, training=None):
            return self.left(a) + self.right(b)

    source = Two()
    source(tf.zeros([1, 4]), tf.zeros([1, 2]))
    path = saved(tmp_path, model=source)
    two = tf.TensorSpec([None, 2])
    for spec in ((FOUR, two), {"a": FOUR, "b": two}):
        model = Two()
        trainer.restore_weights(model, path, input_spec=spec)
        assert values(model) == values(source)


def test_values_that_are_not_finite_are_restored_counted_and_said(source, tmp_path):
    source.head.bias.assign([np.nan, np.inf, 1.0])
    model = built(TwoDense(num_classes=3), seed=2)
    report = trainer.restore_weights(model, saved(tmp_path, model=source))
    assert values(model) == values(source)
    assert report.not_finite == 2
    assert "not finite       2 values are NaN or infinite, in head/bias" in str(report)


def test_text_models_take_a_longer_vocabulary_from_weights_h5(tmp_path):
    source = built(Text(), TOKENS)
    source.save_weights(tmp_path / "m.weights.h5")
    model = Text()
    model.embed = layers.Embedding(10, 4)
    built(model, TOKENS, seed=2)
    trainer.restore_weights(model, tmp_path / "m.weights.h5", grow=["^embed/"])
    np.testing.assert_array_equal(model.embed.embeddings.numpy()[:7], source.embed.embeddings.numpy())


def stack(*names: str):
    """Dense layers of 5, 3 and 2 units one after the other."""
    image = x = keras.Input([4])
    for units, name in zip((5, 3, 2), names, strict=False):
        x = layers.Dense(units, name=name)(x)
    return built(keras.Model(image, x), seed=len(names))


def test_what_the_message_proposes_for_a_layer_under_another_name_works_when_it_is_pasted(tmp_path):
    """A `.weights.h5` file has no names of variables; the layer's name and the shapes tell what was meant."""
    source, model = stack("first", "classifier", "extra"), stack("first", "class_head")
    source.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(trainer.RestoreError) as caught:
        trainer.restore_weights(model, tmp_path / "m.weights.h5", ignore=["^extra/"])
    (line,) = [line for line in str(caught.value).splitlines() if "train.rename" in line]
    assert line == "  train.rename = [('^classifier/', 'class_head/')]"
    rename = ast.literal_eval(line.split(" = ")[1])
    trainer.restore_weights(model, tmp_path / "m.weights.h5", rename=rename, ignore=["^extra/"])
    assert values(model) == values(source)[:4]


def test_layers_that_only_their_place_pairs_are_shown_under_both_names(tmp_path):
    source, model = stack("first", "classifier"), stack("first", "class_head")
    source.save_weights(tmp_path / "m.weights.h5")
    report = trainer.restore_weights(model, tmp_path / "m.weights.h5")
    assert values(model) == values(source)
    assert "by its place among the layers, where the file calls the layer classifier (2)" in str(report)
