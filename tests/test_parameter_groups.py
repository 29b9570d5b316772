"""Groups of variables are trained each in its own way, as one optimizer, and are accounted for by name."""

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import run_command
from conftest import full, make_strategy
from parity.rows import DATA, INIT, net, sgd, train, weights
from test_optimizers import OPTIMIZERS

import trainer
from trainer import UserError
from trainer.cluster.replicas import replica_values
from trainer.config import parse_config, register_keras
from trainer.optimizers.build import build_optimizer, prove_new, trained_variables
from trainer.optimizers.grouped_optimizer import GroupedOptimizer
from trainer.optimizers.groups import divide
from trainer.optimizers.learning_rate import learning_rate_at


def two_layers():
    model = keras.Sequential([keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2, name="head")])
    model.build((None, 4))
    for weight in model.weights:
        weight.assign(np.ones(weight.shape))
    return model


def one_step(optimizer, *groups, gradient=1.0, steps=1, **options):
    """{name: what the variable's first number has become}, all numbers 1 before, all gradients alike."""
    model = two_layers()
    variables = trained_variables(model)
    built = build_optimizer(optimizer, variables, divide(model, variables, groups, **options))
    for _ in range(steps):
        built.apply([tf.fill(variable.shape, gradient) for variable in variables], variables)
    return {short_name(variable): float(variable.numpy().flat[0]) for variable in variables}


def short_name(variable) -> str:
    return "/".join(variable.path.split("/")[-2:])


def test_without_groups_the_optimizer_is_keras_own():
    model = two_layers()
    variables = trained_variables(model)
    assert divide(model, variables) == []
    assert type(build_optimizer(keras.optimizers.SGD, variables, [])) is keras.optimizers.SGD


def test_a_group_has_a_multiple_of_the_rate():
    after = one_step(sgd(), trainer.group("^head/", learning_rate_multiplier=2.0))
    assert after["hidden/kernel"] == after["hidden/bias"] == pytest.approx(0.9)
    assert after["head/kernel"] == after["head/bias"] == pytest.approx(0.8)


def test_a_group_has_a_rate_or_a_schedule_of_its_own():
    assert one_step(sgd(), trainer.group("^head/", learning_rate=0.5))["head/bias"] == pytest.approx(0.5)
    falling = trainer.group("^head/", learning_rate=keras.optimizers.schedules.PolynomialDecay(0.4, 2, 0.0))
    after = one_step(sgd(), falling, steps=3)
    assert after["head/bias"] == pytest.approx(1 - 0.4 - 0.2)
    assert after["hidden/bias"] == pytest.approx(1 - 3 * 0.1)


def test_the_global_norm_is_over_all_groups():
    """Of gradients of 1, one for each weight."""
    count = 4 * 3 + 3 + 3 * 2 + 2
    after = one_step(sgd(global_clipnorm=1.0), trainer.group("^head/", 2.0))
    assert after["hidden/kernel"] == pytest.approx(1 - 0.1 / np.sqrt(count))
    assert after["head/kernel"] == pytest.approx(1 - 0.2 / np.sqrt(count))


def test_biases_and_norm_scales_have_no_weight_decay_by_default():
    """The gradient is 0, so that what is left is the decay: 1 - 0.1 * 0.5."""
    after = one_step(sgd(weight_decay=0.5), trainer.group("^head/"), gradient=0.0)
    assert after == pytest.approx({"hidden/kernel": 0.95, "hidden/bias": 1, "head/kernel": 0.95, "head/bias": 1})


@pytest.mark.parametrize(
    ("weight_decay", "kernel", "bias"), [(False, 1.0, 1.0), (0, 1.0, 1.0), (True, 0.95, 0.95), (1.0, 0.9, 0.9)]
)
def test_a_weight_decay_of_a_groups_own_is_for_all_of_it(weight_decay, kernel, bias):
    after = one_step(sgd(weight_decay=0.5), trainer.group("^head/", weight_decay=weight_decay), gradient=0.0)
    assert after["head/kernel"] == pytest.approx(kernel) and after["head/bias"] == pytest.approx(bias)
    assert after["hidden/kernel"] == pytest.approx(0.95)


def test_a_group_has_an_optimizer_of_its_own():
    """Adam's first step is its rate, whatever the gradient."""
    group = trainer.group("^head/", optimizer=lambda: keras.optimizers.Adam(0.25))
    after = one_step(sgd(), group, gradient=3.0)
    assert after["head/kernel"] == pytest.approx(0.75, abs=1e-5)
    assert after["hidden/kernel"] == pytest.approx(0.7)


def test_the_rate_falls_from_layer_to_layer():
    after = one_step(sgd(), layer_decay=0.5)
    assert after["head/kernel"] == after["head/bias"] == pytest.approx(0.9)
    assert after["hidden/kernel"] == after["hidden/bias"] == pytest.approx(0.95)
    both = one_step(sgd(), trainer.group("kernel", 2.0), layer_decay=0.5)
    assert both["hidden/kernel"] == pytest.approx(0.9) and both["hidden/bias"] == pytest.approx(0.95)


def test_a_block_of_layers_counts_as_one_layer():
    """A layer that holds layers is one; a model is none; and a regex says it otherwise."""

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = keras.layers.Dense(4), keras.layers.Dense(4)

        def call(self, x):
            return self.second(self.first(x))

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [Block(), Block()]
            self.head = keras.layers.Dense(1)

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    model = Net()
    model(tf.zeros([1, 4]))
    variables = trained_variables(model)
    parts = divide(model, variables, layer_decay=0.5)
    assert [(part.multiplier, len(part.variables)) for part in parts] == [(0.25, 4), (0.5, 4), (1.0, 2)]
    parts = divide(model, variables, layer_decay=0.5, layer_blocks="blocks")
    assert [(part.multiplier, len(part.variables)) for part in parts] == [(0.5, 8), (1.0, 2)]


def test_a_group_rests_until_its_step_then_has_the_runs_rate():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.4, 4, 0.0)  # 0.4, 0.3, 0.2, 0.1, 0
    group = trainer.group("^hidden/", unfreeze_at=2, weight_decay=0.1)
    make = lambda: keras.optimizers.SGD(schedule)  # noqa: E731
    assert one_step(make, group, steps=2)["hidden/kernel"] == 1.0
    after = one_step(make, trainer.group("^hidden/", unfreeze_at=2), steps=4)
    assert after["hidden/kernel"] == pytest.approx(1 - 0.2 - 0.1)
    assert after["head/kernel"] == pytest.approx(1 - 0.4 - 0.3 - 0.2 - 0.1, abs=1e-6)


def test_what_rests_does_not_count_for_the_global_norm():
    resting = one_step(sgd(global_clipnorm=1.0), trainer.group("^hidden/", unfreeze_at=5))
    assert resting["head/kernel"] == pytest.approx(1 - 0.1 / np.sqrt(8))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "Muon"])
def test_every_keras_optimizer_in_equal_groups_makes_the_steps_that_it_makes_alone(name):
    options = {"global_clipnorm": 0.5, "learning_rate": 0.01}
    make = lambda: getattr(keras.optimizers, name)(**options)  # noqa: E731
    # As they decay alone: everywhere.
    alike = [trainer.group("hidden", weight_decay=None if make().weight_decay is None else True)]
    alike += [trainer.group("head", weight_decay=None if make().weight_decay is None else True)]
    assert one_step(make, *alike, steps=3) == pytest.approx(one_step(make, steps=3), abs=1e-7)


def test_the_loss_scaling_is_around_all_groups():
    model = two_layers()
    variables = trained_variables(model)
    make = lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)  # noqa: E731
    optimizer = build_optimizer(make, variables, divide(model, variables, [trainer.group("^head/", 2.0)]))
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    assert float(optimizer.scale_loss(1.0)) == 8.0
    assert learning_rate_at(optimizer, 0) == pytest.approx(0.1)
    optimizer.apply([tf.fill(variable.shape, 8.0) for variable in variables], variables)
    assert [float(v.numpy().flat[0]) for v in variables] == pytest.approx([0.9, 0.9, 0.8, 0.8])
    optimizer.apply([tf.fill(variable.shape, np.inf) for variable in variables], variables)
    assert float(optimizer.scale_loss(1.0)) == 4.0, "the step is left out in every group"
    assert [float(v.numpy().flat[0]) for v in variables] == pytest.approx([0.9, 0.9, 0.8, 0.8])


def test_a_loss_scale_of_the_optimizers_own_is_taken_out_before_clipping():
    make = sgd(loss_scale_factor=4.0, global_clipnorm=100.0)
    assert one_step(make, trainer.group("^head/"), gradient=4.0)["head/bias"] == pytest.approx(0.9)


def test_a_grouped_optimizer_is_proved_new_in_every_group_and_says_what_it_is(strategy):
    with strategy.scope():
        model = two_layers()
        variables = trained_variables(model)
        parts = divide(model, variables, [trainer.group("^head/", optimizer=keras.optimizers.Adam)])
        make = lambda: keras.optimizers.SGD(0.1, momentum=0.9)  # noqa: E731
        optimizer, twin = (build_optimizer(make, variables, parts) for _ in range(2))
        proof = prove_new(optimizer, lambda _: twin, variables, None)
        assert proof.name == "Adam and SGD in 2 groups" and proof.learning_rate == pytest.approx(0.1)
        assert proof.num_slots == 2 * 2 + 2  # Adam's two for each variable of the head, the momentum of the others
        twin.optimizers[0].variables[-1].assign(np.ones(twin.optimizers[0].variables[-1].shape))
        with pytest.raises(RuntimeError, match="is not new"):
            prove_new(optimizer, lambda _: twin, variables, None)


def test_a_grouped_optimizer_comes_back_from_its_config():
    model = two_layers()
    variables = trained_variables(model)
    groups = [trainer.group("^head/", optimizer=lambda: keras.optimizers.Adam(0.1), unfreeze_at=1)]
    make = lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9), weight_decay=0.5)  # noqa: E731
    optimizer = build_optimizer(make, variables, divide(model, variables, groups))
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, GroupedOptimizer) and again.get_config() == optimizer.get_config()
    other = two_layers()
    again.build(other.trainable_variables)
    for _ in range(3):
        for each, trained in ((optimizer, variables), (again, other.trainable_variables)):
            each.apply([tf.fill(variable.shape, 0.3) for variable in trained], trained)
    for one, two in zip(variables, other.trainable_variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("all", ["hidden/kernel", "hidden/bias", "head/kernel", "head/bias"]),
        ("last_layer", ["head/kernel", "head/bias"]),
        ("biases", ["hidden/bias", "head/bias"]),
        ("bitfit", ["hidden/bias", "head/kernel", "head/bias"]),
    ],
)
def test_a_preset_says_what_is_trained(preset, names):
    assert [short_name(variable) for variable in trained_variables(two_layers(), trained=preset)] == names
    left = trained_variables(two_layers(), ["^head/bias"], preset)
    assert [short_name(variable) for variable in left] == [name for name in names if name != "head/bias"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": [trainer.group("^haed/")]}, r"group.pattern: '\^haed/' matches no variable; there are conv2d"),
        ({"groups": [trainer.group("(")]}, r"group.pattern: '\(' is not a regular expression"),
        (
            {"groups": [trainer.group("^conv2d")], "frozen": ["^conv2d"]},
            r"The group '\^conv2d' has no variables: those that it matches are not trained \(conv2d",
        ),
        (
            {"groups": [trainer.group("^dense"), trainer.group("bias$")]},
            r"Two groups claim dense\w*/bias: '\^dense' and 'bias\$'",
        ),
        ({"groups": [trainer.group]}, r"must be a list of @group\(\), not"),
        ({"groups": trainer.group("a")}, "must be a list of @group"),
        ({"trained": "last_layr"}, "Finetune.trained = 'last_layr' is no preset. Did you mean 'last_layer'"),
        ({"layer_decay": 1.5}, "Finetune.layer_decay = 1.5 must lie between 0 and 1"),
        ({"layer_blocks": "conv"}, "for Finetune.layer_decay, which is not set"),
        ({"layer_blocks": "blok", "layer_decay": 0.8}, "Finetune.layer_blocks: 'blok' matches no trained variable"),
        (
            {"groups": [trainer.group("^dense", optimizer=lambda: keras.optimizers.SGD(global_clipnorm=1.0))]},
            "cannot clip by a global norm, or scale the loss, alone",
        ),
        (
            {"groups": [trainer.group("^dense", weight_decay=True)]},
            "weight_decay = True for '.dense', and SGD has no weight_decay",
        ),
        (
            {
                "groups": [trainer.group("^dense")],
                "optimizer": lambda: keras.optimizers.SGD(lambda: 0.1),
            },
            "a function cannot be split over groups",
        ),
    ],
)
def test_groups_that_make_no_sense_are_refused_before_the_first_step(options, message):
    with pytest.raises(UserError, match=message):
        train(make_strategy(1), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate_multiplier": 0.0}, "must be above 0; Finetune.frozen = .*leaves a part untrained"),
        ({"learning_rate": -1.0}, "group.learning_rate = -1.0 must be above 0"),
        ({"weight_decay": -0.1}, "group.weight_decay = -0.1 must be 0 or more"),
        ({"unfreeze_at": -1}, "group.unfreeze_at = -1 must be a whole number of steps"),
    ],
)
def test_a_group_of_impossible_numbers_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        trainer.group("x", **options)


@pytest.mark.full
def test_groups_resume_to_the_bits_of_an_unbroken_run(tmp_path):
    options = dict(
        optimizer=lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 12), global_clipnorm=1.0),
        groups=[trainer.group("^conv2d", unfreeze_at=5), trainer.group("^dense", optimizer=sgd(momentum=0.9))],
        model=net(keras.layers.LayerNormalization),
    )
    whole = train(make_strategy(2), num_steps=12, **options)
    train(make_strategy(2), num_steps=7, model_dir=tmp_path, **options)
    resumed = train(make_strategy(2), num_steps=12, model_dir=tmp_path, **options)
    for one, two in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.full
def test_what_a_run_with_groups_wrote_is_restored_by_another_without(tmp_path):
    groups = [trainer.group("^dense", optimizer=lambda: keras.optimizers.Adam(0.01))]
    source = train(make_strategy(1), num_steps=2, model_dir=tmp_path, groups=groups, optimizer=sgd(momentum=0.9))
    tuned = train(make_strategy(1), num_steps=1, optimizer=sgd(), checkpoint=tmp_path / "checkpoints")
    reported = str(tuned.restore_report)
    assert (
        "2 for groups of variables: Adam or a kin" in reported
        and "SGD with momentum, or Lion, by its slots" in reported
    )
    assert tuned.restore_report.optimizer_keys_read == 0 and tuned.initial_metrics == source.final_metrics


@pytest.mark.full
def test_a_group_that_changed_is_another_run(tmp_path):
    train(make_strategy(1), num_steps=2, model_dir=tmp_path, groups=[trainer.group("^dense", 0.5)])
    with pytest.raises(UserError, match="holds a run of another config"):
        train(make_strategy(1), num_steps=4, model_dir=tmp_path, groups=[trainer.group("^dense", 0.25)])


def batch_norm_net():
    return keras.Sequential([
        keras.layers.Conv2D(4, 3, **INIT), keras.layers.BatchNormalization(name="norm"),
        keras.layers.Flatten(), keras.layers.Dense(3, name="head", **INIT),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("options", "moves"),
    [
        ({}, True),
        ({"frozen": ["^norm/"]}, False),
        full({"frozen": ["^norm/gamma"]}, True),
        full({"trained": "last_layer"}, False),
        full({"trained": "biases"}, True),
        full({"frozen": ["^norm/"], "update_frozen_batch_norm": True}, True),
    ],
)
def test_the_statistics_of_a_frozen_batch_norm_stay_on_every_replica(options, moves, capsys):
    result = train(make_strategy(2), model=batch_norm_net, num_steps=3, **options)
    norm = result.model.get_layer("norm")
    for variable, initial in ((norm.moving_mean, 0.0), (norm.moving_variance, 1.0)):
        for copy in replica_values(variable):
            assert np.array_equal(copy, np.full_like(copy, initial)) != moves
    reported = capsys.readouterr().out
    assert ("frozen norm" in reported) == (bool(options) and (not moves or "update_frozen_batch_norm" in options))


def test_a_frozen_batch_norm_computes_the_same_in_training_and_in_evaluation():
    result = train(make_strategy(1), model=batch_norm_net, num_steps=1, frozen=["^norm/"])
    x = DATA.examples["x"][:4]
    np.testing.assert_array_equal(result.model(x, training=True), result.model(x, training=False))


PAGE = [
    "OPTIMIZER = @SGD",
    "SGD.learning_rate = 0.1",
    "SGD.weight_decay = 0.01",
    "Finetune.groups = [@head/group(), @body/group()]",
    "head/group.pattern = '^head/'",
    "head/group.learning_rate_multiplier = 10.0",
    "body/group.pattern = '^conv'",
    "body/group.unfreeze_at = 40",
    "body/group.optimizer = @Adam",
    "NUM_STEPS = 100",
]


@pytest.mark.full
def test_the_dry_run_shows_every_group(capsys):
    register_keras()
    parse_config(["configs/runs/digits_source.gin"], PAGE)
    gin.get_configurable("experiment.train")(strategy=make_strategy(1), invocation=trainer.Invocation(dry_run=True))
    page = " ".join(capsys.readouterr().out.split())
    assert "SGD and Adam in 3 groups is new" in page
    assert (
        "group 1 ^head/: 2 variables, SGD, rate x 10, rate step 0: 1, weight decay 0.01, but none on 1 of them, biases"
        in page
    )
    assert "group 2 ^conv: 6 variables, Adam, rate step 40: 0.001" in page and "from step 40 on" in page
    assert "group 3 the rest: 2 variables, SGD" in page


def test_the_dry_run_says_that_keras_decays_biases_where_there_are_no_groups(capsys):
    train(make_strategy(1), optimizer=lambda: keras.optimizers.AdamW(0.1, weight_decay=0.25), dry_run=True)
    page = " ".join(capsys.readouterr().out.split())
    assert "weight decay 0.25 on all 4 trained variables, 2 biases and norm scales among them" in page


def test_a_group_that_the_run_never_reaches_is_reported(capsys):
    train(make_strategy(1), groups=[trainer.group("^dense", unfreeze_at=10)], num_steps=10, dry_run=True)
    assert "the group ^dense begins at step 10, and the run ends at 10: it is never trained" in capsys.readouterr().out


@pytest.mark.full
def test_the_command_refuses_a_group_without_variables_in_one_message(tmp_path):
    done = run_command(
        "launch.train", "--gin_file=configs/runs/digits_source.gin", f"--model_dir={tmp_path / 'run'}",
        "--gin_param=Finetune.groups = [@group()]", "--gin_param=group.pattern = '^haed/'",
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("regraft: ") == 1 and "Traceback" not in done.stderr
    assert "group.pattern: '^haed/' matches no variable; there are conv1/kernel" in done.stderr
    assert not (tmp_path / "run").exists()
