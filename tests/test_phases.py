"""A run's optimizer is followed by another, at a step or by a criterion, and each is new when its turn comes."""

import json

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import run_command
from conftest import make_strategy
from parity.rows import DATA, net, sgd, train, weights

import trainer
from trainer import UserError
from trainer.cluster.replicas import first_value
from trainer.config import parse_config, register_keras
from trainer.data.order import epoch_order
from trainer.optimizers.build import build_optimizer, constant_rates, prove_new
from trainer.optimizers.learning_rate import learning_rate_at
from trainer.optimizers.phased_optimizer import PhasedOptimizer


def one_number(value=1.0):
    return keras.Variable(value, dtype="float32")


def phased(first, *phases, variables=None):
    variables = variables or [one_number()]
    return build_optimizer(first, variables, phases=phases), variables


def steps(optimizer, variables, gradients):
    """What the first variable is after each step."""
    values = []
    for gradient in gradients:
        optimizer.apply([tf.fill(variable.shape, gradient) for variable in variables], variables)
        values.append(float(variables[0].numpy().flat[0]))
    return values


def test_the_next_optimizer_makes_every_update_from_its_step_on():
    optimizer, variables = phased(sgd(), trainer.phase(lambda: keras.optimizers.SGD(1.0), start=2))
    assert steps(optimizer, variables, [1.0] * 4) == pytest.approx([0.9, 0.8, -0.2, -1.2])
    assert first_value(optimizer.iterations) == 4 and optimizer.in_turn(4) == (optimizer.optimizers[1], 2)


def test_a_phase_begins_new_with_its_schedule_at_step_0():
    falling = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.25])
    optimizer, variables = phased(
        sgd(momentum=0.9), trainer.phase(lambda: keras.optimizers.SGD(falling, momentum=0.9), start=2)
    )
    # The old momentum, of 0.19, is not in the first step of 0.5; the second adds 0.9 * 0.5 to 0.25.
    assert steps(optimizer, variables, [1.0] * 4) == pytest.approx([0.9, 0.71, 0.21, -0.49])
    assert learning_rate_at(optimizer, 4) == 0.25


def test_three_phases_follow_each_other():
    rates = [trainer.phase(sgd_of(rate), start) for rate, start in ((0.01, 1), (0.001, 3))]
    optimizer, variables = phased(sgd(), *rates)
    assert steps(optimizer, variables, [1.0] * 4) == pytest.approx([0.9, 0.89, 0.88, 0.879])
    assert list(first_value(optimizer.began)) == [0, 1, 3]


def sgd_of(rate, **options):
    return lambda: keras.optimizers.SGD(rate, **options)


def test_a_phase_clips_by_a_norm_of_its_own():
    optimizer, variables = phased(sgd(), trainer.phase(sgd_of(1.0, global_clipnorm=0.5), start=1))
    assert steps(optimizer, variables, [2.0, 2.0]) == pytest.approx([0.8, 0.3])


def by_the_paper(gradients, decay, tolerance, rate=0.1):
    """Algorithm 1 of Keskar and Socher on one number w with Adam's defaults: (last step of Adam, rate found)."""
    m = a = average = 0.0
    for k, gradient in enumerate(gradients, start=1):
        m, a = 0.9 * m + 0.1 * gradient, 0.999 * a + 0.001 * gradient**2
        moved = -rate * np.sqrt(1 - 0.999**k) / (1 - 0.9**k) * m / (np.sqrt(a) + 1e-7)
        proposed = moved * moved / (-moved * gradient)
        average = decay * average + (1 - decay) * proposed
        corrected = average / (1 - decay**k)
        if k > 1 and abs(corrected - proposed) < tolerance:
            return k, corrected
    return None, average


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_swats_switches_where_the_paper_does_with_the_rate_that_it_finds(momentum):
    gradients = [1.0, 0.5, 0.8, 0.7, 0.75, 0.73, 0.74, 0.735, 0.737, 0.736, 0.7362, 0.7361] * 3
    step, rate = by_the_paper(gradients, decay=0.9, tolerance=2e-3)
    assert step is not None and 2 < step < len(gradients) - 2
    optimizer, variables = phased(
        lambda: keras.optimizers.Adam(0.1),
        trainer.phase(sgd_of(7.0, momentum=momentum), trainer.swats(decay=0.9, tolerance=2e-3)),
    )
    values = steps(optimizer, variables, gradients[:step])
    assert optimizer.current_phase() == 1 and list(first_value(optimizer.began)) == [0, step]
    assert learning_rate_at(optimizer, step) == pytest.approx((1 - momentum) * rate, rel=1e-4)
    (after,) = steps(optimizer, variables, [1.0])
    assert values[-1] - after == pytest.approx((1 - momentum) * rate, rel=1e-3)


def test_swats_does_not_switch_before_its_rate_has_settled():
    optimizer, variables = phased(
        lambda: keras.optimizers.Adam(0.1), trainer.phase(sgd(), trainer.swats(decay=0.9, tolerance=1e-9))
    )
    steps(optimizer, variables, [1.0, 0.1, 0.9, 0.2])
    assert optimizer.current_phase() == 0


def test_a_rate_that_is_found_is_none_of_the_config():
    optimizer, _ = phased(sgd(), trainer.phase(sgd(), trainer.swats()))
    rates = {id(variable) for variable, _ in constant_rates(optimizer)}
    assert [id(each.learning_rate) in rates for each in optimizer.optimizers] == [True, False]


def test_a_phased_optimizer_is_proved_new_in_every_phase_and_says_what_it_is(strategy):
    with strategy.scope():
        variables = [one_number(np.ones([2])) for _ in range(2)]
        make = lambda: phased(  # noqa: E731
            lambda: keras.optimizers.Adam(0.1), trainer.phase(sgd(momentum=0.9), 3), variables=variables
        )
        (optimizer, _), (twin, _) = make(), make()
        proof = prove_new(optimizer, lambda _: twin, variables, None)
        assert proof.name == "Adam, then SGD" and proof.learning_rate == pytest.approx(0.1)
        assert proof.num_slots == 2 * 2 + 2 and proof.slots == "all zero"
        twin.optimizers[1].variables[-1].assign(np.ones([2]))
        with pytest.raises(RuntimeError, match="is not new"):
            prove_new(optimizer, lambda _: twin, variables, None)


@pytest.mark.parametrize("start", [2, trainer.swats(0.9, 1e-3), trainer.plateau(patience=1)])
def test_a_phased_optimizer_comes_back_from_its_config(start):
    optimizer, variables = phased(lambda: keras.optimizers.Adam(0.1), trainer.phase(sgd_of(0.3), start))
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, PhasedOptimizer) and again.get_config() == optimizer.get_config()
    other = [one_number()]
    again.build(other)
    assert steps(again, other, [0.3] * 4) == steps(optimizer, variables, [0.3] * 4)


def test_the_loss_scaling_is_around_all_phases():
    variables = [one_number()]
    optimizer = build_optimizer(
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=4.0),
        variables,
        phases=[trainer.phase(sgd_of(1.0), 1)],
    )
    assert steps(optimizer, variables, [4.0, 4.0]) == pytest.approx([0.9, -0.1])


@pytest.mark.full
def test_rates_of_groups_hold_in_every_phase():
    result = {}
    for groups in ([], [trainer.group("^dense", learning_rate_multiplier=0.0001)]):
        run = train(make_strategy(1), groups=groups, phases=[trainer.phase(sgd(), 5)])
        result[bool(groups)] = [np.ptp(weight) for weight in weights(run)]
    assert result[True][-1] < 0.001 * result[False][-1]  # the bias of the head, which began at 0


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


ADAM_THEN_SGD = dict(
    optimizer=lambda: keras.optimizers.Adam(0.01),
    phases=[trainer.phase(lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 6), 0.9), 6)],
    num_steps=12, log_every=2, steps_per_loop=5,
)  # fmt: skip


def test_the_switch_is_in_the_terminal_in_the_log_and_on_the_plot(tmp_path, capsys):
    train(make_strategy(1), model_dir=tmp_path, **ADAM_THEN_SGD)
    printed = capsys.readouterr().out
    assert "Adam, then SGD is new" in printed
    assert "phase 2          from step 6 on SGD, new, learning rate 0.1" in printed
    logged = [row for row in rows_of(tmp_path) if "split" not in row]
    assert [(row["step"], row["phase"], row["phase_began"]) for row in logged] == [
        (2, 1, 0), (4, 1, 0), (6, 1, 0), (8, 2, 6), (10, 2, 6), (12, 2, 6),
    ]  # fmt: skip
    assert logged[1]["learning_rate"] == pytest.approx(0.01) and logged[2]["learning_rate"] == pytest.approx(0.01)
    assert logged[3]["learning_rate"] == pytest.approx(0.05 * (1 + np.cos(np.pi / 6)))  # its second update
    assert json.loads((tmp_path / "summary.json").read_text())["optimizer"] == "Adam, then SGD"


def test_the_plot_marks_where_a_phase_began(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from trainer.output.summary_plot import draw_summary

    marked = []
    monkeypatch.setattr(Axes, "axvline", lambda axis, x, **style: marked.append(x))
    rows = [
        {"step": step, "loss": 1.0, "learning_rate": 0.1, "phase": 1 + (step > 3), "phase_began": 3 * (step > 3)}
        for step in range(1, 7)
    ]
    draw_summary(rows, tmp_path / "plot.png", "title")
    assert marked == [3, 3]  # in each of the two panels


@pytest.mark.full
@pytest.mark.parametrize(("broken_at", "replicas"), [(6, 2), (9, 2), (6, 1)])
def test_phases_resume_to_the_bits_of_an_unbroken_run(tmp_path, replicas, broken_at):
    options = dict(ADAM_THEN_SGD, model=net(keras.layers.LayerNormalization))
    whole = train(make_strategy(replicas), model_dir=tmp_path / "whole", **options)
    train(make_strategy(replicas), model_dir=tmp_path / "run", **(options | {"num_steps": broken_at}))
    resumed = train(make_strategy(replicas), model_dir=tmp_path / "run", **options)
    for one, two in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, two)
    last = [rows_of(tmp_path / name)[-1] for name in ("whole", "run")]
    assert last[0] == last[1]


def plateau_run(folder=None, num_steps=20, **options):
    """SGD at a rate that no longer gets better after some evaluations, then hardly any rate at all."""
    defaults = dict(
        optimizer=sgd_of(2.0, momentum=0.9),
        phases=[trainer.phase(sgd_of(1e-3), trainer.plateau("loss", patience=2))],
        eval_data=DATA, eval_every=2, log_every=2, num_steps=num_steps, model_dir=folder, steps_per_loop=2,
    )  # fmt: skip
    return train(make_strategy(1), **(defaults | options))


@pytest.mark.full
def test_a_plateau_of_the_evaluation_begins_the_next_phase(tmp_path, capsys):
    plateau_run(tmp_path)
    rows = rows_of(tmp_path)
    losses = [(row["step"], row["loss"]) for row in rows if "split" in row and row["step"]]
    best, since, expected = np.inf, 0, None
    for step, loss in losses:
        best, since = (loss, 0) if loss < best else (best, since + 1)
        if since == 2:
            expected = step
            break
    assert expected is not None and expected < 18, "the run has no plateau to find"
    began = {row["phase_began"] for row in rows if row.get("phase") == 2}
    assert began == {expected}
    assert f"phase 2          from step {expected} on SGD" in capsys.readouterr().out
    assert all(row["learning_rate"] == pytest.approx(1e-3) for row in rows if row.get("phase") == 2)


@pytest.mark.full
@pytest.mark.parametrize("broken_at", [2, 6, 8])
def test_what_a_plateau_has_seen_survives_a_resume(tmp_path, broken_at):
    whole = plateau_run(tmp_path / "whole")
    plateau_run(tmp_path / "run", num_steps=broken_at)
    resumed = plateau_run(tmp_path / "run")
    for one, two in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, two)
    began = [rows_of(tmp_path / name)[-2]["phase_began"] for name in ("whole", "run")]
    assert began[0] == began[1] > 0


@pytest.mark.full
def test_a_run_that_went_back_sees_the_same_evaluations_again(tmp_path):
    """Between the last checkpoint and the bad batch there were evaluations, and they began a phase."""
    data = dict(DATA.examples)
    bad = epoch_order(48, 0, 0)[12 * 3]  # in the fourth batch of twelve
    data["x"] = np.array(data["x"], copy=True)
    data["x"][bad] = np.nan
    good = {name: np.delete(value, bad, axis=0) for name, value in DATA.examples.items()}
    options = dict(
        train_data=data, eval_data=good, eval_every=1, log_every=1, checkpoint_every=0, num_steps=7,
        phases=[trainer.phase(sgd_of(1e-3), trainer.plateau("loss", patience=1, min_delta=100.0))], seed=0,
        on_nan="rollback", steps_per_loop=7,
    )  # fmt: skip
    train(make_strategy(1), model_dir=tmp_path / "run", **(options | {"num_steps": 1}))  # a checkpoint to go back to
    train(make_strategy(1), model_dir=tmp_path / "run", **options)
    began = {row["step"]: row["phase_began"] for row in rows_of(tmp_path / "run") if "phase" in row}
    assert began[3] == began[5] == 2, "the phase that the second evaluation began was forgotten"
    rates = {row["step"]: row["learning_rate"] for row in rows_of(tmp_path / "run") if "phase" in row}
    assert rates[4] == pytest.approx(1e-3)


@pytest.mark.full
def test_a_run_that_is_made_longer_takes_no_note_of_what_was_its_end(tmp_path):
    whole = plateau_run(tmp_path / "whole")
    plateau_run(tmp_path / "run", num_steps=5)  # evaluated there, between two of its evaluations
    resumed = plateau_run(tmp_path / "run")
    for one, two in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [{"eval_every": 4}, {"phases": [trainer.phase(sgd_of(1e-3), trainer.plateau("loss", patience=3))]}],
    ids=["evaluated at other steps", "another patience"],
)
def test_what_decides_a_plateau_makes_another_run(tmp_path, change):
    plateau_run(tmp_path, num_steps=2)
    with pytest.raises(UserError, match="holds a run of another config"):
        plateau_run(tmp_path, **change)


@pytest.mark.full
def test_by_gin_too_evaluations_decide_where_a_phase_waits_for_a_plateau(tmp_path):
    def start(*given):
        gin.clear_config()
        register_keras()
        plateau = ["Finetune.phases = [@phase()]", "phase.optimizer = @SGD", "phase.start = @plateau()"]
        parse_config(["configs/runs/digits_source.gin"], [*plateau, "small_cnn.width = 1", "NUM_STEPS = 1", *given])
        gin.get_configurable("experiment.train")(strategy=make_strategy(1), model_dir=tmp_path)

    start("Intervals.eval_every = 1")
    with pytest.raises(UserError, match="was: Intervals.eval_every = 1\n  now: Intervals.eval_every = 2"):
        start("Intervals.eval_every = 2")


def test_what_a_builder_excluded_from_weight_decay_stays_so():
    def build():
        optimizer = keras.optimizers.SGD(0.1, weight_decay=1.0)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    bias = keras.Variable(1.0, dtype="float32", name="bias")
    other = keras.Variable(1.0, dtype="float32", name="kernel")
    optimizer, variables = phased(build, trainer.phase(build, 1), variables=[bias, other])
    steps(optimizer, variables, [0.0, 0.0])
    assert float(bias.numpy()) == 1.0 and float(other.numpy()) == pytest.approx(0.9 * 0.9)


def test_a_rate_that_is_a_function_trains_a_phase():
    optimizer, variables = phased(sgd_of(lambda: 0.5), trainer.phase(sgd_of(lambda: 0.25), 1))
    assert steps(optimizer, variables, [1.0, 1.0]) == pytest.approx([0.5, 0.25])


SOME = [trainer.phase(sgd(), 5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phases": trainer.phase(sgd(), 5)}, "must be a list of @phase"),
        ({"phases": [sgd()]}, "must be a list of @phase\\(\\), not"),
        ({"phases": [trainer.phase(sgd(), 5), trainer.phase(sgd(), 5)]}, "each must begin after the one before"),
        (
            {"phases": [trainer.phase(sgd(), trainer.plateau())], "eval_data": None},
            "the run makes none before its end: set EVAL_DATA",
        ),
        ({"phases": [trainer.phase(sgd(), trainer.plateau())], "eval_every": 0}, "makes none before its end"),
        (
            {"phases": [trainer.phase(sgd(), trainer.plateau("los"))], "eval_every": 2},
            "plateau.metric = 'los' is not evaluated.*loss",
        ),
        ({"phases": [trainer.phase(keras.optimizers.Adam, trainer.swats())]}, "leads to SGD.*phase.optimizer is Adam"),
        (
            {
                "phases": [
                    trainer.phase(sgd_of(keras.optimizers.schedules.CosineDecay(0.1, 5)), trainer.swats()),
                ]
            },
            "SGD.learning_rate is a schedule",
        ),
        (
            {"phases": [trainer.phase(sgd(), trainer.swats())], "groups": [trainer.group("^dense", 0.5)]},
            "finds one rate for all variables",
        ),
        (
            {"phases": SOME, "groups": [trainer.group("^dense", unfreeze_at=3)]},
            "group.unfreeze_at, and the run has",
        ),
        (
            {"phases": SOME, "groups": [trainer.group("^dense", optimizer=sgd())]},
            "group.optimizer, and the run has phases",
        ),
        (
            {"phases": [trainer.phase(sgd(loss_scale_factor=2.0), 5)]},
            "the loss alone: set loss_scale_factor",
        ),
        (
            {"phases": [trainer.phase(lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), 5)]},
            "wrap OPTIMIZER, and all phases are scaled",
        ),
        (
            {"phases": SOME, "optimizer_state": "step", "checkpoint": "somewhere"},
            "goes with one optimizer for the whole run",
        ),
    ],
)
def test_phases_that_make_no_sense_are_refused_before_the_first_step(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(make_strategy(1), model_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trainer.phase(sgd(), 0), "phase.start = 0 must be 1 or more"),
        (lambda: trainer.phase(sgd(), "soon"), "must be a number of steps, @plateau\\(\\) or @swats\\(\\)"),
        (lambda: trainer.plateau(mode="up"), "plateau.mode = 'up'"),
        (lambda: trainer.plateau(patience=0), "plateau.patience = 0"),
        (lambda: trainer.plateau(min_delta=-1), "plateau.min_delta = -1"),
        (lambda: trainer.swats(decay=1.0), "swats.decay = 1.0"),
        (lambda: trainer.swats(tolerance=0), "swats.tolerance = 0"),
    ],
)
def test_a_phase_of_impossible_numbers_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


PAGE = [
    "Finetune.phases = [@middle/phase(), @last/phase()]", "middle/phase.optimizer = @SGD", "middle/phase.start = 40",
    "last/phase.optimizer = @RMSprop", "last/phase.start = 80", "SGD.learning_rate = @CosineDecay()",
    "CosineDecay.initial_learning_rate = 0.1", "CosineDecay.decay_steps = 40", "NUM_STEPS = 100",
]  # fmt: skip


@pytest.mark.full
def test_the_dry_run_shows_every_phase_and_plots_the_rate_of_all(capsys):
    register_keras()
    parse_config(["configs/runs/digits_source.gin"], PAGE)
    gin.get_configurable("experiment.train")(strategy=make_strategy(1), invocation=trainer.Invocation(dry_run=True))
    printed = capsys.readouterr().out
    page = " ".join(printed.split())
    assert "Adam, then SGD, then RMSprop is new" in page
    assert "phase 1 Adam from step 0 on, rate step 0: 0.001" in page
    assert "phase 2 SGD from step 40 on, rate step 40: 0.1" in page
    assert "phase 3 RMSprop from step 80 on" in page
    assert "0.1 |" in printed and "WARNING" not in printed


@pytest.mark.full
def test_a_phase_that_never_begins_or_outlives_its_schedule_is_reported(capsys):
    train(make_strategy(1), phases=[trainer.phase(sgd(), 10)], num_steps=10, dry_run=True)
    assert "phase 2 begins at step 10, and the run ends at 10: it never begins" in capsys.readouterr().out
    falling = sgd_of(keras.optimizers.schedules.CosineDecay(0.1, 10))
    train(make_strategy(1), phases=[trainer.phase(falling, 5)], num_steps=10, dry_run=True)
    assert "in the steps of phase 2, the schedule ends at step 10, the run at step 5" in capsys.readouterr().out


@pytest.mark.full
def test_phases_that_changed_are_another_run(tmp_path):
    train(make_strategy(1), num_steps=2, model_dir=tmp_path, phases=SOME)
    with pytest.raises(UserError, match="holds a run of another config"):
        train(make_strategy(1), num_steps=4, model_dir=tmp_path, phases=[trainer.phase(sgd(), 6)])


@pytest.mark.full
def test_what_a_run_with_phases_wrote_is_restored_by_another_without(tmp_path):
    source = train(make_strategy(1), num_steps=4, model_dir=tmp_path, phases=[trainer.phase(sgd(momentum=0.9), 2)])
    tuned = train(make_strategy(1), num_steps=1, checkpoint=tmp_path / "checkpoints")
    assert tuned.restore_report.optimizer_keys_read == 0 and tuned.initial_metrics == source.final_metrics


@pytest.mark.full
def test_the_command_switches_and_continues_after_a_stop_in_the_second_phase(tmp_path):
    command = [
        "launch.train", "--gin_file=configs/runs/digits_source.gin", "--gin_file=configs/optimizers/adam_then_sgd.gin",
        "--gin_param=small_cnn.width = 2", "--gin_param=SWITCH_AT = 10", "--gin_param=CosineDecay.decay_steps = 20",
    ]  # fmt: skip
    whole = run_command(*command, "--gin_param=NUM_STEPS = 30", f"--model_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    assert "phase 2          from step 10 on SGD, new" in whole.stdout
    for num_steps in (20, 30):
        done = run_command(*command, f"--gin_param=NUM_STEPS = {num_steps}", f"--model_dir={tmp_path / 'run'}")
        assert done.returncode == 0, done.stderr
    saved = [(tmp_path / name / "final.weights.h5").read_bytes() for name in ("whole", "run")]
    assert saved[0] == saved[1]
