"""Exactly what a resumed run needs: weights, optimizer, step, and every random generator's state."""

import dataclasses

import keras
import tensorflow as tf

from trainer.replicas import first_value
from trainer.restore import weights_of


@dataclasses.dataclass(frozen=True)
class TrainState:
    """The variables that change while a run goes on, all made in the strategy's scope.

    step: int64 scalar, finished optimizer updates. The data position follows from it alone.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    step: tf.Variable

    def as_checkpoint(self) -> tf.train.Checkpoint:
        """An ordinary `tf.train.Checkpoint(model=..., optimizer=...)` with the step.

        What TensorFlow does not reach from the model, which are layers held in Python lists and the
        states of random generators, stands beside it under its own name.
        """
        names = {id(weight.variable): weight.name for weight in weights_of(self.model)}
        untracked = _untracked(self.model)
        weights = {names[id(variable)]: variable for variable in untracked if id(variable) in names}
        # Keras numbers their paths by process (`seed_generator_8/...`): the order is what lasts.
        random_states = [variable for variable in untracked if id(variable) not in names]
        train_state = tf.train.Checkpoint(
            step=self.step, untracked=tf.train.Checkpoint(**weights), seed_generators=random_states
        )
        return tf.train.Checkpoint(model=self.model, optimizer=self.optimizer, train_state=train_state)

    def current_step(self) -> int:
        return int(first_value(self.step))


def new_train_state(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> TrainState:
    """The state of a run that has made no step; call in the strategy's scope."""
    step = tf.Variable(
        0, dtype=tf.int64, trainable=False, name="step", aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
    )
    return TrainState(model, optimizer, step)


def _untracked(model: keras.Model) -> list[keras.Variable]:
    """The variables that a checkpoint of the model would not hold."""
    reached = {id(trackable) for trackable in tf.train.TrackableView(model).descendants()}
    return [variable for variable in model.variables if id(variable) not in reached]
