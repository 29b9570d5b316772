"""Where examples come from: folders of images, records, tables, mixtures; and what augmentation draws."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from array_record.python import array_record_module
from conftest import full, make_strategy
from grouped import train_with
from own_folder import dry_run_train_and_evaluate

import trainer
from trainer.data.batches import batch_numbers, eval_batches, train_batches
from trainer.data.given import as_data
from trainer.data.order import Mixed

RANDOM = np.random.default_rng(0)


def batches_of(data, count, start=0, size=6, seed=3, **part):
    """[batch] as NumPy arrays, what training gets from step `start` on."""
    batches, found = train_batches(data, size, seed, start, steps_per_loop=2, **part), []
    for stack, first, end in batches.take(count):
        for step in range(int(first), int(end)):
            batch, _ = batches.look_up(tf.nest.map_structure(lambda value, step=step: value[step], stack))
            found.append({name: value.numpy() for name, value in batch.items()})
    return found


def same(one, two) -> bool:
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(one, two, strict=True)
    )


# Sources: each as small data of 12 examples, in memory and read when drawn


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of ten images, each of one grey value: 10 x class + number."""
    folder = tmp_path_factory.mktemp("images")
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir()
        for image in range(10):
            pixels = np.full([6 + image, 9, 3], 100 * number + image, np.uint8)
            (folder / name / f"{image}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return folder


def example(number: int) -> bytes:
    features = {
        "x": tf.train.Feature(float_list=tf.train.FloatList(value=[number, 2.0 * number])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number % 3])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.fixture(scope="module")
def example_files(tmp_path_factory):
    """Two files of 12 and 8 examples, as TFRecord and as ArrayRecord."""
    folder = tmp_path_factory.mktemp("examples")
    for part, numbers in enumerate((range(12), range(12, 20))):
        with tf.io.TFRecordWriter(str(folder / f"part-{part}.tfrecord")) as writer:
            for number in numbers:
                writer.write(example(number))
        writer = array_record_module.ArrayRecordWriter(str(folder / f"part-{part}.array_record"), "group_size:1")
        for number in numbers:
            writer.write(example(number))
        writer.close()
    return folder


@pytest.fixture(scope="module")
def sources(images, example_files):
    """{name: function of memory_limit_bytes that makes data of 20 examples}."""
    return {
        "image_folder": functools.partial(trainer.image_folder, path=str(images), height=4, width=4),
        "records": functools.partial(trainer.records, path=str(example_files / "*.tfrecord"), shuffle_buffer=7),
        "array_record": functools.partial(trainer.array_record, path=str(example_files / "*.array_record")),
    }


@pytest.mark.parametrize("name", ["image_folder", "records", "array_record"])
@pytest.mark.parametrize("limit", [2**30, 0], ids=["in memory", "read when drawn"])
def test_a_source_gives_every_example_once_an_epoch_and_from_any_step_the_same(sources, name, limit):
    data = sources[name](memory_limit_bytes=limit)
    assert data.num_examples == 20 and (data.examples is not None) == bool(limit)
    key = "image" if name == "image_folder" else "x"
    epoch = batches_of(data, 10)  # three epochs
    seen = np.concatenate([batch[key].reshape(6, -1)[:, 0] for batch in epoch])
    everything = [batch[key].numpy() for batch, _ in eval_batches(data, 20)]
    stored = np.sort(everything[0].reshape(20, -1)[:, 0])
    for number in range(3):
        assert np.array_equal(np.sort(seen[20 * number : 20 * number + 20]), stored)
    assert same(batches_of(data, 3, start=7), epoch[7:])
    halves = [batches_of(data, 10, num_workers=2, worker_index=index) for index in (0, 1)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert same(joined, epoch)
    numbers = batch_numbers(data, 6, 3, 4)
    assert np.array_equal(everything[0][numbers], epoch[4][key])


def test_parts_of_an_image_folder_have_their_share_of_each_class_and_never_overlap(images):
    first, rest = (trainer.image_folder(str(images), 4, 4, split=split) for split in ("[:80%]", "[80%:]"))
    assert (first.num_examples, rest.num_examples) == (16, 4)
    assert np.bincount(first.examples["label"]).tolist() == [8, 8]
    grey = np.concatenate([data.examples["image"][:, 0, 0, 0] for data in (first, rest)])
    assert len(set(grey.tolist())) == 20
    for split, message in (("[80]", "write '\\[:80%\\]'"), ("train", "is no folder in .*, which has cat, dog")):
        with pytest.raises(trainer.UserError, match=message):
            trainer.image_folder(str(images), 4, 4, split=split)


def test_folders_of_splits_are_found_and_an_image_that_cannot_be_decoded_is_named(images, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "cat").symlink_to(images / "cat")
    assert trainer.image_folder(str(tmp_path), 4, 4, split="test").num_examples == 10
    with pytest.raises(trainer.UserError, match="folders hold folders; name one of them: image_folder.split = 'test'"):
        trainer.image_folder(str(tmp_path), 4, 4)
    (tmp_path / "mine/cat").mkdir(parents=True)
    (tmp_path / "mine/cat/broken.png").write_bytes(b"no image")
    with pytest.raises(trainer.UserError, match="broken.png .*Mend or remove it"):
        trainer.image_folder(str(tmp_path / "mine"), 4, 4)


def test_records_that_are_none_or_have_other_features_are_named(example_files, tmp_path):
    path = str(example_files / "part-0.tfrecord")
    assert trainer.records(path, features={"x": [2]}).examples.keys() == {"x"}
    for features, message in (({"y": []}, "has no feature 'y'; it has label, x"), ({"x": [3]}, "holds 2 values")):
        with pytest.raises(trainer.UserError, match=message):
            trainer.records(path, features=features)
    whole = (example_files / "part-0.tfrecord").read_bytes()
    (tmp_path / "short.tfrecord").write_bytes(whole[:-3])
    with pytest.raises(trainer.UserError, match="short.tfrecord is no whole TFRecord file"):
        trainer.records(str(tmp_path / "short.tfrecord"))
    with tf.io.TFRecordWriter(str(tmp_path / "other.tfrecord")) as writer:
        writer.write(b"\xff\xff")
    with pytest.raises(trainer.UserError, match="record 0, is no tf.train.Example"):
        trainer.records(str(tmp_path / "other.tfrecord"))
    with pytest.raises(trainer.UserError, match="there is no file"):
        trainer.records(str(tmp_path / "none-*"))


# Tables


@pytest.fixture(scope="module", params=["csv", "parquet"])
def table_file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / f"people.{request.param}"
    rows = {"age": [20, 31, 42, 53], "height": [1.5, 1.6, 1.7, 1.8], "kind": ["cat", "dog", "cat", "dog"]}
    lines = [",".join(rows), *(",".join(map(str, row)) for row in zip(*rows.values(), strict=True))]
    if request.param == "csv":
        path.write_text("\n".join(lines))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(rows), path)
    return str(path)


def test_a_tables_columns_are_typed_stacked_and_numbered(table_file):
    data = trainer.table(table_file, stack={"x": ["age", "height"]}, categories={"kind": ["cat", "dog"]})
    assert data.examples.keys() == {"kind", "x"} and data.examples["x"].dtype == np.float32
    np.testing.assert_array_equal(data.examples["kind"], [0, 1, 0, 1])
    np.testing.assert_allclose(data.examples["x"][1], [31, 1.6], rtol=1e-6)
    parts = [
        trainer.table(table_file, columns=["age"], stratify="kind", split=split).num_examples
        for split in ("[:50%]", "[50%:]")
    ]
    assert parts == [2, 2]
    plain = trainer.table(table_file)
    assert plain.examples["age"].dtype == np.int64 and plain.examples["kind"].dtype == object


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["aeg"]}, "has no column 'aeg'. Did you mean 'age'?"),
        ({"categories": {"kind": ["cat", "bird"]}}, "holds 'dog', and table.categories names 'cat', 'bird'"),
        ({"stack": {"x": ["age", "kind"]}}, "the column 'kind' of .* holds texts"),
        ({"split": "[:0%]"}, "holds none of the 4 examples"),
    ],
)
def test_what_is_wrong_with_a_table_names_the_column(table_file, options, message):
    with pytest.raises(trainer.UserError, match=message.replace("?", r"\?")):
        trainer.table(table_file, **options)


def test_a_missing_value_is_named_by_its_row(tmp_path):
    (tmp_path / "holes.csv").write_text("a,b\n1,2\n,3\n4,5\n")
    with pytest.raises(trainer.UserError, match=r"the column 'a' has no value in 1 rows \(1, counted from 0\)"):
        trainer.table(str(tmp_path / "holes.csv"))
    assert trainer.table(str(tmp_path / "holes.csv"), columns=["b"]).num_examples == 3
    with pytest.raises(trainer.UserError, match="must end in .csv, .tsv, .parquet"):
        trainer.table(str(tmp_path / "holes.xlsx"))


# Mixtures


def numbers(count, offset=0):
    return trainer.in_memory({"x": np.arange(offset, offset + count), "label": np.arange(count) % 2})


def test_a_mixture_draws_by_weight_and_each_part_once_an_epoch_of_its_own():
    data = trainer.mixture([numbers(10), numbers(30, offset=100)], weights=[3.0, 1.0])
    seen = np.concatenate([batch["x"] for batch in batches_of(data, 400, size=8)])
    first = seen[seen < 100]
    assert len(first) == pytest.approx(0.75 * len(seen), abs=40)  # in the blocks at both ends the order is drawn
    assert np.array_equal(np.sort(first[:10]), np.arange(10)), "one epoch of the part"
    assert same(batches_of(data, 3, start=397, size=8), batches_of(data, 400, size=8)[397:])
    halves = [batches_of(data, 4, size=8, num_workers=2, worker_index=index) for index in (0, 1)]
    assert np.array_equal(np.concatenate([half[2]["x"] for half in halves]), batches_of(data, 4, size=8)[2]["x"])
    everything = np.concatenate([batch["x"].numpy() for batch, _ in eval_batches(data, 8)])
    assert np.array_equal(np.sort(everything), [*range(10), *range(100, 130)]), "an evaluation sees all once"


def test_every_block_of_a_mixture_has_the_rounded_share_by_hand():
    order = Mixed([5, 7], [1.0, 2.0])
    drawn, times = order.draw(seed=1, start=0, count=3 * 1024)
    # Of 1024 draws 341.33 belong to the first group: 341, 683 - 341, 1024 - 683 in three blocks.
    assert [int((drawn[1024 * block : 1024 * (block + 1)] < 5).sum()) for block in range(3)] == [341, 342, 341]
    assert [sorted(drawn[(drawn < 5) & (times == epoch)]) for epoch in range(2)] == [[0, 1, 2, 3, 4]] * 2
    parts = [order.draw(1, 0, 1000), order.draw(1, 1000, 2072)]
    assert np.array_equal(np.concatenate([part[0] for part in parts]), drawn)


def test_temperature_and_balance_make_rare_examples_come_more_often():
    sizes = [numbers(4), numbers(64, offset=100)]
    share = {}
    for temperature in (1.0, 2.0):
        data = trainer.mixture(sizes, temperature=temperature)
        seen = np.concatenate([batch["x"] for batch in batches_of(data, 300, size=8)])
        share[temperature] = float((seen < 100).mean())
    assert share[1.0] == pytest.approx(4 / 68, abs=0.02) and share[2.0] == pytest.approx(1 / 5, abs=0.02)
    rare = {"x": np.arange(40), "label": np.array([1] * 4 + [0] * 36)}
    seen = np.concatenate([batch["label"] for batch in batches_of(trainer.balanced(rare), 300, size=8)])
    assert seen.mean() == pytest.approx(0.5, abs=0.02)


def test_parts_that_cannot_be_mixed_are_refused_by_name():
    other = {"y": np.arange(3)}
    stream = tf.data.Dataset.from_tensor_slices({"x": np.arange(3), "label": np.arange(3)})
    for parts, options, message in (
        ([numbers(3)], {}, "two data sets or more"),
        ([numbers(3), other], {}, r"features of in_memory and mixture.data\[1\] differ"),
        ([numbers(3), stream], {}, "is a stream"),
        ([numbers(3), numbers(3)], {"weights": [1.0, 0.0]}, "a number above 0 for each of 2"),
    ):
        with pytest.raises(trainer.UserError, match=message):
            trainer.mixture(parts, **options)


# Augmentation


def noisy(example, seed):
    return {**example, "x": tf.cast(example["x"], tf.float32) + tf.random.stateless_uniform([], seed)}


def augmented(kind, example_files):
    """20 examples of the feature x, augmented, in each form that data have."""
    files = {"records": trainer.records, "array_record": trainer.array_record}
    if kind in files:
        path, ending = example_files, "tfrecord" if kind == "records" else "array_record"
        more = {"shuffle_buffer": 7} if kind == "records" else {}
        return files[kind](str(path / f"*.{ending}"), augment=noisy, memory_limit_bytes=0, **more)
    features = {"x": np.arange(20.0), "label": np.arange(20) % 3}
    if kind == "stream":
        data = as_data(tf.data.Dataset.from_tensor_slices(features), "train_data")
        return trainer.data.data.dataclasses.replace(data, augment=noisy)
    data = trainer.in_memory(features, augment=noisy)
    return data if kind == "in memory" else trainer.mixture([data, data])


@pytest.mark.parametrize("kind", ["in memory", "array_record", "records", "stream", "mixture"])
def test_augmentation_is_the_same_from_any_step_and_for_any_worker_and_another_each_epoch(kind, example_files):
    data = augmented(kind, example_files)
    whole = batches_of(data, 8)
    assert same(batches_of(data, 3, start=5), whole[5:])
    halves = [batches_of(data, 8, num_workers=2, worker_index=index) for index in (0, 1)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert same(joined, whole)
    drawn = np.concatenate([batch["x"].reshape(6, -1)[:, 0] for batch in whole])
    noise = drawn - np.floor(drawn)
    assert len(np.unique(noise.round(5))) > 40, "each draw of an example is another"
    assert not same(batches_of(data, 8, seed=4), whole)
    plain = np.concatenate([np.asarray(batch["x"]).reshape(-1) for batch, _ in eval_batches(data, 20)])
    assert np.array_equal(plain, np.floor(plain)), "an evaluation sees the examples as they are"


def test_keras_layers_augment_by_the_examples_seed(images):
    layers = [keras.layers.RandomFlip("horizontal"), keras.layers.RandomBrightness(0.5)]
    data = trainer.image_folder(str(images), 4, 4, augment=trainer.keras_layers(layers))
    whole = batches_of(data, 6)
    assert same(batches_of(data, 2, start=4), whole[4:]) and whole[0]["image"].dtype == np.uint8
    assert same(batches_of(data, 6), whole) and not same(batches_of(data, 6, seed=4), whole)
    grey = np.concatenate([batch["image"][:, 0, 0, 0] for batch in whole]).astype(int)
    assert len(set(grey.tolist())) > 20, "the brightness was changed"
    with pytest.raises(trainer.UserError, match="takes image layers of Keras"):
        trainer.keras_layers([keras.layers.Dense(1)])
    with pytest.raises(trainer.UserError, match="MixUp mixes the images of a batch"):
        trainer.keras_layers([keras.layers.MixUp()])


@pytest.mark.parametrize("mix", [trainer.mixup, trainer.cutmix])
def test_mixed_images_have_the_labels_of_their_shares_from_any_step_and_for_any_worker(mix):
    """Each image is its class everywhere, so that an image's mean is its labels' mean."""
    labels = np.arange(12) % 3
    images = np.tile(labels[:, None, None, None], [1, 8, 8, 1]).astype(np.uint8)
    data = mix(trainer.in_memory({"image": images, "label": labels}), num_classes=3, alpha=1.0)
    whole = batches_of(data, 12, size=4)
    for batch in whole:
        assert batch["image"].dtype == batch["label"].dtype == np.float32
        np.testing.assert_allclose(batch["label"].sum(axis=1), 1.0, atol=1e-6)
        np.testing.assert_allclose(batch["image"].mean(axis=(1, 2, 3)), batch["label"] @ [0, 1, 2], atol=1e-5)
    shares = np.concatenate([batch["label"].max(axis=1) for batch in whole])
    assert (shares < 0.99).mean() > 0.1 and len(np.unique(shares.round(3))) > 8
    assert same(batches_of(data, 2, start=10, size=4), whole[10:])
    halves = [batches_of(data, 2, size=4, num_workers=2, worker_index=worker) for worker in (0, 1)]
    assert np.array_equal(np.concatenate([half[1]["image"] for half in halves]), whole[1]["image"])
    (evaluated, _) = next(iter(eval_batches(data, 12)))
    assert np.array_equal(evaluated["label"], np.eye(3)[labels]), "an evaluation sees the examples as they are"


def test_an_order_that_would_be_lost_is_refused_and_another_order_is_other_data():
    weighted = trainer.balanced(numbers(12))
    for again in (lambda: trainer.mixture([weighted, numbers(4)]), lambda: trainer.balanced(weighted)):
        with pytest.raises(trainer.UserError, match="this order would be lost"):
            again()
    half = trainer.mixture([numbers(4), numbers(8)], weights=[1, 1])
    assert len({numbers(12).fingerprint, weighted.fingerprint, half.fingerprint}) == 3
    uneven = trainer.in_memory({"x": np.arange(4), "label": np.array([0, 0, 0, 1])})
    assert trainer.balanced(uneven).fingerprint != trainer.balanced(uneven, temperature=1.0).fingerprint


def test_what_cannot_be_mixed_is_named():
    with pytest.raises(trainer.UserError, match="run from 0 to 1, and num_classes = 1 has the classes 0 to 0"):
        trainer.mixup(numbers(4), num_classes=1, key="x")
    with pytest.raises(trainer.UserError, match="has no feature 'image'; it has x, label"):
        trainer.mixup(numbers(4), num_classes=2)
    with pytest.raises(trainer.UserError, match="must hold one integer an example"):
        trainer.mixup(trainer.in_memory({"image": np.zeros([4, 2]), "label": np.zeros([4])}), num_classes=2)
    with pytest.raises(trainer.UserError, match="alpha = 0 must be above 0"):
        trainer.cutmix(numbers(4), num_classes=2, alpha=0, key="x")


@pytest.mark.parametrize("replicas", [full(1), 2])
def test_a_run_with_augmentation_resumed_on_other_replicas_has_the_bits_of_an_unbroken_one(tmp_path, replicas):
    def run(folder, num_steps, replicas):
        x = np.arange(24, dtype=np.float32).reshape(12, 2) / 24
        return train_with(
            model=lambda: keras.Sequential([keras.layers.Dense(1)]),
            train_data=trainer.in_memory({"x": x, "y": x[:, :1]}, augment=shifted),
            task=trainer.supervised(loss=keras.losses.MeanSquaredError(), inputs="x", target="y"),
            optimizer=lambda: keras.optimizers.SGD(0.1), global_batch_size=4, num_steps=num_steps,
            model_dir=tmp_path / folder, strategy=make_strategy(replicas),
        )  # fmt: skip

    whole = run("whole", 8, 1)
    run("parts", 5, 1)
    parts = run("parts", 8, replicas)
    for one, two in zip(whole.model.get_weights(), parts.model.get_weights(), strict=True):
        if replicas == 1:
            assert one.tobytes() == two.tobytes()
        np.testing.assert_allclose(one, two, atol=1e-6)


def shifted(example, seed):
    return {**example, "x": example["x"] + tf.random.stateless_normal([2], seed)}


# The whole way, from a folder of the user's own


CONFIG = """
include 'configs/base.gin'
import my_model
MODEL = @my_model
TASK = @supervised()
supervised.loss = @SparseCategoricalCrossentropy()
SparseCategoricalCrossentropy.from_logits = True
supervised.metrics = {'accuracy': @SparseCategoricalAccuracy}
TRAIN_DATA = @train/image_folder()
EVAL_DATA = @image_folder()
image_folder.path = 'photos'
image_folder.height = 8
image_folder.width = 8
image_folder.preprocess = @scale_image
image_folder.split = '[80%:]'
train/image_folder.split = '[:80%]'
train/image_folder.augment = @keras_layers()
keras_layers.layers = [@RandomFlip()]
OPTIMIZER = @SGD
SGD.learning_rate = 0.5
train.restore = None
NUM_STEPS = 12
GLOBAL_BATCH_SIZE = 8
Intervals.checkpoint_every = 5
"""

MODEL = """
import gin, keras


@gin.register
def my_model():
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
"""


def test_an_image_folder_trains_dry_runs_and_is_evaluated_from_the_users_folder(images, tmp_path):
    (tmp_path / "photos").symlink_to(images)
    flags = ("--strategy=mirrored", "--virtual_devices=2")
    dry, trained, evaluated = dry_run_train_and_evaluate(tmp_path, CONFIG, MODEL, *flags)
    assert "image float32 [8, 8, 3]" in dry
    assert trained > 0.9 and evaluated == trained
