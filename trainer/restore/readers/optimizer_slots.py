"""Tells which variable each slot of an optimizer in a TensorFlow checkpoint belongs to, by what the file says."""

import re
from collections.abc import Iterable, Iterator, Mapping

from tensorflow.core.protobuf import trackable_object_graph_pb2

from trainer.restore.names import join
from trainer.restore.source import Entry, Node, SavedOptimizer, Slot

# Class names and default names of optimizers in TensorFlow 1, Keras and libraries around them.
_OPTIMIZER = (
    r"(?:distributed|fused|lazy|rectified|proximal)?_?(?:adam(?:w|ax|async|weightdecay)?|ada(?:belief|bound|mod)"
    r"|adafactor|adagrad(?:da)?|adadelta|addsign|amsgrad|ftrl(?:proximal)?|lamb|lars|lion|momentum|nadam|novograd"
    r"|powersign|radam|rmsprop|sgdw?|shampoo|sm3|yogi)(?:optimizer)?"
)
_SCOPE = re.compile(rf"{_OPTIMIZER}(?:_\d+)?", re.IGNORECASE)
_KERAS_SCOPE = re.compile(r"training(?:_\d+)?")
# TF1 writes `X/Adam` and `X/Adam_1`, BERT `X/adam_m`, Mesh TensorFlow `X_slot_vr`.
_SLOT = re.compile(rf"(?:/{_OPTIMIZER}(?:_\w+)?(?:/[a-z_]+)?|_slot_(?:m|v|vr|vc)|_momentum_v)$", re.IGNORECASE)
_POWER = re.compile(r"(?:^|/)beta_?[12]?_power(?:_\d+)?$")
_SETTING = re.compile(r"iter|iterations?|lr|learning_rate|decay|momentum|rho|epsilon|beta_[12]")
# Keras 2.11 writes `Adam/m/X`, older ones `training/Adam/X/m`, Keras 3 `adam/X_momentum`; slashes are underscores here.
_WORD = (
    r"(?:m|v|vhat|u|c|r|linear|rms|mg|momentum|velocity(?:_hat)?|accumulator|accum(?:_grad|_var)?"
    r"|accumulated_(?:grad|delta_var)|average(?:_gradient)?)"
)
_IN_SCOPE = (re.compile(rf"(.+)_{_WORD}"), re.compile(rf"{_WORD}_(.+)"))

_Shape = tuple[int, ...]


def mark_named_slots(top: Node, entries: Iterable[Entry]) -> None:
    """Turns the slots among the weights into optimizer state and takes them out of the tree of names.

    A slot has an optimizer's name behind that of a variable in the file (`X/Adam_1`, `X_slot_vr`), or stands
    below an optimizer's name and holds the variable's (`training/Adam/X/m`). Its shape is the variable's, or has
    some of its axes. What has another name stays a weight, since a model may have both `w` and `w/v`.
    """
    weights = [entry for entry in entries if entry.kind == "weight"]
    shapes = {entry.name: entry.shape for entry in weights}
    flat = {name.replace("/", "_"): shape for name, shape in shapes.items()}
    slots = {entry for entry in weights if _is_slot(entry, shapes) or _is_in_optimizer(entry, flat)}
    names = {entry.name for entry in slots}
    slots |= {entry for entry in weights if entry.name.rpartition("/")[0] in names}  # averages of slots
    for entry in slots:
        entry.kind = "optimizer"
    if slots:
        _take_out(top, slots)


def _is_slot(entry: Entry, shapes: Mapping[str, _Shape]) -> bool:
    if _POWER.search(entry.name):
        return not entry.shape
    match = _SLOT.search(entry.name)
    variable = shapes.get(entry.name[: match.start()]) if match else None
    return variable is not None and _is_shape_of_slot(entry.shape, variable)


def _is_in_optimizer(entry: Entry, flat: Mapping[str, _Shape]) -> bool:
    """Whether it is a slot or a setting below an optimizer's name.

    flat: {name of a weight, with underscores for slashes: shape}, as Keras 3 puts it into the name of a slot.
    """
    *scopes, leaf = entry.name.split("/")
    inside = ""
    for place, scope in enumerate(scopes):
        if _SCOPE.fullmatch(scope) or (place and _KERAS_SCOPE.fullmatch(scopes[place - 1])):
            inside = "_".join([*scopes[place + 1 :], leaf])
            break
    if not inside:
        return False
    if not entry.shape and _SETTING.fullmatch(inside):
        return True
    if re.fullmatch(r"Variable(_\d+)?", inside):  # of Keras before 2.3, which gave its slots no names
        return not entry.shape or entry.shape in flat.values()
    names = [match[1] for pattern in _IN_SCOPE if (match := pattern.fullmatch(inside))]
    return any(_is_shape_of_slot(entry.shape, flat[name]) for name in names if name in flat)


def _is_shape_of_slot(slot: _Shape, variable: _Shape) -> bool:
    """Whether a slot has the variable's shape, or some of its axes in their order as Adafactor's do."""
    remaining = iter(variable)
    return slot == variable or all(any(length == axis for axis in remaining) for length in slot if length != 1)


def _take_out(top: Node, slots: set[Entry]) -> None:
    """Removes the slots' nodes, so that what stands beside a variable is the model's."""
    parents = [top]
    for node in parents:
        parents += node.children.values()
    for node in reversed(parents):
        kept = {
            name: child
            for name, child in node.children.items()
            if child.children or not (child.entry is None or child.entry in slots)
        }
        if len(kept) < len(node.children):
            node.children = kept
            node.spelled = {raw: name for raw, name in node.spelled.items() if name in kept}


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
