"""Slurm's compressed lists: `gpu[001-003,7],login` -> host names, `2(x3),1` -> numbers."""

import re

from launch.cluster.place import ClusterMistake

_MAX_HOSTS = 65536  # Slurm's own limit to one list (MAX_RANGE)


def expand_hosts(text: str, name: str = "The host list") -> list[str]:
    """The host names in the order of `scontrol show hostnames`.
    name: of the variable, for messages."""
    hosts: list[str] = []
    for item in _split(text, name):
        expanded = [""]
        for literal, ranges in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", item):
            # As on an odometer: the last bracket turns fastest.
            endings = [literal] if literal else _numbers(ranges, text, name)
            if len(expanded) * len(endings) + len(hosts) > _MAX_HOSTS:
                raise ClusterMistake(f"{name}={text!r} has more than {_MAX_HOSTS} hosts.")
            expanded = [start + ending for start in expanded for ending in endings]
        hosts += expanded
    return hosts


def expand_counts(text: str, name: str = "The list of counts") -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]."""
    counts: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", item.strip())
        if not match:
            raise ClusterMistake(f"{name}={text!r}: {item!r} is not of the form '2' or '2(x3)'.")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _split(text: str, name: str) -> list[str]:
    """The items between commas that stand outside brackets."""
    items, depth = [""], 0
    for character in text.strip():
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth not in (0, 1):
            break
        if character == "," and not depth:
            items.append("")
        else:
            items[-1] += character
    if depth:
        raise ClusterMistake(f"{name}={text!r}: its brackets do not pair.")
    if not all(re.fullmatch(r"\S+", item) for item in items):
        raise ClusterMistake(f"{name}={text!r} has an empty host name, or a space in one.")
    return items


def _numbers(ranges: str, text: str, name: str) -> list[str]:
    """`001-003,7` -> 001, 002, 003, 7: the lower end says how many digits, as in Slurm."""
    numbers: list[str] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ClusterMistake(f"{name}={text!r}: {part!r} in brackets is not of the form '7' or '001-003'.")
        low, high = int(match[1]), int(match[2] or match[1])
        if high - low >= _MAX_HOSTS:
            raise ClusterMistake(f"{name}={text!r} has more than {_MAX_HOSTS} hosts.")
        numbers += [str(number).zfill(len(match[1])) for number in range(low, high + 1)]
    return numbers
