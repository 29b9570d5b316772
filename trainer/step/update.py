"""The optimizer's update: on each replica's own copies of the variables, or once for all of them."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from trainer import keras_internals
from trainer.checkpoints.train_state import TrainState
from trainer.cluster.strategy import local_replicas

UPDATES = ("per_replica", "once")


class Update:
    """Applies the gradients that every replica has after the all-reduce, in one of two ways.

    update: "per_replica" lets every replica make the whole update on its own copies of the variables, as those of
      PyTorch's DistributedDataParallel do (Li et al. 2020). "once" makes it once, outside of `strategy.run`, and sends
      the new variables to all.

    Keras' own way, `optimizer.apply` in `strategy.run`, clips before the sum, or sums again.
    An optimizer that keeps variables where no copy's twin can be made of them updates once; so does one on a
    TPU, whose program is one for all replicas.
    """

    def __init__(self, strategy: tf.distribute.Strategy, state: TrainState, variables, update: str):
        self._state = state
        self._variables = list(variables)
        # Outside of every strategy's scope: one replica, which neither sums nor exchanges.
        self._alone = tf.distribute.get_strategy()
        self._twins = [_Twins(replica, self._alone) for replica in range(local_replicas(strategy))]
        known = [twins.of(state.optimizer) and twins.knows(state.optimizer.variables) for twins in self._twins]
        on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        #: Whether `on_replica` makes the update; else `once` does.
        self.per_replica = update == "per_replica" and all(known) and not on_tpu

    def on_replica(self, gradients: Mapping[int, tf.Tensor]) -> None:
        """Where `per_replica`. gradients: by the variable's index. Call in `strategy.run`, on every replica."""
        replica = int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))
        # The update waits for the last variable's gradient, mostly the first that is computed. TensorFlow starts what
        # is ready in an order of chance, and momenta that are read before the batch cost a small step a tenth.
        begin = tf.control_dependencies(list(gradients.values())[-1:])
        with begin, tf.distribute.ReplicaContext(self._alone, 0):
            self._apply(gradients, self._twins[replica % len(self._twins)].of)

    def once(self, gradients: Mapping[int, tf.Tensor]) -> None:
        """Where not `per_replica`. gradients: one replica's, by the variable's index. Call outside `strategy.run`."""
        self._apply(gradients, copy_of=lambda original: original)

    def _apply(self, gradients, copy_of: Callable) -> None:
        copy_of(self._state.optimizer).apply(list(gradients.values()), [copy_of(self._variables[i]) for i in gradients])
        if self._state.ema:
            self._state.ema.update(copy_of)


class _Twins:
    """The things of one replica, made once each."""

    def __init__(self, replica: int, alone: tf.distribute.Strategy):
        self._replica = replica
        self._alone = alone
        self._seen: dict[int, tuple[Any, Any]] = {}

    def of(self, original):
        """A variable's copy on this replica, or the optimizer, list or dict with such copies in it."""
        if id(original) not in self._seen:
            # With the original, whose address is not given to another while it is held.
            self._seen[id(original)] = (original, self._make(original))
        return self._seen[id(original)][1]

    def knows(self, variables) -> bool:
        """Whether every one of them has a twin already."""
        return all(id(variable) in self._seen for variable in variables)

    def _make(self, original):
        """Shares the variables of the original, copy by copy, and holds none of its own."""
        if isinstance(original, keras.Variable):
            twin = keras.Variable(self.of(original.value), dtype=original.dtype, name=original.name)
            for name in ("constraint", "overwrite_with_gradient"):
                if getattr(original, name, None) is not None:
                    setattr(twin, name, getattr(original, name))
            return twin
        if isinstance(original, tf.Variable):
            copies = getattr(original, "values", None)
            return copies[self._replica] if copies else original
        if isinstance(original, list | tuple):
            return [self.of(each) for each in original]
        if isinstance(original, dict):
            return {key: self.of(each) for key, each in original.items()}
        if isinstance(original, keras.optimizers.Optimizer):
            twin = object.__new__(type(original))
            # Not by attribute: Keras would track them, and refuse a change of what is built.
            own = {
                name: self.of(value)
                for name, value in vars(original).items()
                if not name.startswith(keras_internals.OPTIMIZER_LISTS)
            }
            twin.__dict__.update(vars(original) | own)
            twin.__dict__[keras_internals.STRATEGY] = self._alone
            step = keras_internals.update_step(twin)
            twin.__dict__[keras_internals.UPDATE_STEP] = _with_rate_read_once(step)
            return twin
        return original


def _with_rate_read_once(update_step: Callable) -> Callable:
    """update_step: Keras' own, which hands the rate's variable on and reads it again for each variable it updates.

    Weight decay comes before, and reads it likewise.
    """

    def update(grads, trainable_variables, learning_rate):
        # With another dtype Keras promotes a variable, and TensorFlow refuses a tensor: Muon's rate in bfloat16.
        if isinstance(learning_rate, keras.Variable) and all(
            variable.dtype == learning_rate.dtype for variable in trainable_variables
        ):
            learning_rate = tf.convert_to_tensor(learning_rate)
        update_step(grads, trainable_variables, learning_rate)

    return update
