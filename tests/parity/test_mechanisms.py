"""N replicas = 1 replica: what else a checkpoint holds, infinite gradients, and how often replicas send."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import full, make_strategy
from parity.rows import DATA, INIT, ROWS, TASK, infinite_for_one_example, net, sgd, train

import trainer
from trainer.checkpoints.train_state import new_train_state
from trainer.cluster.replicas import replica_values
from trainer.optimizers.build import build_optimizer
from trainer.step.train_step import build_train_loop

OTHER_STATES = ("phases and groups", "momentum", "adafactor", "averages", "loss scale", "dropout, by example")


@pytest.mark.parametrize("row", ["adam", *map(full, OTHER_STATES)])
def test_all_else_that_a_checkpoint_holds_is_that_of_one_replica(row, tmp_path):
    """Slots, averages, counters, scales, generators: what the next steps depend on beside the weights."""
    found = []
    for replicas in (1, 2):
        model_dir = tmp_path / f"{replicas} replicas"
        train(make_strategy(replicas), **{"log_every": 0, "eval_data": None, **ROWS[row], "model_dir": model_dir})
        state = tf.train.load_checkpoint(str(model_dir / "checkpoints/ckpt-10"))
        names = set(state.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter"}
        found.append({name: state.get_tensor(name) for name in names})
    one, two = found
    assert one.keys() == two.keys() and any(name.startswith("optimizer/") for name in one)
    for name, value in one.items():
        if np.issubdtype(value.dtype, np.floating):
            np.testing.assert_allclose(value, two[name], atol=1e-6, rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(value, two[name], err_msg=name)


@pytest.mark.full
def test_a_step_with_an_infinite_gradient_changes_nothing_on_any_replica(tmp_path):
    row = {
        **ROWS["loss scale, infinite gradient"],
        "eval_data": None,
        "log_every": 0,
        "checkpoint_every": 1,
        "keep": 9,
    }
    for replicas in (1, 2, 3):
        model_dir = tmp_path / f"{replicas} replicas"
        # An epoch of four steps, in which the bad example comes once.
        train(make_strategy(replicas), **{**row, "num_steps": 4, "model_dir": model_dir})
        states = [tf.train.load_checkpoint(str(model_dir / f"checkpoints/ckpt-{step}")) for step in range(1, 5)]
        names = states[0].get_variable_to_shape_map()
        (iterations,) = [name for name in names if name.startswith("optimizer/inner_optimizer/_iterations")]
        counts = [int(state.get_tensor(iterations)) for state in states]
        assert counts[-1] == 3, counts
        skipped = next(i for i in range(1, 4) if counts[i] == counts[i - 1])
        for name in names:
            if name.startswith("model/"):
                before, after = (states[i].get_tensor(name) for i in (skipped - 1, skipped))
                np.testing.assert_array_equal(before, after, err_msg=name)


@pytest.mark.parametrize("replicas, bad", [full(2, 0), full(2, 1), full(3, 0), (3, 1), full(3, 2)])
def test_an_infinite_gradient_on_any_one_replica_stops_the_update_on_all(replicas, bad):
    def infinite_there(model, batch):
        here = tf.distribute.get_replica_context().replica_id_in_sync_group
        is_bad = tf.fill(tf.shape(batch["is_bad"]), tf.cast(tf.equal(here, bad), tf.float32))
        return infinite_for_one_example(model, {**batch, "is_bad": is_bad})

    model = net()
    result = train(
        make_strategy(replicas),
        **{**ROWS["loss scale, infinite gradient"], "task": trainer.custom_loss(loss=infinite_there, inputs="x")},
        eval_data=None,
        model=model,
        num_steps=3,
    )
    untrained = model()
    untrained(np.zeros([1, 6, 6, 2], np.float32))
    for variable, initial in zip(result.model.weights, untrained.weights, strict=True):
        for copy in replica_values(variable):
            np.testing.assert_array_equal(copy, initial.numpy())


def test_replicas_draw_masks_of_their_own_by_default():
    """A layer that remembers its mask: what two replicas kept are two masks."""

    class Remember(keras.layers.Layer):
        def build(self, shape):
            self.seen = self.add_weight(shape=[6], initializer="zeros", trainable=False, aggregation="none")
            self.seed_generator = keras.random.SeedGenerator(5)

        def call(self, x, training=None):
            if training:
                self.seen.assign(keras.random.dropout(tf.ones([6]), 0.5, seed=self.seed_generator))
            return x

    result = train(make_strategy(2), model=net(Remember), num_steps=1)
    first, second = replica_values(result.model.layers[1].seen)
    assert not np.array_equal(first, second)


def test_a_layer_whose_numbers_have_no_rows_is_refused_by_example():
    class Shuffled(keras.layers.Layer):
        def call(self, x, training=None):
            return keras.random.shuffle(x, seed=3) if training else x

    with pytest.raises(trainer.UserError, match="keras.random.shuffle.*random_numbers = 'per_replica'"):
        train(make_strategy(2), model=net(Shuffled), random_numbers="per_example")


def test_a_word_that_is_no_kind_of_random_numbers_is_refused():
    with pytest.raises(trainer.UserError, match="random_numbers = 'same' must be one of 'per_replica', 'per_example'"):
        train(make_strategy(1), random_numbers="same")


def loop_graph(model, accumulation_steps: int, jit_compile: bool = False):
    """The graph of the device loop on two replicas, as a proto."""
    strategy = make_strategy(2)
    with strategy.scope():
        built = model()
        for layer in built.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
        built(tf.zeros([1, 6, 6, 2]))
        state = new_train_state(built, build_optimizer(sgd(), built.trainable_variables))
    batches = trainer.data.batches.train_batches(DATA, 24, 0, accumulation_steps=accumulation_steps)
    loop = build_train_loop(
        strategy, state, TASK, built.trainable_variables, 24, batches, accumulation_steps, jit_compile=jit_compile
    )
    return loop.function.get_concrete_function().graph.as_graph_def()


def loops_around_collectives(graph) -> list[int]:
    """For each collective of the graph, in how many loops, one within the other, it lies."""
    outer = {}
    for function in graph.library.function:
        for node in function.node_def:
            if node.op in ("While", "StatelessWhile"):
                outer[node.attr["body"].func.name] = function.signature.name
    bodies = {node.attr["body"].func.name for node in graph.node if node.op in ("While", "StatelessWhile")}

    def depth(name) -> int:
        return 1 + depth(outer[name]) if name in outer else int(name in bodies)

    return [
        depth(function.signature.name)
        for function in graph.library.function
        for node in function.node_def
        if "CollectiveReduce" in node.op
    ]


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_each_replica_sends_its_gradients_once_a_step_however_many_micro_batches(accumulation_steps):
    """Counted in the graph: all of them packed into one, in the loop over steps and in none within it."""
    assert loops_around_collectives(loop_graph(net(), accumulation_steps)) == [1, 1]


@pytest.mark.full
def test_with_statistics_over_all_replicas_the_gradients_are_still_sent_once():
    """Each micro-batch sends its statistics there, and their gradients back; nothing but those is more."""

    def model():
        return net(keras.layers.BatchNormalization)()

    one, four = (len(loops_around_collectives(loop_graph(model, steps))) for steps in (1, 4))
    assert (four - 2) == 4 * (one - 2) > 0


def test_what_xla_compiles_is_the_forward_and_backward_pass_of_each_replica():
    graph = loop_graph(net(), 1, jit_compile=True)
    compiled = [function for function in graph.library.function if function.attr["_XlaMustCompile"].b]
    assert len(compiled) == 2
    for function in compiled:
        kinds = {node.op for node in function.node_def}
        assert "Conv2DBackpropFilter" in kinds and not any("Collective" in kind for kind in kinds)


@pytest.mark.full
def test_frozen_variables_stay_bit_identical_on_every_replica():
    model = net()
    frozen = train(make_strategy(2), model=model, frozen=["conv2d"], optimizer=sgd(weight_decay=0.1))
    fresh = model()
    fresh(np.zeros([1, 6, 6, 2], np.float32))
    for variable, initial in zip(frozen.model.weights[:2], fresh.weights[:2], strict=True):
        for copy in replica_values(variable):
            np.testing.assert_array_equal(copy, initial.numpy())


def test_the_rows_have_fixed_initial_weights():
    """Else a row could not tell another step from another start."""
    assert "seed" in INIT["kernel_initializer"].get_config()


def test_one_example_a_replica_is_refused_by_example():
    with pytest.raises(trainer.UserError, match="'per_example' needs two or more examples a replica"):
        train(
            make_strategy(2),
            model=net(lambda: keras.layers.Dropout(0.4)),
            random_numbers="per_example",
            global_batch_size=2,
        )


def test_outside_of_a_step_keras_draws_as_it_always_did():
    train(make_strategy(1), model=net(lambda: keras.layers.Dropout(0.4)), num_steps=1)  # puts ours in between
    assert keras.random.dropout(tf.ones([2, 3, 4]), 0.5, noise_shape=(2, 1, 4), seed=1).shape == (2, 3, 4)

    @tf.function(input_signature=[tf.TensorSpec(None)])
    def of_any_rank(x):
        return keras.random.dropout(x, 0.5, seed=1)

    assert of_any_rank(tf.ones([5])).shape == (5,)
