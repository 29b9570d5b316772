"""Which examples come when: a pure function of seed and position."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

_MIXED_BLOCK = 1024  # turns of a mixture that share one permutation


class Order(Protocol):
    """The order in which a run draws examples, without end."""

    def draw(self, seed: int, start: int, count: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The run's draws from the `start`-th on: ([count] numbers, [count] how often each was drawn before); int64.

        start, count: multiples of `batch_size`, the global one.
        """


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Every example once an epoch, each epoch in another order."""

    num_examples: int

    def draw(self, seed: int, start: int, count: int, batch_size: int = 1) -> tuple[np.ndarray, np.ndarray]:
        times = (start + np.arange(count)) // self.num_examples
        return shuffled_numbers(self.num_examples, seed, start, count), times


@dataclasses.dataclass(frozen=True, eq=False)
class Mixed:
    """Draws from several groups of examples by weight; within a group, every example once an epoch of the group.

    sizes: of the groups; their examples are numbered one group after the other.
    weights: of the groups, positive; they need not add up to 1.
    members: [sum of sizes] the number of each example, where the groups do not lie one after the other; else None.
    by_batch: whether all examples of a batch come from one group.

    Of any stretch of draws from the start, each group has its share, rounded. Draws come in blocks, whose shares are
    found by arithmetic and whose sequence of groups is a permutation by (seed, block): any position is found at once.
    """

    sizes: Sequence[int]
    weights: Sequence[float]
    members: np.ndarray | None = None
    by_batch: bool = False

    def draw(self, seed: int, start: int, count: int, batch_size: int = 1) -> tuple[np.ndarray, np.ndarray]:
        run = batch_size if self.by_batch else 1  # draws in a row from one group
        numbers, times = np.empty(count, np.int64), np.empty(count, np.int64)
        filled = 0
        while filled < count:
            block, offset = divmod(start + filled, _MIXED_BLOCK * run)
            drawn = [part[offset : offset + count - filled] for part in _mixed_block(self, seed, block, run)]
            numbers[filled : filled + drawn[0].size], times[filled : filled + drawn[0].size] = drawn
            filled += drawn[0].size
        return numbers, times

    def __str__(self) -> str:
        """Describes what decides the order, so that two runs can be compared."""
        weights = ", ".join(f"{weight:.6g}" for weight in self.weights)
        return f"{'batches' if self.by_batch else 'examples'} of groups of {list(self.sizes)} by weight {weights}"

    def turns_before(self, block: int) -> np.ndarray:
        """How many turns of each group come before a block; a turn is one draw, or a batch."""
        shares = np.cumsum(self.weights) / np.sum(self.weights)
        return np.diff(np.floor(block * _MIXED_BLOCK * shares + 0.5).astype(np.int64), prepend=0)


@functools.lru_cache(maxsize=4)
def _mixed_block(mixed: Mixed, seed: int, block: int, run: int) -> tuple[np.ndarray, np.ndarray]:
    first, last = mixed.turns_before(block), mixed.turns_before(block + 1)
    starts = np.cumsum([0, *mixed.sizes])
    turns = np.repeat(np.arange(len(mixed.sizes)), last - first)[block_order(_MIXED_BLOCK, seed, 0, block)]
    groups = np.repeat(turns, run)
    numbers, times = np.empty(groups.size, np.int64), np.empty(groups.size, np.int64)
    for group, (begin, end, size) in enumerate(zip(first * run, last * run, mixed.sizes, strict=True)):
        # Groups of one size must not come in one order, nor in that of a run with the next seed.
        chosen = shuffled_numbers(size, seed + (group + 1) * 2**32, int(begin), int(end - begin))
        numbers[groups == group] = starts[group] + chosen
        times[groups == group] = np.arange(begin, end) // size
    return (numbers if mixed.members is None else mixed.members[numbers]), times


@functools.lru_cache(maxsize=4)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """[num_examples] int64: the order of the examples in one epoch (Salmon et al. 2011, Philox)."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return generator.permutation(num_examples)


def shuffled_numbers(num_examples: int, seed: int, start: int, count: int) -> np.ndarray:
    """[count] int64: which examples come from the run's `start`-th draw on, epoch after epoch."""
    numbers = np.empty(count, np.int64)
    filled = 0
    while filled < count:
        epoch, offset = divmod(start + filled, num_examples)
        chosen = epoch_order(num_examples, seed, epoch)[offset : offset + count - filled]
        numbers[filled : filled + chosen.size] = chosen
        filled += chosen.size
    return numbers


def block_order(num_examples: int, seed: int, epoch: int, block: int) -> np.ndarray:
    """[num_examples] int64: the order of the examples within one block in one epoch; another for each block."""
    # The highest word of the counter: no block draws from another's numbers, or from those of `epoch_order`.
    generator = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=[0, 0, 0, block + 1])
    return np.random.Generator(generator).permutation(num_examples)


def find_block(num_examples: int, block_size: int, seed: int, start: int) -> tuple[int, int]:
    """Which visit of a block the run's `start`-th example is in, counted over all epochs, and where in it."""
    starts = np.arange(0, num_examples, block_size)
    epoch, offset = divmod(start, num_examples)
    passed = np.cumsum(np.minimum(block_size, num_examples - starts)[epoch_order(len(starts), seed, epoch)])
    place = int(np.searchsorted(passed, offset, side="right"))
    return epoch * len(starts) + place, offset - (int(passed[place - 1]) if place else 0)


def visit_block(num_examples: int, block_size: int, seed: int, visit: int) -> tuple[int, int, np.ndarray]:
    """Its first example in stored order, the one after its last, and the order of those between, from 0."""
    num_blocks = -(-num_examples // block_size)
    epoch, place = divmod(visit, num_blocks)
    block = int(epoch_order(num_blocks, seed, epoch)[place])
    begin, end = block * block_size, min((block + 1) * block_size, num_examples)
    return begin, end, block_order(end - begin, seed, epoch, block)


def numbers_in_blocks(num_examples: int, block_size: int, seed: int, start: int, count: int) -> np.ndarray:
    """[count] int64: which examples, in stored order, come from the run's `start`-th on, block by block."""
    visit, offset = find_block(num_examples, block_size, seed, start)
    found = np.empty(0, np.int64)
    while found.size < offset + count:
        begin, _, order = visit_block(num_examples, block_size, seed, visit)
        found, visit = np.append(found, begin + order), visit + 1
    return found[offset : offset + count]
