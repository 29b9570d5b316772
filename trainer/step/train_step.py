"""One optimizer update: micro-batches -> gradient -> one all-reduce -> apply."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from trainer.checkpoints.train_state import TrainState
from trainer.cluster.replicas import add_up_replicas
from trainer.data.step_batches import StackedBatches
from trainer.errors import UserError
from trainer.step.micro_batches import add_up, needs_other_replicas, step_inputs
from trainer.step.randomness import drawing
from trainer.step.update import Update
from trainer.tasks.task import Task


class OneTrace:
    """Traces `function` at the first call, and calls that trace.

    function: a `tf.function` with an `input_signature`. To look the trace up again takes longer than some steps.
    `tf.config.run_functions_eagerly` holds as for the function itself.
    """

    def __init__(self, function):
        self.function = function
        self._trace = None

    def __call__(self, *args):
        if tf.config.functions_run_eagerly():
            return self.function(*args)
        if self._trace is None:
            self._trace = self.function.get_concrete_function()
        return self._trace(*args)


def build_train_loop(
    strategy: tf.distribute.Strategy,
    state: TrainState,
    task: Task,
    variables: Sequence[keras.Variable],
    global_batch_size: int,
    batches: StackedBatches,
    accumulation_steps: int = 1,
    random_numbers: str = "per_replica",
    jit_compile: bool = False,
    update: str = "per_replica",
) -> OneTrace:
    """Returns train_loop(stack, first, end) -> {'loss', 'grad_norm'}, float32 scalars.

    They are of the last step, or of the first that is not finite, so that no place in a loop hides it. A gradient
    that a LossScaleOptimizer skips counts as finite; a loss does not, which no scale mends.

    stack: of `batches`, several steps' inputs.
    first, end: int32 scalar tensors: which of them to make;
      loops of any length are one trace.
    random_numbers: what dropout and noise draw, see `randomness.drawing`.
    jit_compile: whether XLA compiles each replica's forward and backward pass; all-reduce and update stay outside.
    update: "per_replica" makes it on every replica's own copies of the variables, "once" makes it once and sends the
      result to all.

    The loss is the mean over the *global* batch, `sum(loss * weight) / sum(weight)` over all
    replicas and micro-batches, so N replicas make the step that one replica makes. Gradients are
    added up once a step, and the optimizer sees only the sum: what it clips is what one replica
    would clip. `grad_norm` is the global norm before any clipping.

    Source: https://www.tensorflow.org/tutorials/distribute/custom_training
    """
    replicas = strategy.num_replicas_in_sync
    replica_batch = global_batch_size // (accumulation_steps * replicas)
    in_loop = replicas == 1 or not needs_other_replicas(state.model)
    updates = Update(strategy, state, variables, update)
    skips = isinstance(state.optimizer, keras.optimizers.LossScaleOptimizer)  # steps whose gradient is not finite

    def micro_batch_sums(batch, weight):
        with tf.GradientTape() as tape:
            with drawing(random_numbers, replica_batch):
                loss_sum, weight_sum = task.loss(state.model, batch, weight, training=True)
            # By a constant here, by the true weight below: so half-precision gradients stay in range.
            scaled = state.optimizer.scale_loss(loss_sum / global_batch_size)
        gradients = tape.gradient(scaled, list(variables))
        # Sparse gradients hold a repeated index twice; dense ones add it up.
        dense = {i: tf.convert_to_tensor(gradient) for i, gradient in enumerate(gradients) if gradient is not None}
        return dense, loss_sum, weight_sum

    def replica_step(inputs):
        # A function of its own for each replica: a trace holds the variables of the replica that it was made on.
        compute = tf.function(micro_batch_sums, jit_compile=True, autograph=False) if jit_compile else micro_batch_sums
        gradients, loss, weight = add_up(lambda part: compute(*part), inputs, accumulation_steps, variables, in_loop)
        if not gradients:
            raise UserError("The loss does not depend on any trained variable; its gradient is empty.")
        if replicas > 1:  # where there is one, it would only make every gradient wait for the last
            if isinstance(weight, float):  # known without computing, so it need not be sent
                (gradients, loss), weight = add_up_replicas((gradients, loss)), weight * replicas
            else:
                gradients, loss, weight = add_up_replicas((gradients, loss, weight))
        sums = {"gradients": gradients, "loss": loss, "weight": weight, "scale": state.optimizer.scale_loss(1.0)}
        if updates.per_replica:
            updates.on_replica(_mean_gradients(sums, global_batch_size))
        return sums

    def train_step(stack, index):
        inputs = step_inputs(batches, stack, index, strategy, accumulation_steps)
        per_replica = strategy.run(replica_step, args=(inputs,))
        # After the all-reduce every replica holds the same.
        sums = tf.nest.map_structure(lambda each: strategy.experimental_local_results(each)[0], per_replica)
        if not updates.per_replica:
            updates.once(_mean_gradients(sums, global_batch_size))
        return _loss_and_half_square(sums, global_batch_size)

    number = tf.TensorSpec([], tf.int32)

    @tf.function(input_signature=[batches.spec, number, number], autograph=False)
    def train_loop(stack, first, end):
        # The loss and half of the norm's square are one tensor: each that a loop carries costs a small step percents.
        # So does `tf.where`, which reckons each time how to broadcast.
        _, metrics = tf.while_loop(
            lambda index, _: index < end,
            lambda index, before: (
                index + 1,
                tf.raw_ops.Select(
                    condition=tf.math.is_finite(before[0] if skips else before), x=train_step(stack, index), y=before
                ),
            ),
            (first, tf.zeros([2])),
            parallel_iterations=1,  # steps follow one another anyway: room for more costs a small step percents
        )
        state.step.assign_add(tf.cast(end - first, tf.int64))
        return {"loss": metrics[0], "grad_norm": 2**0.5 * tf.sqrt(metrics[1])}

    return OneTrace(train_loop)


def _mean_gradients(sums: Mapping, global_batch_size: int) -> dict[int, tf.Tensor]:
    """The gradients of the mean over all weights, of those of the sum over `global_batch_size`."""
    if isinstance(sums["weight"], float) and sums["weight"] == global_batch_size:
        return sums["gradients"]  # to multiply by 1 would be an operation a variable
    to_mean = tf.math.divide_no_nan(float(global_batch_size), sums["weight"])
    return {i: gradient * tf.cast(to_mean, gradient.dtype) for i, gradient in sums["gradients"].items()}


def _loss_and_half_square(sums: Mapping, global_batch_size: int) -> tf.Tensor:
    """[2] float32: the mean loss, and half of the square of the mean gradient's norm, without the loss scale."""
    # By l2_loss, which no optimizer of Keras' or ours takes: TensorFlow would compute an operation that the update has
    # too only once, on one replica alone, where it might round in another way, and the copies would drift apart.
    halves = tf.add_n([tf.nn.l2_loss(tf.cast(gradient, tf.float32)) for gradient in sums["gradients"].values()])
    to_mean = tf.math.divide_no_nan(float(global_batch_size), sums["weight"]) / sums["scale"]
    return tf.stack([tf.math.divide_no_nan(sums["loss"], sums["weight"]), halves * to_mean * to_mean])
