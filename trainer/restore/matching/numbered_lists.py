"""Finds what a file knows by numbers only, and the orders in which a model's variables are listed."""

import dataclasses
import re
from collections.abc import Iterator

import keras

from trainer.keras_internals import own_variables
from trainer.restore.matching.model_tree import LiveNode, trained_first
from trainer.restore.matching.names import join
from trainer.restore.source import CheckpointSource, Entry, Node

_MAX_DEPTH = 20  # of lists in lists
_MAX_DIGITS = 9
_UNNAMED = re.compile(r"(Variable(_\d+)?)?")  # what TensorFlow calls a variable that was given no name
_LAYERS = "the layers in their order"


@dataclasses.dataclass(frozen=True)
class NumberedList:
    """Entries in the order of their numbers.

    place: path of the list.
    is_object: whether an object of the file stands there, which `root` can name.
    pattern: regex that the names of its entries, and of no other ones, begin with.
    names: each entry's name in the writer's program, "" where the file has a number only. All are "" where none of
      their leaves is a name in the model: the writer, Keras 1 for one, called things otherwise.
    """

    place: str
    is_object: bool
    pattern: str
    entries: list[Entry]
    names: list[str]

    @property
    def shown(self) -> str:
        return self.place or "(the top)"

    def without_names(self) -> "NumberedList":
        return dataclasses.replace(self, names=[""] * len(self.entries))


def file_lists(tree: LiveNode, source: CheckpointSource, root: str | None) -> list[NumberedList]:
    """The lists of a file, or those at and below `root`, that hold weights and nothing of an optimizer."""
    model = tree.layer
    assert isinstance(model, keras.Layer)
    found = [_layers(source.top)] if source.top.layers is not None else list(_all_lists(source.top, root))
    kinds = [{entry.kind for entry in listed.entries} for listed in found]
    known = {variable.name for variable in model.variables}
    return [
        listed.without_names() if known.isdisjoint(_leaf(name) for name in listed.names) else listed
        for listed, there in zip(found, kinds, strict=True)
        if "weight" in there and "optimizer" not in there
    ]


def model_lists(tree: LiveNode, place: str) -> list[list[tuple[str, list[keras.Variable]]]]:
    """(what they are, variables) in the orders that a list called so may have, the likeliest sort first."""
    model = tree.layer
    assert isinstance(model, keras.Layer)
    trained, others = trained_first(model.weights, tree)
    ids = {id(variable) for variable in trained}
    older = _as_keras_2_lists(model, ids)
    untrained = [variable for variable in model.variables if id(variable) not in ids]
    exact = {
        "variables": ("variables", model.variables),
        "trainable_variables": ("trainable variables", trained),
        "non_trainable_variables": ("variables that are not trained", untrained),
        _LAYERS: ("weights", _as_h5_lists(model, ids)),
    }.get(place.split("/")[-1])
    lists = [
        ("weights", model.weights),
        ("weights, trainable ones first,", trained + others),
        ("weights as Keras 2 lists them", older),
        ("variables", model.variables),
        ("trainable variables", trained),
        ("trainable variables as Keras 2 lists them", [variable for variable in older if id(variable) in ids]),
        ("variables that are trained now", model.trainable_variables),
        ("weights that are not trained", others),
        ("variables that are not trained", untrained),
    ]
    return [[exact], _different(lists)] if exact else [_different(lists)]


def _different(lists: list[tuple[str, list[keras.Variable]]]) -> list[tuple[str, list[keras.Variable]]]:
    """Each order once."""
    found: dict[tuple[int, ...], tuple[str, list[keras.Variable]]] = {}
    for what, variables in lists:
        found.setdefault(tuple(id(variable) for variable in variables), (what, variables))
    return [one for one in found.values() if one[1]]


def _as_keras_2_lists(layer: keras.Layer, trained: set[int]) -> list[keras.Variable]:
    """The parts of a model one after the other and its own variables last; a layer's trainable variables first."""
    if not isinstance(layer, keras.Model):
        return _trained_first(layer.weights, trained)
    own = own_variables(layer)
    inside = [variable for part in layer.layers for variable in _as_keras_2_lists(part, trained)]
    return list({id(variable): variable for variable in (*inside, *own)}.values())


def _as_h5_lists(model: keras.Layer, trained: set[int]) -> list[keras.Variable]:
    """The model's own variables, then those of each layer, whatever is in it, trainable ones first."""
    own = own_variables(model)
    layers = model.layers if isinstance(model, keras.Model) else []
    inside = [variable for layer in layers for variable in _trained_first(layer.weights, trained)]
    return list({id(variable): variable for variable in (*own, *inside)}.values())


def _trained_first(weights: list[keras.Variable], trained: set[int]) -> list[keras.Variable]:
    return sorted(weights, key=lambda variable: id(variable) not in trained)


def _layers(top: Node) -> NumberedList:
    """The variables of an old `.h5` file, of whose names only the leaves do not depend on the process."""
    nodes = [*top.own, *(node for layer in top.layers or [] for node in layer.flat or [])]
    entries = [node.entry for node in nodes if node.entry is not None]
    return NumberedList(_LAYERS, False, "", entries, [_leaf(entry.name) for entry in entries])


def _all_lists(top: Node, root: str | None) -> Iterator[NumberedList]:
    seen: set[int] = set()
    queue = [("", top, False)]
    for path, node, in_optimizer in queue:
        if id(node) in seen:
            continue
        seen.add(id(node))
        in_optimizer |= node.is_optimizer
        queue += [(join(path, name), child, in_optimizer) for name, child in node.children.items()]
        # model.export() writes its variables a second time, in no order.
        if path.split("/")[-1] != "all_variables" and (root is None or _is_below(path, root.strip("/"))):
            yield from _lists_in(path, node, in_optimizer)


def _is_below(path: str, root: str) -> bool:
    return not root or f"{path}/".startswith(f"{root}/")


def _lists_in(path: str, node: Node, in_optimizer: bool) -> Iterator[NumberedList]:
    """The lists among an object's children: `0, 1, ...`, `arr_0, arr_1, ...`, or items that are such lists."""
    numbered: dict[str, dict[int, Node]] = {}
    for name, child in node.children.items():
        stem = name.rstrip("0123456789")
        if 0 < len(name) - len(stem) < _MAX_DIGITS:
            numbered.setdefault(stem, {})[int(name[len(stem) :])] = child
    for stem, items in numbered.items():
        first, count = min(items), len(items)
        entries = _flat([items[number] for number in sorted(items)], set())
        if not entries or first > 1 or max(items) != first + count - 1:
            continue
        names = ["" if node.is_plain or _UNNAMED.fullmatch(_leaf(e.label)) else e.label for e in entries]
        if stem:
            place, pattern = join(path, stem.rstrip("_-.")), re.escape(join(path, stem)) + r"\d"
        else:
            place, pattern = path, re.escape(f"{path}/") if path else r"\d"
        yield NumberedList(place, not stem and bool(path) and not in_optimizer, pattern, entries, names)


def _flat(items: list[Node], seen: set[int], depth: int = 0) -> list[Entry] | None:
    """The entries of a list, and of the lists in it, each once; None where one of its items is something else."""
    found: list[Entry] = []
    for item in items:
        if id(item) in seen:
            continue
        seen.add(id(item))
        if item.entry is not None:
            found.append(item.entry)
            continue
        if depth == _MAX_DEPTH or not all(name.isdecimal() and len(name) < _MAX_DIGITS for name in item.children):
            return None
        inside = _flat([item.children[name] for name in sorted(item.children, key=int)], seen, depth + 1)
        if inside is None:
            return None
        found += inside
    return found


def _leaf(name: str) -> str:
    return name.split("/")[-1]
