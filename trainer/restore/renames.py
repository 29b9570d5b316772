"""Finds which weights of a file may be meant for which variables of the model, and the renames that would pair them."""

import collections
import dataclasses
import difflib
import os
import re
from collections.abc import Collection, Iterable, Sequence

import tensorflow as tf

from trainer.restore.casts import castable
from trainer.restore.matching.names import join
from trainer.restore.report import Record

Home = tuple[list[Record], list[Record]]  # variables of the model, weights of the file
MAX_KIN = 100  # beyond, so many variables look alike that a guess says nothing, and comparing them takes seconds
Move = tuple[str, str]  # (prefix of names in the file, prefix of names in the model)
Votes = dict[Move, set[tuple[str, str]]]  # the (file's name, model's name) pairs that a move would make

_NUMBERED = "(a number)"  # the leaf of what a file knows by its place in its layer only
_MIN_RATIO = 0.6  # of two names that are alike, as difflib measures it
_MIN_COLLAPSED = 3  # so many rules that differ in their numbers only become one


def possible_homes(wanted: Sequence[Record], spare: Sequence[Record]) -> list[Home]:
    """(variables of one layer, unused weights of one layer of the file) that may belong together.

    The weights' shapes are among those of the variables, or the other way round, and so are their names; or the
    layers have one name; or all shapes agree. A variable in here must not stay fresh, and a weight must not stay
    behind, unless the user says so.
    """
    theirs = [_Layer.of(name, records, "checkpoint_shape") for name, records in _by_layer(spare)]
    at: dict[tuple, list[_Layer]] = {}
    for layer in theirs:
        for shape in layer.shapes:
            at.setdefault(shape, []).append(layer)
    found = []
    for name, records in _by_layer(wanted):
        ours = _Layer.of(name, records, "shape")
        near = {other.name: other for shape in ours.shapes for other in at.get(shape, [])[:MAX_KIN]}
        found += [(records, other.records) for other in near.values() if ours.may_be(other)]
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Layer:
    """The weights that stand directly in one layer.

    shapes: how many weights have each of them.
    leaves: their last names.
    """

    name: str
    records: list[Record]
    shapes: collections.Counter[tuple]
    leaves: frozenset[str]

    @classmethod
    def of(cls, name: str, records: list[Record], shape: str) -> "_Layer":
        leaves = frozenset(record.name.split("/")[-1] for record in records)
        return cls(name, records, collections.Counter(getattr(record, shape) for record in records), leaves)

    def may_be(self, other: "_Layer") -> bool:
        numbered = all(leaf.isdigit() for leaf in other.leaves)
        if is_in_bare_list(other.records[0].name):
            return True
        if not (self.shapes <= other.shapes or other.shapes <= self.shapes):
            return False
        same_layer = self.name.split("/")[-1] == other.name.split("/")[-1] != ""
        same_shapes = self.shapes == other.shapes and len(self.records) > 1
        return numbered or self.leaves <= other.leaves or other.leaves <= self.leaves or same_layer or same_shapes


def _by_layer(records: Sequence[Record]) -> Iterable[tuple[str, list[Record]]]:
    layers: dict[str, list[Record]] = {}
    for record in records:
        layers.setdefault(record.name.rpartition("/")[0], []).append(record)
    return layers.items()


def is_in_bare_list(name: str) -> bool:
    """Whether a name of the file is a mere number, as `model.export()` and `np.savez(*arrays)` write them."""
    return bool(re.search(r"(^|/)\w*variables/\d+$|^arr_\d+$", name))


def same_kind(record: Record, other: Record | None = None) -> bool:
    """Whether the file's dtype (of `other`, or of the record itself) may be cast to the model's."""
    assert record.dtype is not None and (other or record).checkpoint_dtype is not None
    ours, theirs = tf.as_dtype(record.dtype), tf.as_dtype((other or record).checkpoint_dtype)
    return castable(theirs, ours)


def likely_renames(wanted: Sequence[Record], spare: Sequence[Record], kept: Collection[str]) -> list[tuple[str, str]]:
    """(pattern, replacement) pairs that bring unused weights of the file to variables of their name and shape.

    wanted: variables without a weight.
    spare: weights without a variable.
    kept: names of what is restored already; no pattern matches one of them.

    Each pair moves a whole prefix, and the prefix that explains most weights comes first. Among several that explain
    equally many the spelling decides, and only where it decides for all of them: else the layers of one shape could
    be shifted by one.
    """
    numbered = _rows([record.name for record in spare] + list(kept)) | _rows([r.name for r in wanted] + list(kept))
    start = os.path.commonprefix([record.name for record in spare]).rpartition("/")[0]
    moves = _decided(_votes(wanted, spare), start)
    moves = {move: pairs for move, pairs in moves.items() if not _shifts(move, numbered)}
    moves = {part: pairs for move, pairs in moves.items() for part, pairs in _narrowed(move, pairs, kept).items()}
    return _collapsed(moves, [*kept, *(record.name for record in spare)])


def _votes(wanted: Sequence[Record], spare: Sequence[Record]) -> Votes:
    homes: dict[tuple, list[Record]] = {}
    for record in wanted:
        for leaf in (record.name.split("/")[-1], _NUMBERED):
            homes.setdefault((leaf, record.shape), []).append(record)
    weights: dict[tuple, list[Record]] = {}
    for record in spare:
        if not is_in_bare_list(record.name):
            leaf = record.name.split("/")[-1]
            weights.setdefault((_NUMBERED if leaf.isdigit() else leaf, record.checkpoint_shape), []).append(record)
    votes: Votes = {}
    for kind, entries in weights.items():
        for entry, kin in _kin(entries, homes.get(kind, [])):
            for variable in kin:
                move = _move(entry.name, variable.name)
                if move[0] != move[1] and same_kind(variable, entry):
                    votes.setdefault(move, set()).add((entry.name, variable.name))
    return votes


def _kin(entries: list[Record], variables: list[Record]) -> list[tuple[Record, list[Record]]]:
    """(entry, variables that it may be) of one shape and leaf; of very many, those that have the entry's numbers."""
    if len(variables) <= MAX_KIN:
        return [(entry, variables) for entry in entries]
    numbered: dict[str, list[Record]] = {}
    for variable in variables:
        numbered.setdefault(str(_numbers(variable.name)), []).append(variable)
    found = [(entry, numbered.get(str(_numbers(entry.name)), [])) for entry in entries]
    decides = len(entries) == len(variables) and all(0 < len(kin) <= MAX_KIN for _, kin in found)
    return found if decides else []


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def _move(theirs: str, ours: str) -> Move:
    a, b = theirs.split("/"), ours.split("/")
    if a[-1].isdigit():  # known by its place in its layer: who renames the layer brings all that is in it
        a, b = a[:-1], b[:-1]
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return "/".join(a), "/".join(b)


def _rows(names: Iterable[str]) -> set[str]:
    """Prefixes, with 0 for each number in their last part, of which there are several: `encoder/layer_0`."""
    prefixes = {"/".join(parts[:n]) for parts in (name.split("/") for name in names) for n in range(1, len(parts))}
    counts = collections.Counter(_without_number(prefix) for prefix in prefixes)
    return {prefix for prefix, count in counts.items() if count > 1}


def _without_number(prefix: str) -> str:
    parent, slash, last = prefix.rpartition("/")
    return parent + slash + re.sub(r"\d+", "0", last)


def _shifts(move: Move, rows: set[str]) -> bool:
    """Whether a layer would take another place in a row of layers: `layer_4` that of `layer_3`."""
    theirs, ours = move
    a, b = theirs.rpartition("/")[2], ours.rpartition("/")[2]
    is_apart = a != b and _without_number(a) == _without_number(b)
    return is_apart and not rows.isdisjoint((_without_number(theirs), _without_number(ours)))


def _decided(votes: Votes, start: str) -> Votes:
    """The moves that have no equal rival, those that bring most first; `start` of all names tells no two apart."""
    chosen: Votes = {}
    left = {move: set(pairs) for move, pairs in votes.items()}
    while left:
        most = max(_brought(pairs) for pairs in left.values())
        top = {move: pairs for move, pairs in left.items() if _brought(pairs) == most}
        for group in _rivals(top):
            chosen |= {move: top[move] for move in _spelled_alike(group, start)}
        # What is undecided at the top is not decided by what brings less.
        settled = {name for pairs in top.values() for name, _ in pairs}
        filled = {name for pairs in top.values() for _, name in pairs}
        left = {
            move: rest
            for move, pairs in left.items()
            if (rest := {pair for pair in pairs if pair[0] not in settled and pair[1] not in filled})
        }
    return chosen


def _brought(pairs: set[tuple[str, str]]) -> int:
    return min(len({name for name, _ in pairs}), len({name for _, name in pairs}))


def _rivals(moves: Votes) -> list[list[Move]]:
    """The moves in groups, where those of one group want the same weights or the same variables."""
    wanting: dict[tuple[str, str], list[Move]] = {}
    for move, pairs in moves.items():
        for theirs, ours in pairs:
            wanting.setdefault(("theirs", theirs), []).append(move)
            wanting.setdefault(("ours", ours), []).append(move)
    groups, seen = [], set()
    for move in moves:
        group = []
        queue = [move]
        for other in queue:
            if other not in seen:
                seen.add(other)
                group.append(other)
                ends = [end for theirs, ours in moves[other] for end in (("theirs", theirs), ("ours", ours))]
                queue += [rival for end in ends for rival in wanting.pop(end, [])]
        groups += [group] if group else []
    return groups


def _spelled_alike(moves: list[Move], start: str) -> list[Move]:
    """One move for each prefix of the side that has fewer of them; none where the spelling leaves one open."""
    if len(moves) == 1:
        return moves
    counts = [len({move[side] for move in moves}) for side in (0, 1)]
    side = 0 if counts[0] <= counts[1] else 1
    numbers_count = counts[0] == counts[1]  # else one side may have been numbered from another start
    chosen = []
    for prefix in dict.fromkeys(move[side] for move in moves):
        likeness = {move: _likeness(*move, start, numbers_count) for move in moves if move[side] == prefix}
        best, second = (sorted(likeness.values(), reverse=True) + [(0, 0.0)])[:2]
        if best[0] == second[0] and (best == second or best[1] < _MIN_RATIO):
            return []
        chosen += [move for move, alike in likeness.items() if alike == best]
    return chosen if len({move[1 - side] for move in chosen}) == len(chosen) else []


def _likeness(theirs: str, ours: str, start: str, numbers_count: bool) -> tuple[int, float]:
    """(how many reasons there are to take two prefixes for one layer, how alike they are spelled)."""
    return max(_compared(name, ours, numbers_count) for name in (theirs, theirs.removeprefix(f"{start}/")))


def _compared(theirs: str, ours: str, numbers_count: bool) -> tuple[int, float]:
    a, b = theirs.split("/"), ours.split("/")
    num_shared = len(os.path.commonprefix([a, b]))
    a, b = a[num_shared:], b[num_shared:]
    words, other_words = (set(re.findall(r"[a-zA-Z]+|\d+", "/".join(rest))) for rest in (a, b))
    is_part = bool(words and other_words) and (words <= other_words or other_words <= words)
    same_numbers = numbers_count and _numbers(theirs) == _numbers(ours) != []
    ratio = difflib.SequenceMatcher(None, "/".join(a), "/".join(b)).ratio()
    return num_shared + is_part + same_numbers, ratio


def _narrowed(move: Move, pairs: set[tuple[str, str]], kept: Collection[str]) -> Votes:
    """The move, or moves of longer prefixes where it would take along what is in its place already."""
    theirs, ours = move
    before = f"{theirs}/" if theirs else ""
    if not any(name.startswith(before) for name in kept):
        return {move: pairs}
    longer: Votes = {}
    for name, home in sorted(pairs):
        rest = name.removeprefix(before).split("/")
        if rest[0].isdigit() and len(rest) == 1:
            return {}  # a place in a layer that is there in part
        longer.setdefault((join(theirs, rest[0]), join(ours, rest[0])), set()).add((name, home))
    found: Votes = {}
    for part, those in longer.items():
        is_whole = any(part[0] == name for name, _ in those)
        found |= {part: those} if is_whole else _narrowed(part, those, kept)
    return found


def _collapsed(moves: Votes, names: Iterable[str]) -> list[tuple[str, str]]:
    """The moves as rules; those that differ in their numbers only as one rule."""
    alike: dict[tuple[str, str], list[Move]] = {}
    for move, pairs in moves.items():
        numbers = _numbers(move[0])
        form = _rule(move, pairs)
        if numbers and numbers == _numbers(move[1]):
            form = re.sub(r"\d+", r"(\\d+)", form[0]), _referring(form[1])
        alike.setdefault(form, []).append(move)
    rules = []
    names = list(names)
    for form, members in alike.items():
        meant = {name for move in members for name, _ in moves[move]}
        prefixes = tuple(f"{theirs}/" for theirs, _ in members)
        others = [name for name in names if name not in meant and not name.startswith(prefixes)]
        if len(members) >= _MIN_COLLAPSED and not any(re.search(form[0], name) for name in others):
            rules.append(form)
        else:
            rules += [_rule(move, moves[move]) for move in members]
    return sorted(rules, key=lambda rule: -rule[0].count("/"))  # the first that fits is used: the longest come first


def _referring(replacement: str) -> str:
    """With a reference to the pattern's groups, one after the other, in place of each number."""
    parts = re.split(r"\d+", replacement)
    return parts[0] + "".join(f"\\g<{group}>{part}" for group, part in enumerate(parts[1:], 1))


def _rule(move: Move, pairs: set[tuple[str, str]]) -> tuple[str, str]:
    theirs, ours = move[0], move[1].replace("\\", r"\\")
    if any(name == theirs for name, _ in pairs):
        return f"^{re.escape(theirs)}$", ours
    return f"^{re.escape(theirs)}/" if theirs else "^", f"{ours}/" if ours else ""
