"""Pairs weights by their position in a list, on request only."""

from collections.abc import Collection

import keras

from trainer.restore.keras_paths import Comparison
from trainer.restore.live import LiveNode, LiveVariable, trained_first
from trainer.restore.report import RestoreError
from trainer.restore.source import CheckpointSource, Entry, Node


def pairs_by_order(
    tree: LiveNode,
    weights: list[LiveVariable],
    paired: dict[LiveVariable, Entry],
    source: CheckpointSource,
    classes: Collection[str],
) -> tuple[dict[LiveVariable, Entry], set[Entry]]:
    """(entries for weights that have none yet, entries for what is no weight), from a list of the file.

    A list is where an entry's place alone says what it is. Random states stand in some of them.

    classes: names that Keras makes layer names from.
    paired: what structure and names have settled; a list must not contradict it.

    Such a list is `variables/0, 1, ...` of `model.export()`, `optimizer/trainable_variables/0, 1, ...`,
    `arr_0, arr_1, ...` of `np.savez`, or the layers of an `.h5` file. It fits if it has as many
    entries as the model has variables of that sort, and every shape, and every leaf name that the
    file knows, is equal. Raises `RestoreError` if none fits, or several do and differ.
    """
    lists = list(_lists(source))
    named = {id(weight.variable): weight for weight in weights}
    found: list[tuple[str, dict[LiveVariable, Entry]]] = []
    others: dict[str, set[Entry]] = {}
    reasons = []
    for place, entries in lists:
        refusals, ways = [], []
        for what, variables in _live_lists(tree, place):
            refusal = _difference(what, variables, entries, classes)
            pairs = {named[id(v)]: entry for v, entry in zip(variables, entries, strict=False) if id(v) in named}
            if not refusal and any(paired.get(weight, entry) is not entry for weight, entry in pairs.items()):
                refusal = "what it says contradicts the names in the file"
            refusals += [refusal] if refusal else []
            ways += [] if refusal else [(what, pairs)]
        if any(pairs != ways[0][1] for _, pairs in ways):
            refusals.append(
                f"it fits the {' and the '.join(what for what, _ in ways)}, which are in another order each"
            )
        elif ways:
            pairs = ways[0][1]
            found.append((place, {weight: entry for weight, entry in pairs.items() if weight not in paired}))
            others[place] = set(entries) - set(pairs.values())
            continue
        reasons.append(f"  {place}, {len(entries)} long: {refusals[-1]}")
    found = [(place, pairs) for place, pairs in found if pairs]
    if found:
        most = max(len(pairs) for _, pairs in found)
        best = [(place, pairs) for place, pairs in found if len(pairs) == most]
        if any(pairs != best[0][1] for _, pairs in best):
            raise RestoreError(
                f"match = 'order': several lists of {source.path} fit the model, and hold different weights: "
                f"{', '.join(place for place, _ in best)}. Ignore all but one, e.g. ignore = ['^{best[1][0]}/']."
            )
        return best[0][1], others[best[0][0]]
    if len(paired) == len(weights):
        return {}, set()
    raise RestoreError(
        f"match = 'order': no list in {source.path} has the model's {len(weights)} weights in their order; no variable "
        "was changed. " + ("Its lists:\n" + "\n".join(reasons) if reasons else "It holds no list.")
    )


def _lists(source: CheckpointSource) -> list[tuple[str, list[Entry]]]:
    """(place, entries) of everything in the file that is known by its number."""
    if source.top.layers is not None:
        flat = [node.entry for layer in source.top.layers for node in layer.flat or [] if node.entry]
        return [("the layers in their order", flat)] if flat else []
    found = []
    seen: set[int] = set()
    queue = [("", source.top)]
    for path, node in queue:
        if id(node) in seen:
            continue
        seen.add(id(node))
        queue += [(f"{path}/{name}".strip("/"), child) for name, child in node.children.items()]
        numbered = _numbered(node)
        if numbered and all(entry.kind in ("weight", "other") for entry in numbered):
            found.append((path or "arr", numbered))
    # model.export() writes its variables a second time, in no order.
    return [(path, entries) for path, entries in found if path.split("/")[-1] != "all_variables"]


def _numbered(node: Node) -> list[Entry]:
    numbers = {}
    for name, child in node.children.items():
        number = name.removeprefix("arr_")
        if not number.isdigit() or child.entry is None:
            return []
        numbers[int(number)] = child.entry
    return [numbers[index] for index in sorted(numbers)] if sorted(numbers) == list(range(len(numbers))) else []


def _live_lists(tree: LiveNode, place: str) -> list[tuple[str, list[keras.Variable]]]:
    """The model's variables in the orders that a list called so may have."""
    model = tree.layer
    assert model is not None
    trainable, others = trained_first(model.weights, tree)
    exact = {
        "variables": [("variables", model.variables)],
        "trainable_variables": [("trainable variables", trainable)],
        "non_trainable_variables": [("variables that are not trained", others)],
    }.get(place.split("/")[-1])
    return exact or [
        ("weights", model.weights),
        ("weights, trainable ones first,", trainable + others),
        ("variables", model.variables),
        ("trainable variables", trainable),
    ]


def _difference(what: str, variables: list[keras.Variable], entries: list[Entry], classes: Collection[str]) -> str:
    if len(variables) != len(entries):
        return f"the model has {len(variables)} {what}"
    names = [_known_name(entry) for entry in entries]
    for index, (variable, entry) in enumerate(zip(variables, entries, strict=True)):
        if tuple(variable.shape) != entry.shape:
            return f"number {index} is {entry.shape}, and {variable.path} {tuple(variable.shape)}"
        if names[index] and variable.path.split("/")[-1] != names[index].split("/")[-1]:
            return f"number {index} is called {names[index]}, and the model's is {variable.path}"
    compared = Comparison([variable.path for variable in variables], names, classes)
    for index, variable in enumerate(variables):
        if all(names) and compared.contradicts(index, index):
            return f"number {index} is called {names[index]}, and the model's is {variable.path}"
    return ""


def _known_name(entry: Entry) -> str:
    """What the variable was called by its writer, "" where the file has a number."""
    leaf = entry.label.split("/")[-1].removeprefix("arr_")
    return "" if leaf.isdigit() else entry.label
