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
