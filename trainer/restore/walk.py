"""Walks the model's tree and a checkpoint's together and pairs what stands in the same place."""

import re
from collections.abc import Iterator

from trainer.restore.flat_layers import flat_pairs
from trainer.restore.layer_pairs import child_pairs
from trainer.restore.live import LiveNode, as_stored, class_name, paths
from trainer.restore.names import join
from trainer.restore.rules import Rules
from trainer.restore.source import Entry, Node

# What Keras 2 writes into a SavedModel beside a layer's parts: the same variables once more, by number.
_OTHER_VIEWS = {"variables", "trainable_variables", "non_trainable_variables", "keras_api"}


class Walk:
    """Walks of one model's tree along many objects; what it learns of a node it keeps."""

    def __init__(self, tree: LiveNode, rules: Rules, classes: frozenset[str]):
        self._tree = tree
        self._rules = rules
        self._live_at = dict(paths(tree)) if rules.rename else {}
        self._leaves: dict[LiveNode | Node, frozenset[str]] = {}
        self._classes = classes
        self.notes: dict[Entry, str] = {}
        self.twins: set[Entry] = set()
        self._shapes_of: dict[LiveNode, tuple] = {}

    def pairs_from(self, root: Node, place: str) -> tuple[dict[int, Entry], set[int]]:
        """({id of variable: entry} as seen from `root`, the ids that a rename rule led to)."""
        found: dict[int, Entry] = {}
        moved: set[int] = set()
        self.notes, self.twins = {}, set()  # of this walk alone
        if self._rules.rename:
            self._match_renamed(root, place, found, moved)
        by_rename = set(found)
        spoken_for = set(found.values())
        unchanged: dict[int, Entry] = {}
        self._match(self._tree, root, unchanged, set())
        for key, entry in unchanged.items():
            # A renamed entry must not come in by its old place as well.
            if id(entry) not in moved and entry not in spoken_for:
                found.setdefault(key, entry)
        return found, by_rename

    def _match_renamed(self, root: Node, place: str, found: dict[int, Entry], moved: set[int]) -> None:
        containers = []
        for path, node in nodes(root):
            end = "/" if node.entry is None else ""
            whole = join(place, path) if path else place
            name = path + end if path else ""
            new = self._rules.renamed(name, whole + end if whole else "")
            if new == name:
                continue
            target = self._live_at.get(new.rstrip("/"))
            if node.entry is not None:
                moved.add(id(node.entry))
                if target is not None and target.variable is not None:
                    found.setdefault(id(target.variable), node.entry)
            elif target is not None:
                containers.append((target, node))
        # A renamed layer brings what is in it by structure, where the full names differ further down.
        walked: set[tuple[int, int]] = set()
        taken = set(found.values())
        for target, node in containers:
            inner: dict[int, Entry] = {}
            self._match(target, node, inner, walked)
            for key, entry in inner.items():
                if id(entry) in moved and entry not in taken:
                    found.setdefault(key, entry)

    def _match(self, live: LiveNode, node: Node, found: dict[int, Entry], walked: set[tuple[int, int]]) -> None:
        if (id(live), id(node)) in walked or node.is_optimizer:
            return
        walked.add((id(live), id(node)))
        if live.variable is not None:
            if node.entry is not None and found.setdefault(id(live.variable), node.entry) is not node.entry:
                self.twins.add(node.entry)
            return
        if node.flat is not None and live.layer is not None:
            pairs, notes = flat_pairs(live, node, self._classes)
            self.notes |= notes
            if pairs:
                for key, entry in pairs.items():
                    found.setdefault(key, entry)
                return
        own = as_stored(live) if node.own else []
        known_by_name = {id(child) for child in node.children.values()} if own else set()
        if len(node.own) == len(own) and not any(id(variable) in known_by_name for variable in node.own):
            for child, other in zip(own, node.own, strict=True):
                self._match(child, other, found, walked)
        for child, other in child_pairs(live, node, self._leaf_names):
            note = self._note(live, child, other)
            known = set(found) if note else set()
            self._match(child, other, found, walked)
            if note:
                self.notes |= {entry: note for key, entry in found.items() if key not in known}

    def _note(self, parent: LiveNode, live: LiveNode, node: Node) -> str:
        """What a person should know of two layers that only their place paired."""
        if not live.given_name or live not in parent.in_order_set or live.given_name == node.keras_name:
            return ""
        if node.keras_name and not re.fullmatch(rf"{class_name(type(live.layer))}(_\d+)?", node.keras_name):
            return f"by its place among the layers, where the file calls the layer {node.keras_name}"
        alike = [layer for layer in parent.in_order or [] if self._shapes(layer) == self._shapes(live)]
        if len(alike) > 1 and parent.is_graph and not node.keras_name and live.children.get(live.given_name) is None:
            return "by its place among layers of equal shapes, of which the file has no names"
        return ""

    def _shapes(self, live: LiveNode) -> tuple:
        if live not in self._shapes_of:
            below = [part.variable for _, part in paths(live) if part.variable is not None]
            self._shapes_of[live] = tuple(sorted(tuple(variable.shape) for variable in below))
        return self._shapes_of[live]

    def _leaf_names(self, node: LiveNode | Node) -> frozenset[str]:
        """Names of the variables directly in a layer; for a layer of layers, of those below it."""
        if node not in self._leaves:
            self._leaves[node] = frozenset()  # an object that holds itself adds nothing
            parts = (node.children if isinstance(node, LiveNode) else node.parts()).items()
            own = [(name, part) for name, part in parts if name not in _OTHER_VIEWS]
            leaf = [name for name, part in own if _is_variable(part)]
            below = [] if leaf else [self._leaf_names(part) for _, part in own]
            self._leaves[node] = frozenset(leaf).union(*below)
        return self._leaves[node]


def _is_variable(node: LiveNode | Node) -> bool:
    return (node.variable if isinstance(node, LiveNode) else node.entry) is not None


def nodes(root: Node) -> Iterator[tuple[str, Node]]:
    """(shortest path, object) of everything below `root`, optimizers left out."""
    seen: set[int] = set()
    queue = [("", root)]
    for path, node in queue:
        if id(node) in seen or node.is_optimizer:
            continue
        seen.add(id(node))
        yield path, node
        queue += [(join(path, name), child) for name, child in node.parts().items()]
