"""Lays the model's tree beside a checkpoint's object graph and pairs what stands in the same place."""

import dataclasses
import re
from collections.abc import Iterator

from trainer.restore.live import LiveNode, LiveVariable, paths
from trainer.restore.names import join, matching_rule
from trainer.restore.report import RestoreError
from trainer.restore.rules import Rules
from trainer.restore.source import CheckpointSource, Entry, Node


@dataclasses.dataclass(frozen=True)
class Match:
    """The object of the checkpoint that fits the model best.

    names: each entry that is not an optimizer's -> its name from that object, or from the file's top.
    pairs: id of a model's variable -> entry.  by_rename: the ids that a rename rule led to.
    moved: entries that a rule renamed; they go where the rule says or nowhere.
    """

    names: dict[Entry, str]
    pairs: dict[int, Entry]
    by_rename: set[int]
    moved: set[Entry]


def best_match(tree: LiveNode, weights: list[LiveVariable], source: CheckpointSource, rules: Rules) -> Match:
    """Walks the trees together from every object of the checkpoint and keeps the one that fits most weights.

    Raises `RestoreError` where two objects fit equally well and hold different weights; a rule that
    ignores one of them decides. Layers of Functional and Sequential models, which TensorFlow stores
    without their names, are paired by position where their number and all their variables' names
    agree; nothing else is ever paired by position or shape.
    """
    shapes = {id(weight.variable): weight.shape for weight in weights}
    walk = _Walk(tree, rules)
    best: tuple[tuple[int, ...], str, Node, dict[int, Entry]] | None = None
    rivals: list[str] = []
    for place, node in _objects(source.top):
        found, _ = walk.pairs_from(node, place)
        found = {key: entry for key, entry in found.items() if key in shapes}
        # What the user ignores counts last, so that it can settle a tie and still be used where all is ignored.
        wanted = {key: entry for key, entry in found.items() if not matching_rule(entry.name, rules.ignore)}
        score = _fit(wanted, shapes) + _fit(found, shapes)
        if best is None or score > best[0]:
            best, rivals = (score, place, node, found), []
        elif score == best[0] and found and set(found.values()) != set(best[3].values()):
            rivals.append(place)
    if best is None:
        raise RestoreError(
            f"{source.path} holds the state of an optimizer and no model beside it. "
            "Name a checkpoint that was written with the model in it."
        )
    score, place, root, found = best
    if rivals:
        raise RestoreError(_ambiguous(source, [place, *rivals], f"{score[-1]} of {len(weights)} variables"))
    by_rename = walk.pairs_from(root, place)[1]
    names = _names_from(root, [entry for entry in source.entries if entry.kind != "optimizer"])
    moved = {entry for entry, name in names.items() if rules.renamed(name, entry.name) != name}
    return Match(names, found, by_rename, moved)


def _fit(found: dict[int, Entry], shapes: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    """(pairs of equal shape, pairs)."""
    return sum(shapes[key] == entry.shape for key, entry in found.items()), len(found)


class _Walk:
    """Walks of one model's tree along many objects; what it learns of a node it keeps."""

    def __init__(self, tree: LiveNode, rules: Rules):
        self._tree = tree
        self._rules = rules
        self._live_at = dict(paths(tree)) if rules.rename else {}
        self._leaves: dict[LiveNode | Node, frozenset[str]] = {}

    def pairs_from(self, root: Node, place: str) -> tuple[dict[int, Entry], set[int]]:
        """({id of variable: entry} as seen from `root`, the ids that a rename rule led to)."""
        found: dict[int, Entry] = {}
        moved: set[int] = set()
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
        for path, node in _nodes(root):
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
            if node.entry is not None:
                found.setdefault(id(live.variable), node.entry)
            return
        for child, other in self._in_order(live, node) or _by_name(live, node):
            self._match(child, other, found, walked)

    def _in_order(self, live: LiveNode, node: Node) -> list[tuple[LiveNode, Node]]:
        """The weighted layers of two Functional or Sequential models side by side; nothing unless all fit."""
        if live.in_order is None:
            return []
        numbered = _numbered_layers(node)
        theirs = [layer for layer in numbered if self._leaf_names(layer)]
        ours = [layer for layer in live.in_order if self._leaf_names(layer)] if theirs else []
        if len(theirs) != len(ours):
            return []
        pairs = list(zip(ours, theirs, strict=True))
        return pairs if all(self._leaf_names(a) == self._leaf_names(b) for a, b in pairs) else []

    def _leaf_names(self, node: LiveNode | Node) -> frozenset[str]:
        """Names of the variables directly in a layer; for a layer of layers, of those below it."""
        if node not in self._leaves:
            self._leaves[node] = frozenset()  # an object that holds itself adds nothing
            leaf = [name for name, child in node.children.items() if _is_variable(child)]
            below = [] if leaf else [self._leaf_names(child) for child in node.children.values()]
            self._leaves[node] = frozenset(leaf).union(*below)
        return self._leaves[node]


def _is_variable(node: LiveNode | Node) -> bool:
    return (node.variable if isinstance(node, LiveNode) else node.entry) is not None


def _by_name(live: LiveNode, node: Node) -> list[tuple[LiveNode, Node]]:
    ours, theirs = live.children, node.children
    # From the smaller side: a model of a thousand layers is held against each small object of the file.
    names = [name for name in ours if name in theirs] if len(ours) < len(theirs) else [n for n in theirs if n in ours]
    return [(ours[name], theirs[name]) for name in names]


def _numbered_layers(node: Node) -> list[Node]:
    """The layers of a Functional or Sequential model in their order, as Keras 3 or Keras 2 wrote them."""
    node = node.children.get("functional", node)
    operations = node.children.get("operations") or node.children.get("layers")
    if operations is not None:
        numbered = {int(name): child for name, child in operations.children.items() if name.isdigit()}
    else:
        numbered = {
            int(name.rsplit("-", 1)[-1]): child
            for name, child in node.children.items()
            if re.fullmatch(r"layer_with_weights-\d+", name)
        }
    return [numbered[index] for index in sorted(numbered)]


def _objects(top: Node) -> Iterator[tuple[str, Node]]:
    """(place, object) of everything that could be a model: no variables, nothing of an optimizer."""
    for place, node in _nodes(top):
        if node.entry is None:
            yield place, node


def _nodes(root: Node) -> Iterator[tuple[str, Node]]:
    seen: set[int] = set()
    queue = [("", root)]
    for path, node in queue:
        if id(node) in seen or node.is_optimizer:
            continue
        seen.add(id(node))
        yield path, node
        queue += [(join(path, name), child) for name, child in node.children.items()]


def _names_from(root: Node, entries: list[Entry]) -> dict[Entry, str]:
    """Each entry's name from the chosen root, or from the file's top where the root does not lead to it."""
    names = {node.entry: path for path, node in _nodes(root) if node.entry is not None}
    # Our own train states keep what TensorFlow does not reach from the model under this name.
    return {entry: names.get(entry, entry.name).removeprefix("train_state/untracked/") for entry in entries}


def _ambiguous(source: CheckpointSource, places: list[str], fit: str) -> str:
    shown = [place or "(the top)" for place in places]
    others = [f"^{re.escape(place)}/" for place in places[1:]]
    return (
        f"{source.path} holds {len(places)} things that fit the model equally well, {fit} each: {', '.join(shown)}. "
        f"Say which by ignoring the rest. For {shown[0]}:\n  train.ignore = {others}"
        + (f"\nFor {shown[1]}:\n  train.ignore = {[f'^{re.escape(places[0])}/', *others[1:]]}" if places[0] else "")
    )
