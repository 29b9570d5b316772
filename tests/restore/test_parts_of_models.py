"""A part of a checkpoint into a model, or into a part of one: backbones, other heads, more tokens."""

import ast

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from zoo import FOUR, TOKENS, Text, Twins, TwoDense, built, layers, saved, used_adam, values

import trainer
from trainer.cluster.replicas import replica_values


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
        with pytest.raises(trainer.RestoreError, match=r"Restore.ignore = \['\^head/'\]"):
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


def dense_stack(*numbers: int, seed: int = 1):
    return built(
        keras.Sequential([keras.Input([4]), *(layers.Dense(4, name=f"dense_{i}") for i in numbers)]), seed=seed
    )


@pytest.mark.parametrize("numbers", [(2, 3, 4), (11, 12, 13)])
def test_layers_that_another_process_numbered_otherwise_are_paired_by_their_rank(numbers, tmp_path):
    source = dense_stack(1, 2, 3)
    np.savez(tmp_path / "m.npz", **{weight.path: weight.numpy() for weight in source.weights})
    model = dense_stack(*numbers, seed=2)
    trainer.restore_weights(model, tmp_path / "m.npz")
    assert values(model) == values(source)


def test_numbers_of_which_some_are_perhaps_names_are_refused(tmp_path):
    """`dense_5` stands on both sides: it may be a name that someone gave."""
    source, model = dense_stack(5, 1), dense_stack(5, 7, seed=2)
    np.savez(tmp_path / "m.npz", **{weight.path: weight.numpy() for weight in source.weights})
    before = values(model)
    with pytest.raises(trainer.RestoreError):
        trainer.restore_weights(model, tmp_path / "m.npz")
    assert values(model) == before


def frozen_in_part(kind: str, seed: int = 1):
    """An inner model whose first layer was frozen, which Keras' old .h5 files write last."""
    inner = keras.Sequential([keras.Input([4]), layers.Dense(4), layers.Dense(4)])
    if kind == "writer":
        inner.layers[0].trainable = False
    return built(keras.Sequential([keras.Input([4]), inner, layers.Dense(2)]), seed=seed)


@pytest.mark.parametrize("reader", ["writer", "reader"])
def test_a_layer_that_the_writer_froze_is_not_taken_for_its_neighbour(reader, tmp_path):
    source = frozen_in_part("writer")
    source.save(tmp_path / "m.h5")
    model = frozen_in_part(reader, seed=2)
    trainer.restore_weights(model, tmp_path / "m.h5")
    for ours, theirs in zip(model.layers[0].layers, source.layers[0].layers, strict=True):
        np.testing.assert_array_equal(ours.kernel.numpy(), theirs.kernel.numpy())


class Blocks(keras.Model):
    """Two parts of equal inner names in one layer, as Hugging Face's models have them."""

    def __init__(self, *order: str):
        super().__init__(name="whole")
        self.top = Parts(order, name="top")

    def call(self, x):
        return self.top(x)


class Parts(keras.layers.Layer):
    def __init__(self, order, **options):
        super().__init__(**options)
        self.parts = [
            keras.Sequential([layers.Dense(4, name="query"), layers.Dense(4, name="key")], name=n) for n in order
        ]

    def build(self, shape):
        for part in self.parts:
            part.build(shape)

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_the_whole_chain_of_given_names_counts_in_an_old_h5(tmp_path):
    source, model = built(Blocks("encoder", "decoder")), built(Blocks("decoder", "encoder"), seed=2)
    source.save(tmp_path / "m.h5")
    trainer.restore_weights(model, tmp_path / "m.h5")
    theirs = {weight.path: weight.numpy() for weight in source.weights}
    for weight in model.weights:
        np.testing.assert_array_equal(weight.numpy(), theirs[weight.path], err_msg=weight.path)
    shifted = built(Blocks("decoder", "third"), seed=2)
    with pytest.raises(trainer.RestoreError):
        trainer.restore_weights(shifted, tmp_path / "m.h5")


def test_names_that_fit_in_two_ways_are_refused(tmp_path):
    """Attributes that are called as Keras numbers layers, in another order, and a file of Keras' paths."""

    class Crossed(keras.Model):
        def __init__(self):
            super().__init__(name="crossed")
            self.dense_1 = layers.Dense(4, name="dense")
            self.dense = layers.Dense(4, name="dense_1")

        def call(self, x):
            return self.dense(self.dense_1(x))

    source, model = built(Crossed()), built(Crossed(), seed=2)
    np.savez(tmp_path / "m.npz", **{weight.path.removeprefix("crossed/"): weight.numpy() for weight in source.weights})
    with pytest.raises(trainer.RestoreError, match="its names fit the model in two ways"):
        trainer.restore_weights(model, tmp_path / "m.npz")


def test_branches_that_were_merged_the_other_way_are_not_swapped(tmp_path):
    def merged(flipped: bool):
        image = keras.Input([4])
        branches = [layers.Dense(4)(image), layers.Dense(4)(image)]
        return built(
            keras.Model(image, layers.Concatenate()(branches[::-1] if flipped else branches)), seed=1 + flipped
        )

    source, model = merged(False), merged(True)
    before = values(model)
    for name in ("m.weights.h5", "m.h5"):
        source.save_weights(tmp_path / name) if name == "m.weights.h5" else source.save(tmp_path / name)
        with pytest.raises(trainer.RestoreError):
            trainer.restore_weights(model, tmp_path / name)
        assert values(model) == before
    trainer.restore_weights(merged(False), tmp_path / "m.weights.h5")


def test_a_name_and_its_underscored_twin_are_distinguished_when_one_side_has_one_of_them(tmp_path):
    class One(keras.Model):
        def __init__(self):
            super().__init__()
            self._proj = layers.Dense(4)

        def call(self, x):
            return self._proj(x)

    source = built(Twins())
    model = built(One(), seed=2)
    trainer.restore_weights(model, saved(tmp_path, model=source), ignore=["^proj/", "^model/proj/"])
    np.testing.assert_array_equal(model._proj.kernel.numpy(), source._proj.kernel.numpy())


def test_paths_as_keras_gave_them_fit_whatever_the_attributes_are_called(tmp_path):
    source = built(Text(), TOKENS)
    safetensors.numpy.save_file({weight.path: weight.numpy() for weight in source.weights}, tmp_path / "m.safetensors")
    model = Text()
    trainer.restore_weights(model, tmp_path / "m.safetensors", input_spec=TOKENS)
    assert values(model) == values(source)


def test_chance_names_do_not_come_in_when_something_was_ignored(tmp_path):
    """Three layers of the file, numbered 0 to 2, and two of the model, numbered 1 and 2."""

    def stack(*names):
        return built(
            keras.Sequential([keras.Input([4]), *(layers.Dense(4, name=name) for name in names)]), seed=len(names)
        )

    source, model = stack("dense", "dense_1", "dense_2"), stack("dense_1", "dense_2")
    source.save(tmp_path / "m.h5")
    before = values(model)
    with pytest.raises(trainer.RestoreError):
        trainer.restore_weights(model, tmp_path / "m.h5", ignore=["^dense/"])
    assert values(model) == before


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
    (line,) = [line for line in str(caught.value).splitlines() if "Restore.rename" in line]
    assert line == "  Restore.rename = [('^classifier/', 'class_head/')]"
    rename = ast.literal_eval(line.split(" = ")[1])
    trainer.restore_weights(model, tmp_path / "m.weights.h5", rename=rename, ignore=["^extra/"])
    assert values(model) == values(source)[:4]


def test_layers_that_only_their_place_pairs_are_shown_under_both_names(tmp_path):
    source, model = stack("first", "classifier"), stack("first", "class_head")
    source.save_weights(tmp_path / "m.weights.h5")
    report = trainer.restore_weights(model, tmp_path / "m.weights.h5")
    assert values(model) == values(source)
    assert "class_head/kernel  by place, where the file has classifier/0" in str(report)


def two_dense(lora_rank: int = 0, seed: int = 1):
    model = built(keras.Sequential([keras.Input([4]), layers.Dense(4), layers.Dense(2)]), seed=seed)
    if lora_rank:
        model.layers[0].enable_lora(lora_rank)
        model.layers[0].lora_kernel_b.assign(np.ones([lora_rank, 4]))
    return model


@pytest.mark.parametrize("lora_rank", [0, 3])
def test_weights_go_into_a_model_with_lora_merged_if_the_writer_had_one(lora_rank, tmp_path):
    source = two_dense(lora_rank)
    source.save_weights(tmp_path / "m.weights.h5")
    model = two_dense(2, seed=2)
    trainer.restore_weights(model, tmp_path / "m.weights.h5", reinitialize=["lora_"])
    expected = source.layers[0].kernel.numpy()  # with what LoRA adds to it
    np.testing.assert_allclose(model.layers[0]._kernel.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(model.layers[1].kernel.numpy(), source.layers[1].kernel.numpy())


@pytest.mark.full
@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras"])
def test_quantized_layers_come_back_in_the_order_in_which_keras_writes_them(name, tmp_path):
    source, model = two_dense(), two_dense(seed=2)
    source.quantize("int8")
    model.quantize("int8")
    assert values(model) != values(source)
    source.save_weights(tmp_path / name) if name == "m.weights.h5" else source.save(tmp_path / name)
    trainer.restore_weights(model, tmp_path / name)
    assert values(model) == values(source)


def test_a_weight_that_a_wrapper_writes_a_second_time_is_no_leftover(tmp_path):
    def wrapped(seed):
        return built(keras.Sequential([keras.Input([4]), layers.SpectralNormalization(layers.Dense(3))]), seed=seed)

    source, model = wrapped(1), wrapped(2)
    source.save_weights(tmp_path / "m.weights.h5")
    report = trainer.restore_weights(model, tmp_path / "m.weights.h5")
    assert values(model) == values(source)
    assert {record.rule for record in report.unused} == {"the same variable a second time"}


def test_a_saved_model_has_the_names_of_its_layers(tmp_path):
    def branches(flipped: bool):
        image = keras.Input([4])
        both = [layers.Dense(4, name="left")(image), layers.Dense(4, name="right")(image)]
        return built(keras.Model(image, layers.Concatenate()(both[::-1] if flipped else both)), seed=1 + flipped)

    source, model = branches(False), branches(True)
    tf.saved_model.save(source, str(tmp_path / "saved_model"))
    trainer.restore_weights(model, tmp_path / "saved_model")
    for name in ("left", "right"):
        np.testing.assert_array_equal(model.get_layer(name).kernel.numpy(), source.get_layer(name).kernel.numpy())
