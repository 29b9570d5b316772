"""Which examples come when: a pure function of seed and position."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """[num_examples] int64: the order of the examples in one epoch (Salmon et al. 2011, Philox)."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return generator.permutation(num_examples)


def index_stack(num_examples: int, global_batch_size: int, seed: int, steps: int, first_step: int) -> np.ndarray:
    """[steps, global_batch_size] int64: which examples the steps from `first_step` on take."""
    indices = np.empty(steps * global_batch_size, np.int64)
    filled = 0
    while filled < indices.size:
        epoch, offset = divmod(first_step * global_batch_size + filled, num_examples)
        chosen = epoch_order(num_examples, seed, epoch)[offset : offset + indices.size - filled]
        indices[filled : filled + chosen.size] = chosen
        filled += chosen.size
    return indices.reshape(steps, global_batch_size)


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
