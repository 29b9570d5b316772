"""Knows an optimizer in a checkpoint by what it keeps; TensorFlow writes no classes there."""

from collections import Counter
from collections.abc import Iterator

from trainer.restore.source import Entry, Node

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

    nodes: all objects of a file.  slots: those that the file calls slot variables.
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
