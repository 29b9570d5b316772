"""A file whose checksums are right may still hold what cannot be: it is refused, and the process lives."""

import bundles
import pytest
from conftest import full
from zoo import TwoDense, built, saved, sequential, used_adam, values

import trainer
from trainer.checkpoints import files
from trainer.checkpoints.manager import Checkpoints
from trainer.checkpoints.train_state import new_train_state

KERNEL = b"model/head/_kernel/.ATTRIBUTES/VARIABLE_VALUE"
RED, BIDI = "\x1b[31m", "\u202e"


@pytest.fixture
def path(tmp_path):
    source = built(TwoDense())
    return saved(tmp_path, model=source, optimizer=used_adam(source))


def refused(path, message: str, make=TwoDense) -> str:
    model = built(make(), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=message) as caught:
        trainer.restore_weights(model, path)
    assert values(model) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


def field(name: str, value):
    return lambda entry: setattr(entry, name, value)


def dimension(size: int):
    def change(entry):
        entry.shape.dim[0].size = size

    return change


def sliced(start: int, length: int):
    def change(entry):
        extent = entry.slices.add().extent.add()
        extent.start, extent.length = start, length

    return change


def unknown_rank(entry):
    entry.shape.unknown_rank = True


def many_axes(entry):
    for _ in range(300):
        entry.shape.dim.add().size = 1


ROWS = {
    "a negative axis": (dimension(-1), "model/head/_kernel.* has the shape .*, which is impossible"),
    "a huge axis": (dimension(2**62), "has the shape .*, which is impossible"),
    "another axis": (dimension(5), "has 32 bytes where its shape needs 40"),
    "no rank": (unknown_rank, "which is impossible"),
    "300 axes": (many_axes, "which is impossible"),
    "an unknown dtype": (field("dtype", 99), "is of a dtype, 99, that TensorFlow does not have"),
    "a dtype of references": (field("dtype", 101), "is of dtype float32_ref, which no file can hold"),
    "a data file too many": (field("shard_id", 1), "is in data file 1 of 1"),
    "a negative data file": (field("shard_id", -1), "is in data file -1 of 1"),
    "a negative offset": (field("offset", -8), "has 32 bytes from -8 on"),
    "a huge offset": (field("offset", 2**62), "is damaged or not there.*the data file is cut off"),
    "another's offset": (field("offset", 0), "two tensors in it share bytes"),
    "a negative size": (field("size", -1), "has -1 bytes from"),
    "a huge size": (field("size", 2**62), "bytes where its shape needs 32"),
    "a slice": (sliced(0, 1), "a slice of model/head/_kernel.* is not in the index"),
    "a negative slice": (sliced(-(2**63), -(2**63)), "a slice of model/head/_kernel.* is not in the index"),
}
HEADERS = {
    "no data files": (field("num_shards", 0), "speaks of 0 data files"),
    "two billion data files": (field("num_shards", 2**31 - 1), "speaks of 2,147,483,647 data files"),
    "another order of bytes": (field("endianness", 7), "gives no order of bytes"),
    "a later version": (lambda header: setattr(header.version, "min_consumer", 9), "a later version of the format"),
}


@pytest.mark.parametrize("what", ROWS)
def test_a_row_that_holds_what_cannot_be_is_refused(what, path):
    change, message = ROWS[what]
    bundles.change_entry(path, KERNEL, change)
    refused(path, message)


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_holds_what_cannot_be_is_refused(what, path):
    change, message = HEADERS[what]
    bundles.change_entry(path, b"", change)
    refused(path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "has no header"),
        (lambda rows: [*rows[:2], rows[1], *rows[2:]], "is not in order"),
        (lambda rows: [rows[0], *rows[:0:-1]], "is not in order"),
        (lambda rows: [*rows, (b"\xff\xfe", rows[1][1])], "can't decode byte"),
        (lambda rows: [rows[0], (b"\0\1a\0\1\0", rows[2][1]), *rows[1:]], "1 slices of tensors that it does not have"),
        (lambda rows: [*rows[:2], (rows[2][0], b"\xff\xff"), *rows[3:]], "Error parsing message"),
        (lambda rows: [], "has no header"),
    ],
)
def test_rows_that_do_not_make_a_table_are_refused(change, message, path):
    bundles.write_rows(path, change(bundles.rows_of(path)))
    refused(path, message)


@pytest.mark.parametrize(
    ("restarts", "shared", "packing", "message"),
    [
        ([], None, 0, "a block of the index has no end"),
        ([2**32 - 1], None, 0, "leads to places that are none"),
        ([0, 3], None, 0, "leads to places that are none"),
        (None, 9, 0, "not made as it should be"),
        (None, 2**40, 0, "not made as it should be"),
        (None, None, 1, "a packed block of the index"),
        (None, None, 7, "packed in a way .* that TensorFlow does not write"),
    ],
)
def test_a_table_that_is_built_wrongly_is_refused(restarts, shared, packing, message, path):
    rows = bundles.rows_of(path)
    bundles.write_rows(path, rows, lambda rows: bundles.block_of(rows, restarts, shared), packing)
    refused(path, message)


@pytest.mark.parametrize("number", [-1, 10_000, 2**31 - 1])
@pytest.mark.parametrize("where", ["children", full("slots")])
def test_a_graph_that_speaks_of_an_object_that_is_not_there_is_refused(number, where, path):
    graph = bundles.graph_of(path)
    if where == "children":
        graph.nodes[1].children[0].node_id = number
    else:
        graph.nodes[0].slot_variables.add(original_variable_node_id=0, slot_variable_node_id=number)
    bundles.write_graph(path, graph.SerializeToString())
    refused(path, f"its object graph speaks of object {number}, and has")


def test_a_graph_with_two_parts_of_one_name_is_refused(path):
    graph = bundles.graph_of(path)
    graph.nodes[0].children.add(local_name="model", node_id=0)
    bundles.write_graph(path, graph.SerializeToString())
    refused(path, "two parts called model in one object")


def test_a_graph_that_goes_in_circles_is_read(tmp_path):
    path = saved(tmp_path, model=built(TwoDense()))
    graph = bundles.graph_of(path)
    for node in graph.nodes:
        node.children.add(local_name="parent", node_id=0)
    bundles.write_graph(path, graph.SerializeToString())
    model = built(TwoDense(), seed=2)
    trainer.restore_weights(model, path)
    assert values(model) == values(built(TwoDense()))


def test_a_run_passes_over_a_checkpoint_whose_index_holds_what_cannot_be(tmp_path):
    """Its manifest fits: TensorFlow's own reader, which a resume needs, would end the process."""
    model = built(TwoDense())
    state = new_train_state(model, used_adam(model))
    checkpoints = Checkpoints(state, tmp_path)
    for step in (10, 20):
        state.step.assign(step)
        checkpoints.save()
    bundles.change_entry(str(tmp_path / "ckpt-20"), KERNEL, dimension(-1))
    (tmp_path / "ckpt-20.manifest.json").unlink()
    files.write_manifest(str(tmp_path / "ckpt-20"), 20)
    again = Checkpoints(state, tmp_path)
    assert again.resume() == 10
    assert "which is impossible; ckpt-10 is used instead" in again.skipped[0]


def with_chain(path: str, near: bool) -> str:
    """Hangs 3,000 objects one below the other on all but variables. near: on the top, too."""
    graph = bundles.graph_of(path)
    ends = [node for node in graph.nodes[1:] if not node.attributes]
    for number in range(3_000):
        for node in ends:
            node.children.add(local_name="deeper", node_id=len(graph.nodes))
        if near:
            graph.nodes[0].children.add(local_name=f"n{number}", node_id=len(graph.nodes))
        ends = [graph.nodes.add()]
    bundles.write_graph(path, graph.SerializeToString())
    return path


def test_a_graph_of_thousands_of_levels_is_refused_at_once(tmp_path):
    path = with_chain(saved(tmp_path, model=built(sequential())), near=False)
    refused(path, "the name model/.*/deeper/deeper.* has 257 levels")


def test_thousands_of_levels_that_shorter_paths_lead_to_are_refused(tmp_path):
    path = with_chain(saved(tmp_path, model=built(sequential())), near=True)
    refused(path, "its objects lie deeper in each other", sequential)
