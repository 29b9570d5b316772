"""Tells which variable each slot of an optimizer in a TensorFlow checkpoint belongs to, by what the file says."""

import re
from collections.abc import Iterator

from tensorflow.core.protobuf import trackable_object_graph_pb2

from trainer.restore.matching.names import join
from trainer.restore.source import Entry, Node, SavedOptimizer, Slot

_NOT_SLOTS = {"_variables", "_trainable_variables", "_trainable_variables_indices", "_index_dict", "exclude_layers"}
_INNER = ("inner_optimizer", "base_optimizer")
# Keras 2 calls a slot `Adam/m/dense/kernel`: the scope where it was made, one of these, and the variable's name.
_KERAS_2_NAME = re.compile(
    r"(?:(?P<called>.*?)/)??(?:m|v|vhat|u|c|r|velocity|momentum|average_gradient|accumulator|linear"
    r"|accumulated_grad|accumulated_delta_var|average)/(?P<variable>.+)"
)


def saved_optimizers(graph: trackable_object_graph_pb2.TrackableObjectGraph, nodes: list[Node]) -> list[SavedOptimizer]:
    """Every optimizer of the graph once; of one that wraps another (loss scaling) the inner one.

    nodes: the objects of the graph in its order, with their entries.
    """
    names = {
        id(node.entry): attribute.full_name
        for node, proto in zip(nodes, graph.nodes, strict=True)
        for attribute in proto.attributes
        if node.entry is not None and attribute.full_name
    }
    found = []
    for place, index in _places(graph):
        children = {child.local_name: child.node_id for child in graph.nodes[index].children}
        wraps = any(nodes[children[name]].is_optimizer for name in _INNER if name in children)
        if nodes[index].is_optimizer and not wraps:
            found.append(_Reader(graph, nodes, names, index).read(place))
    return found


def _places(graph) -> Iterator[tuple[str, int]]:
    """(shortest path, index) of every object that can be reached."""
    seen, queue = {0}, [("", 0)]
    for place, index in queue:
        yield place, index
        for child in graph.nodes[index].children:
            if child.node_id not in seen:
                seen.add(child.node_id)
                queue.append((join(place, child.local_name), child.node_id))


class _Reader:
    """Reads one optimizer of a graph. names: id of an entry -> its variable's name in the writer's program."""

    def __init__(self, graph, nodes: list[Node], names: dict[int, str], index: int):
        self._graph, self._nodes, self._names = graph, nodes, names
        self._proto = graph.nodes[index]
        self._children = {child.local_name: child.node_id for child in self._proto.children}

    def read(self, place: str) -> SavedOptimizer:
        steps = self._entry("_iterations") or self._entry("iterations") or self._entry("iter")
        called = self._names.get(id(steps), "").rpartition("/")[0]
        if self._proto.slot_variables:
            style, slots = "Keras 2 legacy", list(self._by_reference())
        elif "_trainable_variables" in self._children:
            style, slots = "Keras 3", list(self._by_own_list())
        else:
            style, slots = "Keras 2", list(self._by_name())
            # The step count is made outside of the scope that gives the slots the optimizer's name.
            found = {match["called"] or "" for slot in slots if (match := self._match(slot.entry))}
            called = found.pop() if len(found) == 1 else called
        return SavedOptimizer(
            place, called.rpartition("/")[2], style, frozenset(self._children), slots, steps,
            self._entry("_learning_rate") or self._entry("learning_rate"),
        )  # fmt: skip

    def _by_reference(self) -> Iterator[Slot]:
        """The graph holds (variable, slot's name, slot) for each of them."""
        for slot in self._proto.slot_variables:
            entry = self._nodes[slot.slot_variable_node_id].entry
            if entry is not None:
                variable = self._nodes[slot.original_variable_node_id].entry
                yield Slot(slot.slot_name, entry, variable, "" if variable else "its variable is not in the file")

    def _by_own_list(self) -> Iterator[Slot]:
        """By the place in the lists: here it is certain, because the file has the other list too.

        A Keras 3 optimizer finds a variable's slots by the variable's index in `_trainable_variables`, and so
        makes every list of slots as long as that one, with None where a variable has no slot. That list is in
        the file, and its elements are the very objects of the model, not copies or names.
        """
        variables = self._list("_trainable_variables")
        for name, number, entry in self._listed():
            variable = variables.get(number)
            fits = variable is not None and variable.shape == entry.shape
            why = "" if fits else "the optimizer's list of variables has none of its shape in its place"
            yield Slot(name, entry, variable if fits else None, why)

    def _by_name(self) -> Iterator[Slot]:
        """Keras 2 keeps no list of variables, but makes a slot's name of its variable's; one that two have is none."""
        own = {id(entry) for entry in self._list("_variables").values()}
        named: dict[str, list[Entry]] = {}
        for node in self._nodes:
            if node.entry is not None and id(node.entry) not in own and id(node.entry) in self._names:
                named.setdefault(self._names[id(node.entry)], []).append(node.entry)
        for name, _, entry in self._listed():
            match = self._match(entry)
            homes = [home for home in named.get(match["variable"] if match else "", []) if home.shape == entry.shape]
            called = self._names.get(id(entry), entry.name)
            why = f"it is called {called}, and {len(homes) or 'no'} variables of the file are called so"
            yield Slot(name, entry, *((homes[0], "") if len(homes) == 1 else (None, why)))

    def _match(self, entry: Entry) -> re.Match | None:
        return _KERAS_2_NAME.fullmatch(self._names.get(id(entry), ""))

    def _listed(self) -> Iterator[tuple[str, str, Entry]]:
        """(list, place in it, entry) of every list but those of the variables themselves."""
        for name in self._children:
            if name not in _NOT_SLOTS:
                yield from ((name, number, entry) for number, entry in self._list(name).items())

    def _list(self, name: str) -> dict[str, Entry]:
        """{place: entry} of a list, {} for what is none."""
        if name not in self._children:
            return {}
        parts = self._graph.nodes[self._children[name]].children
        entries = {part.local_name: self._nodes[part.node_id].entry for part in parts if part.local_name.isdigit()}
        return {number: entry for number, entry in entries.items() if entry is not None}

    def _entry(self, name: str) -> Entry | None:
        return self._nodes[self._children[name]].entry if name in self._children else None
