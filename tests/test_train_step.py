"""The step by hand arithmetic: what the gradient is divided by, where it is clipped, what is counted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy

from trainer import UserError
from trainer.checkpoints.train_state import new_train_state
from trainer.data.step_batches import StackedBatches
from trainer.optimizers.build import build_optimizer
from trainer.restore import build_model
from trainer.step.train_step import build_train_loop
from trainer.tasks.custom_loss import custom_loss
from trainer.tasks.supervised import supervised


class Scale(keras.Model):
    """y = w x, with w = 0 at first, and a variable that no loss depends on."""

    def __init__(self):
        super().__init__()
        self.w = self.add_weight(shape=(), initializer="zeros", name="w")
        self.bystander = self.add_weight(shape=(), initializer="ones", name="bystander")

    def call(self, x):
        return self.w * x


def w_after(strategy, optimizer, batches, task, accumulation_steps=1, model=Scale):
    """Runs the train loop over (batch, weight) pairs; returns the model, the metrics and the state."""
    size = len(batches[0][1])
    with strategy.scope():
        built = model()
        build_model(built, tf.TensorSpec([None, 1], tf.float32))
        new_optimizer = build_optimizer(optimizer, built.trainable_variables)
        state = new_train_state(built, new_optimizer)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=(
            {key: tf.TensorSpec(np.shape(value), tf.float32) for key, value in batches[0][0].items()},
            tf.TensorSpec([size], tf.float32),
        ),
    )
    stacks = StackedBatches(dataset.batch(len(batches), drop_remainder=True), look_up=lambda pair: pair)
    train_loop = build_train_loop(strategy, state, task, built.trainable_variables, size, stacks, accumulation_steps)
    (metrics,) = [train_loop(*steps) for steps in stacks.take(len(batches))]
    return built, {name: float(value.numpy()) for name, value in metrics.items()}, state


def value_of(variable) -> float:
    return float(variable.value.numpy())


def pull_task():
    """The loss of an example is -c w, so that its gradient is -c, whatever w is."""
    return custom_loss(loss=lambda model, batch: -tf.squeeze(model(batch["c"]), axis=-1), inputs="c")


def pulls(*values, weight=None):
    return ({"c": [[float(value)] for value in values]}, weight or [1.0] * len(values))


def ones(size, steps_per_stack=3) -> StackedBatches:
    """Batches of ones without end, not weighted."""
    return StackedBatches(tf.data.Dataset.from_tensors({"c": tf.ones([steps_per_stack, size, 1])}).repeat())


def test_the_gradient_is_the_mean_over_the_global_batch(strategy):
    model, metrics, _ = w_after(strategy, lambda: keras.optimizers.SGD(0.1), [pulls(1, 2, 3, 6)], pull_task())
    assert value_of(model.w) == pytest.approx(0.1 * 3.0)
    assert metrics["grad_norm"] == pytest.approx(3.0)


def test_the_denominator_is_the_weight_on_all_replicas_and_not_the_batch(strategy):
    # The second replica has no real example at all: (1 + 5) / 2, not (3 + 0) / 2.
    batch = pulls(1, 5, 100, 100, weight=[1.0, 1.0, 0.0, 0.0])
    model, metrics, _ = w_after(strategy, lambda: keras.optimizers.SGD(0.1), [batch], pull_task())
    assert value_of(model.w) == pytest.approx(0.1 * 3.0)
    assert metrics["loss"] == pytest.approx(0.0)


def test_clip_uses_the_norm_after_the_all_reduce():
    # Gradients -4 and +3 of two replicas: their mean has norm 1/2, below the clip norm; clipped
    # before the sum they would cancel to nothing.
    optimizer = lambda: keras.optimizers.SGD(1.0, global_clipnorm=1.0)  # noqa: E731
    model, metrics, _ = w_after(make_strategy(2), optimizer, [pulls(4, -3)], pull_task())
    assert value_of(model.w) == pytest.approx(0.5)
    assert metrics["grad_norm"] == pytest.approx(0.5)


def test_grad_norm_is_the_norm_before_clipping(strategy):
    optimizer = lambda: keras.optimizers.SGD(1.0, global_clipnorm=1.0)  # noqa: E731
    model, metrics, _ = w_after(strategy, optimizer, [pulls(10, 20)], pull_task())
    assert value_of(model.w) == pytest.approx(1.0)
    assert metrics["grad_norm"] == pytest.approx(15.0)


@pytest.mark.parametrize("accumulation_steps", [1, 2, 4])
def test_micro_batches_add_up_to_the_step_of_the_whole_batch(strategy, accumulation_steps):
    batch = pulls(1, 2, 3, 4, 5, 6, 7, 8, weight=[1, 1, 0, 1, 1, 1, 1, 0])
    model, _, state = w_after(strategy, lambda: keras.optimizers.SGD(0.1), [batch], pull_task(), accumulation_steps)
    assert value_of(model.w) == pytest.approx(0.1 * (1 + 2 + 4 + 5 + 6 + 7) / 6)
    assert state.current_step() == 1 and value_of(state.optimizer.iterations) == 1


def test_there_is_one_all_reduce_of_gradients_a_step_whatever_the_accumulation():
    counts = [collectives_in_step(accumulation_steps) for accumulation_steps in (1, 4)]
    assert counts[0] == counts[1] > 0


def collectives_in_step(accumulation_steps: int) -> int:
    strategy = make_strategy(2)
    with strategy.scope():
        model = Scale()
        build_model(model, tf.TensorSpec([None, 1], tf.float32))
        state = new_train_state(model, build_optimizer(lambda: keras.optimizers.SGD(0.1), model.trainable_variables))
    reductions = []
    original = tf.distribute.ReplicaContext.all_reduce

    def counting(self, *args, **kwargs):
        reductions.append(self.replica_id_in_sync_group)
        return original(self, *args, **kwargs)

    tf.distribute.ReplicaContext.all_reduce = counting
    try:
        stacks = ones(8)
        loop = build_train_loop(strategy, state, pull_task(), model.trainable_variables, 8, stacks, accumulation_steps)
        [loop(*steps) for steps in stacks.take(1)]
    finally:
        tf.distribute.ReplicaContext.all_reduce = original
    return len(reductions)


def test_steps_in_one_device_loop_are_the_steps_one_by_one(strategy):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [1.0, 0.1, 0.01])
    batches = [pulls(1, 1), pulls(2, 2), pulls(3, 3)]
    model, metrics, state = w_after(strategy, lambda: keras.optimizers.SGD(schedule), batches, pull_task())
    # Keras takes the first value up to and including boundary 0, so updates 0, 1, 2 use 1, 0.1, 0.01.
    assert value_of(model.w) == pytest.approx(1.0 * 1 + 0.1 * 2 + 0.01 * 3)
    assert state.current_step() == 3 == value_of(state.optimizer.iterations)
    assert metrics["grad_norm"] == pytest.approx(3.0), "the metrics are those of the last step"


def test_a_variable_without_gradient_stays_as_it_is_even_with_weight_decay(strategy):
    optimizer = lambda: keras.optimizers.SGD(0.1, weight_decay=0.1)  # noqa: E731
    model, _, _ = w_after(strategy, optimizer, [pulls(1, 1)], pull_task())
    assert value_of(model.bystander) == 1.0


def test_grad_norm_is_that_of_the_loss_and_not_of_the_scaled_loss(strategy):
    optimizer = lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1024.0)  # noqa: E731
    model, metrics, _ = w_after(strategy, optimizer, [pulls(2, 4)], pull_task())
    assert metrics["grad_norm"] == pytest.approx(3.0)
    assert value_of(model.w) == pytest.approx(0.3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loop_tells_of_its_first_step_that_is_not_finite(strategy, bad):
    batches = [pulls(c, c) for c in (1, bad, 2)]
    optimizer = lambda: keras.optimizers.SGD(0.1, clipvalue=1.0)  # noqa: E731
    metrics = w_after(strategy, optimizer, batches, pull_task())[1]
    assert not np.isfinite(metrics["grad_norm"])


def test_a_loop_under_loss_scaling_tells_of_a_loss_that_is_not_finite_and_skips_a_gradient(strategy):
    """The loss of c = 1e30 is finite, its gradient is not once it is scaled; that of c = inf is not either."""
    optimizer = lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-30), initial_scale=2.0**40)  # noqa: E731
    skipped, last, _ = w_after(strategy, optimizer, [pulls(1, 1), pulls(1e30, 1e30), pulls(3, 3)], pull_task())
    assert value_of(skipped.w) == pytest.approx(4e-30)
    assert last == {"loss": pytest.approx(0.0, abs=1e-20), "grad_norm": pytest.approx(3.0)}
    _, bad, _ = w_after(strategy, optimizer, [pulls(1, 1), pulls(np.inf, np.inf), pulls(3, 3)], pull_task())
    assert not np.isfinite(bad["loss"])


def test_a_loss_that_depends_on_nothing_trained_is_named():
    task = custom_loss(loss=lambda model, batch: tf.squeeze(batch["c"], axis=-1), inputs="c")
    with pytest.raises(UserError, match="does not depend on any trained variable"):
        w_after(make_strategy(1), lambda: keras.optimizers.SGD(0.1), [pulls(1, 1)], task)


class Lookup(keras.Model):
    """Rows of a table, summed: its gradient is sparse, with repeated indices."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(3, 1, embeddings_initializer="zeros")

    def call(self, index):
        return self.table(tf.cast(index, tf.int32))[:, 0, :]


def test_repeated_indices_of_an_embedding_add_up_before_they_are_clipped(strategy):
    task = custom_loss(loss=lambda model, batch: -tf.squeeze(model(batch["c"]), axis=-1), inputs="c")
    optimizer = lambda: keras.optimizers.SGD(1.0, clipvalue=0.6)  # noqa: E731
    model, metrics, _ = w_after(strategy, optimizer, [pulls(1, 1, 1, 2)], task, model=Lookup)
    # Row 1 has gradient 3/4, clipped to 0.6; row 2 has 1/4.
    np.testing.assert_allclose(model.table.embeddings.value.numpy()[:, 0], [0.0, 0.6, 0.25], atol=1e-6)
    assert metrics["grad_norm"] == pytest.approx(np.hypot(0.75, 0.25))


def test_a_regularizer_is_a_term_of_the_mean_and_counts_once(strategy):
    class Regularized(keras.Model):
        def __init__(self):
            super().__init__()
            self.unit = keras.layers.Dense(
                1, use_bias=False, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L2(0.5)
            )

        def call(self, x):
            return self.unit(x)

    task = supervised(loss=keras.losses.MeanSquaredError(), inputs="x", target="y")
    batch = ({"x": [[1.0], [1.0]], "y": [[1.0], [1.0]]}, [1.0, 1.0])
    model, metrics, _ = w_after(strategy, lambda: keras.optimizers.SGD(0.1), [batch], task, model=Regularized)
    # The data term is 0 at w = 1; the regulariser is 0.5 w^2 with gradient w.
    assert metrics["loss"] == pytest.approx(0.5)
    assert float(model.unit.kernel.value.numpy()[0, 0]) == pytest.approx(0.9)


def test_a_scalar_loss_is_the_mean_over_what_it_was_given(strategy):
    task = custom_loss(loss=lambda model, batch: -tf.reduce_mean(model(batch["c"])), inputs="c")
    model, _, _ = w_after(strategy, lambda: keras.optimizers.SGD(0.1), [pulls(1, 2, 3, 6)], task)
    assert value_of(model.w) == pytest.approx(0.3)


def test_two_optimizers_take_turns_on_one_model_in_one_process(strategy):
    """Today's usual recipe raises here: variables may be created on the first call only."""
    with strategy.scope():
        model = Scale()
        build_model(model, tf.TensorSpec([None, 1], tf.float32))
    stacks = ones(2)
    for build, expected in ((lambda: keras.optimizers.SGD(1.0), 1.0), (lambda: keras.optimizers.Adam(1.0), 2.0)):
        with strategy.scope():
            state = new_train_state(model, build_optimizer(build, model.trainable_variables))
        loop = build_train_loop(strategy, state, pull_task(), model.trainable_variables, 2, stacks)
        [loop(*steps) for steps in stacks.take(1)]
        assert value_of(model.w) == pytest.approx(expected, abs=1e-5)


def test_loops_of_any_length_are_one_trace():
    strategy = make_strategy(2)
    with strategy.scope():
        model = Scale()
        build_model(model, tf.TensorSpec([None, 1], tf.float32))
        state = new_train_state(model, build_optimizer(lambda: keras.optimizers.SGD(0.1), model.trainable_variables))
    stacks = ones(2)
    train_loop = build_train_loop(strategy, state, pull_task(), model.trainable_variables, 2, stacks)
    for count in (1, 5, 2):
        for steps in stacks.take(count):
            train_loop(*steps)
    assert train_loop.function.experimental_get_tracing_count() == 1
    assert state.current_step() == 8


def test_functions_that_are_to_run_eagerly_do():
    """As someone asks for who looks for a fault in a loss of his own."""
    seen = []

    def loss(model, batch):
        values = tf.squeeze(model(batch["c"]), axis=-1)
        seen.append(tf.executing_eagerly())
        return -values

    tf.config.run_functions_eagerly(True)
    try:
        model, _, _ = w_after(
            tf.distribute.get_strategy(), lambda: keras.optimizers.SGD(0.1), [pulls(1.0)] * 3, custom_loss(loss, "c")
        )
    finally:
        tf.config.run_functions_eagerly(False)
    assert seen == [True] * 3
    assert value_of(model.w) == pytest.approx(0.3)
