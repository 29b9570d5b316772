"""Pairs weights by their position in a list, on request only."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import keras
import tensorflow as tf

from trainer.restore.errors import RestoreError, UndecidedRestore
from trainer.restore.matching.keras_paths import Comparison, names_in_keras_2
from trainer.restore.matching.model_tree import LiveNode, LiveVariable
from trainer.restore.matching.names import matching_rule
from trainer.restore.matching.numbered_lists import NumberedList, file_lists, model_lists
from trainer.restore.matching.rules import Rules
from trainer.restore.source import CheckpointSource, Entry

Pairs = dict[LiveVariable, Entry]


def pairs_by_order(
    tree: LiveNode,
    weights: list[LiveVariable],
    paired: Pairs,
    source: CheckpointSource,
    classes: Collection[str],
    rules: Rules,
    names: Mapping[Entry, str],
) -> tuple[Pairs, set[Entry]]:
    """(entries for weights that have none yet, entries for what is no weight), from lists of the file.

    A list is where an entry's place alone says what it is. Random states stand in some of them.

    paired: what structure and names have settled; a list must not contradict it.
    classes: names that Keras makes layer names from.
    names: each entry's name in the report, for `ignore`.

    Such a list is `variables/0, 1, ...` of `model.export()`, `optimizer/trainable_variables/0, 1, ...`,
    `arr_0, arr_1, ...` of `np.savez`, or the layers of an `.h5` file. It fits if it has as many
    entries as the model has variables of that sort, and every shape, and every leaf name that the
    file knows, is equal. A weight that a rule starts fresh, or gives some rows, needs an equal number
    of axes only. Fresh weights and ignored entries may be left out of the count.
    Raises `RestoreError` if no list fits, `UndecidedRestore` if several do and differ.
    """
    if len(paired) == len(weights):
        return {}, set()
    named = {id(weight.variable): weight for weight in weights}
    search = _Search(tree, named, names_in_keras_2(tree.layer), paired, classes, rules, names)
    lists = file_lists(tree, source, rules.root)
    fits, reasons = [], []
    for listed in lists:
        fit = search.fit(listed)
        if isinstance(fit, str):
            reasons.append(f"  {listed.shown}, {len(listed.entries)} long: {fit}")
        else:
            fits.append(fit)
    wanted = [fit for fit in fits if not fit.is_ignored]
    chosen = _chosen(wanted, source, rules.ignore) or _chosen(fits, source, rules.ignore)
    if not chosen and not all(weight in paired or search.is_fresh(weight) for weight in weights):
        raise RestoreError(
            f"match = 'order': no list in {source.path} has the model's {len(weights)} weights in their order; "
            "no variable was changed. " + ("Its lists:\n" + "\n".join(reasons) if reasons else "It holds no list.")
        )
    pairs = {weight: entry for fit in chosen for weight, entry in fit.pairs.items()}
    others = {entry for fit in chosen for entry in fit.others}
    return pairs, others - set(pairs.values())


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A list that fits. pairs: of weights that have no entry yet.
    others: its entries for what is no weight."""

    listed: NumberedList
    pairs: Pairs
    others: set[Entry]
    is_ignored: bool


def _chosen(fits: Sequence[_Fit], source: CheckpointSource, ignore: Sequence[str]) -> list[_Fit]:
    """The longest list, and of the others what adds to it; raises `UndecidedRestore` where equally long ones differ."""
    chosen: list[_Fit] = []
    known: Pairs = {}
    while True:
        adding = [(len(fit.pairs.keys() - known.keys()), fit) for fit in fits if not _contradict(known, fit.pairs)]
        most = max((count for count, _ in adding), default=0)
        if not most:
            return chosen
        best = [fit for count, fit in adding if count == most]
        # Two that hold other weights each, trainable ones and the rest, do not differ.
        rivals = [fit for fit in best[1:] if _contradict(best[0].pairs, fit.pairs)]
        if rivals:
            raise _several([best[0], *rivals], source, ignore)
        chosen.append(best[0])
        known |= best[0].pairs


def _contradict(some: Pairs, others: Pairs) -> bool:
    holder = {entry: weight for weight, entry in some.items()}
    return any(
        some.get(weight, entry) is not entry or holder.get(entry, weight) is not weight
        for weight, entry in others.items()
    )


def _several(fits: list[_Fit], source: CheckpointSource, ignore: Sequence[str]) -> UndecidedRestore:
    choices: list[dict] = []
    for fit in fits:
        others = [f"^{other.listed.pattern}" for other in fits if other is not fit]
        choices.append({"root": fit.listed.place} if fit.listed.is_object else {"ignore": [*ignore, *others]})
    return UndecidedRestore(
        f"match = 'order': several lists of {source.path} fit the model, and hold different weights: "
        f"{', '.join(fit.listed.shown for fit in fits)}.",
        choices,
    )


@dataclasses.dataclass(frozen=True)
class _Search:
    """Lays lists of the file beside lists of the model.

    named: the weights by id of variable.
    older: names in Keras 2 by id of variable, where they differ.
    """

    tree: LiveNode
    named: dict[int, LiveVariable]
    older: dict[int, str]
    paired: Pairs
    classes: Collection[str]
    rules: Rules
    names: Mapping[Entry, str]

    def fit(self, listed: NumberedList) -> _Fit | str:
        """How a list fills the model, or why it does not."""
        refusals: list[str] = []
        for places in self._parts(listed):
            ways: list[tuple[str, Pairs]] = []
            for same_sort in model_lists(self.tree, listed.place):  # the next ones only where none of these fits
                for what, variables in self._with_and_without_fresh(same_sort):
                    refusal, pairs = self._way(what, variables, listed, places)
                    refusals += [refusal] if refusal else []
                    ways += [] if refusal else [(what, pairs)]
                if ways:
                    break
            if any(pairs != ways[0][1] for _, pairs in ways):
                return f"it fits the {' and the '.join(what for what, _ in ways)}, which are in another order each"
            if ways:
                pairs = ways[0][1]
                new = {weight: entry for weight, entry in pairs.items() if weight not in self.paired}
                ignored = [self._is_ignored(entry) for entry in new.values()]
                others = {listed.entries[place] for place in places} - set(pairs.values())
                return _Fit(listed, new, others, bool(ignored) and all(ignored))
        # That of a list of the right length says more than any number.
        return min(refusals, key=lambda refusal: refusal.startswith("the model has"), default="it is empty")

    def is_fresh(self, weight: LiveVariable | None) -> bool:
        return weight is not None and matching_rule(weight.name, self.rules.reinitialize) is not None

    def _is_ignored(self, entry: Entry) -> bool:
        return matching_rule((self.names.get(entry, entry.name), entry.name), self.rules.ignore) is not None

    def _parts(self, listed: NumberedList) -> list[list[int]]:
        """Places in the list: all, else those that are not ignored, else those of no random state."""
        everything = range(len(listed.entries))
        kept = [place for place in everything if not self._is_ignored(listed.entries[place])]
        weights = [place for place in everything if listed.entries[place].kind != "other"]
        parts = [list(everything), kept, weights]
        return [part for number, part in enumerate(parts) if part and part not in parts[:number]]

    def _with_and_without_fresh(self, lists):
        for what, variables in lists:
            yield what, variables
            kept = [v for v in variables if not self.is_fresh(self.named.get(id(v)))]
            if len(kept) < len(variables):
                yield f"{what} that do not start fresh", kept

    def _way(
        self, what: str, variables: list[keras.Variable], listed: NumberedList, places: list[int]
    ) -> tuple[str, Pairs]:
        entries, known = [listed.entries[place] for place in places], [listed.names[place] for place in places]
        refusal = self._difference(what, variables, entries, known)
        if refusal:
            return refusal, {}
        pairs = {self.named[id(v)]: entry for v, entry in zip(variables, entries, strict=True) if id(v) in self.named}
        if _contradict(self.paired, pairs):
            return "what it says contradicts the names in the file", {}
        return "", pairs

    def _difference(self, what: str, variables: list[keras.Variable], entries: list[Entry], known: list[str]) -> str:
        if len(variables) != len(entries):
            return f"the model has {len(variables)} {what}"
        for index, (variable, entry) in enumerate(zip(variables, entries, strict=True)):
            if not self._fits_shape(variable, entry):
                return f"number {index} is {entry.shape}, and {variable.path} {tuple(variable.shape)}"
            if tf.as_dtype(variable.dtype).is_floating != entry.dtype.is_floating:
                return f"number {index} is {entry.dtype.name}, and {variable.path} {variable.dtype}"
            if known[index] and known[index].split("/")[-1] not in (variable.name, self.older.get(id(variable))):
                return f"number {index} is called {known[index]}, and the model's is {variable.path}"
        compared = Comparison([variable.path for variable in variables], known, self.classes)
        for index, variable in enumerate(variables):
            if all(known) and compared.contradicts(index, index):
                return f"number {index} is called {known[index]}, and the model's is {variable.path}"
        return ""

    def _fits_shape(self, variable: keras.Variable, entry: Entry) -> bool:
        weight = self.named.get(id(variable))
        resized = (*self.rules.reinitialize, *self.rules.grow, *(pattern for pattern, _ in self.rules.copy_rows))
        if weight is not None and matching_rule(weight.name, resized) is not None:
            return len(variable.shape) == len(entry.shape)
        return tuple(variable.shape) == entry.shape
