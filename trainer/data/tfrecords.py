"""Examples in record files, read block by block from anywhere in an epoch."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from trainer.data.autograph import as_it_is
from trainer.data.order import find_block, visit_block


@dataclasses.dataclass(frozen=True)
class Records:
    """TFRecord files, one after the other, and how a record becomes an example.

    segments: (path, how many records to skip, how many to take) in stored order.
    decode: serialized record -> example, feature -> tensor of a static shape.
    """

    segments: Sequence[tuple[str, int, int]]
    decode: Callable

    def batches_in_order(self, batch_size: int) -> tf.data.Dataset:
        """One pass in stored order: [batch_size] strings, not decoded; the last batch may hold fewer."""
        paths, skips, takes = zip(*self.segments, strict=True)
        return _read(list(paths), np.array(skips, np.int64), np.array(takes, np.int64)).batch(batch_size)

    def shuffled_batches(self, batch_size: int, block_size: int, seed: int, start: int = 0) -> tf.data.Dataset:
        """Epoch after epoch without end, from the `start`-th record on: [batch_size] strings, not decoded.

        A block is `block_size` neighbours in stored order. Each epoch takes the blocks in an order of its own,
        and the examples of a block in one of their own: a shuffle buffer of two levels, of which any position is
        found by arithmetic. To continue from there costs the reading of one block, not of what came before.
        Two blocks are held at a time, as they are in the files: decoded, they would be many times as large.
        """
        ends = self._ends()
        num_examples = int(ends[-1])
        first_visit, offset = find_block(num_examples, block_size, seed, start)

        def plan(visit):
            """The records of the visit-th block of the run, in their order."""
            begin, end, order = visit_block(num_examples, block_size, seed, int(visit))
            touched = range(int(np.searchsorted(ends, begin, side="right")), int(np.searchsorted(ends, end)) + 1)
            parts = []
            for i in touched:
                path, skip, take = self.segments[i]
                own_start = int(ends[i]) - take
                low, high = max(begin, own_start), min(end, int(ends[i]))
                parts.append((path.encode(), skip + low - own_start, high - low))
            order = order[offset if int(visit) == first_visit else 0 :]
            paths, skips, takes = zip(*parts, strict=True)
            return np.array(paths, object), np.array(skips, np.int64), np.array(takes, np.int64), order

        def read(visit):
            found = tf.numpy_function(plan, [visit], [tf.string, tf.int64, tf.int64, tf.int64], stateful=False)
            *parts, order = [tf.ensure_shape(each, [None]) for each in found]
            return _read(*parts).batch(block_size).map(as_it_is(lambda block: (block, order)))

        def in_order(block, order):
            # A batch at a time, not the block at once, of which there would be another copy.
            rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
            return rows.map(as_it_is(lambda rows: tf.gather(block, rows)))

        # The next block is read while this one is used.
        blocks = tf.data.Dataset.counter(first_visit, dtype=tf.int64).flat_map(as_it_is(read)).prefetch(1)
        return blocks.flat_map(as_it_is(in_order)).rebatch(batch_size, drop_remainder=True)

    def places(self, numbers: Iterable[int]) -> dict[str, list[int]]:
        """path -> numbers of its records, from 0, of the examples with these numbers in stored order."""
        ends, found = self._ends(), dict[str, list[int]]()
        for number in numbers:
            i = int(np.searchsorted(ends, number, side="right"))
            path, skip, take = self.segments[i]
            found.setdefault(path, []).append(skip + int(number) - (int(ends[i]) - take))
        return found

    def fingerprint(self) -> str:
        """The number of files, and a checksum of their names and sizes."""
        sizes = [
            (os.path.basename(path), skip, take, tf.io.gfile.stat(path).length) for path, skip, take in self.segments
        ]
        return f"{len(sizes)} files, names and sizes {hashlib.sha256(repr(sizes).encode()).hexdigest()[:12]}"

    def _ends(self) -> np.ndarray:
        """How many records there are up to the end of each segment."""
        return np.cumsum([take for _, _, take in self.segments])

    def decoder(self) -> Callable:
        """Returns a function from [rows] serialized records to feature -> [rows, ...]."""
        decode = as_it_is(self.decode)
        example = tf.data.Dataset.from_tensors("").map(decode).element_spec
        return lambda records: tf.map_fn(decode, records, fn_output_signature=example)


def _read(paths, skips, takes) -> tf.data.Dataset:
    """The records of these segments, one after the other."""
    records = tf.data.Dataset.from_tensor_slices((paths, skips, takes)).flat_map(
        as_it_is(lambda path, skip, take: tf.data.TFRecordDataset(path).skip(skip).take(take))
    )
    # A file that was cut off just ends: a block would be short, or be left out.
    return records.apply(tf.data.experimental.assert_cardinality(tf.reduce_sum(takes)))


def unreadable(segments: Sequence[tuple[str, int, int]]) -> list[str]:
    """A clause for each record file that is damaged, cut off, or cannot be read; reads them all."""
    needed: dict[str, int] = {}
    for path, skip, take in segments:
        needed[path] = max(needed.get(path, 0), skip + take)
    found = []
    for path, num_records in needed.items():
        position = 0
        try:
            for _ in tf.data.TFRecordDataset(path):
                position += 1
        except tf.errors.OpError as error:
            found.append(f"{path}, record {position} ({error.message.splitlines()[0].split(';')[0]})")
        else:
            if position < num_records:
                found.append(f"{path}, record {position} (the file ends before it; {num_records} are needed)")
    return found
