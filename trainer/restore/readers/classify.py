"""Tells weights from optimizer slots, counters and the rest, by the marks that each library leaves."""

import re
from collections import Counter
from collections.abc import Iterator

from trainer.restore.names import join, normalize
from trainer.restore.readers.hdf5 import UNREADABLE, Group
from trainer.restore.readers.optimizer_slots import mark_named_slots
from trainer.restore.source import CheckpointSource, Entry, Node

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


_METRICS = ("compile_metrics", "loss_tracker", "metrics")
_OPTIMIZERS = (
    "adadelta", "adafactor", "adagrad", "adam", "adam_w", "adamax", "ftrl", "lamb", "lion", "loss_scale_optimizer",
    "muon", "nadam", "rmsprop", "schedule_free_adam_w", "sgd",
)  # fmt: skip
_SEED = re.compile(r"(.*_)?seed_generator(_\d+)?")


def variable_kind(entry: Entry, is_seed: bool = False) -> str:
    """The kind of a variable that belongs to a layer."""
    if entry.dtype == UNREADABLE or (is_seed and entry.dtype.is_integer):
        return "other"
    return "counter" if entry.dtype.is_integer and not entry.shape else "weight"


def is_seed_name(name: str) -> bool:
    return bool(_SEED.fullmatch(name))


def kind_of_part(attribute: str, group: Group) -> str:
    """The kind of all that an attribute of a model holds, "" where each variable in it says its own."""
    if is_optimizer(attribute, group):
        return "optimizer"
    name = normalize(attribute)
    # Metrics that a model keeps under names of its own, such as `total_loss_tracker`.
    is_metric = name.endswith(("_metric", "_tracker")) and _are_scalars(group)
    return "other" if name in _METRICS or is_metric else ""


def is_optimizer(name: str, group: Group) -> bool:
    """An optimizer's first variable is a scalar, its step; a layer of such a name has a kernel there.

    name: of the attribute, or of the class in a list.
    """
    variables = group.groups.get("vars", Group(""))
    first = variables.entries.get("0")
    by_name = normalize(name) == "optimizer" or name.endswith("_optimizer")
    if first is None:
        return by_name and any(is_optimizer(inner, part) for inner, part in group.groups.items() if inner != "vars")
    if by_name:
        return not first.shape
    by_class = variables.keras_name in _OPTIMIZERS or re.sub(r"_\d+$", "", name) in _OPTIMIZERS
    return by_class and not first.shape and first.dtype.is_integer


def _are_scalars(group: Group) -> bool:
    entries = group.groups["vars"].entries.values() if "vars" in group.groups else ()
    return not set(group.groups) - {"vars"} and all(not entry.shape for entry in entries)


_BOOKKEEPING = {"loss_tracker", "compile_metrics", "metrics", "keras_api", "seed_generators", "seed_generator"}
_OUR_COPIES = "train_state/ema_weights"  # of weights that stand in the file already; `root` can name them


def classify(source: CheckpointSource, slots: list[Node]) -> list[Entry]:
    """Every entry of the tree once, with its kind and name set.

    slots: objects that the file calls slot variables.
    Weights are what is reached without passing an optimizer, or as an optimizer's own variables list.
    The second case matters: TensorFlow names a tensor by its *shortest* path, so that a model's
    weights may stand in the file as `optimizer/_trainable_variables/N` only.
    """
    slot_ids = {id(node) for node in slots}
    seen: set[int] = set()
    entries: list[Entry] = []
    optimizers: list[tuple[str, Node]] = []

    def walk(top: Node, path: str, kind: str) -> None:
        queue = [(top, path, kind)]
        for node, path, kind in queue:
            if id(node) in seen or id(node) in slot_ids:
                continue
            if node.is_optimizer and kind != "optimizer":
                optimizers.append((path, node))
                continue
            seen.add(id(node))
            if node.entry:
                node.entry.name = path
                node.entry.kind = _kind(node.entry, path, kind)
                entries.append(node.entry)
            for name, child in node.children.items():
                below = join(path, name)
                queue.append((child, below, "other" if name in _BOOKKEEPING or below == _OUR_COPIES else kind))

    if {"variables", "trainable_variables", "all_variables", "signatures"} <= set(source.top.children):
        # model.export() writes each variable a second time, in no order.
        walk(source.top.children["variables"], "variables", "weight")
        walk(source.top.children["all_variables"], "all_variables", "other")
    walk(source.top, "", "weight")
    for path, optimizer in _with_inner(optimizers):
        variables = optimizer.children.get("trainable_variables")
        if variables is not None:
            walk(variables, join(path, "trainable_variables"), "weight")
    for path, optimizer in optimizers:
        walk(optimizer, path, "optimizer")
    for node in slots:
        if node.entry:
            node.entry.kind = "optimizer"
            entries.append(node.entry)
    if source.top.is_plain:  # there are no objects to tell an optimizer by
        mark_named_slots(source.top, entries)
    return entries


def _with_inner(optimizers: list[tuple[str, Node]]) -> list[tuple[str, Node]]:
    """The optimizers, each followed by the one that it wraps (loss scaling, averaging)."""
    found = list(optimizers)
    for path, optimizer in found:
        found += [
            (join(path, name), child)
            for name, child in optimizer.children.items()
            if child.is_optimizer and all(child is not known for _, known in found)
        ]
    return found


def _kind(entry: Entry, path: str, kind: str) -> str:
    if kind != "weight":
        return kind
    if "seed_generator_state" in (entry.name.split("/")[-1], entry.label.split("/")[-1]):
        return "other"
    counts = not entry.shape and entry.dtype.is_integer
    return "counter" if counts or path.split("/")[-1] in ("save_counter", "global_step") else "weight"
