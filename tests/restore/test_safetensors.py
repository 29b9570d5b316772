"""Tensors of `.safetensors` files come out as they went in, and a file that lies or is damaged is refused."""

import json
import os
import random
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import full
from safetensors.numpy import save, save_file

import trainer
from trainer.restore.errors import RestoreError
from trainer.restore.readers import safetensors_files
from trainer.restore.readers.safetensors_files import SafetensorsSource


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "model.safetensors")


def written(path: str, metadata=None, **tensors) -> SafetensorsSource:
    save_file(tensors, path, metadata=metadata)
    return SafetensorsSource(path)


def all_read(source: SafetensorsSource) -> dict[str, np.ndarray]:
    return {entry.key: np.array(source.read(entry)) for entry in source.entries}


def only(source: SafetensorsSource):
    (entry,) = source.entries
    return entry


def refused(path: str, *words: str) -> str:
    with pytest.raises(RestoreError) as caught:
        all_read(SafetensorsSource(path))
    message = str(caught.value)
    assert all(word in message for word in (*words, path.split("/")[-1])), message
    assert "Traceback" not in message and "\n" not in message
    return message


def by_hand(path: str, header, data: bytes = b"", length: int | None = None) -> str:
    """A file of the format with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    Path(path).write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def item(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


NUMBERS = ["float16", "float32", "float64", "int8", "int16", "int32", "int64"]
NUMBERS += ["uint8", "uint16", "uint32", "uint64", "bool", "bfloat16", "complex64", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_dtype_that_tensorflow_has_comes_out_as_it_went_in(path, name):
    dtype = tf.as_dtype(name)
    value = np.arange(6).reshape(2, 3).astype(dtype.as_numpy_dtype)
    source = written(path, first=np.ones(3, np.uint8), w=value)
    entry = next(entry for entry in source.entries if entry.key == "w")
    assert (entry.dtype, entry.shape, entry.kind) == (dtype, (2, 3), "weight")
    read = source.read(entry)
    assert read.dtype == value.dtype and read.tobytes() == value.tobytes()


@pytest.mark.parametrize("name", ["F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_the_rarer_float8_are_read_too(path, name):
    source = SafetensorsSource(by_hand(path, {"w": item(name, offsets=(0, 2))}, bytes([0x40, 0x48])))
    assert all_read(source)["w"].astype(np.float32).tolist() == ([1.0, 2.0] if name == "F8_E4M3FNUZ" else [1.0, 4.0])


@pytest.mark.parametrize(("name", "num_bytes"), [("F8_E8M0", 2), ("F4", 1), ("F6_E2M3", 3), ("F6_E3M2", 3)])
def test_a_dtype_that_tensorflow_has_not_is_refused_by_name_of_the_tensor(path, name, num_bytes):
    shape = (4,) if name.startswith("F6") else (2,)
    by_hand(path, {"a.scale": item(name, shape, (0, num_bytes))}, bytes(num_bytes))
    refused(path, f"the tensor a.scale is of dtype {name}, which no variable of TensorFlow can have")


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1, 4)])
def test_every_shape_comes_out_as_it_went_in(path, shape):
    value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    source = written(path, w=np.asarray(value))
    assert (only(source).shape, only(source).size_bytes) == (shape, value.nbytes)
    np.testing.assert_array_equal(source.read(only(source)), value)


def test_names_with_dots_are_split_at_them(path):
    source = written(path, **{"bert.layer.0.weight": np.ones(2)})
    assert (only(source).key, only(source).name) == ("bert.layer.0.weight", "bert/layer/0/weight")
    assert source.top.children["bert"].children["layer"].children["0"].children["weight"].entry is only(source)


def test_names_with_slashes_are_split_at_those_alone(path):
    source = written(path, **{"encoder/dense.0/kernel": np.ones(2), "head": np.ones(1)})
    assert {entry.name for entry in source.entries} == {"encoder/dense.0/kernel", "head"}


def test_kinds_go_by_name_and_shape(path):
    source = written(
        path,
        **{
            "kernel": np.ones(2),
            "ids": np.arange(3),
            "bn.num_batches_tracked": np.array(7),
            "rate": np.array(1.0),
            "drop.seed_generator_state": np.zeros(2, "u4"),
            "optimizer.iterations": np.array(1),
            "optimizer_state.m": np.ones(2),
        },
    )
    assert {entry.key: entry.kind for entry in source.entries} == {
        "kernel": "weight", "ids": "weight", "bn.num_batches_tracked": "counter", "rate": "weight",
        "drop.seed_generator_state": "other", "optimizer.iterations": "optimizer", "optimizer_state.m": "optimizer",
    }  # fmt: skip
    assert source.top.children["optimizer"].is_optimizer and not source.top.children["bn"].is_optimizer


def test_tensorflow_s_number_is_no_part_of_a_name(path):
    source = written(
        path, **{"bert/layer_._0/self/query/kernel:0": np.ones(2), "drop/seed_generator_state:0": np.ones(2, "u4")}
    )
    kernel, seed = source.entries
    assert (kernel.key, kernel.name) == ("bert/layer_._0/self/query/kernel:0", "bert/layer_._0/self/query/kernel")
    assert (seed.name, seed.kind) == ("drop/seed_generator_state", "other")
    np.testing.assert_array_equal(source.read(kernel), np.ones(2))


def test_names_that_differ_by_tensorflow_s_number_stay_two(path):
    source = written(path, **{"a/kernel": np.ones(2), "a/kernel:0": np.zeros(2), "b/kernel:0": np.ones(3)})
    assert {entry.key: entry.name for entry in source.entries} == {
        "a/kernel": "a/kernel", "a/kernel:0": "a/kernel:0", "b/kernel:0": "b/kernel",
    }  # fmt: skip
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1, use_bias=False, name="a")])
    with pytest.raises(RestoreError, match="unused|mismatched"):
        trainer.restore_weights(model, path)


@pytest.mark.parametrize(
    ("metadata", "writer"),
    [
        (None, ""),
        ({"format": "pt"}, "PyTorch"),
        ({"format": "tf"}, "TensorFlow"),
        ({"format": "of my own", "total": "9"}, ""),
        ({"format": "pt", "writer": "Trainer 1.2"}, "Trainer 1.2"),
        ({"writer": "a\x1b[31m\nb" + "c" * 200}, "a[31mb" + "c" * 74),
    ],
)
def test_the_writer_is_reported_where_the_file_names_it(path, metadata, writer):
    assert written(path, metadata, w=np.ones(1)).writer == writer


def test_opening_reads_no_tensor_and_reading_one_reads_no_other(path, monkeypatch):
    fetched = []
    fromfile = np.fromfile

    def counted(file, dtype, count, offset):
        fetched.append((count, offset))
        return fromfile(file, dtype, count=count, offset=offset)

    monkeypatch.setattr(safetensors_files.np, "fromfile", counted)
    source = written(path, a=np.ones(100), b=np.ones(3))
    assert fetched == [] and source.bytes_read == 0
    source.read(next(entry for entry in source.entries if entry.key == "b"))
    assert fetched == [(24, os.path.getsize(path) - 24)]


def test_a_file_that_shrinks_after_it_was_opened_is_refused_and_the_tensor_is_named(path):
    source = written(path, w=np.ones(10_000))
    os.truncate(path, 9_000)
    with pytest.raises(RestoreError, match="the tensor w is damaged or not there"):
        source.read(only(source))


def test_a_bool_that_is_neither_true_nor_false_is_refused(path):
    by_hand(path, {"w": item("BOOL", offsets=(0, 2))}, b"\x01\x07")
    refused(path, "the tensor w is damaged")


def test_a_path_of_another_file_system_is_read():
    with tf.io.gfile.GFile("ram://safetensors/x.safetensors", "wb") as file:
        file.write(save({"w": np.arange(3)}))
    assert all_read(SafetensorsSource("ram://safetensors/x.safetensors"))["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x01", b"no weights\n" * 99, bytes(999), b"\xff" * 99],
    ids=["empty", "1", "text", "zeros", "ones"],
)
def test_a_file_of_something_else_is_refused(path, content):
    Path(path).write_bytes(content)
    refused(path, "cannot be read")


@pytest.mark.parametrize("place", ["", "ram://"])
@pytest.mark.parametrize("name", ["x.safetensors", "x.safetensors.index.json"])
def test_a_file_that_is_not_there_is_refused(place, name):
    refused(f"{place}/nowhere/at/all/{name}", name)


ITEM = json.dumps(item()).encode()
LIES = {
    "beyond the file": {"w": item(shape=(4,), offsets=(0, 16))},
    "fewer bytes than there are": {"w": item(shape=(1,), offsets=(0, 4))},
    "more bytes than the shape has": {"w": item(shape=(1,))},
    "below zero": {"w": item(offsets=(-8, 0))},
    "backwards": {"w": item(offsets=(8, 0))},
    "overlapping": {"w": item(), "v": item()},
    "with a gap": {"w": item(shape=(1,), offsets=(0, 4)), "v": item(shape=(0,), offsets=(8, 8))},
    "a product beyond 64 bits": {"w": item(shape=(2**62, 2))},
    "an axis beyond 64 bits": {"w": item(shape=(2**70,))},
    "nothing times more than all": {"w": item(), "v": item(shape=(0, 2**64 - 1), offsets=(8, 8))},
    "an axis below zero": {"w": item(shape=(-1, -2))},
    "forty axes": {"w": item(shape=(2, *[1] * 40))},
    "a dtype of the future": {"w": item("F128", (1,))},
    "a name twice": b'{"w":' + ITEM + b',"w":' + ITEM.replace(b"F32", b"I32") + b"}",
    "a name twice, once in escapes": b'{"w":' + ITEM + b',"\\u0077":' + ITEM + b"}",
    "a field twice": b'{"w":' + ITEM.replace(b"}", b',"dtype":"I32"}') + b"}",
    "a list for a tensor": {"w": ["F32", [2], [0, 8]]},
    "a number for a tensor": {"w": 3},
    "a list": [],
    "brackets": b"[" * 100_000,
    "nested brackets": b'{"w":' + b"[" * 100_000,
    "half a letter": b'{"w\xc3":' + ITEM + b"}",
    "half a pair": b'{"w\\ud800":' + ITEM + b"}",
    "metadata of numbers": {"__metadata__": {"format": 3}, "w": item()},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(path, lie):
    refused(by_hand(path, LIES[lie], bytes(8)), "cannot be read")


def test_a_tensor_that_the_package_would_take_in_another_form_is_refused_for_its_form(path):
    refused(by_hand(path, LIES["a list for a tensor"], bytes(8)), "the tensor w is described by list")


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_another_length_than_it_says_is_refused(path, length):
    refused(by_hand(path, {"w": item()}, bytes(8), length), "cannot be read")


def sharded(folder: str, weight_map: dict | None = None, **shards: dict[str, np.ndarray]) -> str:
    """Files of the given names, with an index of what is in them unless another is given."""
    for name, tensors in shards.items():
        with tf.io.gfile.GFile(f"{folder}/{name}.safetensors", "wb") as file:
            file.write(save(tensors))
    if weight_map is None:
        weight_map = {key: f"{name}.safetensors" for name, tensors in shards.items() for key in tensors}
    path = f"{folder}/model.safetensors.index.json"
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return path


def both() -> dict[str, dict[str, np.ndarray]]:
    return {"one": {"a.x": np.ones(2)}, "two": {"b.x": np.zeros(3), "b.y": np.array(4)}}


@pytest.mark.parametrize("place", ["local", "ram"])
def test_the_files_of_an_index_are_read_as_one(tmp_path, place):
    path = sharded(str(tmp_path) if place == "local" else "ram://sharded", **both())
    source = SafetensorsSource(path)
    assert source.path == path and sorted(source.top.children) == ["a", "b"]
    assert {key: value.tolist() for key, value in all_read(source).items()} == {
        "a.x": [1, 1],
        "b.x": [0, 0, 0],
        "b.y": 4,
    }


def test_a_tensor_that_the_index_leaves_out_is_there_all_the_same(tmp_path):
    path = sharded(str(tmp_path), {"a.x": "one.safetensors", "b.x": "two.safetensors"}, **both())
    assert {entry.key for entry in SafetensorsSource(path).entries} == {"a.x", "b.x", "b.y"}


def test_files_may_lie_in_a_folder_beside_the_index(tmp_path):
    (tmp_path / "parts").mkdir()
    save_file({"a": np.ones(2)}, tmp_path / "parts/one.safetensors")
    path = sharded(str(tmp_path), {"a": "parts/one.safetensors"})
    assert all_read(SafetensorsSource(path))["a"].tolist() == [1, 1]


def test_files_that_are_not_there_are_named(tmp_path):
    path = sharded(str(tmp_path), **both())
    os.remove(tmp_path / "two.safetensors")
    message = refused(path, "two.safetensors", "1 are not beside it")
    assert "one.safetensors" not in message


def test_a_tensor_that_is_not_in_the_file_the_index_says_is_named(tmp_path):
    path = sharded(str(tmp_path), {"a.x": "one.safetensors", "b.x": "one.safetensors"}, **both())
    refused(path, "it says that b.x is in one.safetensors, which does not hold it")


class Stack(keras.Model):
    """Layers in a list, as Hugging Face's encoders have them and call them."""

    def __init__(self, name="stack"):
        super().__init__(name=name)
        self.layer = [keras.layers.Dense(2, use_bias=False, name=f"layer_._{index}") for index in range(2)]

    def call(self, x):
        return self.layer[1](self.layer[0](x))


@pytest.mark.parametrize("prefix", ["", full("tf_stack/")])
@pytest.mark.parametrize("rename", [[], [(r"^(tf_stack/)?layer_\._(\d)/", r"layer/\2/")]])
def test_names_of_hugging_face_s_tensorflow_models_fit_by_one_rename_or_none(rename, prefix, path):
    kernels = [np.full((2, 2), float(index), np.float32) for index in range(2)]
    save_file({f"{prefix}layer_._{i}/kernel:0": kernel for i, kernel in enumerate(kernels)}, path, {"format": "tf"})
    model = Stack()
    trainer.restore_weights(model, path, rename=rename, input_spec=tf.TensorSpec([None, 2]))
    assert [layer.kernel.numpy().tolist() for layer in model.layer] == [kernel.tolist() for kernel in kernels]


def test_an_index_of_hugging_face_s_tensorflow_models_is_read(tmp_path):
    """It has the model's own name before each, which the files have not."""
    weight_map = {"tf_bert_model/bert/kernel:0": "one.safetensors", "tf_bert_model/bert/bias:0": "two.safetensors"}
    path = sharded(str(tmp_path), weight_map, one={"bert/kernel:0": np.ones(2)}, two={"bert/bias:0": np.zeros(3)})
    assert {entry.name for entry in SafetensorsSource(path).entries} == {"bert/kernel", "bert/bias"}
    path = sharded(str(tmp_path), {"tf_bert_model/other/kernel:0": "one.safetensors"})
    refused(path, "it says that tf_bert_model/other/kernel:0 is in one.safetensors, which does not hold it")


def test_a_tensor_that_is_in_two_files_is_refused(tmp_path):
    path = sharded(
        str(tmp_path),
        {"a": "one.safetensors", "b": "two.safetensors"},
        one={"a": np.ones(2)},
        two={"a": np.zeros(2), "b": np.ones(1)},
    )
    refused(path, "two.safetensors: the tensor a is there twice")


@pytest.mark.parametrize(
    "outside",
    ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..", "ram://x", "a\\..\\x", "", "x\0y"],
)
def test_a_file_outside_of_the_folder_is_refused(tmp_path, outside):
    folder = tmp_path / "inside"
    folder.mkdir()
    save_file({"a": np.ones(2)}, tmp_path / "x.safetensors")
    refused(sharded(str(folder), {"a": outside}), "the file it gives for a, is")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"3", b"{}",
     b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}',
     b'{"weight_map": {"a": "x", "a": "y"}}', b"[" * 100_000, b'{"weight_map": {"a": "."}}'],
)  # fmt: skip
def test_an_index_of_another_form_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    refused(str(path))


def test_a_damaged_file_of_several_is_named(tmp_path):
    path = sharded(str(tmp_path), **both())
    os.truncate(tmp_path / "two.safetensors", 30)
    refused(path, "cannot be read", "two.safetensors")
    path = sharded(str(tmp_path), **both())
    source = SafetensorsSource(path)
    os.truncate(tmp_path / "two.safetensors", 30)
    with pytest.raises(RestoreError, match=r"the tensor b.. is damaged.*\(two.safetensors: "):
        all_read(source)


def small(path: str) -> SafetensorsSource:
    return written(path, {"format": "pt"}, a=np.arange(6.0).reshape(2, 3), b=np.array(5), c=np.array([True, False]))


def test_a_file_cut_at_any_byte_is_refused(path):
    small(path)
    content = Path(path).read_bytes()
    for kept in range(len(content)):
        Path(path).write_bytes(content[:kept])
        with pytest.raises(RestoreError):
            SafetensorsSource(path)


@pytest.mark.parametrize("seed", range(150))
def test_a_damaged_file_is_refused_or_gives_what_it_announces(path, seed):
    """Nothing guards the bytes of this format: a flipped bit in a tensor is a value like another."""
    chance = random.Random(seed)
    announced = {entry.key: (entry.shape, entry.dtype) for entry in small(path).entries}
    content = bytearray(Path(path).read_bytes())
    data_start = 8 + int.from_bytes(content[:8], "little")
    if seed % 3 == 0:  # pieces change places
        first, second, third = sorted(chance.sample(range(len(content)), 3))
        content[first:third] = content[second:third] + content[first:second]
        in_header = first < data_start
    else:
        places = [chance.randrange(len(content)) for _ in range(seed % 3)]
        for place in places:
            content[place] ^= 1 << chance.randrange(8)
        in_header = min(places) < data_start
    Path(path).write_bytes(content)
    try:
        source = SafetensorsSource(path)
        read = all_read(source)
    except RestoreError:
        return
    assert {entry.key: (entry.shape, entry.dtype.as_numpy_dtype) for entry in source.entries} == {
        key: (value.shape, value.dtype) for key, value in read.items()
    }
    if not in_header:
        assert {entry.key: (entry.shape, entry.dtype) for entry in source.entries} == announced
