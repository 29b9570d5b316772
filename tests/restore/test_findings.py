"""What a hostile tester found: slices, odd paths, rows that collide, stale constants, variables of Keras' own."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from conftest import make_strategy
from zoo import FOUR, TOKENS, TwoDense, built, layers, saved, sequential, values

import trainer
from trainer.restore import find_checkpoint, weights_of

v1 = tf.compat.v1


class Tokens(keras.Model):
    def __init__(self, num_tokens: int = 10):
        super().__init__()
        self.emb = layers.Embedding(num_tokens, 4)
        self.head = layers.Dense(2)

    def call(self, tokens):
        return self.head(self.emb(tokens))


def partitioned(folder, dtype=tf.float32) -> tuple[str, list[np.ndarray]]:
    """A checkpoint of TF1 whose embeddings stand in three slices, and the whole values."""
    with tf.Graph().as_default(), v1.Session() as session:
        normal = v1.random_normal_initializer(seed=1)
        with v1.variable_scope("emb", partitioner=v1.fixed_size_partitioner(3)):
            table = v1.get_variable("embeddings", [10, 4], dtype, normal)
        kernel = v1.get_variable("head/kernel", [4, 2], tf.float32, normal)
        bias = v1.get_variable("head/bias", [2], tf.float32, normal)
        session.run(v1.global_variables_initializer())
        path = v1.train.Saver().save(session, str(folder / "model.ckpt"), write_meta_graph=False)
        return path, session.run([tf.concat(list(table), 0), kernel, bias])


def refused(model, path, message: str, **rules) -> str:
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=message) as caught:
        trainer.restore_weights(model, path, **rules)
    assert values(model) == before
    return str(caught.value)


def test_a_variable_that_tf1_wrote_in_slices_arrives_whole(tmp_path):
    path, written = partitioned(tmp_path)
    model = Tokens()
    report = trainer.restore_weights(model, path, input_spec=TOKENS)
    assert values(model) == [value.tobytes() for value in written]
    assert [record.name for record in report.restored] == ["emb/embeddings", "head/kernel", "head/bias"]


@pytest.mark.parametrize("row", [0, 5, 9])
def test_a_flipped_byte_in_a_slice_is_refused(row, tmp_path):
    path, (table, *_) = partitioned(tmp_path)
    data = Path(f"{path}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[content.index(table[row].tobytes()) + 3] ^= 0xFF
    data.write_bytes(content)
    refused(
        built(Tokens(), TOKENS), path, "No variable was changed. .*the tensor emb/embeddings is damaged or not there"
    )


@pytest.mark.parametrize("name", ["m[1].ckpt", "m*.ckpt", "m?x", "m{1}.ckpt", "a b é", "m\\n"])
def test_a_prefix_may_have_any_characters(name, tmp_path):
    source, model = built(TwoDense()), built(TwoDense(), seed=2)
    path = tf.train.Checkpoint(model=source).write(str(tmp_path / name))
    report = trainer.restore_weights(model, path)
    assert values(model) == values(source)
    assert report.checkpoint == path


@pytest.mark.parametrize("name", ["a b[1]é", "d*", "run[a-z]?"])
def test_a_folder_may_be_called_anything(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    source = built(TwoDense())
    path = saved(tmp_path / name, model=source)
    # What the pattern would find besides must not be taken for a part of it.
    (tmp_path / "a b1é").mkdir()
    saved(tmp_path / "a b1é", model=built(TwoDense(), seed=7))
    monkeypatch.chdir(tmp_path)
    for given in (tmp_path / name, path, name):
        model = built(TwoDense(), seed=2)
        report = trainer.restore_weights(model, given)
        assert values(model) == values(source)
        assert report.checkpoint == find_checkpoint(given)


def test_sliced_tensors_under_a_name_in_brackets_are_read_and_damage_names_the_users_path(tmp_path):
    folder = tmp_path / "run[1]"
    folder.mkdir()
    path, written = partitioned(folder)
    model = built(Tokens(), TOKENS)
    trainer.restore_weights(model, path)
    assert values(model) == [value.tobytes() for value in written]
    data = Path(f"{path}.data-00000-of-00001")
    data.write_bytes(b"\0" * data.stat().st_size)
    message = refused(built(Tokens(), TOKENS), path, "is damaged or not there")
    assert f"{path}: the tensor" in message and "regraft-" not in message
    Path(f"{path}.index").write_bytes(b"this is no index\n" * 50)
    message = refused(built(Tokens(), TOKENS), path, "cannot be read; its index is damaged or of something else")
    assert f"The checkpoint {path} " in message and "regraft-" not in message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({0: 1, 1: 1}, r"copy_rows: '\^head/' puts the checkpoint's rows 0 and 1 into the model's row 1; only one can"),
        ({}, r"copy_rows: '\^head/' names no rows"),
    ],
)
def test_rows_that_collide_or_are_none_are_refused(rows, message, tmp_path):
    model = built(TwoDense(num_classes=5), seed=2)
    refused(model, saved(tmp_path, model=built(TwoDense(num_classes=3))), message, copy_rows=[("^head/", rows)])


def test_one_row_may_go_to_the_place_of_another(tmp_path):
    source, model = built(TwoDense(num_classes=3)), built(TwoDense(num_classes=3), seed=2)
    trainer.restore_weights(model, saved(tmp_path, model=source), copy_rows=[("^head/", {0: 1, 1: 0})])
    np.testing.assert_array_equal(model.head.kernel.numpy()[:, :2], source.head.kernel.numpy()[:, 1::-1])


def test_rows_of_embeddings_of_one_size_are_tokens(tmp_path):
    source, model = built(Tokens(), TOKENS), built(Tokens(), TOKENS, seed=2)
    expected = model.emb.embeddings.numpy()
    expected[7] = source.emb.embeddings.numpy()[9]
    report = trainer.restore_weights(model, saved(tmp_path, model=source), copy_rows=[("^emb/", {9: 7})])
    np.testing.assert_array_equal(model.emb.embeddings.numpy(), expected)
    assert report.restored[0].note == "1 of 10 rows from the checkpoint, the others stay fresh"


def test_rows_of_embeddings_of_another_width_are_columns_still(tmp_path):
    class Wide(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.emb = layers.Embedding(10, width)

        def call(self, tokens):
            return self.emb(tokens)

    source, model = built(Wide(3), TOKENS), built(Wide(4), TOKENS, seed=2)
    trainer.restore_weights(model, saved(tmp_path, model=source), copy_rows=[("^emb/", {0: 3})])
    np.testing.assert_array_equal(model.emb.embeddings.numpy()[:, 3], source.emb.embeddings.numpy()[:, 0])


def named(model):
    return {weight.name: weight.variable.numpy() for weight in weights_of(model)}


WRITERS = {
    "m.weights.h5": lambda model, path: model.save_weights(path),
    "m.keras": lambda model, path: model.save(path),
    "m.h5": lambda model, path: model.save(path),
    "m.safetensors": lambda model, path: safetensors.numpy.save_file(named(model), path),
    "m.npz": lambda model, path: np.savez(path, **named(model)),
}


@pytest.mark.parametrize("written", WRITERS)
@pytest.mark.parametrize("change", [str.upper, lambda name: name.replace("m.", "M.").title()], ids=["upper", "title"])
def test_the_ends_of_files_are_known_in_capitals_too(written, change, tmp_path):
    source, model = built(TwoDense()), built(TwoDense(), seed=2)
    WRITERS[written](source, tmp_path / written)
    folder = tmp_path / "given"
    folder.mkdir()
    path = folder / change(written)
    shutil.move(tmp_path / written, path)
    for given in (path, folder):
        trainer.restore_weights(built(model, seed=2), given)
        assert values(model) == values(source)


def test_a_shard_in_capitals_leads_to_its_index(tmp_path):
    for name in ("M-00001-OF-00002.SAFETENSORS", "M.SAFETENSORS.INDEX.JSON"):
        (tmp_path / name).write_bytes(b"")
    assert find_checkpoint(tmp_path / "M-00001-OF-00002.SAFETENSORS") == str(tmp_path / "M.SAFETENSORS.INDEX.JSON")
    assert find_checkpoint(tmp_path) == str(tmp_path / "M.SAFETENSORS.INDEX.JSON")


@pytest.mark.parametrize("prefix", ["ckpt.h5", "ckpt.H5", "CKPT"])
def test_a_prefix_of_tensorflow_keeps_its_meaning_whatever_its_end(prefix, tmp_path):
    source, model = built(TwoDense()), built(TwoDense(), seed=2)
    path = tf.train.Checkpoint(model=source).write(str(tmp_path / prefix))
    assert trainer.restore_weights(model, path).format == "TensorFlow object checkpoint"
    assert values(model) == values(source)


def adapted(seed: int, mean: float = 5.0):
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(seed).normal(mean, 3.0, (100, 4)).astype("float32"))
    return normalization


def unadapted(seed: int):
    """Built: Keras can't call a subclassed model that builds a Normalization inside."""
    normalization = layers.Normalization()
    normalization.build((None, 4))
    return normalization


class Normalized(keras.Model):
    """Normalization twice, one of them in a list, where TensorFlow would not reach it."""

    def __init__(self, make=lambda seed: layers.Normalization()):
        super().__init__()
        self.first = make(1)
        self.others = [make(2)]
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(self.others[0](self.first(x)))


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("is_built", [True, False], ids=["built", "unbuilt"])
def test_a_normalization_computes_with_what_was_restored(replicas, is_built, tmp_path):
    x = np.random.default_rng(9).normal(5.0, 3.0, [6, 4]).astype("float32")
    source = Normalized(adapted)
    expected = source(x).numpy()
    source.save_weights(tmp_path / "m.weights.h5")
    strategy = make_strategy(replicas)
    with strategy.scope():
        model = Normalized(unadapted) if is_built else Normalized()
        if is_built:
            assert not np.allclose(model(x), expected)
        trainer.restore_weights(model, tmp_path / "m.weights.h5", input_spec=FOUR)
    outputs = tf.function(lambda: strategy.run(model, args=(tf.constant(x),)))()
    copies = strategy.experimental_local_results(outputs)
    assert len(copies) == replicas
    for copy in copies:
        np.testing.assert_allclose(copy.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_unbuilt_model_has_normalizations_that_compute(replicas, tmp_path):
    """Fresh statistics and constants were made on symbolic inputs; nothing of these may be left."""

    def fixed(seed):
        return layers.Normalization(mean=2.0, variance=4.0) if seed == 1 else layers.Normalization()

    source = built(TwoDense())
    strategy = make_strategy(replicas)
    with strategy.scope():
        model = Normalized(fixed)
        trainer.restore_weights(
            model,
            saved(tmp_path, head=source.head),
            input_spec=FOUR,
            reinitialize=["^others/"],
        )
    x = tf.constant([[4.0, 2.0, 0.0, 6.0]])
    outputs = tf.function(lambda: strategy.run(model, args=(x,)))()
    for copy in strategy.experimental_local_results(outputs):
        np.testing.assert_allclose(copy, source.head(tf.constant([[1.0, 0.0, -1.0, 2.0]])), rtol=1e-6)


def test_predictions_that_were_traced_before_the_restore_are_traced_again(tmp_path):
    x = np.ones([2, 4], np.float32)
    source, model = Normalized(adapted), Normalized(unadapted)
    expected = source.predict(x, verbose=0)
    assert not np.allclose(model.predict(x, verbose=0), expected)
    trainer.restore_weights(
        model,
        saved(tmp_path, first=source.first, other=source.others[0], head=source.head),
        rename=[("^other/", "others/0/")],
    )
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-6)


def test_a_normalization_that_stays_fresh_or_has_constants_is_left_alone(tmp_path):
    x = np.ones([1, 4], np.float32)

    def make(mean: float):
        given = layers.Normalization(mean=2.0, variance=4.0)
        return keras.Sequential([keras.Input([4]), given, adapted(3, mean), layers.Dense(4)])

    source, model = make(5.0), make(-5.0)
    path = saved(tmp_path, model=source)
    # As after a training loop that set constants of its own: only a restore of the statistics may undo it.
    model.layers[1].mean = model.layers[1].mean + 1.0
    kept = model.layers[1].mean.numpy()
    trainer.restore_weights(model, path, reinitialize=["^normalization"])
    np.testing.assert_array_equal(model.layers[1].mean.numpy(), kept)
    trainer.restore_weights(model, path)
    np.testing.assert_allclose(model(x), source(x), rtol=1e-6)


def test_a_text_vectorization_of_keras_is_not_taken_for_the_users_mistake(tmp_path):
    def make(weights=(1.0, 2.0, 3.0)):
        text = keras.Input([], dtype="string")
        vectors = layers.TextVectorization(output_mode="tf_idf", vocabulary=["a", "b", "c"], idf_weights=list(weights))
        return keras.Model(text, layers.Dense(2)(vectors(text)))

    source, model = make(), make()
    for weight in source.weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    path = tmp_path / "m.weights.h5"
    source.save_weights(path)
    assert "self.add_weight" not in refused(model, path, "/vocabulary  not in the file")
    report = trainer.restore_weights(model, path, ignore=["/idf_weights$"])  # a constant, and no weight to Keras
    assert "1 not in the file, 1 equal" in str(report)
    assert len(report.restored) == 2
    np.testing.assert_array_equal(model(tf.constant(["a b", "c c"])), source(tf.constant(["a b", "c c"])))


def test_a_plain_variable_in_the_users_own_layer_is_refused_still(tmp_path):
    class Scaled(TwoDense):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(1.0)

    stack = sequential()
    stack.scale = tf.Variable(1.0)
    for model in (Scaled(), stack):
        refused(built(model), saved(tmp_path, model=built(TwoDense())), "scale is a plain tf.Variable")
