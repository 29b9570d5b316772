"""Parses the graph of objects in a TensorFlow checkpoint, and tests that each object that it speaks of is there."""

from tensorflow.core.protobuf import trackable_object_graph_pb2

from trainer.restore.matching.names import expect_bearable, join, readable_name

VALUE = "VARIABLE_VALUE"


def parse_graph(content: bytes) -> trackable_object_graph_pb2.TrackableObjectGraph:
    """The graph, with names that are fit to be shown.

    Raises `DecodeError`, or `ValueError` for one with objects that are not there, with two of one name in one
    object, or with objects that lie deeper than in any model. It may have circles, as Keras' graphs do.
    """
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(content)
    if not graph.nodes:
        raise ValueError("its object graph is empty")
    for node in graph.nodes:
        for part in (*node.children, *node.slot_variables, *node.attributes):
            _make_readable(part)
        _expect_there(len(graph.nodes), [child.node_id for child in node.children])
        for slot in node.slot_variables:
            _expect_there(len(graph.nodes), [slot.original_variable_node_id, slot.slot_variable_node_id])
        _expect_one_each([(child.local_name, child.node_id) for child in node.children])
        _expect_one_each([(VALUE, part.checkpoint_key) for part in node.attributes if part.name == VALUE])
    _expect_shallow(graph)
    return graph


def _make_readable(part) -> None:
    for field in ("local_name", "slot_name", "full_name", "checkpoint_key"):
        raw = getattr(part, field, "")
        name = readable_name(raw)
        if name != raw:
            setattr(part, field, name)


def _expect_there(count: int, numbers: list[int]) -> None:
    for number in numbers:
        if not 0 <= number < count:
            raise ValueError(f"its object graph speaks of object {number}, and has {count}")


def _expect_one_each(pairs: list[tuple[str, object]]) -> None:
    for name, other in pairs if len(dict(pairs)) < len(pairs) else ():
        if dict(pairs)[name] != other:
            raise ValueError(f"its object graph has two parts called {name} in one object")


def _expect_shallow(graph: trackable_object_graph_pb2.TrackableObjectGraph) -> None:
    seen, level, levels = {0}, [("", 0)], 0
    while level:
        below = []
        for path, index in level:
            expect_bearable(path, levels)
            for child in graph.nodes[index].children:
                if child.node_id not in seen:
                    seen.add(child.node_id)
                    below.append((join(path, child.local_name), child.node_id))
        level, levels = below, levels + 1
