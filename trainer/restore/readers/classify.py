"""Tells a TensorFlow checkpoint's weights from its optimizer state, its counters and the rest."""

from trainer.restore.matching.names import join
from trainer.restore.readers.named_slots import mark_named_slots
from trainer.restore.source import CheckpointSource, Entry, Node

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
