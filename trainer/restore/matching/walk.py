"""Walks the model's tree and a checkpoint's together and pairs what stands in the same place."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from trainer.restore.matching.layers import child_pairs, flat_pairs
from trainer.restore.matching.model_tree import LiveNode, numbered_paths, paths, paths_by_rank
from trainer.restore.matching.names import join
from trainer.restore.matching.rules import Rules
from trainer.restore.report import Pairing
from trainer.restore.source import Entry, Node

_FROM_STRONG_TO_WEAK = [Pairing.BY_PATH, Pairing.BY_NAME, Pairing.BY_PLACE, Pairing.BY_ORDER]
# What Keras 2 writes into a SavedModel beside a layer's parts: the same variables once more, by number.
_OTHER_VIEWS = {"variables", "trainable_variables", "non_trainable_variables", "keras_api"}


class Walk:
    """Walks of one model's tree along many objects; what it learns of a node it keeps."""

    def __init__(self, tree: LiveNode, rules: Rules, classes: frozenset[str]):
        self._tree = tree
        self._rules = rules
        # Keras' numbers differ between processes, and a rule should not: `dense/` is the first Dense in each.
        self._live_at = dict(paths_by_rank(tree)) | dict(paths(tree)) if rules.rename else {}
        self._numbered = numbered_paths(tree) if rules.rename else set()
        self._leaves: dict[LiveNode | Node, frozenset[str]] = {}
        self._classes = classes
        self.ways: dict[Entry, Pairing] = {}
        self.twins: dict[Entry, Entry] = {}
        self.disputed: set[int] = set()
        self._kinds: dict[LiveNode | Node, tuple] = {}

    def pairs_from(self, root: Node, place: str) -> tuple[dict[int, Entry], set[int]]:
        """({id of variable: entry} as seen from `root`, the ids that a rename rule led to)."""
        found: dict[int, Entry] = {}
        moved: set[int] = set()
        self.ways, self.twins = {}, {}  # of this walk alone
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
            target = None if self._is_chance(name, new) else self._live_at.get(new.rstrip("/"))
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

    def _is_chance(self, name: str, new: str) -> bool:
        """Whether a name leads by a number that Keras gave in this process, and that no rule wrote."""
        segments = new.rstrip("/").split("/")
        written = _segments_before_common_end(segments, name.rstrip("/").split("/"))
        ends = range(written + 1, len(segments) + 1)
        return any("/".join(segments[:end]) in self._numbered for end in ends)

    def _match(
        self,
        live: LiveNode,
        node: Node,
        found: dict[int, Entry],
        walked: set[tuple[int, int]],
        way: Pairing = Pairing.BY_PATH,
    ) -> None:
        if (id(live), id(node)) in walked or node.is_optimizer:
            return
        walked.add((id(live), id(node)))
        if live.variable is not None:
            if node.entry is not None:
                self._take(id(live.variable), node.entry, found, way)
            return
        if node.flat is not None and live.layer is not None:
            pairs, places = flat_pairs(live, node, self._classes)
            for key, entry in pairs.items():
                step = Pairing.BY_PLACE if entry in places else Pairing.BY_NAME
                self._take(key, entry, found, _weaker(way, step))
            if pairs:
                return
        own = as_stored(live) if node.own else []
        known_by_name = {id(child) for child in node.children.values()} if own else set()
        if len(node.own) == len(own) and not any(id(variable) in known_by_name for variable in node.own):
            for child, other in zip(own, node.own, strict=True):
                self._match(child, other, found, walked, _weaker(way, Pairing.BY_PLACE))
        parts, disputed = child_pairs(live, node, self._leaf_names, self._kind)
        if self._rules.match == "order":
            parts += [(layer, other, Pairing.BY_ORDER) for layer, other in disputed]
        for layer, _ in disputed:
            self.disputed |= {id(part.variable) for _, part in paths(layer) if part.variable is not None}
        for child, other, step in parts:
            self._match(child, other, found, walked, _weaker(way, step))

    def _take(self, key: int, entry: Entry, found: dict[int, Entry], way: Pairing) -> None:
        """key: id of the model's variable."""
        first = found.setdefault(key, entry)
        if first is not entry:
            self.twins[entry] = first
        else:
            self.ways.setdefault(entry, way)

    def _kind(self, node: LiveNode | Node) -> tuple:
        """Names and shapes of all variables in a layer and its parts."""
        if node not in self._kinds:
            self._kinds[node] = tuple(sorted(_variables_below(node)))
        return self._kinds[node]

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


def _segments_before_common_end(one: list[str], other: list[str]) -> int:
    common = 0
    while common < min(len(one), len(other)) and one[-1 - common] == other[-1 - common]:
        common += 1
    return len(one) - common


def _variables_below(node: LiveNode | Node) -> Iterator[tuple[str, tuple[int, ...]]]:
    everything = paths(node) if isinstance(node, LiveNode) else nodes(node)
    for path, part in everything:
        if isinstance(part, LiveNode) and part.variable is not None:
            yield path.split("/")[-1], tuple(part.variable.shape)
        elif isinstance(part, Node) and part.entry is not None and part.entry.kind in ("weight", "counter"):
            yield path.split("/")[-1], part.entry.shape


def _weaker(one: Pairing, other: Pairing) -> Pairing:
    """The less specific of two steps on the way to a variable."""
    return max(one, other, key=_FROM_STRONG_TO_WEAK.index)


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


def as_stored(node: LiveNode) -> list[LiveNode]:
    """A layer's own variables in the order in which Keras' `.weights.h5` files number them.

    Quantized layers and those with LoRA leave some out or write them in another order; they are
    asked, and what they compute for the file is known by its shape.
    """
    layer = node.layer
    if layer is None or type(layer).save_own_variables is keras.Layer.save_own_variables:
        return node.own
    store: dict[str, Any] = {}
    try:
        layer.save_own_variables(store)
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError):
        return node.own  # the user's own way to save, which asks for more than a dict
    if not all(key.isdigit() for key in store):
        return node.own
    left = {id(part.variable): part for part in node.own}
    shapes = {id(variable): tuple(variable.shape) for variable in layer.weights}
    found: dict[str, LiveNode] = {}
    for key, value in store.items():
        if id(value) in left:
            found[key] = left.pop(id(value))
    for key in (key for key in store if key not in found):
        alike = [part for part in left.values() if shapes.get(id(part.variable)) == tuple(np.shape(store[key]))]
        if len(alike) != 1:
            return node.own
        found[key] = left.pop(id(alike[0].variable))
    return [found[key] for key in sorted(found, key=int)]
