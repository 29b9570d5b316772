"""Makes a tree of the writer's objects from the names in a file that has nothing else."""

import re
from collections import Counter
from collections.abc import Iterable

from trainer.restore.matching.names import join, normalize_siblings
from trainer.restore.source import Entry, Node


def tree_of_names(entries: Iterable[Entry], separator: str = "/") -> Node:
    """A tree from the entries' keys alone; sets each entry's `name` by its place in it, `label` and `is_torch`.

    A name is the key without the `:0` that TensorFlow 1 puts at its end, unless another key is just that.
    """
    top = Node()
    entries = list(entries)
    counts = Counter(entry.key.removesuffix(":0") for entry in entries)
    is_torch = any(entry.key.endswith(".weight") for entry in entries)
    for entry in entries:
        node = top
        short = entry.key.removesuffix(":0")
        key = short if counts[short] == 1 else entry.key
        entry.label = key.replace(separator, "/")
        entry.is_torch = is_torch and is_named_weight(key)
        for segment in key.split(separator):
            node = node.children.setdefault(segment, Node())
        node.entry = entry
    queue = [("", top)]
    for path, node in queue:
        node.is_plain = True
        if node.entry is not None:
            node.entry.name = path
        spelled = node.spelled = normalize_siblings(node.children)
        node.children = {spelled[name]: child for name, child in node.children.items()}
        queue += [(join(path, name), child) for name, child in node.children.items()]
    return top


def is_named_weight(key: str) -> bool:
    """Whether PyTorch may have given a matrix this name: `fc.weight`, `in_proj_weight`, `lstm.weight_ih_l0`."""
    return bool(re.search(r"(^|[._/])weight(_[a-z]+_l\d+(_reverse)?)?$", key))
