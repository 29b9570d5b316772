"""Decides, without touching a variable, which entry of a checkpoint goes into which weight of a model."""

import dataclasses
import difflib
import re
from collections.abc import Sequence

import tensorflow as tf

from trainer.restore.live import LiveNode, LiveVariable, has_weights, live_tree, live_variables
from trainer.restore.names import matching_rule
from trainer.restore.report import Record, RestoreError, RestoreReport
from trainer.restore.source import CheckpointSource, Entry, Node


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the user allows. Every pattern is a regex that is searched for in normalised names.

    rename: (pattern, replacement) pairs that turn a checkpoint's name into the model's; they come first.
    reinitialize: weights of the model that keep their fresh values, whatever the checkpoint holds.
    ignore: weights of the checkpoint that may stay unused.
    """

    rename: Sequence[tuple[str, str]] = ()
    reinitialize: Sequence[str] = ()
    ignore: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """report: what would happen.  pairs: the weights that are to be filled, each with its entry."""

    report: RestoreReport
    pairs: list[tuple[LiveVariable, Entry]]


def plan_restore(model, source: CheckpointSource, rules: Rules) -> Plan:
    """Matches a built model with a checkpoint: the user's rules first, then structure, then unique names.

    Structure means: the model's tree and the object graph are walked together, attribute by
    attribute, from the root of the graph that fits most weights. Position alone or shape alone
    never pairs anything. Raises `RestoreError` for a bad rule or an ambiguous root; everything else
    that is wrong is in the report (`report.problems`), for the caller to judge.
    """
    tree = live_tree(model)
    weights = live_variables(model, tree)
    _check_rules(rules, weights)

    root, by_structure = _best_root(tree, weights, source, may_be_renamed=bool(rules.rename))
    entries = [entry for entry in source.entries if entry.kind != "optimizer"]
    names = _names_from(root, entries)
    renamed = {entry: _rename(names[entry], rules.rename) for entry in entries}

    pairs: dict[LiveVariable, Entry] = {}
    taken: set[Entry] = set()

    def take(weight: LiveVariable, entry: Entry | None) -> None:
        if entry is not None and weight not in pairs and entry not in taken:
            pairs[weight] = entry
            taken.add(entry)

    ruled = _unique({entry: name for entry, name in renamed.items() if name != names[entry]})
    fresh = {weight: rule for weight in weights if (rule := matching_rule(weight.name, rules.reinitialize))}
    for weight in weights:
        take(weight, ruled.get(weight.name))
    # A renamed entry is spoken for: it must not come in by its old place as well.
    moved = {entry for entry, name in renamed.items() if name != names[entry]}
    for weight in weights:
        entry = by_structure.get(id(weight.variable))
        take(weight, None if entry in moved else entry)
    by_name = _unique({entry: name for entry, name in names.items() if entry not in taken | moved})
    for weight in weights:
        take(weight, by_name.get(weight.name))

    records, kept = _judge(weights, pairs, fresh, ruled)
    records += _unused(entries, names, pairs, fresh, rules, records)
    report = RestoreReport(
        checkpoint=source.path,
        format=source.format,
        records=records,
        optimizer_keys=[entry.key for entry in source.of_kind("optimizer")],
        counter_keys=[entry.key for entry in source.of_kind("counter")],
        other_keys=[entry.key for entry in source.of_kind("other") if entry not in taken],
    )
    return Plan(report, kept)


def explain_problems(report: RestoreReport) -> str:
    """The message of a restore that was refused: counts, the report, and lines of gin that would help."""
    total = len(report.records) - len(report.unused)
    if not report.restored and not report.mismatched and not report.reinitialized:
        head = f"The checkpoint fits no variable of the model: 0 of {total} would be restored."
    else:
        unexcused = sum(not record.rule for record in report.unused)
        head = (
            f"The restore was refused, and no variable was changed: {len(report.missing)} of {total} model variables "
            f"would be missing, {len(report.mismatched)} mismatched, {unexcused} checkpoint weights unused."
        )
    lines = [head, str(report), "To go on, fix the path or the model, or excuse by name:"]
    fresh = sorted({record.name.split("/")[0] for record in report.missing + report.mismatched})
    left = sorted({record.name.split("/")[0] for record in report.unused if not record.rule})
    if fresh:
        lines.append(f"  train.reinitialize = {['^' + re.escape(name) + '/' for name in fresh[:6]]}")
    if left:
        lines.append(f"  train.ignore = {['^' + re.escape(name) + '(/|$)' for name in left[:6]]}")
    return "\n".join(lines)


def _check_rules(rules: Rules, weights: list[LiveVariable]) -> None:
    for what, patterns in (
        ("rename", [pattern for pattern, _ in rules.rename]),
        ("reinitialize", rules.reinitialize),
        ("ignore", rules.ignore),
    ):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise RestoreError(f"{what}: {pattern!r} is not a regular expression: {error}.") from error
    for pattern in rules.reinitialize:
        if not any(re.search(pattern, weight.name) for weight in weights):
            near = difflib.get_close_matches(
                pattern.strip("^$/"), [w.name.split("/")[0] for w in weights], n=1, cutoff=0.4
            )
            raise RestoreError(
                f"reinitialize: {pattern!r} matches no variable of the model."
                + (f" Did you mean '^{near[0]}/'?" if near else "")
                + f" Its variables: {', '.join(weight.name for weight in weights[:8])}{', ...' * (len(weights) > 8)}."
            )


def _best_root(tree: LiveNode, weights: list[LiveVariable], source: CheckpointSource, may_be_renamed: bool):
    """The object of the checkpoint that fits the model best, and its pairs by structure.

    Two that fit equally well are an error, unless the user's rename rules are there to say which.
    """
    ids = {id(weight.variable): weight for weight in weights}
    best: tuple[tuple[int, int], Node, dict[int, Entry]] | None = None
    rivals: list[Node] = []
    for node in _candidates(source.top):
        found: dict[int, Entry] = {}
        _match(tree, node, found, set())
        found = {key: entry for key, entry in found.items() if key in ids}
        equal = sum(ids[key].shape == entry.shape for key, entry in found.items())
        score = (equal, len(found))
        if best is None or score > best[0]:
            best, rivals = (score, node, found), []
        elif score == best[0] and equal and set(found.values()) != set(best[2].values()):
            rivals.append(node)
    assert best is not None
    if rivals and best[0][0]:
        if may_be_renamed:
            return source.top, {}
        places = [_path_of(source.top, node) for node in (best[1], *rivals)]
        raise RestoreError(
            f"{source.path} holds {len(places)} things that fit the model equally well: {', '.join(places)}. "
            f"Say which, e.g. rename = [('^{places[0]}/', '')] with ignore = ['^{places[1]}/']."
        )
    return best[1], best[2]


def _candidates(top: Node) -> list[Node]:
    seen: set[int] = set()
    queue = [top]
    for node in queue:
        if id(node) not in seen and not node.is_optimizer:
            seen.add(id(node))
            queue += list(node.children.values())
    return list(dict.fromkeys(node for node in queue if not node.is_optimizer))


def _match(live: LiveNode, node: Node, found: dict[int, Entry], walked: set[tuple[int, int]]) -> None:
    if (id(live), id(node)) in walked or node.is_optimizer:
        return
    walked.add((id(live), id(node)))
    if live.variable is not None:
        if node.entry is not None:
            found.setdefault(id(live.variable), node.entry)
        return
    if live.in_order is not None:
        theirs = _weighted_in_order(node)
        ours = [child for child in live.in_order if has_weights(child)]
        if theirs is not None and len(theirs) == len(ours):
            fits = [_leaf_names(a) == _leaf_names(b) for a, b in zip(ours, theirs, strict=True)]
            if all(fits):
                for child, other in zip(ours, theirs, strict=True):
                    _match(child, other, found, walked)
                return
    for name, child in live.children.items():
        if name in node.children:
            _match(child, node.children[name], found, walked)


def _weighted_in_order(node: Node) -> list[Node] | None:
    """The layers with variables of a Functional or Sequential model, as Keras 3 or Keras 2 wrote it."""
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
    layers = [numbered[index] for index in sorted(numbered)]
    return [layer for layer in layers if _leaf_names(layer)] or None


def _leaf_names(node, depth: int = 0) -> frozenset[str]:
    """Names of the variables directly in a layer; for a layer of layers, of those below it."""
    is_leaf = (lambda n: n.variable is not None) if isinstance(node, LiveNode) else (lambda n: n.entry is not None)
    own = frozenset(name for name, child in node.children.items() if is_leaf(child))
    if own or depth > 6:
        return own
    return frozenset().union(*(_leaf_names(child, depth + 1) for child in node.children.values()))


def _names_from(root: Node, entries: list[Entry]) -> dict[Entry, str]:
    """Each entry's name from the chosen root, or from the file's top where the root does not lead to it."""
    names: dict[Entry, str] = {}
    seen: set[int] = set()
    queue: list[tuple[str, Node]] = [("", root)]
    for path, node in queue:
        if id(node) in seen or node.is_optimizer:
            continue
        seen.add(id(node))
        if node.entry is not None:
            names[node.entry] = path
        queue += [(f"{path}/{name}" if path else name, child) for name, child in node.children.items()]
    # Our own train states keep what Keras does not track under this name.
    return {entry: names.get(entry, entry.name.removeprefix("train_state/untracked/")) for entry in entries}


def _rename(name: str, rename: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rename:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _unique(names: dict[Entry, str]) -> dict[str, Entry]:
    counts: dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {name: entry for entry, name in names.items() if counts[name] == 1}


def _judge(weights, pairs, fresh, ruled) -> tuple[list[Record], list[tuple[LiveVariable, Entry]]]:
    records, kept = [], []
    for weight in weights:
        entry = pairs.get(weight)
        common = {"name": weight.name, "shape": weight.shape, "dtype": weight.dtype.name}
        if entry is not None:
            common |= {
                "key": entry.key,
                "checkpoint_shape": entry.shape,
                "checkpoint_dtype": entry.dtype.name,
            }
        if weight in fresh:
            records.append(Record(status="reinitialized", rule=fresh[weight], **common))
        elif entry is None:
            records.append(Record(status="missing", **common))
        elif entry.shape != weight.shape or not _castable(entry.dtype, weight.dtype):
            records.append(Record(status="mismatched", **common))
        else:
            note = "" if entry.dtype == weight.dtype else f"cast from {entry.dtype.name} to {weight.dtype.name}"
            rule = "rename" if ruled.get(weight.name) is entry else ""
            records.append(Record(status="restored", rule=rule, note=note, **common))
            kept.append((weight, entry))
    return records, kept


def _unused(entries, names, pairs, fresh, rules: Rules, records: list[Record]) -> list[Record]:
    # What a reinitialized variable would have taken is left over by the same rule.
    left_by_rule = {pairs[weight]: rule for weight, rule in fresh.items() if weight in pairs}
    used = set(pairs.values()) - set(left_by_rule)
    found = []
    for entry in entries:
        if entry.kind != "weight" or entry in used:
            continue
        rule = left_by_rule.get(entry) or matching_rule(names[entry], rules.ignore) or ""
        near = "" if rule else _likely_home(names[entry], entry, records)
        found.append(
            Record(
                name=names[entry], status="unused", key=entry.key, checkpoint_shape=entry.shape,
                checkpoint_dtype=entry.dtype.name, rule=rule, note=near,
            )
        )  # fmt: skip
    return found


def _likely_home(name: str, entry: Entry, records: list[Record]) -> str:
    homes = [record.name for record in records if record.status == "missing" and record.shape == entry.shape]
    near = difflib.get_close_matches(name, homes, n=1, cutoff=0.5)
    return f"perhaps rename = [('^{name}$', '{near[0]}')]" if near else ""


def _castable(source: tf.DType, target: tf.DType) -> bool:
    return source == target or (source.is_floating and target.is_floating)


def _path_of(top: Node, wanted: Node) -> str:
    seen: set[int] = set()
    queue: list[tuple[str, Node]] = [("", top)]
    for path, node in queue:
        if node is wanted:
            return path or "(the top)"
        if id(node) not in seen:
            seen.add(id(node))
            queue += [(f"{path}/{name}" if path else name, child) for name, child in node.children.items()]
    return "?"
