"""Hands the device the batches of several steps at a time: small steps would wait longer for each of their own."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf


class DrawnAhead:
    """Stacks that one host call makes, [steps, this worker's batch], the next one while one is used.

    draw: what comes of `counter` -> NumPy array.
    element_spec: of what it gives.

    In place of a `tf.data.Dataset` that calls Python: to build that one takes a tenth of a small run's start.
    """

    def __init__(self, draw: Callable[[int], np.ndarray], element_spec: tf.TensorSpec, counter: Iterable[int]):
        self.element_spec = element_spec
        self._draw, self._counter = draw, counter

    def __iter__(self) -> Iterator[tf.Tensor]:
        counter = iter(self._counter)
        with concurrent.futures.ThreadPoolExecutor(1, "draws batches") as thread:
            ahead = thread.submit(self._draw, next(counter))
            while True:
                drawn, ahead = ahead.result(), thread.submit(self._draw, next(counter))
                with tf.device("/CPU:0"):
                    stack = tf.constant(drawn, self.element_spec.dtype)
                yield stack  # outside, else the caller would continue on that device


class StackedBatches:
    """A data set of stacks, [steps, this worker's batch, ...], used up step by step.

    dataset: without end; every stack holds the same number of steps.
    spec: of one stack.
    look_up: makes of one replica's part of a stack its (batch, weight): features -> [rows, ...], and [rows] float32, or
      None where every example counts once.
    reading: makes a context manager around what waits for the data.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset | DrawnAhead,
        look_up: Callable = lambda batch: (batch, None),
        reading: Callable = contextlib.nullcontext,
    ):
        self.dataset = dataset
        self.look_up = look_up
        self._reading = reading
        self.spec = dataset.element_spec
        self._steps_per_stack = tf.nest.flatten(self.spec)[0].shape[0]
        self._iterator = iter(dataset)
        self._stack = None
        self._used = self._steps_per_stack

    def take(self, num_steps: int) -> Iterator[tuple[Any, tf.Tensor, tf.Tensor]]:
        """Yields (stack, first, end): the batches of the next `num_steps` steps are stack[first:end], joined."""
        while num_steps:
            if self._used == self._steps_per_stack:
                with self._reading():
                    self._stack = next(self._iterator)
                self._used = 0
            count = min(num_steps, self._steps_per_stack - self._used)
            first, self._used = self._used, self._used + count
            num_steps -= count
            yield self._stack, tf.constant(first), tf.constant(self._used)
