"""The readers of Keras' HDF5 files: what was written is found, named and read; what is damaged is refused."""

import json
import os
import random
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from trainer.restore.errors import RestoreError
from trainer.restore.readers import hdf5
from trainer.restore.readers.hdf5 import NamedDatasetsSource
from trainer.restore.readers.keras_hdf5 import KerasLegacySource, open_hdf5
from trainer.restore.readers.keras_weights import KerasArchiveSource, KerasWeightsSource


@pytest.fixture
def keras_2_folder(written_by_keras_2):
    return written_by_keras_2 / "files"


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm = layers.Dense(4, name="first"), layers.BatchNormalization()
        self.blocks = [layers.Dense(4, name="upper"), layers.Dense(4, name="lower"), [layers.Dense(4)]]
        self.net = keras.Sequential([layers.Dense(4, name="inside"), layers.Dropout(0.2)], name="the_net")
        self.scale = self.add_weight(shape=(), name="scale")
        self.loss_tracker_of_mine = keras.metrics.Mean()

    def call(self, x, training=None):
        x = self.norm(self.fc1(x), training=training)
        for block in (*self.blocks[:2], self.blocks[2][0]):
            x = block(x)
        return self.net(x) * self.scale


def fitted(model, optimizer="adam"):
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 4)), verbose=0)
    return model


def functional():
    image = keras.Input([4])
    x = layers.Dropout(0.3)(layers.Dense(4, name="first")(image))
    return fitted(keras.Model(image, layers.Dense(4, name="second")(x)), keras.optimizers.AdamW(0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras_3")
    fitted(Subclassed()).save_weights(folder / "subclassed.weights.h5")
    model = functional()
    model.save_weights(folder / "model.weights.h5")
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    small = keras.Sequential([keras.Input([4]), layers.Dense(4, dtype="float16"), layers.Dense(2, dtype="bfloat16")])
    small.save_weights(folder / "small.weights.h5")
    small.save(folder / "small.h5")
    small.save_weights(folder / "sharded.weights.json", max_shard_size=35 / 2**30)
    return folder


def datasets(path) -> dict:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({f"/{name}": item[()]} if hasattr(item, "shape") else {}))
    return found


def reads_as_h5py_does(source, path) -> bool:
    expected = datasets(path)
    assert sorted(entry.key for entry in source.entries) == sorted(expected)
    return all(source.read(entry).tobytes() == expected[entry.key].tobytes() for entry in source.entries)


def names(source, kind="weight") -> list[str]:
    return [entry.name for entry in source.of_kind(kind)]


@pytest.mark.parametrize(
    "name", ["subclassed.weights.h5", "model.weights.h5", "model.h5", "small.weights.h5", "small.h5"]
)
def test_every_dataset_is_one_entry_and_reads_as_h5py_reads_it(name, folder):
    assert reads_as_h5py_does(open_hdf5(str(folder / name)), folder / name)


@pytest.mark.parametrize("name", ["model.weights.h5", "weights.h5", "model.h5", "long.h5"])
def test_so_do_those_of_keras_2(name, keras_2_folder):
    assert reads_as_h5py_does(open_hdf5(str(keras_2_folder / name)), keras_2_folder / name)


def test_a_subclassed_model_is_a_tree_by_attribute_by_class_and_by_name(folder):
    source = KerasWeightsSource(str(folder / "subclassed.weights.h5"))
    top = source.top
    assert [node.entry.name for node in top.children["fc1"].own] == ["fc1/0", "fc1/1"]
    assert top.children["fc1"].keras_name == "first"
    blocks = top.children["blocks"]
    # Keras 3.12 leaves out what lies in a list inside of a list.
    assert [name for name in blocks.by_class if name != "container"] == ["dense", "dense_1"]
    assert blocks.children["lower"] is blocks.by_class["dense_1"]
    assert blocks.by_class["dense_1"].own[0].entry.name == "blocks/lower/0"
    assert blocks.by_class["dense_1"].own[0].entry.key == "/blocks/dense_1/vars/0"
    assert top.children["the_net"] is top.by_class["sequential"]
    assert top.children["the_net"].children["inside"].own[1].entry.name == "the_net/inside/1"
    assert [node.entry.name for node in top.own] == ["0"]
    assert all(entry.name.startswith("optimizer/") for entry in source.of_kind("optimizer"))
    assert len(source.of_kind("optimizer")) == len(top.children["optimizer"].own) > 10
    assert top.children["optimizer"].is_optimizer and source.optimizer == "adam"


def test_a_functional_model_s_layers_belong_to_the_model_itself(folder):
    top = KerasWeightsSource(str(folder / "model.weights.h5")).top
    assert {"dense", "dense_1", "dropout"} <= set(top.by_class)
    assert top.children["second"] is top.by_class["dense_1"]
    assert "layers" not in top.children


def test_half_precision_comes_back_as_what_it_was(folder):
    source = open_hdf5(str(folder / "small.weights.h5"))
    assert [entry.dtype for entry in source.entries] == [tf.float16, tf.float16, tf.bfloat16, tf.bfloat16]
    assert [entry.dtype for entry in open_hdf5(str(folder / "small.h5")).entries].count(tf.bfloat16) == 2


def test_shards_are_one_tree(folder):
    whole = KerasWeightsSource(str(folder / "small.weights.h5"))
    source = KerasWeightsSource(str(folder / "sharded.weights.json"))
    assert names(source) == names(whole)
    assert "files" in source.format
    assert [source.read(a).tobytes() for a in source.entries] == [whole.read(b).tobytes() for b in whole.entries]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda shards: ["../" + shards[0]], "is no file beside it"),
        (lambda shards: ["/etc/passwd"], "is no file beside it"),
        (lambda shards: ["gone.weights.h5"], "is not there"),
        (lambda shards: 7, "is damaged"),
    ],
)
def test_a_shard_that_is_missing_or_elsewhere_is_refused(change, message, folder, tmp_path):
    for file in folder.glob("sharded*"):
        shutil.copy(file, tmp_path)
    path = tmp_path / "sharded.weights.json"
    index = json.loads(path.read_text())
    group = next(iter(index["weight_map"]))
    index["weight_map"][group] = change(index["weight_map"][group])
    path.write_text(json.dumps(index))
    with pytest.raises(RestoreError, match=message):
        KerasWeightsSource(str(path))


def test_an_archive_names_its_writer_and_optimizer_and_is_checked_as_a_whole(folder, tmp_path):
    source = KerasArchiveSource(str(folder / "model.keras"))
    assert source.writer.startswith(f"Keras {keras.__version__}, 20")
    assert source.optimizer.startswith("AdamW (learning_rate 0.5, ")
    assert source.checksums == "CRC-32 of the zip archive"
    source.check_file()
    whole = (folder / "model.keras").read_bytes()
    kernel = source.read(source.of_kind("weight")[0]).tobytes()
    damaged = tmp_path / "model.keras"
    damaged.write_bytes(whole.replace(kernel, b"\x01" + kernel[1:]))
    with pytest.raises(RestoreError, match="the checksum of model.weights.h5"):
        KerasArchiveSource(str(damaged)).check_file()


@pytest.mark.parametrize("how", ["deflated", "unpacked"])
def test_an_archive_may_be_packed_tighter_or_unpacked(how, folder, tmp_path):
    path = tmp_path / ("model.keras" if how == "deflated" else "model")
    with zipfile.ZipFile(folder / "model.keras") as file:
        if how == "unpacked":
            file.extractall(path)
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as tight:
                for member in file.namelist():
                    tight.writestr(member, file.read(member))
    source, whole = KerasArchiveSource(str(path)), KerasArchiveSource(str(folder / "model.keras"))
    source.check_file()
    assert names(source) == names(whole) and source.writer == whole.writer
    assert [source.read(a).tobytes() for a in source.entries] == [whole.read(b).tobytes() for b in whole.entries]


def test_nothing_in_an_archive_is_run_and_nothing_is_unpacked_where_it_says(tmp_path):
    mark = str(tmp_path / "it_ran")
    model = keras.Sequential(
        [
            keras.Input([2]),
            layers.Lambda(lambda x: (os.makedirs(mark, exist_ok=True), x)[1], output_shape=(2,)),
            layers.Dense(1),
        ]
    )
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras", "a") as file:
        file.writestr("../escaped", "x")
        file.writestr(str(tmp_path / "escaped"), "x")
    model.save(tmp_path / "model.h5")
    model(np.zeros((1, 2)))
    os.rmdir(mark)  # so it does run where it is called
    for source in (KerasArchiveSource(str(tmp_path / "model.keras")), open_hdf5(str(tmp_path / "model.h5"))):
        assert len([source.read(entry) for entry in source.of_kind("weight")]) == 2
    assert (
        not os.path.exists(mark) and not (tmp_path / "escaped").exists() and not (tmp_path.parent / "escaped").exists()
    )


def test_a_member_that_unpacks_to_far_more_than_it_takes_is_refused(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as file,
        file.open("model.weights.h5", "w") as member,
    ):
        for _ in range(110):
            member.write(bytes(1 << 20))
    with pytest.raises(RestoreError, match="announces 115,343,360 bytes"):
        KerasArchiveSource(str(tmp_path / "bomb.keras"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "packed", "message"),
    [
        ("model.weights.h5", zipfile.ZIP_STORED, "it holds model.weights.h5 more than once"),
        ("assets/a/vocabulary.txt", zipfile.ZIP_LZMA, "vocabulary.txt in it is neither stored nor deflated"),
    ],
)
def test_an_archive_with_a_member_that_no_writer_makes_is_refused(name, packed, message, folder, tmp_path):
    shutil.copy(folder / "model.keras", tmp_path)
    with zipfile.ZipFile(tmp_path / "model.keras", "a", packed) as file:
        file.writestr(name, "x")
    with pytest.raises(RestoreError, match=message):
        KerasArchiveSource(str(tmp_path / "model.keras"))


@pytest.mark.parametrize("by", ["keras 2", "keras 3"])
def test_the_old_h5_has_layers_in_order_with_names(by, folder, keras_2_folder):
    source = open_hdf5(str((keras_2_folder if by == "keras 2" else folder) / "model.h5"))
    assert isinstance(source, KerasLegacySource)
    expected = ["first", "scaled", "net"] if by == "keras 2" else ["first", "second"]
    assert [node.keras_name for node in source.top.layers] == expected
    assert [node.entry.name for node in source.top.layers[0].flat] == ["first/kernel", "first/bias"]
    assert source.top.children["first"].children["kernel"].entry.name == "first/kernel"
    assert source.writer.startswith("Keras ") and source.writer.endswith("(tensorflow)")
    assert source.optimizer.startswith("Adam")
    assert all("optimizer_weights/" in entry.key for entry in source.of_kind("optimizer"))
    if by == "keras 2":
        net = source.top.children["net"]
        assert net.children["inside"].children["kernel"] is net.flat[0]
        assert names(source, "counter") == ["scaled/count"]


def test_layer_names_that_were_cut_into_several_attributes_are_put_together(keras_2_folder):
    source = open_hdf5(str(keras_2_folder / "long.h5"))
    assert [node.keras_name for node in source.top.layers] == ["x" * 400 + str(index) for index in range(200)]


def test_keras_2_wrote_weights_files_without_layer_names_and_metrics_are_no_weights(keras_2_folder):
    source = open_hdf5(str(keras_2_folder / "model.weights.h5"))
    assert isinstance(source, KerasWeightsSource)
    assert {"dense", "normalization", "sequential"} <= set(source.top.by_class)
    assert names(source, "other") == ["metrics/mean/0", "metrics/mean/1"]
    assert len(source.of_kind("optimizer")) > 10
    archive = KerasArchiveSource(str(keras_2_folder / "model.keras"))
    assert {"dense/0", "sequential/dense/0"} <= set(names(source))
    assert {"first/0", "net/inside/0"} <= set(names(archive)), "an archive's config has the names"
    assert len(names(archive)) == len(names(source))


def by_hand(path, **places):
    """An HDF5 file of `{place: value}`; a `name` after `@` is that of Keras."""
    with h5py.File(path, "w") as file:
        for place, value in places.items():
            place, _, keras_name = place.partition("@")
            file[place] = value
            if keras_name:
                file[place].parent.attrs["name"] = keras_name
    return str(path)


def test_seeds_counters_named_variables_and_own_optimizers_are_distinguished(tmp_path):
    path = by_hand(
        tmp_path / "x.weights.h5",
        **{
            "vars/0@net": np.zeros(2, "f4"),
            "layers/dropout/seed_generator/vars/0": np.zeros(2, "u4"),
            "layers/own/vars/running_mean@mine": np.zeros(2, "f4"),
            "layers/own/vars/count": np.int64(3),
            "second_optimizer/vars/0@sgd": np.int64(3),
            "optimizer/vars/0": np.zeros((2, 2), "f4"),
        },
    )
    source = open_hdf5(path)
    assert names(source) == ["mine/running_mean", "optimizer/0", "0"]
    assert names(source, "other") == ["dropout/seed_generator/0"]
    assert names(source, "counter") == ["mine/count"]
    assert names(source, "optimizer") == ["second_optimizer/0"]
    assert source.top.children["mine"].children["running_mean"].entry.name == "mine/running_mean"


def test_the_list_of_layers_had_another_name_before_keras_2_14(tmp_path):
    path = by_hand(
        tmp_path / "x.weights.h5",
        **{
            "vars/0": np.zeros(2),
            "_layer_checkpoint_dependencies/dense_10/vars/0": np.zeros(2),
            "_layer_checkpoint_dependencies/dense_2/vars/0": np.zeros(2),
        },
    )
    source = open_hdf5(path)
    assert [*source.top.by_class] == ["dense_2", "dense_10"] and source.top.children == {}
    assert names(source) == ["dense_2/0", "dense_10/0", "0"]


def test_a_gap_in_a_layer_s_variables_is_an_error(tmp_path):
    path = by_hand(tmp_path / "x.weights.h5", **{"d/vars/0": np.zeros(2), "d/vars/2": np.zeros(2)})
    with pytest.raises(RestoreError, match="the variables of /d are numbered 0, 2"):
        open_hdf5(path)


def test_weights_of_old_keras_that_meet_at_one_place_stay_two(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs.update(layer_names=[b"conv"], keras_version=b"1.2.2")
        file["conv/conv_W:0"], file["conv/a/conv/k:0"], file["conv/b/conv/k:0"] = 1.0, 2.0, 3.0
        file["conv"].attrs["weight_names"] = [b"conv_W:0", b"a/conv/k:0", b"b/conv/k:0"]
    source = open_hdf5(str(tmp_path / "x.h5"))
    assert {name: source.read(node.entry) for name, node in source.top.children["conv"].children.items()} == {
        "conv_W": 1.0, "k": 2.0, "k_1": 3.0,
    }  # fmt: skip
    assert names(source) == ["conv/k", "conv/k_1", "conv/conv_W"] and source.writer == "Keras 1.2.2"


def test_a_plain_file_is_read_by_its_names(tmp_path):
    source = open_hdf5(by_hand(tmp_path / "x.h5", **{"a/kernel": np.arange(3, dtype=">f4"), "note": "text"}))
    assert isinstance(source, NamedDatasetsSource)
    assert names(source) == ["a/kernel"] and names(source, "other") == ["note"]
    assert source.read(source.entries[0]).tolist() == [0, 1, 2]
    with pytest.raises(RestoreError, match="no tensor"):
        source.read(source.entries[1])


def link(file, kind):
    if kind == "external link":
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    elif kind == "soft link":
        file["elsewhere"] = h5py.SoftLink("/a")
    elif kind == "circle":
        file["a/b"] = file["/"]
    elif kind == "external data":
        file.create_dataset("d", (4,), "f4", external=[("/etc/passwd", 0, 16)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
        file.create_virtual_dataset("d", layout)
    elif kind == "bomb":
        file.create_dataset("d", (1 << 40,), "f4", chunks=(1 << 10,), compression="gzip")[:4] = 1
    elif kind == "never written":
        file.create_dataset("d", (1 << 20,), "f4")


@pytest.mark.parametrize(
    "kind", ["external link", "soft link", "circle", "external data", "virtual", "bomb", "never written"]
)
def test_what_hdf5_could_be_made_to_do_is_refused_by_name(kind, tmp_path):
    path = by_hand(tmp_path / "x.weights.h5", **{"a/vars/0": np.zeros(2)})
    with h5py.File(path, "a") as file:
        link(file, kind)
    with pytest.raises(RestoreError, match="is refused: /"):
        open_hdf5(path)


def test_checksums_are_named_where_there_are_some(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("d", data=np.zeros(4), fletcher32=True, chunks=(4,))
    assert open_hdf5(str(tmp_path / "x.h5")).checksums == "Fletcher-32"


@pytest.mark.parametrize("content", [b"", bytes(4096), b"\x89HDF\r\n\x1a\n", b"no file of any kind" * 99])
def test_garbage_is_refused(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    for open_source in (open_hdf5, KerasWeightsSource, KerasLegacySource, KerasArchiveSource):
        with pytest.raises(RestoreError, match="cannot be read"):
            open_source(str(tmp_path / "x"))
    with pytest.raises(RestoreError, match="is not there"):
        open_hdf5(str(tmp_path / "gone.h5"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", [bytes(16), b"\x01" + bytes(7) + b"\xff" * 8], ids=["no length", "overflow"])
def test_a_block_of_texts_over_which_hdf5_would_step_for_ever_is_refused(piece, folder, tmp_path):
    content = bytearray((folder / "model.weights.h5").read_bytes())
    for place in range(len(content)):
        if content[place : place + 4] == b"GCOL":
            content[place + 16 : place + 32] = piece
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(RestoreError, match="a block of texts in it is damaged"):
        open_hdf5(str(tmp_path / "x.h5"))


def damaged(content: bytes, rng: random.Random) -> bytes:
    copy, how = bytearray(content), rng.randrange(4)
    if how == 0:
        return content[: rng.randrange(len(content))]
    start, length = rng.randrange(len(copy)), rng.randrange(1, 600)
    if how == 1:
        copy[start] ^= 1 << rng.randrange(8)
    elif how == 2:
        for _ in range(rng.randrange(1, 60)):
            copy[rng.randrange(len(copy))] = rng.randrange(256)
    else:
        copy[start : start + length] = rng.choice([b"\0", b"\xff"]) * len(copy[start : start + length])
    return bytes(copy)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["model.weights.h5", "model.keras", "model.h5"])
def test_a_hundred_damaged_copies_end_whole_or_refused(name, folder, tmp_path):
    content, rng, ends = (folder / name).read_bytes(), random.Random(7), {"whole": 0, "refused": 0}
    path = tmp_path / name
    for _ in range(100):
        path.write_bytes(damaged(content, rng))
        try:
            source = KerasArchiveSource(str(path)) if name.endswith(".keras") else open_hdf5(str(path))
            for entry in source.entries:
                if entry.dtype != hdf5.UNREADABLE:
                    source.read(entry)
            ends["whole"] += 1
        except RestoreError as error:
            assert "Traceback" not in str(error)
            ends["refused"] += 1
    assert ends["refused"] > 20


def test_a_file_that_was_replaced_is_read_again(folder, tmp_path):
    """HDF5 would take a second opening of one path for the first."""
    path = Path(shutil.copy(folder / "model.weights.h5", tmp_path / "x.weights.h5"))
    first = open_hdf5(str(path))
    path.write_bytes((folder / "small.weights.h5").read_bytes())
    assert len(open_hdf5(str(path)).entries) == 4 < len(first.entries)
