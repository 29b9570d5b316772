"""One Keras optimizer made of several that train one after the other, each new when its turn comes."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.cluster.replicas import first_value
from trainer.optimizers.grouped_optimizer import is_overwritten, times


@keras.saving.register_keras_serializable(package="trainer")
class PhasedOptimizer(keras.optimizers.Optimizer):
    """Hands every step to the optimizer whose phase it is; each counts its own steps from 0.

    learning_rate: the one that goes by the name of the whole; each of `optimizers` has its own.
    optimizers: unbuilt, without `loss_scale_factor`, which is that of the whole. All of them train all variables.
    starts: of every phase but the first. A number: the steps before it. {'decay': 0.999, 'tolerance': 1e-9}: when
      SWATS' criterion is met. None: when `begin_next` is called.

    `phase` and `began`, and what the criteria have seen, are variables of the optimizer: a checkpoint holds them.
    Source of SWATS: Keskar and Socher, 2017, Algorithm 1.
    """

    def __init__(
        self,
        learning_rate,
        optimizers: Sequence[keras.optimizers.Optimizer],
        starts: Sequence[int | Mapping[str, float] | None],
        loss_scale_factor: float | None = None,
        name: str | None = None,
    ):
        super().__init__(learning_rate, loss_scale_factor=loss_scale_factor, name=name)
        assert len(starts) == len(optimizers) - 1
        self.optimizers = list(optimizers)
        self.starts = [dict(start) if isinstance(start, Mapping) else start for start in starts]

    def build(self, variables) -> None:
        if self.built:
            return
        super().build(variables)

        def number(name, shape=(), dtype="int64"):
            return self.add_variable(shape, dtype=dtype, aggregation="only_first_replica", name=name)

        #: int64 scalar: the phase of the next step, from 0.
        self.phase = number("phase")
        #: int64 [phases]: the steps before each phase began; 0 also for one that has not.
        self.began = number("began", [len(self.optimizers)])
        #: float32 scalar: SWATS' average of the rates that SGD would have needed, as it is before correction.
        self.proposed_rate = number("proposed_rate", dtype="float32")
        #: float64 and int64 scalar: the best evaluation of a plateau's metric, and the evaluations since.
        self.best = number("best", dtype="float64")
        self.evaluations = number("evaluations")
        self.evaluations_since_best = number("evaluations_since_best")
        for optimizer in self.optimizers:
            optimizer.build(list(variables))

    @property
    def bookkeeping(self) -> list[keras.Variable]:
        """Variables that say which phase it is, and hold nothing of an update."""
        return [
            self.phase, self.began, self.proposed_rate, self.best, self.evaluations, self.evaluations_since_best,
        ]  # fmt: skip

    @property
    def found_rates(self) -> list[keras.Variable]:
        """Learning rates that a phase is given when it begins."""
        return [
            follower._learning_rate
            for start, follower in zip(self.starts, self.optimizers[1:], strict=True)
            if isinstance(start, Mapping)
        ]

    @property
    def variables(self) -> list[keras.Variable]:
        return [*super().variables, *(variable for optimizer in self.optimizers for variable in optimizer.variables)]

    def apply(self, grads, trainable_variables=None) -> None:
        """As of every Keras optimizer: one step, of the variables whose gradient is not None."""
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        if self.loss_scale_factor is not None:
            pairs = times(1.0 / self.loss_scale_factor, pairs)
        gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
        tf.switch_case(
            tf.cast(tf.convert_to_tensor(self.phase), tf.int32),
            [lambda number=number: self._step(number, gradients, variables) for number in range(len(self.optimizers))],
        )
        self._iterations.assign_add(1)

    def _step(self, number: int, gradients, variables) -> tf.Tensor:
        """One step of a phase, and whether it was the last of it."""
        start = self.starts[number] if number < len(self.starts) else None
        watched = isinstance(start, Mapping)
        before = [tf.identity(tf.convert_to_tensor(variable)) for variable in variables] if watched else []
        self.optimizers[number].apply(gradients, variables)
        if start is None:
            return tf.constant(False)
        made = tf.convert_to_tensor(self._iterations) + 1
        ends = self._swats_ends(number, start, gradients, variables, before) if watched else made >= start
        self.phase.assign_add(tf.cast(ends, tf.int64))
        self._note_beginning(number + 1, tf.where(ends, made, 0))
        return ends

    def _swats_ends(self, number: int, start, gradients, variables, before) -> tf.Tensor:
        """Whether the average of SGD's rates has settled at the last of them; the next phase then has it."""
        decay, tolerance = start["decay"], start["tolerance"]
        step_squared, along = tf.constant(0.0), tf.constant(0.0)
        for gradient, variable, old in zip(gradients, variables, before, strict=True):
            if not is_overwritten(variable):
                moved = tf.cast(tf.convert_to_tensor(variable) - old, tf.float32)
                step_squared += tf.reduce_sum(moved * moved)
                along += tf.reduce_sum(moved * tf.cast(gradient, tf.float32))
        # The rate with which SGD, projected on this step, would have made it.
        rate = tf.math.divide_no_nan(step_squared, -along)
        average = decay * tf.convert_to_tensor(self.proposed_rate) + (1.0 - decay) * rate
        average = tf.where(tf.equal(along, 0.0), tf.convert_to_tensor(self.proposed_rate), average)
        self.proposed_rate.assign(average)
        made = tf.convert_to_tensor(self.optimizers[number].iterations)
        corrected = average / (1.0 - tf.pow(tf.constant(decay, tf.float32), tf.cast(made, tf.float32)))
        settled = tf.abs(corrected - rate) < tolerance
        # A rate below 0 would climb: the step went against the gradient, which momentum may do for a while.
        ends = (made > 1) & settled & tf.not_equal(along, 0.0) & (corrected > 0.0)
        follower = self.optimizers[number + 1]
        own = tf.convert_to_tensor(follower._learning_rate)
        # Keras' momentum adds up steps where the paper averages gradients.
        shrunk = corrected * (1.0 - getattr(follower, "momentum", 0.0))
        follower._learning_rate.assign(tf.where(ends, tf.cast(shrunk, own.dtype), own))
        return ends

    def current_phase(self) -> int:
        """Whose turn the next step is, from 0; waits for the steps that are under way."""
        return int(first_value(self.phase))

    def phase_at(self, step: int) -> int:
        """Which phase the update after `step` finished updates is in, from 0; none later than the current one."""
        began = first_value(self.began)
        return max(number for number in range(self.current_phase() + 1) if not number or began[number] <= step)

    def in_turn(self, step: int) -> tuple[keras.optimizers.Optimizer, int]:
        """The optimizer of the update after `step` finished updates, and the updates before its phase began."""
        number = self.phase_at(step)
        return self.optimizers[number], int(first_value(self.began)[number])

    def begin_next(self) -> None:
        """Ends the phase now, between two steps; call on the host, outside of `strategy.run`."""
        number = self.current_phase() + 1
        self.phase.assign(number)
        self._note_beginning(number, int(first_value(self._iterations)))
        for variable in (self.best, self.evaluations, self.evaluations_since_best):
            variable.assign(tf.zeros([], variable.dtype))

    def _note_beginning(self, number: int, step) -> None:
        place = tf.one_hot(number, len(self.optimizers), dtype=tf.int64)
        self.began.assign_add(place * step)

    def finalize_variable_values(self, var_list) -> None:
        self.optimizers[self.current_phase()].finalize_variable_values(var_list)

    def get_config(self) -> dict[str, Any]:
        rate = super().get_config()["learning_rate"]
        return {
            "name": self.name,
            "learning_rate": rate,
            "optimizers": [keras.optimizers.serialize(optimizer) for optimizer in self.optimizers],
            "starts": [dict(start) if isinstance(start, Mapping) else start for start in self.starts],
            "loss_scale_factor": self.loss_scale_factor,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None) -> "PhasedOptimizer":
        made = [keras.optimizers.deserialize(each, custom_objects) for each in config["optimizers"]]
        return super().from_config({**config, "optimizers": made}, custom_objects)
