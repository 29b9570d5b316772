"""One optimizer update: micro-batches -> gradient -> one all-reduce -> apply."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from trainer.batch_parts import part_of, replica_share
from trainer.errors import UserError
from trainer.random_numbers import drawing
from trainer.tasks import Task
from trainer.train_state import TrainState


def build_train_loop(
    strategy: tf.distribute.Strategy,
    state: TrainState,
    task: Task,
    variables: Sequence[keras.Variable],
    global_batch_size: int,
    accumulation_steps: int = 1,
    random_numbers: str = "per_replica",
    jit_compile: bool = False,
) -> Callable:
    """Returns train_loop(iterator, num_steps) -> {'loss', 'grad_norm'} of the last step, float32 scalars.

    iterator: yields this worker's (batch, weight); every replica takes its own share of it.
    num_steps: int32 scalar tensor, so that loops of any length are one trace.
    random_numbers: what dropout and noise draw, see `random_numbers.drawing`.
    jit_compile: whether XLA compiles each replica's forward and backward pass; all-reduce and update stay outside.

    The loss is the mean over the *global* batch, `sum(loss * weight) / sum(weight)` over all
    replicas and micro-batches, so N replicas make the step that one replica makes. Gradients are
    added up once a step, and the optimizer sees only the sum: what it clips is what one replica
    would clip. `grad_norm` is the global norm before any clipping.

    Source: https://www.tensorflow.org/tutorials/distribute/custom_training
    """
    model, optimizer = state.model, state.optimizer

    def micro_batch_gradients(batch, weight):
        with tf.GradientTape() as tape:
            with drawing(random_numbers, weight.shape[0]):
                loss_sum, weight_sum = task.loss(model, batch, weight, training=True)
            # By a constant here, by the true weight below: so half-precision gradients stay in range.
            scaled = optimizer.scale_loss(loss_sum / global_batch_size)
        gradients = tape.gradient(scaled, list(variables))
        # Sparse gradients hold a repeated index twice; dense ones add it up.
        dense = {i: tf.convert_to_tensor(gradient) for i, gradient in enumerate(gradients) if gradient is not None}
        return dense, loss_sum, weight_sum

    def replica_gradients(batch, weight):
        # Micro-batches first: all replicas work on parts of the same one, as synchronised BatchNorm needs.
        micro_batches = [part_of((batch, weight), i, accumulation_steps) for i in range(accumulation_steps)]
        # A function of its own for each replica: a trace holds the variables of the replica that it was made on.
        compute = tf.function(micro_batch_gradients, jit_compile=True) if jit_compile else micro_batch_gradients
        parts = [compute(*replica_share(micro_batch, strategy)) for micro_batch in micro_batches]
        sums = tf.nest.map_structure(lambda *values: tf.add_n(values), *parts)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)

    def train_step(iterator):
        per_replica = strategy.run(replica_gradients, args=next(iterator))
        # After the all-reduce every replica holds the same sums. The optimizer runs once, outside
        # `strategy.run`: inside, it would clip before the sum, or sum again.
        sums, loss_sum, weight_sum = tf.nest.map_structure(
            lambda value: strategy.experimental_local_results(value)[0], per_replica
        )
        if not sums:
            raise UserError("The loss does not depend on any trained variable; its gradient is empty.")
        to_mean = tf.math.divide_no_nan(float(global_batch_size), weight_sum)
        gradients = [gradient * tf.cast(to_mean, gradient.dtype) for gradient in sums.values()]
        grad_norm = tf.linalg.global_norm(gradients) / optimizer.scale_loss(1.0)
        optimizer.apply(gradients, [variables[i] for i in sums])
        if state.ema:
            state.ema.update()
        state.step.assign_add(1)
        return {"loss": tf.math.divide_no_nan(loss_sum, weight_sum), "grad_norm": grad_norm}

    @tf.function
    def train_loop(iterator, num_steps):
        metrics = {"loss": tf.constant(0.0), "grad_norm": tf.constant(0.0)}
        for _ in tf.range(num_steps):
            metrics = train_step(iterator)
        return metrics

    return train_loop
