"""Vocabularies, boundaries and constants, which are no variables: compared with the file's, or filled from it."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import full
from zoo import layers, text_model, values

import trainer
from trainer.restore import plan_weights

WORDS = ["good", "bad", "film", "plot"]
OTHER = ["bad", "good", "film", "plot"]
INPUTS = [tf.constant(["good film", "plot unknown"]), tf.constant([[3.0], [25.0]])]
TEXTS = np.array(["good film", "bad film", "good good", "bad bad plot"])


def adapted() -> keras.Model:
    return text_model(num_bins=3, texts=TEXTS)


def archive(model, folder) -> str:
    model.save(folder / "model.keras")
    return str(folder / "model.keras")


def unpacked(model, folder) -> str:
    with zipfile.ZipFile(archive(model, folder)) as file:
        file.extractall(folder / "unpacked.keras")
    return str(folder / "unpacked.keras")


def old_h5(model, folder) -> str:
    model.save(folder / "model.h5")
    return str(folder / "model.h5")


def saved_model(model, folder) -> str:
    tf.saved_model.save(model, str(folder / "saved_model"))
    return str(folder / "saved_model")


def exported(model, folder) -> str:
    model.export(str(folder / "exported"), verbose=False)
    return str(folder / "exported")


WRITERS = [archive, full(unpacked), saved_model]


def refused(model, path, message: str, **rules) -> str:
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=message) as caught:
        trainer.restore_weights(model, path, **rules)
    assert values(model) == before
    return str(caught.value)


def pasted(message: str) -> dict:
    """The rules that a message proposes, as gin would read them."""
    lines = [line.strip().split(" = ", 1) for line in message.splitlines() if line.startswith("  Restore.")]
    return {name.removeprefix("Restore."): eval(value) for name, value in lines}  # noqa: S307


@pytest.mark.parametrize("write", WRITERS)
def test_an_empty_vocabulary_is_filled_from_the_file(write, tmp_path):
    source, model = adapted(), text_model(boundaries=[9.0, 19.0])
    report = trainer.restore_weights(model, write(source, tmp_path))
    assert model.get_layer("vec").get_vocabulary() == source.get_layer("vec").get_vocabulary()
    np.testing.assert_array_equal(model(INPUTS), source(INPUTS))
    assert "vocabularies     1 filled" in str(report)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("make", [adapted, full(lambda: text_model(WORDS, boundaries=[9.0, 19.0]))])
def test_another_order_of_words_is_refused_and_may_be_excused(write, make, tmp_path):
    path, model = write(make(), tmp_path), text_model(OTHER, boundaries=[9.0, 19.0])
    message = refused(
        model, path, "vec/vocabulary  different, 6 values  at index 2 the file has 'good', the model 'bad'"
    )
    report = trainer.restore_weights(model, path, **pasted(message))
    assert report.tables[0].status == "different" and report.tables[0].rule
    assert report.idle_rules == []
    assert model.get_layer("vec").get_vocabulary()[2:] == OTHER


@pytest.mark.parametrize("write", [*WRITERS, full(old_h5)])
def test_equal_words_and_boundaries_are_reported(write, tmp_path):
    source = text_model(WORDS, boundaries=[9.0, 19.0])
    model = text_model(WORDS, boundaries=[9.0, 19.0])
    report = str(trainer.restore_weights(model, write(source, tmp_path)))
    assert "vocabularies     1 equal" in report
    # A SavedModel of Keras 3 has no config, and no table for boundaries.
    assert f"constants        1 {'not compared' if write is saved_model else 'equal'}" in report


def test_a_longer_vocabulary_differs_where_the_other_ends(tmp_path):
    model = text_model([*WORDS, "more"])
    refused(model, archive(text_model(WORDS), tmp_path), "at index 6 the file has nothing, the model 'more'")


def test_a_file_without_vocabularies_is_refused_and_excused(tmp_path):
    source, model = text_model(WORDS), text_model(WORDS)
    source.save_weights(tmp_path / "x.weights.h5")
    message = refused(model, tmp_path / "x.weights.h5", "vec/vocabulary  not in the file, 6 values")
    assert pasted(message) == {"ignore": ["^vec/vocabulary$"]}
    report = trainer.restore_weights(model, tmp_path / "x.weights.h5", **pasted(message))
    assert values(model) == values(source)
    assert "1 not in the file" in str(report)


def test_a_vocabulary_that_neither_side_has_is_refused(tmp_path):
    text_model(WORDS).save_weights(tmp_path / "x.weights.h5")
    message = refused(text_model(), tmp_path / "x.weights.h5", "neither the model nor the file has a vocabulary")
    assert pasted(message) == {} and "by name" not in message
    refused(text_model(), tmp_path / "x.weights.h5", "neither", ignore=["vocabulary"])


def test_other_boundaries_and_constants_are_refused(tmp_path):
    def model(boundaries, mean):
        number = keras.Input([1])
        bins = layers.Discretization(boundaries, output_mode="one_hot", name="bins")(number)
        x = layers.Normalization(mean=mean, variance=np.full_like(mean, 2.0), name="norm")(number)
        return keras.Model(number, layers.Dense(2, name="out")(layers.Concatenate()([bins, x])))

    for write in (archive, old_h5):
        path = write(model([0.1, 1.0], 3.0), tmp_path)
        report = trainer.restore_weights(model([0.1, 1.0], [3.0]), path)
        assert "constants        3 equal" in str(report)
        refused(model([0.2, 1.0], 3.0), path, "bins/bin_boundaries  different, 2 values  at index 0 the file has 0.1")
        message = refused(model([0.1, 1.0], 4.0), path, "norm/mean  different, 1 values  at index 0 the file has 3.0")
        trainer.restore_weights(model([0.1, 1.0], 4.0), path, **pasted(message))


def test_adapted_boundaries_are_filled_from_an_archive(tmp_path):
    source, model = adapted(), text_model(num_bins=3)
    trainer.restore_weights(model, archive(source, tmp_path))
    assert model.get_layer("bins").bin_boundaries == source.get_layer("bins").bin_boundaries
    np.testing.assert_array_equal(model(INPUTS), source(INPUTS))


def lookups(vocabulary=None, numbers=None) -> keras.Model:
    """StringLookup, an inverse IntegerLookup and tf-idf weights in one model."""
    word, number, text = (
        keras.Input([1], dtype="string"),
        keras.Input([1], dtype="int64"),
        keras.Input([], dtype="string"),
    )
    size = {"max_tokens": 7, "pad_to_max_tokens": True}
    x = layers.StringLookup(vocabulary=vocabulary, output_mode="one_hot", mask_token="-", **size, name="words")(word)
    y = layers.IntegerLookup(vocabulary=numbers, output_mode="one_hot", **size, name="numbers")(number)
    z = layers.TextVectorization(output_mode="tf_idf", **size, name="tfidf")(text)
    return keras.Model([word, number, text], layers.Dense(2, name="out")(layers.Concatenate()([x, y, z])))


def test_lookups_and_tf_idf_weights_are_filled(tmp_path):
    source, model = lookups(), lookups()
    source.get_layer("words").adapt(np.array([["q"], ["q"], ["r"]]))
    source.get_layer("numbers").adapt(np.array([[30], [30], [8]]))
    source.get_layer("tfidf").adapt(TEXTS)
    inputs = [tf.constant([["q"], ["z"]]), tf.constant([[30], [8]], tf.int64), INPUTS[0]]
    report = trainer.restore_weights(model, archive(source, tmp_path))
    assert "vocabularies     4 filled" in str(report)
    np.testing.assert_array_equal(model(inputs), source(inputs))
    other = lookups(numbers=[8, 30])
    refused(other, archive(source, tmp_path), "numbers/vocabulary  different, 3 values  at index 1 the file has 30")


def test_unnamed_layers_are_paired_by_their_place_in_their_class(tmp_path):
    class Two(keras.Model):
        def __init__(self, first: list | None, second: list | None):
            super().__init__()
            self.first = layers.TextVectorization(vocabulary=first, output_sequence_length=2)
            self.second = layers.TextVectorization(vocabulary=second, output_sequence_length=2)
            self.emb = layers.Embedding(9, 2)

        def call(self, text):
            return self.emb(self.first(text)) + self.emb(self.second(text))

        def get_config(self):
            return {}

    source = Two(None, None)
    source.first.adapt(["a a b"])
    source.second.adapt(["c c d"])
    source(TEXTS)
    path = archive(source, tmp_path)
    spec = tf.TensorSpec([None], tf.string)
    report = trainer.restore_weights(Two(["a", "b"], ["c", "d"]), path, input_spec=spec)
    assert {table.status for table in report.tables} == {"equal"}
    with pytest.raises(trainer.RestoreError, match="first/vocabulary  different"):
        trainer.restore_weights(Two(["c", "d"], ["a", "b"]), path, input_spec=spec)


def test_a_rename_leads_to_the_vocabulary_of_a_layer(tmp_path):
    source, model = text_model(WORDS), text_model(name="tokens")
    report = trainer.restore_weights(model, archive(source, tmp_path), rename=[("^vec/", "tokens/")])
    assert (report.tables[0].key, report.tables[0].status) == ("vec/vocabulary", "filled")


def test_an_exported_model_has_its_one_vocabulary_without_a_name(tmp_path):
    model = text_model()
    trainer.restore_weights(model, exported(text_model(WORDS), tmp_path), match="order")
    assert model.get_layer("vec").get_vocabulary()[2:] == WORDS


def test_a_vocabulary_read_from_a_file_is_in_the_saved_model(tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    path = saved_model(text_model(str(tmp_path / "words.txt")), tmp_path)
    trainer.restore_weights(text_model(WORDS), path)
    refused(text_model(OTHER), path, "at index 2 the file has 'good', the model 'bad'")


def test_a_plan_fills_nothing(tmp_path):
    model = text_model()
    report = plan_weights(model, archive(text_model(WORDS), tmp_path))
    assert "vocabularies     1 filled" in str(report)
    assert model.get_layer("vec").get_vocabulary()[2:] == []


def test_a_vocabulary_larger_than_the_layer_takes_is_refused(tmp_path):
    path = archive(text_model([f"w{i}" for i in range(18)]), tmp_path)
    model = text_model()
    model.get_layer("vec")._lookup_layer.max_tokens = 10
    refused(model, path, "the file has 20 tokens, and the layer max_tokens=10")


@pytest.mark.parametrize("name", ["model.keras", full("saved_model"), full("model.weights.h5")])
def test_files_of_keras_2_fill_vocabulary_and_boundaries(name, written_by_keras_2):
    is_weights = name == "model.weights.h5"
    model = text_model(["good", "bad", "film", "plot"] if is_weights else None, num_bins=3)
    trainer.restore_weights(
        model, written_by_keras_2 / "text" / name, ignore=["^vec/vocabulary$"] if is_weights else []
    )
    assert model.get_layer("vec").get_vocabulary()[2:] == ["good", "bad", "film", "plot"]
    np.testing.assert_allclose(model.get_layer("bins").bin_boundaries, [9.0, 19.0])


def test_what_the_file_has_under_another_name_is_said(tmp_path):
    def two(first, second):
        text = keras.Input([], dtype="string")
        parts = [layers.TextVectorization(output_sequence_length=2, name=name) for name in (first, second)]
        for part in parts:
            part.adapt(TEXTS[: parts.index(part) + 1]) if first == "a" else None
        x = layers.Add()([layers.Embedding(9, 2, name=f"{part.name}_emb")(part(text)) for part in parts])
        return keras.Model(text, x)

    path, model = archive(two("a", "b"), tmp_path), two("c", "d")
    rules = {"rename": [("^a_emb/", "c_emb/"), ("^b_emb/", "d_emb/")]}
    refused(model, path, "c/vocabulary  empty .* the file has a/vocabulary, b/vocabulary for no layer", **rules)
    report = trainer.restore_weights(model, path, rename=[("^a(?=[_/])", "c"), ("^b(?=[_/])", "d")])
    assert [(table.name, table.key) for table in report.tables] == [
        ("c/vocabulary", "a/vocabulary"),
        ("d/vocabulary", "b/vocabulary"),
    ]
