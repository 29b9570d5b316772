"""Exactly what a resumed run needs: weights, optimizer, step, and every random generator's state."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from trainer.cluster.replicas import first_value
from trainer.optimizers.ema import EmaWeights
from trainer.restore import SavedLayerStates, lasting_names, live_states, weights_of


@dataclasses.dataclass(frozen=True)
class TrainState:
    """The variables that change while a run trains, all made in the strategy's scope.

    step: int64 scalar, finished optimizer updates. The data position follows from it and `batches_left_out`.
    ema: averages of the trained weights, None for a run without.
    steps_before: int64 scalar, the step count that the optimizer took over from a checkpoint; None if it began at 0.
    batches_left_out, rollbacks: int64 scalars, of a run that went back from a loss that was not finite.
    layer_states: the vocabularies and the like of a model that has some.
    bad_batches: numbers of the global batches that this process found to be bad; no checkpoint holds them.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    step: tf.Variable
    batches_left_out: tf.Variable
    rollbacks: tf.Variable
    ema: EmaWeights | None = None
    steps_before: tf.Variable | None = None
    layer_states: SavedLayerStates | None = None
    bad_batches: set[int] = dataclasses.field(default_factory=set)

    def take_layer_states(self) -> None:
        """Fills the tables of a model that was built without, from the checkpoint that was loaded last.

        Raises `UserError` for a model whose tables are others than the run's.
        """
        if self.layer_states is not None:
            self.layer_states.take()

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
        averages = {"ema_weights": tf.train.Checkpoint(**self.ema.variables)} if self.ema else {}
        taken_over = {} if self.steps_before is None else {"steps_before": self.steps_before}
        # Tables are constants of the program, which no checkpoint holds: a resumed run may build its model without.
        tables = {} if self.layer_states is None else {"layer_states": self.layer_states}
        train_state = tf.train.Checkpoint(
            step=self.step,
            batches_left_out=self.batches_left_out,
            rollbacks=self.rollbacks,
            untracked=tf.train.Checkpoint(**weights),
            seed_generators=random_states,
            **averages,
            **taken_over,
            **tables,
        )
        return tf.train.Checkpoint(model=self.model, optimizer=self.optimizer, train_state=train_state)

    def evaluated_weights(self) -> contextlib.AbstractContextManager[None]:
        """In it the model has the weights that are evaluated and exported: the averages, if there are some."""
        return self.ema.in_place() if self.ema else contextlib.nullcontext()

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Whatever is done inside, every variable has afterwards the value that it had before."""
        averages = list(self.ema.variables.values()) if self.ema else []
        variables = [*self.model.variables, *self.optimizer.variables, self.step, *averages]
        before = [first_value(variable) for variable in variables]
        try:
            yield
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)

    def size_bytes(self) -> int:
        """The size of a checkpoint, about."""
        averages = list(self.ema.variables.values()) if self.ema else []
        variables = [*self.model.variables, *self.optimizer.variables, *averages]
        return sum(math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables)

    def current_step(self) -> int:
        return int(first_value(self.step))

    def optimizer_step(self, step: int) -> int:
        """The optimizer's own count after `step` steps of this run, which schedules go by."""
        return step + (0 if self.steps_before is None else int(first_value(self.steps_before)))

    def next_batch(self) -> int:
        """The number of the global batch that the next step takes: its step, and those that were left out."""
        return self.current_step() + int(first_value(self.batches_left_out))

    def leave_out_next(self) -> None:
        """Notes that the run went back, and that its next batch is the one after `next_batch()`."""
        self.batches_left_out.assign_add(1)
        self.rollbacks.assign_add(1)


def new_train_state(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    trained: Sequence[keras.Variable] = (),
    ema_decay: float | None = None,
    takes_over: bool = False,
) -> TrainState:
    """The state of a run that has made no step; call in the strategy's scope.

    trained: the variables whose averages are kept if there is an `ema_decay`.
    takes_over: whether the optimizer continues from another one's step count; it is to be put into `steps_before`.
    """
    ema = None
    if ema_decay is not None:
        names = lasting_names(model)
        ema = EmaWeights({names[id(variable)]: variable for variable in trained}, ema_decay)
    before = _counter("steps_before") if takes_over else None
    tables = SavedLayerStates(model) if live_states(model) else None
    return TrainState(
        model, optimizer, _counter("step"), _counter("batches_left_out"), _counter("rollbacks"), ema, before, tables
    )


def _counter(name: str) -> tf.Variable:
    return tf.Variable(
        0, dtype=tf.int64, trainable=False, name=name, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
    )


def _untracked(model: keras.Model) -> list[keras.Variable]:
    """The variables that a checkpoint of the model would not hold."""
    reached = {id(trackable) for trackable in tf.train.TrackableView(model).descendants()}
    return [variable for variable in model.variables if id(variable) not in reached]
