"""The update on each replica's own copies does what one update for all does, whatever the optimizer holds."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy
from parity.rows import ROWS, net, train, weights

import trainer
from trainer.checkpoints.train_state import new_train_state
from trainer.cluster.replicas import replica_values
from trainer.optimizers.build import build_optimizer
from trainer.step.update import Update


def state_of(strategy, optimizer):
    with strategy.scope():
        model = net()()
        model(tf.zeros([1, 6, 6, 2]))
        return new_train_state(model, build_optimizer(optimizer, model.trainable_variables), model.trainable_variables)


def apply_gradients_of(state, strategy, update_kind: str, steps: int = 3) -> None:
    """Applies gradients of 1, 2, 3 to every variable, on each replica or once."""
    update = Update(strategy, state, state.model.trainable_variables, update_kind)

    def gradients(value):
        return {
            i: tf.cast(tf.fill(weight.shape, value), weight.dtype)
            for i, weight in enumerate(state.model.trainable_variables)
        }

    @tf.function
    def step(value):
        if update.per_replica:
            strategy.run(lambda: update.on_replica(gradients(value)))
        else:
            update.once(gradients(value))

    for value in range(1, steps + 1):
        step(tf.constant(float(value)))


def reads_of(variables, graph) -> tuple[set[str], list[tf.Operation]]:
    """What stands in the graph for each copy of the variables, and the operations that read one."""
    within = {id(outer): inner.name for outer, inner in graph.captures}
    handles = {within[id(copy.handle)] for variable in variables for copy in variable.value.values}
    reads = [op for op in graph.get_operations() if op.type == "ReadVariableOp" and op.inputs[0].name in handles]
    return handles, reads


class Hiding(keras.optimizers.SGD):
    """Keeps a variable where no one looks for one."""

    class Drawer:
        pass

    def build(self, variables):
        super().build(variables)
        self.drawer = self.Drawer()
        self.drawer.count = self.add_variable(shape=(), name="count")

    def update_step(self, gradient, variable, learning_rate):
        self.assign_add(self.drawer.count, 1.0)
        super().update_step(gradient, variable, learning_rate)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=2),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Nadam(0.01)),
        lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10), momentum=0.9, weight_decay=0.1),
    ],
    ids=["adam with averages", "loss scale", "schedule and decay"],
)
def test_every_variable_of_the_optimizer_is_the_same_in_both_ways_and_on_every_replica(optimizer):
    strategy = make_strategy(2)
    here, once = state_of(strategy, optimizer), state_of(strategy, optimizer)
    apply_gradients_of(here, strategy, "per_replica")
    apply_gradients_of(once, strategy, "once")
    for one, other in zip(
        [*here.optimizer.variables, *here.model.variables],
        [*once.optimizer.variables, *once.model.variables],
        strict=True,
    ):
        copies = replica_values(one)
        np.testing.assert_array_equal(copies[0], copies[1], err_msg=one.path)
        np.testing.assert_allclose(copies[0], replica_values(other)[0], atol=1e-7, rtol=0, err_msg=one.path)
    assert int(replica_values(here.optimizer.iterations)[0]) in (0, 3)  # a LossScaleOptimizer counts in its inner one


def test_an_optimizer_with_a_hidden_variable_updates_once():
    strategy = make_strategy(2)
    state = state_of(strategy, lambda: Hiding(0.1))
    assert not Update(strategy, state, state.model.trainable_variables, "per_replica").per_replica
    apply_gradients_of(state, strategy, "per_replica", steps=2)
    counts = replica_values(state.optimizer.drawer.count)
    assert counts[0] == counts[1] == 2 * len(state.model.trainable_variables)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "loss scale"])
def test_each_update_reads_the_rate_of_then_and_reads_it_once(scaled):
    strategy = make_strategy(2)
    make = keras.optimizers.LossScaleOptimizer if scaled else lambda optimizer: optimizer
    state = state_of(strategy, lambda: make(keras.optimizers.SGD(0.1)))
    variables = state.model.trainable_variables
    update = Update(strategy, state, variables, "per_replica")

    @tf.function
    def step():
        gradients = {i: tf.fill(weight.shape, state.optimizer.scale_loss(1.0)) for i, weight in enumerate(variables)}
        strategy.run(update.on_replica, args=(gradients,))

    rate = state.optimizer.learning_rate  # of a LossScaleOptimizer the inner one's
    before = weights(state)
    for value in (0.25, 0.5):
        rate.assign(value)
        step()
    for value, old in zip(weights(state), before, strict=True):
        np.testing.assert_allclose(value, old - 0.75, atol=1e-6)

    if not scaled:  # where it is, the reading is in a branch
        handles, reads = reads_of([rate], step.get_concrete_function().graph)
        assert len(handles) == len(reads) == 2  # one on each replica, for all variables


def test_nothing_of_the_optimizer_is_read_before_there_is_a_gradient():
    strategy = make_strategy(2)
    state = state_of(strategy, lambda: keras.optimizers.SGD(0.1, momentum=0.9))
    variables = state.model.trainable_variables
    update = Update(strategy, state, variables, "per_replica")

    @tf.function
    def step(value):
        gradients = {i: tf.fill(weight.shape, value, name=f"gradient_{i}") for i, weight in enumerate(variables)}
        strategy.run(update.on_replica, args=(gradients,))

    graph = step.get_concrete_function(tf.constant(1.0)).graph
    _, reads = reads_of(state.optimizer.variables, graph)
    assert len(reads) >= 2 * len(state.optimizer.variables)
    last = graph.get_operation_by_name(f"gradient_{len(variables) - 1}")
    for op in reads:  # what is read after it was written waits for that, which has waited for the gradient
        before = op.control_inputs
        assert last in before or any(other.type.startswith("Assign") for other in before), op.name


@pytest.mark.parametrize("name", ["SGD", "Muon"])
def test_variables_of_another_dtype_than_the_rate_are_updated_as_once(name, strategy):
    found = []
    for update_kind in ("per_replica", "once"):
        with strategy.scope():
            model = keras.Sequential(
                [keras.Input([4]), keras.layers.Dense(3, kernel_initializer="ones", dtype="bfloat16")]
            )
            optimizer = build_optimizer(lambda: getattr(keras.optimizers, name)(0.01), model.trainable_variables)
            state = new_train_state(model, optimizer, model.trainable_variables)
        apply_gradients_of(state, strategy, update_kind)
        found.append([value.astype(np.float32) for value in weights(state)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("row", [row for row in ROWS if "optimizer" in ROWS[row]])
def test_every_optimizer_of_keras_updates_on_each_replica(row):
    state = state_of(make_strategy(2), ROWS[row]["optimizer"])
    assert Update(make_strategy(2), state, state.model.trainable_variables, "per_replica").per_replica


def test_a_constraint_holds_on_every_replica():
    def model():
        layer = keras.layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(0.5))
        return keras.Sequential([keras.layers.Flatten(), layer])

    result = train(make_strategy(2), model=model, num_steps=5)
    for copy in replica_values(result.model.layers[1].kernel):
        assert np.linalg.norm(copy, axis=0).max() <= 0.5 + 1e-6


def test_a_word_that_is_no_kind_of_update_is_refused():
    with pytest.raises(trainer.UserError, match="Step.update = 'twice' must be one of 'per_replica', 'once'"):
        train(make_strategy(1), update="twice")


def test_inside_of_a_scope_train_says_where_it_belongs():
    strategy = make_strategy(2)
    with strategy.scope(), pytest.raises(trainer.UserError, match="outside of strategy.scope()"):
        train(strategy)


def test_a_device_that_is_not_there_is_named_before_anything_waits_for_it():
    strategy = tf.distribute.MirroredStrategy(["/CPU:0", "/CPU:7"])
    with pytest.raises(trainer.UserError, match="a replica on CPU:7, and this process has CPU:0, CPU:1, CPU:2"):
        train(strategy)


@pytest.mark.full
def test_a_second_run_in_the_process_is_the_first_again():
    strategy = make_strategy(2)
    first, second = (weights(train(strategy, num_steps=3)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
