"""Finds which layer of a file is which of the model, among layers that hold no variables."""

from collections.abc import Callable, Sequence

from trainer.restore.layer_state import LayerState, LiveState, first_difference, is_numbered
from trainer.restore.matching.names import join
from trainer.restore.matching.rules import Rules

Pairs = dict[LiveState, tuple[LayerState, str]]


def state_pairs(live: Sequence[LiveState], theirs: Sequence[LayerState], rules: Rules) -> Pairs:
    """{layer of the model: (layer of the file, a note on how they were paired)}.

    By the user's renames, the path, the name, the end of the path; what has no name in the file, by its place among
    the layers of its class where both sides have as many. What stays ambiguous is left out.
    """
    found: Pairs = {}

    def take(fits: Callable[[LiveState, LayerState], bool], note: str = "") -> None:
        taken = {id(state) for state, _ in found.values()}
        ours = [state for state in live if state not in found]
        left = [state for state in theirs if id(state) not in taken]
        pairs = [(mine, other) for mine in ours for other in left if _alike(mine, other) and fits(mine, other)]
        for mine, other in pairs:
            if sum(mine is a or other is b for a, b in pairs) == 1:
                found[mine] = (other, note)

    take(lambda mine, other: _renamed(other, mine, rules))
    take(lambda mine, other: mine.place == other.place and not _is_by_number(mine))
    take(lambda mine, other: mine.called != "" and mine.called == other.called)
    take(lambda mine, other: not _is_by_number(mine) and _ends(mine.place, other.place))
    _by_rank(live, theirs, found)
    take(lambda mine, other: other.layer_class == "" and _is_equal(mine, other), "the file has no names of its tables")
    return found


def _by_rank(live: Sequence[LiveState], theirs: Sequence[LayerState], found: Pairs) -> None:
    taken = {id(state) for state, _ in found.values()}
    groups: dict[tuple, list[LiveState]] = {}
    for mine in live:
        if mine not in found:
            groups.setdefault((mine.layer_class, *mine.values), []).append(mine)
    for ours in groups.values():
        fitting = [other for other in theirs if id(other) not in taken and _alike(ours[0], other)]
        known = all(other.layer_class for other in fitting)
        contradicted = any(mine.called for mine in ours) and any(other.called for other in fitting)
        if len(ours) == len(fitting) and (len(ours) == 1 or (known and not contradicted)):
            note = "by its place among the layers of its class" if len(ours) > 1 else "the only one of its class"
            found.update({mine: (other, note) for mine, other in zip(ours, fitting, strict=True)})
            taken |= {id(other) for other in fitting}


def _alike(mine: LiveState, other: LayerState) -> bool:
    is_kin = not other.values or not mine.values.keys().isdisjoint(other.values)
    return is_kin and other.layer_class in ("", mine.layer_class)


def _renamed(other: LayerState, mine: LiveState, rules: Rules) -> bool:
    names = [(join(other.place, what), join(mine.place, what)) for what in mine.values]
    return any(rules.renamed(theirs, theirs) == ours != theirs for theirs, ours in names)


def _is_by_number(state: LiveState) -> bool:
    """Whether Keras numbered the layer, so that an equal name is chance."""
    return is_numbered(state.place.rpartition("/")[2], state.layer_class)


def _ends(a: str, b: str) -> bool:
    return a.endswith(f"/{b}") or b.endswith(f"/{a}")


def _is_equal(mine: LiveState, other: LayerState) -> bool:
    shared = mine.values.keys() & other.values.keys()
    return all(first_difference(mine.values[what], other.values[what], mine.special_tokens) is None for what in shared)
