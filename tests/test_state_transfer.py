"""What becomes of the old optimizer's state: every cell of the carry matrix, and what it is worth to a run."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import write_optimizers
from commands import REPOSITORY, run_command
from conftest import full, make_strategy
from grouped import train_with
from tensorflow.core.protobuf import trackable_object_graph_pb2
from write_optimizers import OPTIMIZERS, STEPS, built, net

import trainer
from trainer.cluster.replicas import replica_values
from trainer.data.order import epoch_order
from trainer.optimizers.build import build_optimizer
from trainer.optimizers.state_transfer import matrix_table, transfer_state
from trainer.optimizers.state_transfer.matrix import MATRIX, SLOTS
from trainer.output.metric_writer import read_rows

VARIABLES = [f"{layer}/{leaf}" for layer in ("first", "second", "head") for leaf in ("kernel", "bias")]
REVERSED = VARIABLES[::-1]
STYLES = ("Keras 3", "Keras 2", "Keras 2 legacy")
LEGACY_SLOTS = {
    ("SGD", "momentums"): "momentum", ("RMSprop", "_velocities"): "rms", ("RMSprop", "_momentums"): "momentum",
    ("RMSprop", "_average_gradients"): "mg", ("Adagrad", "_accumulators"): "accumulator", "_momentums": "m",
    "_velocities": "v", "_velocity_hats": "vhat", "_m": "m", "_u": "v", "_accumulated_grads": "accum_grad",
    "_accumulated_delta_vars": "accum_var",
}  # fmt: skip
KERAS_3_SLOTS = {
    "momentums": "momentum", "_momentums": "momentum", "_velocities": "velocity", "_velocity_hats": "velocity_hat",
    "_m": "momentum", "_u": "norm", "_average_gradients": "average_gradient", "_accumulators": "accumulator",
    "_accumulated_grads": "accumulated_grad", "_accumulated_delta_vars": "accumulated_delta_var",
}  # fmt: skip


def class_of(name: str) -> str:
    return OPTIMIZERS[name][0]


def has(name: str, slot: str) -> bool:
    """Whether the optimizer of that name is built with the slot."""
    options = OPTIMIZERS[name][1]
    needs = {"_velocity_hats": "amsgrad", "_average_gradients": "centered"}
    if slot == "_momentums" and class_of(name) == "RMSprop":
        return "momentum" in options
    return slot not in needs or needs[slot] in options


CELLS = [
    (style, old, new)
    for style in STYLES
    for old in OPTIMIZERS
    for new in OPTIMIZERS
    if (class_of(old), class_of(new)) in MATRIX
    and class_of(old) not in {"Keras 3": (), "Keras 2": ("Lamb",), "Keras 2 legacy": ("Lamb", "AdamW", "Lion")}[style]
]


@pytest.fixture(scope="session")
def sources(tmp_path_factory, written_by_keras_2):
    """{style: folder} of checkpoints of every optimizer, written by Keras 3 here and by Keras 2 in its own process."""
    folders = {"Keras 3": tmp_path_factory.mktemp("keras3"), "Keras 2": written_by_keras_2 / "optimizers"}
    write_optimizers.main(folders["Keras 3"])
    return lambda style, name: str(
        folders["Keras 3" if style == "Keras 3" else "Keras 2"] / (f"legacy {name}" if "legacy" in style else name)
    )


def saved_slot(path: str, style: str, name: str, slot: str, variable: str) -> np.ndarray:
    """The slot's value by TensorFlow's reader, found in another way than the engine does it.

    In Keras 3 by the variable's name, in Keras 2 by the place that follows from the order it was built in, in
    the legacy optimizers by the key.
    """
    reader = tf.train.load_checkpoint(path)
    layer, leaf = variable.split("/")
    if style == "Keras 3":
        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
        end = f"/net_{layer}_{leaf}_{KERAS_3_SLOTS[slot]}"
        (key,) = [a.checkpoint_key for n in graph.nodes for a in n.attributes if a.full_name.endswith(end)]
    elif style == "Keras 2":
        place, count = REVERSED.index(variable), len(VARIABLES)
        one_after_the_other = {"_m": 0, "_u": 1, "_accumulated_grads": 0, "_accumulated_delta_vars": 1}
        if class_of(name) in ("Adam", "AdamW", "Nadam"):
            one_after_the_other |= {"_momentums": 0, "_velocities": 1}
        whole_lists = {"_velocities": 0, "_momentums": 1, "_average_gradients": 2, "_velocity_hats": 2}
        if slot in one_after_the_other:
            number = 1 + 2 * place + one_after_the_other[slot]
        else:
            number = 1 + count * (whole_lists.get(slot, 0) if class_of(name) != "Lion" else 0) + place
        key = f"optimizer/_variables/{number}/.ATTRIBUTES/VARIABLE_VALUE"
    else:
        place = f"layer_with_weights-{VARIABLES.index(variable) // 2}"
        legacy = LEGACY_SLOTS.get((class_of(name), slot)) or LEGACY_SLOTS[slot]
        key = f"model/{place}/{leaf}/.OPTIMIZER_SLOT/optimizer/{legacy}/.ATTRIBUTES/VARIABLE_VALUE"
    return reader.get_tensor(key)


def transferred(path: str, new: str, strategy, policy: str = "slots", frozen=(), rules=None, options=None, **more):
    """(optimizer, model, restore report, transfer)."""
    with strategy.scope():
        model = net()
        report = trainer.restore_weights(model, path, **(rules or {}))
        variables = [weight for weight in model.trainable_variables if weight.path.split("/", 1)[1] not in frozen]
        optimizer = build_optimizer(lambda: built(new, **(options or {})), variables)
        return optimizer, model, report, transfer_state(policy, optimizer, model, report, **more)


def slot_values(optimizer, slot: str) -> dict[str, list[np.ndarray]]:
    names = [variable.path.split("/", 1)[1] for variable in optimizer._trainable_variables]
    return {name: replica_values(each) for name, each in zip(names, getattr(optimizer, slot), strict=True)}


def tiered(cells, in_make_test):
    """All cells; those that are not `in_make_test` for `make test-all` only."""
    return [
        pytest.param(*cell, marks=() if cell in in_make_test else pytest.mark.full, id="-".join(cell).replace(" ", "_"))
        for cell in cells
    ]


# Each pair of classes once, and what each writer hands to its like.
ONE_OF_EACH_PAIR = {(class_of(old), class_of(new)): (style, old, new) for style, old, new in CELLS[::-1]}
TO_ITS_LIKE = {(style, old, new) for style, old, new in CELLS if old == new}


@pytest.mark.parametrize(("style", "old", "new"), tiered(CELLS, {*ONE_OF_EACH_PAIR.values(), *TO_ITS_LIKE}))
def test_every_cell_carries_the_checkpoints_values_to_the_variables_they_belong_to(style, old, new, sources):
    """On two replicas, of which each copy is compared with the file."""
    strategy = make_strategy(2)
    path = sources(style, old)
    optimizer, _, report, transfer = transferred(path, new, strategy)
    expected = 0
    for slot, candidates in MATRIX[class_of(old), class_of(new)].items():
        if not has(new, slot):
            continue
        source = next((candidate for candidate in candidates if has(old, candidate)), None)
        for variable, values in slot_values(optimizer, slot).items():
            wanted = 0.0 if source is None else saved_slot(path, style, old, source, variable)
            assert len(values) == strategy.num_replicas_in_sync
            for value in values:
                np.testing.assert_array_equal(value, np.broadcast_to(wanted, value.shape))
            assert source is None or np.any(values[0])
            expected += source is not None
    assert [int(value) for value in replica_values(optimizer.iterations)] == [STEPS] * strategy.num_replicas_in_sync
    assert transfer.step == STEPS and len(transfer.carried) == expected > 0
    assert (transfer.source, transfer.target) == (class_of(old), class_of(new))
    assert transfer.replicas_verified == strategy.num_replicas_in_sync
    # Everything of the checkpoint's optimizer that is read was said, and the report counts it.
    assert {record.key for record in transfer.carried} <= set(report.transferred_keys)
    assert report.optimizer_keys_read == len(report.transferred_keys)
    assert len(report.transferred_keys) == 1 + len({record.key for record in transfer.carried})


REFUSED = [
    (old, new)
    for old in OPTIMIZERS
    for new in OPTIMIZERS
    if (class_of(old), class_of(new)) not in MATRIX and len({old, new} & {"SGD nesterov", "AMSGrad"}) == 0
]


@pytest.mark.parametrize(("old", "new"), tiered(REFUSED, {class_of(old): (old, new) for old, new in REFUSED}.values()))
def test_every_other_cell_is_refused_by_name_and_changes_nothing(old, new, sources):
    source, target = class_of(old), class_of(new)
    with make_strategy(1).scope():
        model = net()
        report = trainer.restore_weights(model, sources("Keras 3", old))
        optimizer = build_optimizer(lambda: built(new), model.trainable_variables)
        before = [replica_values(variable)[0] for variable in optimizer.variables]
        with pytest.raises(trainer.UserError, match=f"can be carried from {source} to {target}: .{{20}}") as reported:
            transfer_state("slots", optimizer, model, report)
    assert "optimizer_state = 'step'" in str(reported.value)
    assert all(f"{new}" in str(reported.value) for old_, new in MATRIX if old_ == source)  # what could be carried
    for variable, value in zip(optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(replica_values(variable)[0], value)
    assert report.optimizer_keys_read == 0


# What it is worth to a run.


def task():
    return trainer.supervised(loss=keras.losses.MeanSquaredError(), inputs="x", target="y")


RANDOM = np.random.default_rng(0)
DATA = {"x": RANDOM.normal(size=[24, 4]).astype("float32"), "y": RANDOM.normal(size=[24, 2]).astype("float32")}


def train(**options):
    defaults = dict(
        model=net, train_data=DATA, task=task(), global_batch_size=6, num_steps=4, seed=3, log_every=1,
        strategy=make_strategy(1),
    )  # fmt: skip
    return train_with(**{**defaults, **options})


def second_epoch_first() -> dict[str, np.ndarray]:
    """The data in such an order that a new run's first epoch is the second one of a run on `DATA`."""
    first, second = (epoch_order(24, 3, epoch) for epoch in (0, 1))
    moved = {key: np.empty_like(value) for key, value in DATA.items()}
    for key, value in DATA.items():
        moved[key][first] = value[second]
    return moved


@pytest.mark.parametrize(
    ("name", "replicas"),
    [
        ("Adam", 1),
        full("AMSGrad", 1),
        full("SGD nesterov", 2),
        full("RMSprop with all", 1),
    ],
)
def test_a_run_and_a_carry_end_with_the_bits_of_one_run_of_both_lengths(name, replicas, tmp_path):
    strategy = make_strategy(replicas)

    def optimizer():
        return built(name, learning_rate=keras.optimizers.schedules.CosineDecay(0.02, 10))

    whole = train(optimizer=optimizer, num_steps=8, strategy=strategy)
    train(optimizer=optimizer, model_dir=tmp_path / "first", strategy=strategy)
    second = train(
        optimizer=optimizer, checkpoint=tmp_path / "first", optimizer_state="slots", train_data=second_epoch_first(),
        strategy=strategy,
    )  # fmt: skip
    for variable, other in zip(whole.model.variables, second.model.variables, strict=True):
        assert replica_values(variable)[0].tobytes() == replica_values(other)[0].tobytes(), variable.path


@pytest.mark.full
def test_without_the_carry_it_is_another_run(tmp_path):
    train(optimizer=lambda: built("Adam"), model_dir=tmp_path / "first")
    options = dict(optimizer=lambda: built("Adam"), checkpoint=tmp_path / "first")
    weights = [train(**options, optimizer_state=policy).model.get_weights() for policy in ("fresh", "step", "slots")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(weights[one][0], weights[other][0])


def one_update(optimizer, value: float) -> dict[str, np.ndarray]:
    """{variable: what an update with this gradient everywhere adds to it}."""
    variables = optimizer._trainable_variables
    before = [replica_values(variable)[0] for variable in variables]
    optimizer.apply([tf.fill(variable.shape, value) for variable in variables], variables)
    names = [variable.path.split("/", 1)[1] for variable in variables]
    return {n: replica_values(v)[0] - b for n, v, b in zip(names, variables, before, strict=True)}


def test_a_carried_velocity_moves_the_weights_by_the_rate_that_it_was_made_with(sources):
    path = sources("Keras 2 legacy", "SGD")
    optimizer, _, _, transfer = transferred(path, "SGD", make_strategy(1), options={"learning_rate": 0.5})
    for variable, change in one_update(optimizer, 2.0).items():
        velocity = saved_slot(path, "Keras 2 legacy", "SGD", "momentums", variable)
        np.testing.assert_allclose(change, 0.9 * velocity - 0.5 * 2.0, atol=1e-6)
    assert any("has the rate of its own steps inside" in note for note in transfer.notes)


def test_nesterov_continues_with_the_velocity_of_plain_momentum(sources):
    path = sources("Keras 3", "SGD")
    optimizer, *_ = transferred(path, "SGD nesterov", make_strategy(1), options={"learning_rate": 0.5})
    for variable, change in one_update(optimizer, 2.0).items():
        velocity = 0.8 * saved_slot(path, "Keras 3", "SGD", "momentums", variable) - 0.5 * 2.0
        np.testing.assert_allclose(change, 0.8 * velocity - 0.5 * 2.0, atol=1e-6)


def test_an_adam_of_keras_2_continues_as_adam_with_its_bias_correction(sources):
    path = sources("Keras 2", "Adam")
    optimizer, *_ = transferred(path, "Adam", make_strategy(1))
    for variable, change in one_update(optimizer, 2.0).items():
        m, v = (saved_slot(path, "Keras 2", "Adam", slot, variable) for slot in ("_momentums", "_velocities"))
        m, v, t = 0.9 * m + 0.1 * 2.0, 0.999 * v + 0.001 * 4.0, STEPS + 1
        wanted = -0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
        np.testing.assert_allclose(change, wanted, rtol=1e-3)


def test_rmsprop_continues_with_adams_mean_square(sources):
    path = sources("Keras 3", "Adam")
    optimizer, _, _, transfer = transferred(path, "RMSprop", make_strategy(1))
    for variable, change in one_update(optimizer, 2.0).items():
        v = 0.9 * saved_slot(path, "Keras 3", "Adam", "_velocities", variable) + 0.1 * 4.0
        np.testing.assert_allclose(change, -0.01 * 2.0 / np.sqrt(v + 1e-7), rtol=1e-4)
    assert any("short of the mean square" in note for note in transfer.notes)


def test_nadams_product_of_momenta_is_the_one_of_so_many_steps(sources):
    nadam, *_ = transferred(sources("Keras 2 legacy", "Adam"), "Nadam", make_strategy(2))
    product = np.prod([0.9 * (1 - 0.5 * 0.96**t) for t in range(1, STEPS + 1)])
    assert [float(value) for value in replica_values(nadam._u_product)] == pytest.approx([product] * 2)


# What is not carried, and what is refused, is said.


def test_by_default_nothing_is_read_and_the_proof_says_so(tmp_path):
    train(optimizer=lambda: built("Adam"), model_dir=tmp_path / "first")
    result = train(optimizer=lambda: built("Adam"), checkpoint=tmp_path / "first")
    assert result.state_transfer is None and result.optimizer_proof.checkpoint_keys_read == 0
    assert result.restore_report.optimizer_keys_read == 0 and not result.restore_report.transferred_keys
    assert "0 of the optimizer's entries read" in str(result.restore_report)


@pytest.mark.parametrize("style", STYLES)
def test_keep_step_takes_the_step_count_alone(style, strategy, sources):
    optimizer, _, report, transfer = transferred(sources(style, "RMSprop"), "Adam", strategy, "step")
    assert [int(value) for value in replica_values(optimizer.iterations)] == [STEPS] * strategy.num_replicas_in_sync
    for slot in ("_momentums", "_velocities"):
        assert not any(np.any(values) for values in slot_values(optimizer, slot).values())
    assert report.optimizer_keys_read == 1 and transfer.carried == []
    # (1 - 0.9) / sqrt(1 - 0.999) = 3.2: the first update of empty slots with nothing corrected.
    assert any("up to about 3.2 times the rate" in note for note in transfer.notes)


def test_the_first_update_of_empty_slots_at_a_late_step_is_as_long_as_the_note_says(sources):
    optimizer, *_ = transferred(sources("Keras 3", "SGD"), "Adam", make_strategy(1), "step")
    optimizer.iterations.assign(100_000)
    change = one_update(optimizer, 2.0)["first/kernel"]
    np.testing.assert_allclose(change, -0.01 * 0.1 / np.sqrt(0.001), rtol=1e-3)


@pytest.mark.full
def test_a_step_count_is_taken_from_a_file_that_only_numbers_its_slots_and_slots_are_not(tmp_path):
    model = net()
    model.compile(built("Adam"), "mse")
    model.fit(DATA["x"], DATA["y"], batch_size=6, verbose=0)
    for file in ("a.weights.h5", "a.keras"):
        model.save_weights(tmp_path / file) if "weights" in file else model.save(tmp_path / file)
        optimizer, *_ = transferred(str(tmp_path / file), "Adam", make_strategy(1), "step")
        assert int(optimizer.iterations) == 4
        with pytest.raises(trainer.UserError, match="numbers the slots .* does not say whose they are"):
            transferred(str(tmp_path / file), "Adam", make_strategy(1))
    plain = net()
    plain.save_weights(tmp_path / "plain.weights.h5")
    with pytest.raises(trainer.UserError, match="step count of an optimizer, and .* holds none"):
        transferred(str(tmp_path / "plain.weights.h5"), "Adam", make_strategy(1), "step")


def test_variables_under_other_names_take_their_slots_with_them_and_reinitialized_ones_begin_again(sources):
    path = sources("Keras 3", "Adam")
    rules = {"rename": [("^first/", "second/"), ("^second/", "first/")], "reinitialize": ["^head/"]}
    optimizer, _, _, transfer = transferred(path, "AdamW", make_strategy(1), rules=rules)
    for slot in ("_momentums", "_velocities"):
        values = slot_values(optimizer, slot)
        np.testing.assert_array_equal(
            values["first/kernel"][0], saved_slot(path, "Keras 3", "Adam", slot, "second/kernel")
        )
        assert not np.any(values["head/kernel"][0])
    assert {(record.variable, record.why) for record in transfer.fresh} == {
        (name, "its variable is reinitialized") for name in ("head/kernel", "head/bias")
    }
    text = str(transfer)
    assert "starts fresh    2  _momentums: its variable is reinitialized: head/kernel, head/bias" in text
    assert "left behind" in text and "its variable is not restored" in text
    assert "up to about 3.2 times the rate" in text


@pytest.mark.full
def test_what_is_frozen_here_or_was_frozen_there_is_said(tmp_path, sources):
    optimizer, _, _, transfer = transferred(
        sources("Keras 3", "Adam"), "Adam", make_strategy(1), frozen=("first/kernel", "first/bias")
    )
    assert len(transfer.carried) == 8
    assert [record.why for record in transfer.left].count("its variable is not trained here") == 4

    train(optimizer=lambda: built("Adam"), model_dir=tmp_path / "first", frozen=["^head/"])
    result = train(optimizer=lambda: built("Adam"), checkpoint=tmp_path / "first", optimizer_state="slots")
    assert {record.variable for record in result.state_transfer.fresh} == {"head/kernel", "head/bias"}
    assert {record.why for record in result.state_transfer.fresh} == {
        "the checkpoint's optimizer has none for its variable"
    }


def test_a_variable_of_which_some_rows_are_restored_has_new_slots(tmp_path, sources):
    def wider():
        model = keras.Sequential([keras.layers.Dense(4, name=n) for n in ("first", "second")], name="net")
        model.add(keras.layers.Dense(5, name="head"))
        model.build((None, 4))
        return model

    data = {"x": DATA["x"], "y": RANDOM.normal(size=[24, 5])}
    result = train(
        model=wider, train_data=data, optimizer=lambda: built("Adam"), checkpoint=sources("Keras 3", "Adam"),
        grow=["^head/"], optimizer_state="slots",
    )  # fmt: skip
    assert {record.variable for record in result.state_transfer.fresh} == {"head/kernel", "head/bias"}
    assert "only some rows of its variable are restored (rule ^head/)" in str(result.state_transfer)


def written(tmp_path, optimizer, model=None, name="source", **more) -> str:
    model = model or net()
    write_optimizers.step(optimizer, model.trainable_variables, np.random.default_rng(0))
    return tf.train.Checkpoint(model=model, optimizer=optimizer, **more).write(str(tmp_path / name))


def test_an_optimizer_whose_class_the_file_does_not_tell_is_not_carried_from(tmp_path):
    # ScheduleFreeAdamW keeps a copy of the weights where Adam keeps its mean gradient.
    path = written(tmp_path, built("Adam", name="mine"))
    with pytest.raises(trainer.UserError, match="calls its optimizer 'mine', .* Adam or .*ScheduleFreeAdamW"):
        transferred(path, "Adam", make_strategy(1))
    path = written(tmp_path, built("SGD", name="mine"), name="sgd")  # no other one has its slots
    assert transferred(path, "SGD", make_strategy(1))[-1].carried
    path = written(tmp_path, built("SGD", name="adam"), name="liar")
    with pytest.raises(trainer.UserError, match="calls its optimizer 'adam', .* it may be SGD"):
        transferred(path, "SGD", make_strategy(1))


def test_what_has_no_slots_or_several_optimizers_is_refused(tmp_path):
    path = written(tmp_path, keras.optimizers.SGD(0.1))
    with pytest.raises(trainer.UserError, match="keeps no slots, as plain SGD"):
        transferred(path, "SGD", make_strategy(1))
    path = written(tmp_path, built("SGD"), name="momentum")
    with pytest.raises(trainer.UserError, match=r"this SGD keeps no slots \(momentum = 0\)"):
        transferred(path, "SGD", make_strategy(1), options={"momentum": 0.0})
    model, other = net(), built("Adam")
    other.build(model.trainable_variables)
    path = written(tmp_path, built("Adam"), model, name="two", critic=other)
    for policy in ("slots", "step"):
        with pytest.raises(trainer.UserError, match="takes the step count of an optimizer, and .* holds 2 of them"):
            transferred(path, "Adam", make_strategy(1), policy)


def test_an_optimizer_that_counts_micro_batches_has_no_step_count(tmp_path):
    path = written(tmp_path, built("Adam", gradient_accumulation_steps=2))
    with pytest.raises(trainer.UserError, match="counts micro-batches"):
        transferred(path, "Adam", make_strategy(1), "step")


class AdamOfMyOwn(keras.optimizers.Adam):
    """Same slots, and who knows which meaning."""


def test_an_optimizer_of_the_users_own_is_not_carried_to(sources):
    with make_strategy(1).scope():
        model = net()
        report = trainer.restore_weights(model, sources("Keras 3", "Adam"))
        optimizer = build_optimizer(AdamOfMyOwn, model.trainable_variables)
        with pytest.raises(trainer.UserError, match="AdamOfMyOwn is none of the optimizers whose slots are known"):
            transfer_state("slots", optimizer, model, report)


def test_a_keras_2_slot_whose_name_two_variables_have_is_refused(tmp_path, sources):
    # As Keras 2 writes it, but for the second layer's name, which is the first's.
    path = sources("Keras 2", "Adam")
    reader = tf.train.load_checkpoint(path)
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    for node in graph.nodes:
        for attribute in node.attributes:
            attribute.full_name = attribute.full_name.replace("second/", "first/")
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    values["_CHECKPOINTABLE_OBJECT_GRAPH"] = np.array(graph.SerializeToString(), dtype=object)
    names = sorted(values)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "twice"), tensor_names=names, shape_and_slices=[""] * len(names),
        tensors=[tf.constant(values[name]) for name in names],
    )  # fmt: skip
    with pytest.raises(trainer.UserError, match="2 variables of the file are called so"):
        transferred(str(tmp_path / "twice"), "Adam", make_strategy(1))


def test_slots_that_are_not_finite_are_refused(tmp_path):
    model = net()
    optimizer = built("Adam")
    optimizer.build(model.trainable_variables)
    optimizer._velocities[0].assign(np.full(optimizer._velocities[0].shape, np.inf))
    path = tf.train.Checkpoint(optimizer=optimizer, model=model).write(str(tmp_path / "inf"))
    with pytest.raises(trainer.UserError, match="mean square of first/kernel .* has 16 values that are NaN"):
        transferred(path, "Adam", make_strategy(1))


def test_keras_own_averages_begin_at_the_restored_weights(sources):
    # Keras starts them in the update at step 0, which does not come.
    optimizer, model, _, transfer = transferred(
        sources("Keras 3", "Adam"), "Adam", make_strategy(2), options={"use_ema": True}
    )
    for average, variable in zip(optimizer._model_variables_moving_average, model.trainable_variables, strict=True):
        for value, weight in zip(replica_values(average), replica_values(variable), strict=True):
            np.testing.assert_array_equal(value, weight)
    assert any("use_ema" in note for note in transfer.notes)


def test_an_optimizer_that_scales_the_loss_hands_over_what_it_wraps(tmp_path):
    source = keras.optimizers.LossScaleOptimizer(built("Adam"))
    path = written(tmp_path, source)
    with make_strategy(2).scope():
        model = net()
        report = trainer.restore_weights(model, path)
        optimizer = build_optimizer(
            lambda: keras.optimizers.LossScaleOptimizer(built("Adam")), model.trainable_variables
        )
        transfer = transfer_state("slots", optimizer, model, report)
    assert transfer.step == 1 and len(transfer.carried) == 12
    for value, wanted in zip(optimizer.inner_optimizer._momentums, source.inner_optimizer._momentums, strict=True):
        np.testing.assert_array_equal(replica_values(value)[1], wanted)


@pytest.mark.full
def test_a_schedule_continues_with_the_step_count_and_one_that_is_over_is_refused(tmp_path):
    def optimizer(decay_steps=8):
        return built("Adam", learning_rate=keras.optimizers.schedules.PolynomialDecay(0.8, decay_steps, 0.0))

    train(optimizer=optimizer, model_dir=tmp_path / "first")
    options = dict(optimizer=optimizer, checkpoint=tmp_path / "first", optimizer_state="step")
    result = train(**options, model_dir=tmp_path / "b")
    assert result.state_transfer.first_learning_rate == pytest.approx(0.4)
    rates = [row["learning_rate"] for row in read_rows(tmp_path / "b/metrics.jsonl")]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=1e-6)
    with pytest.raises(trainer.UserError, match="The schedule is over: with the step count .*, 4, .* 5 to 8"):
        train(**options | {"optimizer": lambda: optimizer(4)})


@pytest.mark.full
@pytest.mark.parametrize(("rate", "replicas"), [(0.4, 2), ("schedule", 1)])
def test_the_rate_is_warmed_up_again_from_the_hand_over_on_and_through_a_resume(rate, replicas, tmp_path):
    def optimizer():
        constant = keras.optimizers.schedules.PolynomialDecay(0.8, 8, 0.8)
        return built("Adam", learning_rate=constant if rate == "schedule" else rate)

    train(optimizer=optimizer, model_dir=tmp_path / "first", num_steps=3)
    options = dict(
        optimizer=optimizer, checkpoint=tmp_path / "first", optimizer_state="slots", rewarmup_steps=4,
        strategy=make_strategy(replicas), checkpoint_every=1,
    )  # fmt: skip
    whole = train(**options, model_dir=tmp_path / "whole", num_steps=6)
    rates = [row["learning_rate"] for row in read_rows(tmp_path / "whole/metrics.jsonl")]
    top = 0.4 if rate == 0.4 else 0.8
    assert rates == pytest.approx([top * part for part in (0.25, 0.5, 0.75, 1, 1, 1)])
    assert whole.state_transfer.first_learning_rate == pytest.approx(top / 4)
    train(**options, model_dir=tmp_path / "parts", num_steps=2)
    rest = train(**options, model_dir=tmp_path / "parts", num_steps=6)
    assert rest.state_transfer is None  # a resume hands nothing over again
    for variable, other in zip(whole.model.variables, rest.model.variables, strict=True):
        assert replica_values(variable)[0].tobytes() == replica_values(other)[0].tobytes()


def test_a_policy_that_is_none_or_has_no_meaning_is_refused():
    optimizer = lambda: built("Adam")  # noqa: E731
    for options, message in (
        (
            {"optimizer_state": "slot", "checkpoint": "x"},
            "optimizer_state = 'slot' must be one of .* Did you mean 'slots'",
        ),
        ({"rewarmup_steps": 3, "checkpoint": "x"}, "optimizer_state = 'fresh' takes none"),
        (
            {"optimizer_state": "slots", "checkpoint": "x", "layer_decay": 0.5},
            "goes with one optimizer for all variables",
        ),
        ({"rewarmup_steps": -1, "checkpoint": "x"}, "rewarmup_steps = -1 must be 0"),
    ):
        with pytest.raises(trainer.UserError, match=message):
            train(optimizer=optimizer, **options)


@pytest.mark.full
def test_the_dry_run_the_text_and_the_json_list_what_is_carried_and_a_refusal_ends_with_2(digits_source, tmp_path):
    flags = (
        "--gin_file=configs/runs/digits_adam_to_sgd.gin",
        f"--gin_param=INIT_CHECKPOINT = '{digits_source}'",
        "--gin_param=Restore.optimizer_state = 'slots'",
    )
    refused = run_command("launch.train", *flags, "--dry_run")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "nothing can be carried from Adam to SGD" in refused.stderr
    flags += ("--gin_param=OPTIMIZER = @AdamW", "--gin_param=NUM_STEPS = 2")
    done = run_command("launch.train", *flags, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"optimizer state +slots: step 60 and 20 slots of the checkpoint's Adam continue in AdamW", done.stdout
    )
    assert "carried        10  mean gradient (_momentums)" in done.stdout
    done = run_command("launch.train", *flags, f"--model_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run/restore_report.json").read_text())
    assert report["state_transfer"]["step"] == 60 and len(report["state_transfer"]["carried"]) == 20
    assert report["optimizer_keys_read"] == len(report["transferred_keys"]) == 21
    assert all(record["checksum"].startswith("crc32c:") for record in report["state_transfer"]["carried"])
    assert "optimizer state  slots: step 60" in (tmp_path / "run/restore_report.txt").read_text()


def test_the_readmes_matrix_is_the_one_that_is_carried_by():
    table = matrix_table()
    assert table.count("\n") == 1 + len({cell for cell in SLOTS if cell not in ("AdamW", "Nadam", "Lamb")})
    assert table in (REPOSITORY / "docs/optimizers.md").read_text()
