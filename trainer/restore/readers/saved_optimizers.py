"""Knows an optimizer in a TensorFlow checkpoint by what it keeps, and which variable each of its slots belongs to.

TensorFlow writes no classes there; the lists and names in the file tell both.
"""

import re
from collections import Counter
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
_BY_SLOTS = {
    frozenset(slots.split()): kin
    for slots, kin in {
        "m v": "Adam or a kin",
        "m v vhat": "Adam with amsgrad",
        "momentums velocities": "Adam or a kin",
        "momentums velocities velocity_hats": "Adam with amsgrad",
        "momentums": "SGD with momentum, or Lion",
        "momentums u_product velocities": "Nadam",
        "adam_velocities momentums": "Muon",
        "c r v": "Adafactor",
        "momentum": "SGD with momentum",
        "velocities": "RMSprop",
        "rms": "RMSprop",
        "rms momentum": "RMSprop with momentum",
        "velocities momentums average_gradients": "RMSprop, centered",
        "accumulators": "Adagrad",
        "accumulator": "Adagrad",
        "accumulators linears": "Ftrl",
        "m u": "Adamax",
        "accumulated_grads accumulated_delta_vars": "Adadelta",
        # Of Sonnet, and of optimizers that a user wrote.
        "accumulated_momentum": "SGD with momentum",
        "mom ms": "RMSprop",
        "mg mom ms": "RMSprop, centered",
        "exp_avg exp_avg_sq": "Adam or a kin",
        "first_moments second_moments": "Adam or a kin",
        "mu nu": "Adam or a kin",
        "m": "SGD with momentum, or Lion",
        "velocity": "SGD with momentum",
    }.items()
}
_WITHOUT_STEP = {frozenset({"accumulated_momentum"}), frozenset({"mom", "ms"}), frozenset({"mg", "mom", "ms"})}
_NO_SLOTS = {"variables", "trainable_variables", "trainable_variables_indices", "exclude_layers"}


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


def looks_like_optimizer(children: dict[str, Node]) -> bool:
    """Whether an object has a step counter and a rate, and nothing but variables and flat lists of them.

    The names alone would take a user's Checkpoint(model=..., iter=..., learning_rate=...) for one.
    """
    names = set(children)
    if names & {"inner_optimizer", "base_optimizer"}:
        return True
    return bool(
        names & {"iterations", "iter"}
        and names & {"learning_rate", "variables", "current_learning_rate", "decay"}
        # The lists go by number; tf_keras keeps the parts of a loss scale by name.
        and all(
            name.isdigit() and not part.children
            for key, child in children.items()
            if key != "loss_scale" and not _holds_optimizers(key, child)
            for name, part in child.children.items()
        )
    )


def _holds_optimizers(name: str, node: Node) -> bool:
    """Whether it is the list of those that an optimizer in groups, or Keras' MultiOptimizer, is made of."""
    parts = node.children.values()
    is_list = name in ("optimizers", "inner_optimizers") and bool(parts)
    return is_list and all(looks_like_optimizer(part.children) for part in parts)


def plain_optimizers(nodes: list[Node], slots: list[Node]) -> list[Node]:
    """The objects that are optimizers of other libraries or of a user, as a `tf.Module` with lists `m` and `v`.

    nodes: all objects of a file.
    slots: those that the file calls slot variables.
    Such an optimizer holds scalars and lists of slots and no other object. It has lists of known names and a step
    counter, or is called an optimizer. The slots have the shapes of weights that stand elsewhere in the file, which
    tells it from a model with lists `m` and `v`.
    """
    named = {id(part) for node in nodes for name, part in node.children.items() if "optimizer" in name.lower()}
    found = [node for node in nodes if _has_slots_alone(node, id(node) in named)]
    # Nor do two models of one class, or Keras' slots of a model, make an optimizer of that model.
    known = [*found, *(node for node in nodes if node.is_optimizer)]
    state = {id(node.entry) for node in slots} | {id(entry) for node in known for entry in _entries_in(node)}
    elsewhere = Counter(node.entry.shape for node in nodes if node.entry is not None and id(node.entry) not in state)

    def has_weights(slots: list[Node]) -> bool:
        return Counter(slot.entry.shape for slot in slots if slot.entry) <= elsewhere

    return [node for node in found if all(map(has_weights, _lists_in(node).values()))]


def _has_slots_alone(node: Node, is_named: bool) -> bool:
    """Whether it holds scalars and lists of variables only. is_named: whether its name says that it is an optimizer."""
    lists = _lists_in(node)
    scalars = [part.entry for part in node.children.values() if part.entry is not None]
    names = frozenset(lists)
    is_known = names in _WITHOUT_STEP or (names in _BY_SLOTS and any(entry.dtype.is_integer for entry in scalars))
    return bool(
        lists
        and not node.is_optimizer
        and (is_named or is_known)
        and all(not entry.shape for entry in scalars)
        and all(part.entry is not None and not part.children for parts in lists.values() for part in parts)
        and (is_named or all(name.isdigit() for part in node.children.values() for name in part.children))
    )


def _lists_in(node: Node) -> dict[str, list[Node]]:
    return {name: list(part.children.values()) for name, part in node.children.items() if part.children}


def _entries_in(node: Node) -> Iterator[Entry]:
    """The variables in an object and in its lists."""
    for part in (node, *node.children.values()):
        yield from (child.entry for child in part.children.values() if child.entry is not None)


def optimizer_by_slots(node: Node, slot_names: list[str]) -> str:
    """Which optimizers keep the slots that this one has.

    slot_names: those that the file calls so, as Keras 2 writes them; else they are known by their lists.
    """
    for name, child in node.children.items():
        if _holds_optimizers(name, child):
            kins = dict.fromkeys(optimizer_by_slots(part, []) for part in child.children.values())
            return f"{len(child.children)} for groups of variables: {'; '.join(kins)}"
    lists = sorted(name for name, child in node.children.items() if child.children and name not in _NO_SLOTS)
    names = slot_names or lists
    if not names:
        return "one without slots, as plain SGD"
    kin = _BY_SLOTS.get(frozenset(names))
    return (f"{kin}, by its slots " if kin else "one with the slots ") + ", ".join(names)
