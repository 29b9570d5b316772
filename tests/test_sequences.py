"""Pipelines of the user's own, sequences of different lengths, and texts: exact, or refused by one message."""

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy
from grouped import train_with
from own_folder import dry_run_train_and_evaluate

import trainer
from trainer.data.batches import eval_batches, train_batches
from trainer.data.given import as_data
from trainer.data.order import Mixed

RANDOM = np.random.default_rng(0)
LENGTHS = np.arange(30) % 9 + 1
TOKENS = [RANDOM.integers(1, 20, size=length).tolist() for length in LENGTHS]
LABELS = (LENGTHS % 2).tolist()


FLIP = keras.layers.RandomFlip()


def few(**options):
    return tf.data.Dataset.from_tensor_slices({"x": np.arange(12, dtype=np.float32)[:, None], **options})


def refused(data, what="train_data") -> str:
    with pytest.raises(trainer.UserError) as error:
        as_data(data, what).batch_spec  # noqa: B018
    return str(error.value)


# A tf.data.Dataset of one's own


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: few().shuffle(12), "shuffle"),
        (lambda: few().shuffle(12, seed=3).map(lambda e: e), "shuffle"),
        (lambda: few().map(lambda e: {"x": e["x"] + tf.random.uniform([1])}), "RandomUniform"),
        (lambda: few().map(lambda e: {"x": tf.cond(e["x"][0] > 0, lambda: tf.random.normal([1]), lambda: e["x"])}), ""),
        (lambda: few().map(lambda e: {"x": FLIP(e["x"][:, None, None], training=True)}), "a random layer of Keras"),
        (lambda: few().map(lambda e: {"x": e["x"] + keras.random.uniform([1])}), "a random layer of Keras"),
        (lambda: tf.data.Dataset.random(3).take(4).map(lambda x: {"x": x}), "Dataset.random"),
        (lambda: few().interleave(lambda e: tf.data.Dataset.from_tensors(e).shuffle(2)), "shuffle"),
    ],
)
def test_what_is_drawn_at_random_in_a_pipeline_is_refused_with_the_remedy(make, named):
    said = refused(make())
    assert "train_data: the tf.data.Dataset is drawn at random" in said and named in said and "`augment`" in said


def test_a_fixed_order_and_stateless_numbers_are_no_randomness():
    fixed = few().shuffle(12, seed=3, reshuffle_each_iteration=False)
    stateless = fixed.map(lambda e: {"x": e["x"] + tf.random.stateless_uniform([1], [1, 2])})
    assert as_data(stateless, "train_data").num_examples == 12


@pytest.mark.parametrize("where", ["preprocess", "augment"])
def test_random_functions_are_refused_of_tensorflow_and_of_numpy(where):
    def of_tensorflow(batch, seed=None):
        return {"x": batch["x"] + tf.random.normal([])}

    def of_numpy(batch, seed=None):
        return {"x": batch["x"] + np.random.rand()}

    for function, said in ((of_tensorflow, "drawn at random (RandomStandardNormal)"), (of_numpy, "Python or NumPy")):
        assert said in refused(trainer.in_memory({"x": np.zeros([4, 1], np.float32)}, **{where: function}))


def test_functions_of_tensorflow_by_the_seed_are_no_chance():
    """The inner functions of a flip are numbered by process: their order differs each time that it is traced."""

    def flipped(example, seed):
        return {"x": tf.image.stateless_random_flip_left_right(example["x"], seed)}

    for _ in range(12):
        data = trainer.in_memory({"x": np.zeros([4, 2, 2, 1], np.float32)}, augment=flipped)
        assert data.batch_spec["x"].shape.as_list() == [None, 2, 2, 1]


def test_batches_are_unbatched_and_unknown_sizes_counted_and_the_dry_run_says_so(capsys):
    data = as_data(few().filter(lambda e: e["x"][0] < 10).batch(4).prefetch(1), "train_data")
    assert data.num_examples == 10 and data.batch_spec["x"].shape.as_list() == [None, 1]
    assert "unbatched" in data.note and "counted" in data.note
    assert "unbatched" not in as_data(few().batch(4).unbatch(), "train_data").note
    train_with(
        model=lambda: keras.Sequential([keras.layers.Dense(1)]), train_data=few(y=np.zeros([12, 1])).batch(5),
        task=trainer.supervised(loss=keras.losses.MeanSquaredError(), inputs="x", target="y"),
        optimizer=lambda: keras.optimizers.SGD(0.1), global_batch_size=4, num_steps=1, dry_run=True,
        strategy=tf.distribute.get_strategy(),
    )  # fmt: skip
    assert "12 examples an epoch (unbatched: Regraft makes the batches; counted" in " ".join(
        capsys.readouterr().out.split()
    )


def test_an_endless_an_empty_and_a_tuple_are_refused():
    assert "is endless; leave repeat out" in refused(few().repeat())
    assert "is empty" in refused(few().filter(lambda e: False))
    assert "Name the features" in refused(tf.data.Dataset.from_tensor_slices((np.zeros(3), np.zeros(3))))


# Different lengths


def padded(**options):
    examples = {"tokens": TOKENS, "label": LABELS}
    return trainer.in_memory(examples, prepare=lambda example: trainer.pad_to(example, {"tokens": 12}), **options)


def test_ragged_examples_are_padded_by_prepare_and_else_named_with_the_remedy():
    with pytest.raises(trainer.UserError, match="in_memory.prepare = @pad_to"):
        trainer.in_memory({"tokens": TOKENS})
    ragged = tf.data.Dataset.from_tensor_slices({"tokens": tf.ragged.constant(TOKENS), "label": LABELS})
    assert "'tokens'" in refused(ragged) and "pad_to" in refused(ragged)
    data = as_data(ragged.map(lambda example: trainer.pad_to(example, {"tokens": 12})), "train_data")
    for each in (data, padded()):
        (batch, _) = next(iter(eval_batches(each, 30)))
        expected = [tokens + [0] * (12 - len(tokens)) for tokens in TOKENS]
        np.testing.assert_array_equal(batch["tokens"], expected)
    cut = trainer.in_memory({"tokens": TOKENS}, prepare=lambda e: trainer.pad_to(e, {"tokens": 3}, value=-1))
    assert cut.examples["tokens"][0].tolist() == [TOKENS[0][0], -1, -1] and len(TOKENS[5][:3]) == 3
    with pytest.raises(trainer.UserError, match="no feature 'token'; there are tokens, label"):
        trainer.in_memory({"tokens": TOKENS, "label": LABELS}, prepare=lambda e: trainer.pad_to(e, {"token": 3}))


def test_a_batch_is_cut_after_its_longest_example():
    data = padded(preprocess=lambda batch: trainer.trim_padding(batch, ["tokens"]))
    for batch, _ in eval_batches(data, 4):
        used = (batch["tokens"].numpy() != 0).sum(axis=1).max()
        assert batch["tokens"].shape[1] == used
    assert trainer.trim_padding({"x": tf.constant([[1, 0, 0, 0]])}, ["x"], lengths=[2, 3])["x"].shape[1] == 2
    assert trainer.trim_padding({"x": tf.constant([[1, 1, 1, 1]])}, ["x"], lengths=[2])["x"].shape[1] == 4


def test_buckets_hold_like_lengths_and_any_step_is_found_at_once():
    data = trainer.bucket_by_length(padded(), keys=["tokens"], boundaries=[3, 6])

    def first(count, start=0, **part):
        found = iter(train_batches(data, 4, seed=1, start_step=start, **part).dataset)
        return [{name: value[0].numpy() for name, value in next(found).items()} for _ in range(count)]

    whole = first(40)
    shapes = {batch["tokens"].shape[1] for batch in whole}
    assert shapes == {3, 6, 12}
    for batch in whole:
        lengths = (batch["tokens"] != 0).sum(axis=1)
        low = {3: 0, 6: 3, 12: 6}[batch["tokens"].shape[1]]
        assert (lengths > low).all() and (lengths <= batch["tokens"].shape[1]).all()
    for one, other in zip(first(3, start=37), whole[37:], strict=True):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
    halves = [first(5, num_workers=2, worker_index=worker) for worker in (0, 1)]
    for step in range(5):
        joined = np.concatenate([half[step]["tokens"] for half in halves])
        np.testing.assert_array_equal(joined, whole[step]["tokens"])


def test_a_bucket_is_gone_through_once_before_it_begins_again():
    order = Mixed([8, 4], [2.0, 1.0], by_batch=True)
    numbers, times = order.draw(seed=0, start=0, count=4 * 30, batch_size=4)
    batches = numbers.reshape(30, 4)
    assert all((batch < 8).all() or (batch >= 8).all() for batch in batches)
    first = numbers[numbers < 8]
    assert sorted(first[:8]) == list(range(8)) and set(times[numbers < 8][:8]) == {0}


@pytest.mark.parametrize("replicas", [2])
def test_padding_weighs_nothing_and_replicas_agree_and_a_resume_has_the_bits(tmp_path, replicas):
    def model():
        return keras.Sequential([
            keras.layers.Embedding(20, 4, mask_zero=True), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(2),
        ])  # fmt: skip

    def run(folder, num_steps, replicas, data):
        return train_with(
            model=model, train_data=data, optimizer=lambda: keras.optimizers.SGD(0.5), global_batch_size=4,
            task=trainer.supervised(
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="tokens", target="label"
            ),
            num_steps=num_steps, model_dir=tmp_path / folder, strategy=make_strategy(replicas),
        ).model.get_weights()  # fmt: skip

    def bucketed():
        return trainer.bucket_by_length(padded(), keys=["tokens"], boundaries=[3, 6])

    whole = run("whole", 6, 1, bucketed())
    run("parts", 4, 1, bucketed())
    for one, other in zip(whole, run("parts", 6, 1, bucketed()), strict=True):
        assert one.tobytes() == other.tobytes()
    for one, other in zip(whole, run("two", 6, replicas, bucketed()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": ["token"], "boundaries": [3]}, "has no feature 'token'"),
        ({"keys": ["tokens"], "boundaries": [6, 3]}, "ascending"),
    ],
)
def test_what_is_wrong_with_buckets_is_named(options, message):
    with pytest.raises(trainer.UserError, match=message):
        trainer.bucket_by_length(padded(), **options)


# Texts


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "film": 4, "plot": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_texts_become_the_numbers_of_the_tokenizer(tokenizer_file):
    def prepare(example):
        return trainer.tokenize(example, str(tokenizer_file), 3, mask="mask")

    data = trainer.in_memory({"text": ["good film", "bad", "a bad bad plot"], "label": [1, 0, 0]}, prepare=prepare)
    assert data.examples["tokens"].tolist() == [[2, 4, 0], [3, 0, 0], [1, 3, 3]]
    assert data.examples["mask"].tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert set(data.examples) == {"tokens", "mask", "label"}
    with pytest.raises(trainer.UserError, match="the feature 'txt' must be one text an example"):
        trainer.in_memory({"text": ["a"]}, prepare=lambda e: trainer.tokenize(e, str(tokenizer_file), 3, key="txt"))
    with pytest.raises(trainer.UserError, match="nowhere.json is no tokenizer"):
        trainer.in_memory({"text": ["a"]}, prepare=lambda e: trainer.tokenize(e, "nowhere.json", 3))


CONFIG = """
include 'configs/base.gin'
import my_model
MODEL = @my_model
TASK = @supervised()
supervised.loss = @SparseCategoricalCrossentropy()
SparseCategoricalCrossentropy.from_logits = True
supervised.inputs = {inputs!r}
supervised.metrics = {{'accuracy': @SparseCategoricalAccuracy}}
TRAIN_DATA = @table()
EVAL_DATA = @table()
table.path = 'reviews.csv'
table.categories = {{'label': ['bad', 'good']}}
{more}
OPTIMIZER = @SGD
SGD.learning_rate = 1.0
train.restore = None
NUM_STEPS = 30
GLOBAL_BATCH_SIZE = 8
Intervals.checkpoint_every = 0
"""

VECTORIZING = """
import gin, keras


@gin.register
def my_model():
    layer = keras.layers.TextVectorization(output_sequence_length=4, vocabulary=["good", "bad", "film", "plot"])
    return keras.Sequential(
        [keras.Input([], dtype="string"), layer, keras.layers.Embedding(6, 4), keras.layers.Flatten(),
         keras.layers.Dense(2)]
    )
"""

EMBEDDING = """
import gin, keras


@gin.register
def my_model():
    return keras.Sequential(
        [keras.layers.Embedding(6, 4, mask_zero=True), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(2)]
    )
"""


@pytest.mark.parametrize("by", ["TextVectorization", "tokenizers"])
def test_a_table_of_texts_trains_dry_runs_and_is_evaluated_from_the_users_folder(tmp_path, tokenizer_file, by):
    rows = ["good film,good", "bad film,bad", "good good plot,good", "bad bad plot,bad"] * 4
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    tokenized = "table.prepare = @tokenize\n" + f"tokenize.file = {str(tokenizer_file)!r}\ntokenize.length = 4"
    is_tokenized = by == "tokenizers"
    config = CONFIG.format(inputs="tokens" if is_tokenized else "text", more=tokenized if is_tokenized else "")
    model = EMBEDDING if is_tokenized else VECTORIZING
    dry, trained, evaluated = dry_run_train_and_evaluate(tmp_path, config, model)
    assert ("tokens int64 [4]" if is_tokenized else "text string [] 'good film'") in dry
    assert trained == evaluated == 1.0


def test_the_functions_are_bound_by_gin():
    for name in ("pad_to", "trim_padding", "bucket_by_length", "tokenize"):
        assert gin.get_configurable(f"pipeline.{name}")
