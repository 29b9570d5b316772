"""Adds up what one replica computes on the micro-batches of a step, one after the other."""

import operator
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from trainer.restore import layers_of


def needs_other_replicas(model: keras.Model) -> bool:
    """Whether a forward pass waits for other replicas, which it cannot do in a loop or in what XLA compiles.

    So do sums over replicas, and variables that a layer sets to a mean over them.
    """
    return any(getattr(layer, "synchronized", False) for layer in layers_of(model)) or any(
        variable.aggregation != "none" for variable in model.variables
    )


def add_up(compute: Callable, batch, num_steps: int, variables: Sequence[keras.Variable], in_loop: bool):
    """The sums of compute(micro_batch) -> ({index of a variable: gradient}, loss, weight) over all micro-batches.

    batch: tensors [num_steps, rows, ...]; of a single micro-batch, [rows, ...].
    in_loop: computes them in a `tf.while_loop`, in one trace; else the trace holds them `num_steps` times.
    Either way one begins when the one before has ended: what it needed is free again.
    A weight that is a Python number, known without computing, is added up as one.
    """
    if num_steps == 1:
        return compute(batch)

    def micro_batch(index):
        return tf.nest.map_structure(lambda value: None if value is None else value[index], batch)

    if not in_loop:
        sums = compute(micro_batch(0))
        for index in range(1, num_steps):
            with tf.control_dependencies([sums[1]]):
                # Only operations of their own wait: those of the batch are traced already.
                sums = tf.nest.map_structure(operator.add, sums, compute(micro_batch(index)))
        return sums

    traced = {}

    def body(index, gradients, loss, weight):
        found, one_loss, one_weight = compute(micro_batch(index))
        traced["reached"], traced["weight"] = list(found), one_weight
        gradients = [total + found[i] if i in found else total for i, total in enumerate(gradients)]
        return index + 1, gradients, loss + one_loss, weight + one_weight

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    start = (tf.constant(0), zeros, tf.constant(0.0), tf.constant(0.0))
    _, gradients, loss, weight = tf.while_loop(
        lambda index, *_: index < num_steps, body, start, parallel_iterations=1, maximum_iterations=num_steps
    )
    known = isinstance(traced["weight"], float)
    return {i: gradients[i] for i in traced["reached"]}, loss, traced["weight"] * num_steps if known else weight
