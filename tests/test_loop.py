"""The outer loop: when the host looks, in which order, and what ends it."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import UserError
from trainer.checkpoints.train_state import new_train_state
from trainer.optimizers.build import build_optimizer
from trainer.output.progress import StepProgress
from trainer.run.loop import LossNotFinite, TrainingLog, run_loop
from trainer.run.preemption import Interrupted
from trainer.run.session import Session
from trainer.run.settings import Intervals, Limits
from trainer.run.time_limit import Deadline


def test_the_device_never_runs_past_a_point_where_the_host_is_due():
    intervals = Intervals(log_every=4, eval_every=10, checkpoint_every=0, steps_per_loop=7)
    step, looks = 0, []
    while step < 23:
        step += intervals.steps_to_next_look(step, 23)
        looks.append(step)
    assert looks == [4, 7, 8, 10, 12, 14, 16, 20, 21, 23], "nor past the end of a stack of 7 batches"


def test_intervals_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="steps_per_loop = 0 must be 1 or more"):
        Intervals(steps_per_loop=0)
    with pytest.raises(UserError, match="eval_every = -1 must be 0 or more"):
        Intervals(eval_every=-1)


class Diary(Session):
    """A session whose steps, evaluations and saves are entries of a list; times and the order are the session's own."""

    def __init__(self, stop_at=None, losses=None, grad_norms=None, optimizer=lambda: keras.optimizers.SGD(0.5)):
        model = keras.Sequential([keras.layers.Dense(1)])
        model.build((None, 1))
        self.state = new_train_state(model, build_optimizer(optimizer, model.trainable_variables))
        self.entries, self.stop_at, self.losses, self.grad_norms = [], stop_at, losses or {}, grad_norms or {}
        self._writer, self._split, self._new_steps = self, "test", 0
        self._built = types.SimpleNamespace(changing_weights=lambda: model.weights)
        self._preemption = types.SimpleNamespace(next_steps=self.agreed_steps)

    def train(self, num_steps, end):
        self.state.step.assign_add(num_steps)
        step = self.state.current_step()
        assert step == end
        self.entries.append(f"steps to {step}")
        grad_norm = self.grad_norms.get(step, 2.0)
        return [{"loss": tf.constant(self.losses.get(step, 1.0)), "grad_norm": tf.constant(grad_norm)}]

    def _evaluate_and_keep(self):
        self.entries.append("evaluate")
        return {"loss": 0.5}

    def _save(self):
        self.entries.append("save")

    def write(self, step, values, split=None):
        self.entries.append(f"write {split or 'training'}")
        assert split or (values["learning_rate"] == 0.5 and values["phase"] == 1)

    def agreed_steps(self, count, steps_left):
        stopped = self.stop_at is not None and self.state.current_step() >= self.stop_at
        return 0 if stopped else int(min(count, steps_left))

    def run(self, num_steps, deadline=None, **intervals):
        self._deadline = deadline or Deadline()
        progress = StepProgress(num_steps, visible=False)
        self._log = TrainingLog(self.state, 8, self, progress, log_more=lambda step: {"phase": 1})
        return run_loop(self, num_steps, Intervals(**intervals))


def test_the_order_is_step_log_evaluate_save():
    diary = Diary()
    assert diary.run(4, log_every=2, eval_every=4, checkpoint_every=2, steps_per_loop=10)
    assert diary.entries == [
        "steps to 2", "write training", "save",
        "steps to 4", "write training", "evaluate", "write test", "save",
    ]  # fmt: skip


def test_zero_means_only_at_the_end():
    diary = Diary()
    diary.run(5, log_every=0, eval_every=0, checkpoint_every=0, steps_per_loop=10)
    assert diary.entries == ["steps to 5", "write training", "evaluate", "write test", "save"]


def test_asked_to_stop_it_saves_and_says_that_it_is_not_done():
    diary = Diary(stop_at=4)
    assert not diary.run(10, log_every=0, eval_every=0, checkpoint_every=0, steps_per_loop=2)
    assert diary.entries == ["steps to 2", "steps to 4", "save"]


def test_a_loss_that_is_not_finite_is_never_saved_even_between_two_logs():
    diary = Diary(losses={2: np.nan, 4: np.nan})
    with pytest.raises(UserError, match="at step 2"):
        diary.run(10, log_every=0, eval_every=0, checkpoint_every=2, steps_per_loop=2)
    assert "save" not in diary.entries


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(bad):
    diary = Diary(losses={4: bad})
    with pytest.raises(UserError, match="at step 4"):
        diary.run(10, log_every=2, eval_every=0, checkpoint_every=2, steps_per_loop=2)
    assert diary.entries.count("save") == 1, "only step 2 was saved"


def test_a_loss_that_is_not_finite_is_not_saved_by_a_run_that_leaves_either():
    diary = Diary(stop_at=4, losses={4: np.nan})
    with pytest.raises(LossNotFinite, match="The loss is nan, seen at step 4"):
        diary.run(10, log_every=0, eval_every=0, checkpoint_every=0, steps_per_loop=2)
    assert diary.entries == ["steps to 2", "steps to 4"]


def test_a_loss_that_is_not_finite_is_not_evaluated():
    diary = Diary(losses={4: np.nan})
    with pytest.raises(LossNotFinite, match="The loss is nan, seen at step 4"):
        diary.run(10, log_every=0, eval_every=4, checkpoint_every=0, steps_per_loop=10)
    assert diary.entries == ["steps to 4"]


def test_a_gradient_that_is_not_finite_has_spoilt_the_weights_and_is_not_saved():
    diary = Diary(grad_norms={4: np.inf})
    with pytest.raises(LossNotFinite, match="The gradient's norm is inf, seen at step 4"):
        diary.run(10, log_every=0, eval_every=0, checkpoint_every=4, steps_per_loop=10)
    assert diary.entries == ["steps to 4"]


def test_under_loss_scaling_a_gradient_may_overflow_but_a_loss_may_not():
    def optimizer():
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5))

    diary = Diary(grad_norms={2: np.inf}, losses={4: np.nan}, optimizer=optimizer)
    with pytest.raises(LossNotFinite, match="The loss is nan, seen at step 4"):
        diary.run(4, log_every=0, eval_every=0, checkpoint_every=2, steps_per_loop=10)
    assert diary.entries == ["steps to 2", "save", "steps to 4"]


def test_between_two_looks_no_loop_that_was_not_finite_is_passed_over():
    diary = Diary(losses={4: np.nan})
    with pytest.raises(LossNotFinite, match="The loss is nan, seen at step 10"):
        diary.run(10, log_every=0, eval_every=0, checkpoint_every=10, steps_per_loop=2)
    assert diary.entries == [f"steps to {step}" for step in (2, 4, 6, 8, 10)]


def test_a_run_that_looks_only_at_its_end_does_not_train_on_for_ever():
    diary = Diary(losses={4: np.nan})
    with pytest.raises(LossNotFinite, match="The loss is nan, seen at step 100"):
        diary.run(1000, log_every=0, eval_every=0, checkpoint_every=0, steps_per_loop=1)


class Clock:
    """Time that passes when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_near_the_end_of_its_time_a_run_makes_the_steps_that_fit_and_saves():
    clock = Clock()
    deadline = Deadline(100, clock)
    diary = Diary()

    def train(count, end, original=diary.train):
        clock.now += 2.0 * count + (20 if not diary.entries else 0)  # a trace comes first
        return original(count, end)

    def save(original=diary._save):
        clock.now += 5.0
        original()

    diary.train, diary._save = train, save
    assert not diary.run(1000, deadline, log_every=0, eval_every=0, checkpoint_every=20, steps_per_loop=10)
    # One to measure, 22 s, of which 78 hold three; 28 s, 40 s, 60 s and a save: 65; to 85: 5 are for saving, and 10
    # are 5 steps.
    ends = [1, 4, 10, 20, "save", 30, 35, "save"]
    assert diary.entries == [end if end == "save" else f"steps to {end}" for end in ends]
    assert clock.now == 100.0


def test_no_loop_lasts_longer_than_a_signal_may_wait():
    clock = Clock()
    deadline, diary = Deadline(0, clock, longest_loop_seconds=15), Diary()

    def train(count, end, original=diary.train):
        clock.now += 2.0 * count
        return original(count, end)

    diary.train = train
    diary.run(42, deadline, log_every=0, eval_every=0, checkpoint_every=0, steps_per_loop=20)
    # 15 s are 7 steps; stacks end at 20 and 40. A single step is never cut.
    assert diary.entries[:9] == [f"steps to {end}" for end in (1, 8, 15, 20, 27, 34, 40, 42)] + ["write training"]


def test_a_signal_in_an_evaluation_leaves_it_and_saves():
    diary = Diary()

    def evaluate():
        raise Interrupted

    diary._evaluate_and_keep = evaluate
    assert not diary.run(4, log_every=4, eval_every=4, checkpoint_every=0, steps_per_loop=4)
    assert diary.entries == ["steps to 4", "write training", "save"]


def test_time_that_is_up_before_the_first_step_ends_the_run_at_once():
    clock = Clock()
    deadline, diary = Deadline(10, clock), Diary()
    clock.now = 11.0
    assert not diary.run(10, deadline)
    assert diary.entries == ["save"]


def test_the_time_counts_from_a_start_before_and_a_first_save_has_its_share_of_it():
    clock = Clock()
    clock.now = 50.0
    deadline = Deadline(100, clock, started_at=20.0, reserved_seconds=lambda: 40.0)
    assert deadline.steps_left() == 1, "70 s are left, 40 of them for the save"
    clock.now = 81.0
    assert deadline.steps_left() == 0


def test_a_time_that_is_none_is_refused():
    for wrong in (-1, float("inf"), float("nan"), "1h"):
        with pytest.raises(UserError, match="max_seconds"):
            Limits(max_seconds=wrong)


def test_a_grace_time_that_is_none_is_refused():
    for wrong in (-1, float("inf"), "30s"):
        with pytest.raises(UserError, match="grace_seconds"):
            Limits(grace_seconds=wrong)


def test_making_steps_waits_for_nothing_on_the_device():
    class State:
        def current_step(self):
            raise AssertionError("to read the step count would wait until the device has made the steps")

    session, shown = object.__new__(Session), []
    session.state, session._train_loop = State(), lambda stack, first, end: {stack: end - first}
    session._batches = types.SimpleNamespace(take=lambda count: [("first", 2, 4), ("second", 0, count - 2)])
    session._progress = types.SimpleNamespace(advance=shown.append)
    assert session.train(3, 13) == [{"first": 2}, {"second": 1}] and shown == [13]
