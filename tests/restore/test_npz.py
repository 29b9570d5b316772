"""Arrays of NumPy's `.npz` come out as they went in, and a file that lies or is damaged is refused."""

import io
import pickle
import random
import resource
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer.restore.errors import RestoreError
from trainer.restore.readers.npz import NpzSource

bfloat16 = tf.bfloat16.as_numpy_dtype


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "weights.npz")


def written(path: str, packed: bool = False, **arrays) -> NpzSource:
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return NpzSource(path)


def all_read(source: NpzSource) -> dict[str, np.ndarray]:
    return {entry.key: np.array(source.read(entry)) for entry in source.entries}


def only(source: NpzSource):
    (entry,) = source.entries
    return entry


def refused(path: str, *words: str) -> str:
    with pytest.raises(RestoreError) as caught:
        all_read(NpzSource(path))
    message = str(caught.value)
    assert all(word in message for word in (*words, path.split("/")[-1])), message
    assert "Traceback" not in message and "\n" not in message
    return message


def header(shape, descr="<f4", in_columns=False, version=b"\x01\x00") -> bytes:
    text = repr({"descr": descr, "fortran_order": in_columns, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text


def archived(path: str, packed: int = zipfile.ZIP_STORED, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


NUMBERS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16"]


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_every_dtype_comes_out_native_and_as_it_went_in(path, kind, order, packed):
    value = np.arange(6).reshape(2, 3).astype(order + kind)
    source = written(path, packed, w=value)
    read = source.read(only(source))
    assert read.dtype.isnative and read.dtype == only(source).dtype.as_numpy_dtype
    np.testing.assert_array_equal(read, value)


@pytest.mark.parametrize(
    "value",
    [np.float32(3), np.zeros((0,), "f4"), np.zeros((2, 0, 3), "f8"), np.asfortranarray(np.arange(12.0).reshape(3, 4))],
    ids=["a scalar", "an empty one", "one of an empty axis", "in columns"],
)
def test_every_shape_comes_out_as_it_went_in(path, value):
    source = written(path, w=value)
    entry = only(source)
    assert (entry.shape, entry.size_bytes) == (value.shape, value.nbytes)
    np.testing.assert_array_equal(source.read(entry), value)
    np.testing.assert_array_equal(
        np.concatenate([*source.pieces(entry), np.zeros(0, value.dtype)]), np.asarray(value).reshape(-1)
    )


def test_columns_of_big_endian_numbers_come_out_right(path):
    value = np.asfortranarray(np.arange(24).reshape(2, 3, 4).astype(">i2"))
    np.testing.assert_array_equal(all_read(written(path, w=value))["w"], value)


def test_bfloat16_which_numpy_writes_as_two_byte_void_is_read_as_bfloat16(path):
    value = np.array([1.5, -2.0, 0.1], bfloat16)
    source = written(path, w=value)
    assert (only(source).dtype, only(source).kind) == (tf.bfloat16, "weight")
    np.testing.assert_array_equal(source.read(only(source)), value)


def test_names_with_slashes_are_split_at_them(path):
    source = written(path, **{"encoder/dense.0/kernel": np.ones(2), "head": np.ones(1)})
    assert [entry.name for entry in source.entries] == ["encoder/dense.0/kernel", "head"]
    assert source.top.children["encoder"].children["dense.0"].children["kernel"].entry is source.entries[0]


def test_names_without_slashes_are_split_at_dots(path):
    source = written(path, **{"encoder.0.kernel": np.ones(2)})
    assert only(source).name == "encoder/0/kernel" and only(source).key == "encoder.0.kernel"


def test_tensorflow_s_number_is_no_part_of_a_name(path):
    source = written(path, **{"dense/kernel:0": np.ones(2), "dense/bias:0": np.ones(1), "dense/bias": np.zeros(1)})
    assert [entry.name for entry in source.entries] == ["dense/kernel", "dense/bias:0", "dense/bias"]


def test_arrays_without_names_keep_numpy_s_own(path):
    np.savez(path, np.ones(2), np.zeros(3))
    assert [entry.name for entry in NpzSource(path).entries] == ["arr_0", "arr_1"]


def test_kinds_go_by_name_and_shape(path):
    source = written(
        path,
        **{
            "kernel": np.ones(2),
            "ids": np.arange(3),
            "step": np.int64(7),
            "rate": np.float32(1),
            "flag": np.bool_(True),
            "drop/seed_generator_state": np.zeros(2, "u4"),
            "optimizer/iterations": np.int64(1),
            "optimizer_state/m": np.ones(2),
            "text": np.array(["é", "b"]),
            "phase": np.ones(2, "c8"),
        },
    )
    kinds = {entry.key: entry.kind for entry in source.entries}
    assert kinds == {
        "kernel": "weight", "ids": "weight", "step": "counter", "rate": "weight", "flag": "weight",
        "drop/seed_generator_state": "other", "optimizer/iterations": "optimizer", "optimizer_state/m": "optimizer",
        "text": "other", "phase": "other",
    }  # fmt: skip
    assert source.top.children["optimizer"].is_optimizer and not source.top.children["drop"].is_optimizer


@pytest.mark.parametrize(
    "value",
    [
        np.array([(1, 2.0)], [("größe", "i4"), ("b", "f8")]),
        np.array(["2020-01-01"], "M8[D]"),
        np.array([b"12345"], "V5"),
        np.array([b"x"], "V1"),
        np.array([(3,)], [("qint8", "i1")]),
    ],
    ids=["structured", "dates", "void", "a byte of void", "like a quantized one"],
)
def test_what_tensorflow_has_no_number_for_is_listed_as_bytes_and_harms_no_weight(path, value):
    source = written(path, strange=value, w=np.ones(2))
    strange = source.entries[0]
    assert (strange.kind, strange.dtype, strange.shape) == ("other", tf.string, (1,))
    assert source.read(strange).tolist() == [value.tobytes()]
    assert source.read(source.entries[1]).tolist() == [1, 1]


def test_text_is_read_as_utf_8(path):
    source = written(path, u=np.array([["é", "bc"]], ">U2"), s=np.array([b"x", b"yz"]))
    assert {key: value.tolist() for key, value in all_read(source).items()} == {
        "u": [["é".encode(), b"bc"]],
        "s": [b"x", b"yz"],
    }


def test_numbers_that_tensorflow_has_not_are_refused_by_name(path):
    np.savez(path, fine=np.ones(2), wide=np.ones(2, np.longdouble))
    refused(path, "the array wide is of dtype", "float32")


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_a_pickle_is_refused_by_name_and_not_run(path, packed):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("the pickle was run",)

    (np.savez_compressed if packed else np.savez)(path, fine=np.ones(1), **{"a/trap": np.array([Trap()], object)})
    refused(path, "the array a/trap holds Python objects", "pickle", "Write the file without")


def test_a_pickle_in_a_field_of_a_structure_is_refused(path):
    np.savez(path, trap=np.array([(1, [2])], [("a", "i4"), ("b", "O")]))
    refused(path, "the array trap holds Python objects")


def test_a_field_of_objects_that_is_made_to_look_of_the_right_size_is_refused(path):
    archived(path, **{"trap.npy": header((1,), [("a", "<i4"), ("b", "|O")]) + bytes(12)})
    refused(path, "the array trap holds Python objects")


@pytest.mark.parametrize("name", ["trap.pkl", "inner.npz", "readme.txt", "no_ending"])
def test_a_member_that_is_no_array_is_refused_by_name(path, name):
    inner = io.BytesIO()
    np.savez(inner, trap=np.array([None], object))
    archived(path, **{"w.npy": header((0,)), name: inner.getvalue() if name == "inner.npz" else pickle.dumps([1])})
    refused(path, f"{name!r} in it is no array")


def test_an_archive_inside_that_is_named_like_an_array_is_refused(path):
    inner = io.BytesIO()
    np.savez(inner, trap=np.array([None], object))
    refused(archived(path, **{"inner.npy": inner.getvalue()}), "inner.npy", "cannot be read")


def test_folders_that_a_zip_program_adds_are_nothing(path):
    archived(path, **{"a/": b"", "a/w.npy": header((1,)) + bytes(4)})
    assert only(NpzSource(path)).key == "a/w"


def test_opening_reads_no_tensor_and_reading_one_reads_no_other(path):
    np.savez(path, a=np.ones(2**20, "u1"), b=np.ones(2**20, "u1"))
    content = bytearray(Path(path).read_bytes())
    content[2**19] ^= 1  # in a
    Path(path).write_bytes(content)
    source = NpzSource(path)
    assert source.bytes_read == 0 and not source.keys_read
    assert source.read(source.entries[1]).sum() == 2**20
    with pytest.raises(RestoreError, match="the tensor a is damaged.*CRC-32"):
        source.read(source.entries[0])


def test_damage_in_a_small_array_that_is_not_read_harms_nothing(path):
    written(path, a=np.arange(3.0), b=np.ones(2))
    content = bytearray(Path(path).read_bytes())
    content[content.index(b"b.npy") - 50] ^= 1  # the last bytes of a's member
    Path(path).write_bytes(content)
    source = NpzSource(path)
    assert source.read(source.entries[1]).tolist() == [1, 1]
    with pytest.raises(RestoreError, match="the tensor a is damaged"):
        source.read(source.entries[0])


def test_a_source_that_was_closed_opens_its_file_again(path):
    source = written(path, w=np.arange(3))
    source.close()
    assert source.read(only(source)).tolist() == [0, 1, 2]


def test_a_path_of_another_file_system_is_read():
    buffer = io.BytesIO()
    np.savez(buffer, w=np.arange(3))
    with tf.io.gfile.GFile("ram://npz/x.npz", "wb") as file:
        file.write(buffer.getvalue())
    assert all_read(NpzSource("ram://npz/x.npz"))["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("given", [0, 2])
@pytest.mark.parametrize("folder", ["local", "ram"])
def test_one_of_several_files_stands_for_all(tmp_path, folder, given):
    folder = str(tmp_path) if folder == "local" else f"ram://shards{given}"
    for index in range(3):
        buffer = io.BytesIO()
        np.savez(buffer, **{f"w{index}": np.full(2, index)})
        with tf.io.gfile.GFile(f"{folder}/m-{index:05}-of-00003.npz", "wb") as file:
            file.write(buffer.getvalue())
    read = all_read(NpzSource(f"{folder}/m-{given:05}-of-00003.npz"))
    assert {key: value.tolist() for key, value in read.items()} == {"w0": [0, 0], "w1": [1, 1], "w2": [2, 2]}


def test_files_that_are_not_there_are_named(tmp_path):
    np.savez(tmp_path / "m-00001-of-00003.npz", w=np.ones(1))
    np.savez(tmp_path / "other-00000-of-00003.npz", w=np.ones(1))
    message = refused(str(tmp_path / "m-00001-of-00003.npz"), "m-00000-of-00003.npz, m-00002-of-00003.npz", "3 files")
    assert "other" not in message


def test_a_number_beyond_the_count_is_refused(tmp_path):
    np.savez(tmp_path / "m-00002-of-00002.npz", w=np.ones(1))
    refused(str(tmp_path / "m-00002-of-00002.npz"), "numbered from 00000")


def test_a_name_in_two_files_is_refused_and_a_damaged_one_named(tmp_path):
    first, second = (tmp_path / f"m-0000{index}-of-00002.npz" for index in range(2))
    np.savez(first, w=np.ones(1))
    np.savez(second, w=np.ones(1))
    refused(str(first), "m-00001-of-00002.npz", "w is there twice")
    second.write_bytes(b"")
    refused(str(first), "m-00001-of-00002.npz")
    np.savez(second, v=np.ones(9))
    content = second.read_bytes()
    second.write_bytes(content.replace(np.ones(9).tobytes(), np.zeros(9).tobytes()))
    refused(str(first), "the tensor v is damaged", "(m-00001-of-00002.npz: ")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_one_file_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", header((1,)) + bytes(4))
        archive.writestr("w.npy", header((1,)) + b"abcd")
    refused(path, "is refused: it holds w.npy more than once")


def test_an_entry_of_the_table_that_swallows_the_rest_is_noticed(path):
    np.savez(path, a=np.ones(1), b=np.ones(1), c=np.ones(1))
    content = bytearray(Path(path).read_bytes())
    content[content.index(b"PK\x01\x02") + 33] ^= 1  # its comment is 256 bytes long
    Path(path).write_bytes(content)
    refused(path, "holds 3 members, and 1 of them can be found")


def test_a_file_without_arrays_is_refused(path):
    np.savez(path)
    refused(path, "it holds no members")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"no weights\n" * 99, bytes(999)], ids=["empty", "PK", "text", "zeros"]
)
def test_a_file_of_something_else_is_refused(path, content):
    Path(path).write_bytes(content)
    refused(path, "cannot be read")


@pytest.mark.parametrize("place", ["", "ram://"])
def test_a_file_that_is_not_there_is_refused(place):
    refused(f"{place}/nowhere/at/all.npz", "all.npz")


LIES = {
    "terabytes": header((2**20, 2**20)) + bytes(8),
    "more than any memory": header((2**62, 2**62)) + bytes(8),
    "nothing times all": header((0, 2**62, 2**62)),
    "fewer than there are": header((1,)) + bytes(8),
    "below zero": header((-1, -2)) + bytes(8),
    "no numbers": header(("a",)) + bytes(8),
    "forty axes": header((1,) * 40) + bytes(4),
    "elements of no size": header((10**15,), "|S0"),
    "a dtype that is none": header((2,), "<f1") + bytes(2),
    "a header of gigabytes": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(8),
    "a header that is as long as it says": b"\x93NUMPY\x02\x00" + (10**7).to_bytes(4, "little") + b" " * 10**7,
    "a header that is cut": header((2,))[:30],
    "a header that is not Python": b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr': (((('\n",
    "a header of brackets": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000,
    "a header of bytes": b"\x93NUMPY\x01\x00\x10\x00" + bytes(16),
    "a version of the future": header((2,), version=b"\x09\x00") + bytes(8),
    "nothing": b"",
}


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_before_memory_is_taken(path, lie, packed):
    archived(path, packed, **{"w.npy": LIES[lie]})
    tracemalloc.start()
    try:
        with pytest.raises(RestoreError, match="weights.npz cannot be read.* (w.npy|the array w)"):
            NpzSource(path)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def bomb(path: str, claimed: int, stream: bytes, method: int = zipfile.ZIP_DEFLATED, crc: int = 0) -> str:
    """An archive whose only member says that its stream is `claimed` bytes long once it is unpacked."""
    name = b"w.npy"
    fields = struct.pack("<HHHHHLLLHH", 20, 0, method, 0, 33, crc, len(stream), claimed, len(name), 0)
    local = b"PK\x03\x04" + fields + name + stream
    directory = b"PK\x01\x02\x14\x00" + fields + struct.pack("<HHHLL", 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(directory), len(local), 0)
    with open(path, "wb") as file:
        file.write(local + directory + end)
    return path


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def test_a_length_that_no_deflated_member_can_have_is_refused_unread(path):
    start = header((2**30 - 30,))
    refused(bomb(path, len(start) + 4 * (2**30 - 30), deflated(start + bytes(10**6))), "which cannot be")


def test_an_array_that_unpacks_to_far_more_than_it_takes_is_refused(path):
    np.savez_compressed(path, w=np.zeros(110 << 20, "u1"))
    refused(path, "is refused: w.npy in it announces 115,343,488 bytes", "write it again without compression")
    np.savez(path, w=np.zeros(110 << 20, "u1"))
    assert all_read(NpzSource(path))["w"].size == 110 << 20


def test_a_stored_length_beyond_the_file_is_refused_unread(path):
    start = header((10**8,))
    refused(bomb(path, len(start) + 4 * 10**8, start + bytes(99), zipfile.ZIP_STORED), "which cannot be")


def test_no_more_is_unpacked_than_was_announced(path):
    start = header((25_000,))
    bomb(path, len(start) + 100_000, deflated(start + bytes(5 * 10**7)), crc=zlib.crc32(start + bytes(100_000)))
    tracemalloc.start()
    try:
        assert all_read(NpzSource(path))["w"].tolist() == [0] * 25_000
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


def test_less_than_was_announced_takes_no_more_memory_than_there_is(path):
    start = header((24_000_000,))  # 96 MB, of which 400 kB are there
    noise = random.Random(0).randbytes(400_000)
    bomb(path, len(start) + 96_000_000, deflated(start + noise))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "the tensor w is damaged")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 50e6


def test_a_stream_that_ends_early_with_a_checksum_of_its_own_is_refused(path):
    start = header((100,))
    bomb(path, len(start) + 400, deflated(start + bytes(200)), crc=zlib.crc32(start + bytes(200)))
    refused(path, "the tensor w is damaged", "it ends before its last byte")


def test_ways_of_packing_that_numpy_does_not_use_are_refused(path):
    refused(archived(path, zipfile.ZIP_LZMA, **{"w.npy": header((2,)) + bytes(8)}), "neither stored nor deflated")


def test_headers_of_python_2_and_of_all_versions_are_read(path):
    old = header((2,)).replace(b"(2,)", b"(2L,)")
    old = old[:8] + (len(old) - 10).to_bytes(2, "little") + old[10:]
    two, three = (header((2,), version=bytes([number, 0])) for number in (2, 3))
    with pytest.warns(UserWarning, match="Python 2"):
        archived(path, **{"a.npy": old + b"\0\0\x80\x3f" * 2, "b.npy": two + bytes(8), "c.npy": three + bytes(8)})
        assert {key: value.tolist() for key, value in all_read(NpzSource(path)).items()} == {
            "a": [1, 1], "b": [0, 0], "c": [0, 0],
        }  # fmt: skip


def small(path: str, packed: bool) -> dict[str, np.ndarray]:
    return all_read(written(path, packed, a=np.arange(6.0).reshape(2, 3), b=np.int32(5), c=np.zeros((0, 2), "f4")))


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_a_file_cut_at_any_byte_is_refused(path, packed):
    small(path, packed)
    content = Path(path).read_bytes()
    for kept in range(len(content)):
        with open(path, "wb") as file:
            file.write(content[:kept])
        with pytest.raises(RestoreError):
            all_read(NpzSource(path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(150))
def test_a_damaged_file_gives_the_same_values_or_is_refused(path, seed):
    chance = random.Random(seed)
    expected = small(path, packed=seed % 2 == 0)
    content = bytearray(Path(path).read_bytes())
    if seed % 3 == 0:  # pieces change places
        first, second, third = sorted(chance.sample(range(len(content)), 3))
        content[first:third] = content[second:third] + content[first:second]
    else:
        for _ in range(seed % 3):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    Path(path).write_bytes(content)
    try:
        read = all_read(NpzSource(path))
    except RestoreError:
        return
    assert read.keys() == expected.keys()
    for key, value in expected.items():
        assert read[key].dtype == value.dtype
        np.testing.assert_array_equal(read[key], value)
