"""Style transfer: the losses by hand, what is trained and what is not, two optimizers in turn, and the pictures."""

import functools
import itertools
import json
import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import REPOSITORY, run_command
from conftest import assert_same_weights, make_strategy, pytest_configure
from grouped import train_with

import trainer
from trainer.cluster.replicas import first_value
from trainer.output.metric_writer import read_rows
from trainer.tasks.style_transfer.contact_sheet import draw_contact_sheet, spread, write_picture
from trainer.tasks.style_transfer.extractor import LAYERS
from trainer.tasks.style_transfer.losses import content_loss, gram_matrix, style_loss, total_variation
from trainer.tasks.style_transfer.photographs import SHIPPED, read_photograph

CHINA, FLOWER = SHIPPED
SIZE = 32
TWO = ("--strategy=mirrored", "--virtual_devices=2")


@functools.cache
def random_vgg19():
    return trainer.vgg19(random_weights=True)


def style_transfer(**more):
    """The task on the first two blocks, so that a step takes milliseconds."""
    options = dict(
        extractor=random_vgg19(),
        content_layers={"block2_conv1": 1.0},
        style_layers={"block1_conv1": 0.5, "block2_conv1": 0.5},
        style_weight=10.0,
        total_variation_weight=0.1,
        inputs="index",
    )
    return trainer.style_transfer(**{**options, **more})


def run(model_dir, optimizer, num_steps=20, contents=(CHINA, FLOWER), **more):
    data = trainer.target_images(contents=list(contents), styles=[FLOWER], size=SIZE)
    options = dict(
        model=lambda: trainer.trained_images(contents=list(contents), size=SIZE),
        train_data=data,
        eval_data=data,
        task=style_transfer(),
        optimizer=optimizer,
        global_batch_size=len(contents),
        num_steps=num_steps,
        model_dir=model_dir,
        strategy=make_strategy(1),
        eval_every=5,
        checkpoint_every=5,
    )
    return train_with(**{**options, **more})


def adam():
    return keras.optimizers.Adam(0.05)


def sgd():
    return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(3.0, 20), momentum=0.9)


def picture_bytes(result):
    (images,) = result.model.weights
    return first_value(images).tobytes()


# The losses.


def test_a_gram_matrix_is_the_mean_product_of_every_two_channels():
    # Two places, two channels: (1, 2) and (3, 4).
    features = tf.constant([[[[1.0, 2.0], [3.0, 4.0]]]])
    expected = [[(1 * 1 + 3 * 3) / 2, (1 * 2 + 3 * 4) / 2], [(2 * 1 + 4 * 3) / 2, (2 * 2 + 4 * 4) / 2]]
    np.testing.assert_allclose(gram_matrix(features)[0], expected)


def test_the_style_loss_is_the_papers_with_4_n_squared_m_squared_below():
    random = np.random.default_rng(0)
    features, target = random.normal(size=[2, 1, 4, 5, 3]).astype(np.float32)
    n, m = 3, 4 * 5
    g, a = (np.einsum("xyi,xyj->ij", each[0], each[0]) for each in (features, target))
    expected = np.sum((g - a) ** 2) / (4 * n**2 * m**2)
    np.testing.assert_allclose(style_loss(gram_matrix(features), gram_matrix(target)), [expected], rtol=1e-5)


def test_content_loss_and_total_variation_by_hand():
    target = tf.constant([[[[1.0], [2.0]], [[3.0], [4.0]]]])
    assert float(content_loss(target + 3.0, target)[0]) == 9.0
    # Downwards 2 and 2, to the right 1 and 1.
    assert float(total_variation(target)[0]) == 4.0 + 1.0


def test_the_extractor_sees_what_keras_vgg19_sees(vgg19_weights):
    model, path = vgg19_weights
    seen = trainer.vgg19(weights=path, pooling="max").features(
        photographs(), ["block1_conv2", "block3_conv4", "block5_conv1"]
    )
    outputs = keras.Model(model.inputs, [model.get_layer(layer).output for layer in seen])
    of_keras = outputs(keras.applications.vgg19.preprocess_input(photographs() * 255.0))
    for layer, expected in zip(seen, of_keras, strict=True):
        ratio = float(tf.reduce_mean(expected) / tf.reduce_mean(seen[layer]))  # each layer is scaled
        np.testing.assert_allclose(seen[layer] * ratio, expected, rtol=1e-3, atol=1e-4 * ratio)


def test_over_the_two_shipped_photographs_every_layer_has_a_mean_of_one():
    pictures = np.stack([read_photograph(name, 128) for name in SHIPPED])
    for layer, seen in random_vgg19().features(pictures, ["block1_conv1", "block4_conv2"]).items():
        assert float(tf.reduce_mean(seen)) == pytest.approx(1.0, rel=1e-4), layer


# The run.


@pytest.mark.full
def test_both_losses_go_down_and_the_second_optimizer_starts_from_the_firsts_restored_pictures(tmp_path):
    first = run(tmp_path / "adam", adam)
    second = run(tmp_path / "sgd", sgd, checkpoint=tmp_path / "adam/checkpoints")
    assert second.initial_metrics == first.final_metrics
    with tf.io.gfile.GFile(str(tmp_path / "adam/images/step_000020_china.png"), "rb") as last:
        assert (tmp_path / "sgd/images/step_000000_china.png").read_bytes() == last.read()
    for result in (first, second):
        for name in ("loss", "content_loss", "style_loss"):
            assert result.final_metrics[name] < result.initial_metrics[name], name
    assert [record.name for record in second.restore_report.restored] == ["images"]
    assert second.optimizer_proof.name == "SGD" and second.optimizer_proof.iterations == 0
    assert second.restore_report.optimizer_keys_read == 0
    recorded = [row for row in read_rows(tmp_path / "sgd/metrics.jsonl") if "split" in row]
    assert [row["step"] for row in recorded] == [0, 5, 10, 15, 20]
    assert all({"content_loss", "style_loss", "total_variation"} <= row.keys() for row in recorded)


@pytest.mark.full
def test_the_loss_is_the_weighted_sum_of_the_three_that_are_recorded(tmp_path):
    result = run(tmp_path / "run", adam, num_steps=1)
    for metrics in (result.initial_metrics, result.final_metrics):
        expected = metrics["content_loss"] + 10.0 * metrics["style_loss"] + 0.1 * metrics["total_variation"]
        assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.full
def test_a_picture_that_starts_as_its_photograph_has_no_content_loss_to_begin_with(tmp_path):
    def photographs_themselves():
        return trainer.trained_images(contents=[CHINA, FLOWER], size=SIZE, start="content")

    result = run(tmp_path / "run", adam, num_steps=5, model=photographs_themselves)
    assert result.initial_metrics["content_loss"] == 0.0 < result.final_metrics["content_loss"]
    assert result.final_metrics["style_loss"] < result.initial_metrics["style_loss"]


@pytest.mark.full
def test_the_checkpoint_holds_the_pictures_and_nothing_of_vgg19(tmp_path):
    result = run(tmp_path / "run", adam, num_steps=1)
    prefix = tf.train.latest_checkpoint(str(tmp_path / "run/checkpoints"))
    shapes = [shape for name, shape in tf.train.list_variables(prefix) if name.startswith("model/")]
    assert shapes == [[2, SIZE, SIZE, 3]] and len(result.model.variables) == 1
    sizes = [path.stat().st_size for path in (tmp_path / "run/checkpoints").iterdir()]
    assert max(sizes) < 10 * 2 * SIZE * SIZE * 3 * 4, "VGG19's 80 MB are elsewhere"


def small_network():
    return trainer.transform_network(width=4, num_blocks=1)


MODELS = {
    "pictures": (lambda: trainer.trained_images(contents=[CHINA, FLOWER] * 2, size=SIZE), "index", 3.0),
    "network": (small_network, "image", 1e-3),
}


@pytest.mark.full
@pytest.mark.parametrize("what", MODELS)
def test_two_replicas_make_the_pictures_of_one(what):
    # oneDNN, by which TensorFlow convolves on some processors, rounds by the size of the batch: the network's weights,
    # which move by 0.02, then differ by 5e-6; without it, on the same processor, by 1.5e-8.
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    done = run_command("test_style_transfer", what, PYTHONPATH=path, TF_ENABLE_ONEDNN_OPTS="0")
    assert done.returncode == 0, done.stderr


def compare_one_and_two_replicas(what):
    model, inputs, rate = MODELS[what]
    weights = []
    for replicas in (1, 2):
        result = run(
            None, lambda: keras.optimizers.SGD(rate, momentum=0.9), num_steps=2, contents=[CHINA, FLOWER] * 2,
            model=model, task=style_transfer(inputs=inputs), strategy=make_strategy(replicas),
        )  # fmt: skip
        assert result.final_metrics["loss"] < result.initial_metrics["loss"]
        weights.append([first_value(variable) for variable in result.model.weights])
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6, rtol=0)


@pytest.mark.full
def test_an_interrupted_run_ends_with_the_bits_of_an_unbroken_one_and_with_its_sheet(tmp_path):
    whole = run(tmp_path / "whole", adam, num_steps=10)
    run(tmp_path / "parts", adam, num_steps=5)
    rest = run(tmp_path / "parts", adam, num_steps=10)
    assert picture_bytes(rest) == picture_bytes(whole)
    names = sorted(path.name for path in (tmp_path / "whole/images").iterdir())
    assert names == sorted(
        ["contact_sheet.png", *(f"step_{step:06d}_{title}.png" for step in (0, 5, 10) for title in ("china", "flower"))]
    )
    for name in names:
        whole_file, parts_file = (tmp_path / part / "images" / name for part in ("whole", "parts"))
        assert whole_file.read_bytes() == parts_file.read_bytes(), name


@pytest.mark.full
def test_a_network_learns_a_style_from_the_same_losses(tmp_path):
    result = run(
        tmp_path / "run", lambda: keras.optimizers.Adam(0.01), num_steps=10, model=small_network,
        task=style_transfer(inputs="image"), strategy=make_strategy(2),
    )  # fmt: skip
    for name in ("loss", "content_loss", "style_loss"):
        assert result.final_metrics[name] < result.initial_metrics[name], name
    assert (tmp_path / "run/images/contact_sheet.png").exists()


# The pictures.


@pytest.mark.full
def test_a_file_shows_the_pixels_that_were_trained(tmp_path):
    result = run(tmp_path / "run", adam, num_steps=5)
    (images,) = map(first_value, result.model.weights)
    assert images.min() >= 0.0 and images.max() <= 1.0
    for place, title in enumerate(("china", "flower")):
        shown = tf.io.decode_png(tf.io.read_file(str(tmp_path / f"run/images/step_000005_{title}.png"))).numpy()
        np.testing.assert_array_equal(shown, np.round(images[place] * 255.0))


def test_the_sheet_shows_content_then_steps_then_style_in_a_row_for_each_target(tmp_path):
    def plain(*colour):
        return np.broadcast_to(np.float32(colour), [8, 8, 3])

    red, green, blue, yellow, cyan = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)
    for step, colour in ((0, green), (10, blue), (20, cyan)):
        for title in ("a", "b"):
            write_picture(tmp_path, step, title, plain(*colour))
    # At step 10: what is left of a later step, before the run was set back, is not shown.
    draw_contact_sheet(tmp_path, 10, ["a", "b"], np.stack([plain(*red)] * 2), np.stack([plain(*yellow)] * 2))
    sheet = tf.io.decode_png(tf.io.read_file(str(tmp_path / "contact_sheet.png")), channels=3).numpy()
    places = [np.argwhere((sheet == np.uint8(colour) * 255).all(-1)) for colour in (red, green, blue, yellow, cyan)]
    assert [len(found) > 0 for found in places] == [True, True, True, True, False]
    for left, right in itertools.pairwise(places[:4]):
        assert left[:, 1].max() < right[:, 1].min()
    rows = np.unique(places[0][:, 0])
    assert (np.diff(rows) > 1).sum() == 1, "two rows of pictures with a gap"


def test_of_many_steps_the_sheet_shows_the_first_the_last_and_some_between():
    steps = [10 * number for number in range(40)]
    shown = spread(steps)
    assert len(shown) == 6 and shown[0] == 0 and shown[-1] == 390 and shown == sorted(set(shown))
    assert spread(steps[:3]) == [0, 10, 20]


def test_two_targets_of_one_name_have_titles_that_differ():
    data = trainer.target_images(contents=[CHINA, CHINA, FLOWER], styles=[FLOWER], size=8)
    assert data.titles == ["china_0", "china_1", "flower"]


def test_a_photograph_is_cut_to_its_middle_and_resized(tmp_path):
    pixels = np.zeros([4, 8, 3], np.uint8)
    pixels[:, 2:6] = [255, 0, 51]  # the square in the middle is of one colour
    path = tmp_path / "a.png"
    path.write_bytes(tf.io.encode_png(pixels).numpy())
    photograph = read_photograph(str(path), 6)
    assert photograph.shape == (6, 6, 3) and photograph.dtype == np.float32
    np.testing.assert_allclose(photograph, np.broadcast_to([1.0, 0.0, 0.2], [6, 6, 3]), atol=1e-6)


# The weights.


def photographs():
    return tf.constant(np.stack([read_photograph(name, SIZE) for name in SHIPPED]))


@pytest.fixture(scope="module")
def vgg19_weights(tmp_path_factory):
    """Keras' VGG19 with weights of its own, and a file of them."""
    keras.utils.set_random_seed(1)
    model = keras.applications.VGG19(weights=None, include_top=False)
    path = str(tmp_path_factory.mktemp("vgg19") / "vgg19.weights.h5")
    model.save_weights(path)
    return model, path


@pytest.mark.full
def test_a_file_as_keras_offers_it_is_read_and_accounted_for(vgg19_weights, tmp_path):
    """Its layout is that of 2016: a group for each layer, pooling too, and names such as `block1_conv1_W_1:0`."""
    model, path = vgg19_weights
    offered = str(tmp_path / "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5")
    with h5py.File(offered, "w") as file:
        file.attrs["layer_names"] = np.array([layer.name.encode() for layer in model.layers])
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}_{kind}_1:0" for kind in ("W", "b")][: len(layer.weights)]
            group.attrs["weight_names"] = np.array([name.encode() for name in names], dtype="S40")
            for name, weight in zip(names, layer.weights, strict=True):
                group[name] = weight.numpy()
    read, same = trainer.vgg19(weights=offered), trainer.vgg19(weights=path)
    assert "restored       32" in read.description and "unused          0" in read.description
    for layer, seen in read.features(photographs(), ["block5_conv4"]).items():
        np.testing.assert_array_equal(seen, same.features(photographs(), [layer])[layer])


@pytest.mark.full
def test_the_classifier_on_top_may_stay_behind_and_nothing_else(vgg19_weights, tmp_path):
    model, _ = vgg19_weights
    arrays = {f"{layer.name}/{weight.name}": weight.numpy() for layer in model.layers for weight in layer.weights}
    np.savez(tmp_path / "top.npz", **arrays, **{"fc1/kernel": np.zeros([4, 4], np.float32)})
    description = trainer.vgg19(weights=str(tmp_path / "top.npz")).description
    assert "restored       32" in description and "fc1/kernel" in description
    np.savez(tmp_path / "more.npz", **arrays, **{"block6_conv1/kernel": np.zeros([4, 4], np.float32)})
    with pytest.raises(trainer.RestoreError, match=r"(?s)vgg19.weights: .*block6_conv1"):
        trainer.vgg19(weights=str(tmp_path / "more.npz"))


# Bad input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trainer.vgg19(), "set vgg19.weights = 'path'; the file that Keras offers is https"),
        (lambda: trainer.vgg19(weights="/a.h5", random_weights=True), "say which one is meant"),
        (lambda: trainer.vgg19(weights="/nowhere/a.h5"), "no checkpoint at /nowhere/a.h5.*offers is https"),
        (lambda: trainer.vgg19(random_weights=True, pooling="mean"), "must be 'average' or 'max'"),
        (lambda: style_transfer(content_layers={"block2_conv9": 1.0}), "no layer 'block2_conv9'.*mean 'block2_conv"),
        (lambda: style_transfer(style_layers={"block6_conv1": 1.0}), "style_layers: VGG19 has no layer 'block6_conv1'"),
        (lambda: style_transfer(style_layers={"block1_conv1": -1.0}), "= -1.0 must be a number, 0 or more"),
        (lambda: style_transfer(style_layers={}, content_layers={}), "nothing would be trained"),
        (lambda: style_transfer(style_weight="much"), "style_weight = 'much' must be a number"),
        (lambda: style_transfer(extractor=3), "made by vgg19"),
        (lambda: read_photograph("/nowhere/a.png", 8), "a.png cannot be read: there is no such file.*sklearn:china"),
        (lambda: read_photograph("sklearn:chian.jpg", 8), "no image 'sklearn:chian.jpg'. Did you mean 'sklearn:china"),
        (lambda: read_photograph(__file__, 8), "test_style_transfer.py is not a PNG, JPEG"),
        (lambda: read_photograph("/", 8), "The image / cannot be read"),
        (lambda: trainer.target_images(contents=[CHINA] * 3, styles=[CHINA] * 2), "3 contents and 2 styles"),
        (lambda: trainer.target_images(contents=CHINA, styles=[CHINA]), r"write target_images.contents = \['sklearn"),
        (lambda: trainer.target_images(contents=[CHINA], styles=[]), "styles names no image"),
        (lambda: trainer.target_images(contents=[CHINA], styles=[CHINA], size=0), "size = 0 must be 1 or more"),
        (lambda: trainer.trained_images(contents=[CHINA], start="nosie"), "must be 'noise' or 'content'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_sentence(call, message):
    with pytest.raises(trainer.UserError, match=f"(?s){message}"):
        call()


def test_pictures_too_small_for_a_layer_are_refused(tmp_path):
    deep = style_transfer(style_layers={"block5_conv1": 1.0})
    data = trainer.target_images(contents=[CHINA], styles=[FLOWER], size=31)
    with pytest.raises(trainer.UserError, match="31 x 31 pixels, of which block5_conv1 .* needs 32 x 32"):
        run(tmp_path / "run", adam, task=deep, train_data=data, eval_data=data)
    assert not (tmp_path / "run").exists()


def test_pictures_of_another_size_than_their_photographs_are_refused(tmp_path):
    with pytest.raises(trainer.UserError, match=r"pictures of \(16, 16, 3\) for photographs of \(32, 32, 3\)"):
        run(None, adam, model=lambda: trainer.trained_images(contents=[CHINA, FLOWER], size=16))


def test_data_that_have_no_photographs_are_refused():
    with pytest.raises(trainer.UserError, match="no feature 'style'"):
        run(None, adam, train_data={"index": np.arange(2), "image": np.zeros([2, 32, 32, 3])})


# The commands.

SMALL = tuple(
    f"--gin_param={binding}"
    for binding in (
        f"SIZE = {SIZE}",
        "NUM_STEPS = 10",
        "Intervals.eval_every = 5",
        "style_transfer.content_layers = {'block2_conv1': 1.0}",
        "style_transfer.style_layers = {'block1_conv1': 0.5, 'block2_conv1': 0.5}",
    )
)


def command(name, config, *flags):
    return run_command(f"launch.{name}", f"--gin_file=configs/runs/{config}.gin", *SMALL, *flags)


@pytest.fixture(scope="module")
def shipped_source(tmp_path_factory):
    """The model_dir of pictures that the shipped config trained with Adam."""
    model_dir = tmp_path_factory.mktemp("shipped") / "source"
    done = command("train", "style_transfer_source", f"--model_dir={model_dir}")
    assert done.returncode == 0, done.stderr
    assert "RANDOM weights" in done.stdout and f"images           {model_dir}/images" in done.stdout
    return model_dir


def go_on_with_sgd(shipped_source, model_dir, *flags) -> None:
    start = f"--gin_param=INIT_CHECKPOINT = '{shipped_source / 'checkpoints'}'"
    # Fewer pixels have larger slopes each.
    rate = "--gin_param=CosineDecay.initial_learning_rate = 3.0"
    done = command("train", "style_transfer_vgg19", start, rate, f"--model_dir={model_dir}", *flags)
    assert done.returncode == 0, done.stderr
    assert "restored        1  images" in done.stdout and "SGD is new: iterations 0" in done.stdout
    assert (model_dir / "images/step_000010_flower.png").exists()
    summary = json.loads((model_dir / "summary.json").read_text())
    for loss in ("content_loss", "style_loss"):
        assert summary["final_metrics"][loss] < summary["initial_metrics"][loss]


@pytest.fixture(scope="module")
def shipped_result(shipped_source):
    model_dir = shipped_source.parent / "one"
    go_on_with_sgd(shipped_source, model_dir)
    return model_dir


def test_the_shipped_configs_go_from_adam_to_sgd_and_are_evaluated(shipped_result):
    evaluated = command("evaluate", "style_transfer_vgg19", f"--model_dir={shipped_result}")
    summary = json.loads((shipped_result / "summary.json").read_text())
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["style_loss"] == pytest.approx(summary["final_metrics"]["style_loss"], rel=1e-6)


@pytest.mark.full
def test_the_shipped_configs_make_the_same_pictures_on_two_replicas(shipped_source, shipped_result, tmp_path):
    go_on_with_sgd(shipped_source, tmp_path / "two", *TWO)
    assert_same_weights(shipped_result, tmp_path / "two", num_variables=1, tolerance=1e-6)


@pytest.mark.full
def test_the_shipped_network_trains(tmp_path):
    done = command("train", "style_transfer_network", f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["final_metrics"]["loss"] < summary["initial_metrics"]["loss"]
    assert (tmp_path / "run/images/contact_sheet.png").exists()


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("CONTENTS = ['/nowhere/a.png', 'sklearn:china.jpg']", "The image /nowhere/a.png cannot be read"),
        ("style_transfer.style_layers = {'block1_conv3': 1.0}", "no layer 'block1_conv3'"),
    ],
)
def test_a_mistake_in_the_config_is_one_message_and_status_2(tmp_path, binding, message):
    done = command("train", "style_transfer_source", f"--gin_param={binding}", f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.count("regraft: ") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_every_layer_of_vgg19_has_its_name():
    assert len(LAYERS) == 16 and LAYERS[0] == "block1_conv1" and LAYERS[-1] == "block5_conv4"


if __name__ == "__main__":
    pytest_configure()
    compare_one_and_two_replicas(sys.argv[1])
