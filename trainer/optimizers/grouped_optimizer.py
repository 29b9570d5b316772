"""One Keras optimizer made of several, each for its own variables, that clips and counts as one."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf


def times(factor, pairs: Iterable[tuple]) -> list[tuple]:
    """(gradient, variable) pairs with each gradient times the factor."""
    return [(g if is_overwritten(v) else g * tf.cast(factor, g.dtype), v) for g, v in pairs]


def is_overwritten(variable) -> bool:
    """Whether its gradient is no gradient but its new value, as of scales of float8 layers."""
    return getattr(variable, "overwrite_with_gradient", False)


@keras.saving.register_keras_serializable(package="trainer")
class GroupedOptimizer(keras.optimizers.Optimizer):
    """Hands every gradient to the optimizer of its variable.

    learning_rate: the one that goes by the name of the whole; each of `optimizers` has its own.
    optimizers: unbuilt, without `global_clipnorm` and `loss_scale_factor`, which are those of the whole.
    places: for each of them, the places of its variables among those that are built.
    no_decay: places of the variables that no weight decay touches.
    first_steps: for each of them, the step before which it rests; it counts its own steps from there, and the gradients
      of its variables do not count for `global_clipnorm` before.

    Keras' own MultiOptimizer clips each group by a norm of its own, and refuses a step in which a variable has no
    gradient.
    """

    def __init__(
        self,
        learning_rate,
        optimizers: Sequence[keras.optimizers.Optimizer],
        places: Sequence[Sequence[int]],
        no_decay: Sequence[int] = (),
        first_steps: Sequence[int] = (),
        global_clipnorm: float | None = None,
        loss_scale_factor: float | None = None,
        name: str | None = None,
    ):
        super().__init__(learning_rate, global_clipnorm=global_clipnorm, loss_scale_factor=loss_scale_factor, name=name)
        self.optimizers = list(optimizers)
        self.places = [list(each) for each in places]
        self.no_decay = list(no_decay)
        self.first_steps = list(first_steps) or [0] * len(self.optimizers)

    def build(self, variables) -> None:
        if self.built:
            return
        super().build(variables)
        no_decay = {id(variables[place]) for place in self.no_decay}
        for optimizer, places in zip(self.optimizers, self.places, strict=True):
            own = [variables[place] for place in places]
            excluded = [variable for variable in own if id(variable) in no_decay]
            if excluded:
                optimizer.exclude_from_weight_decay(var_list=excluded)
            optimizer.build(own)

    @property
    def variables(self) -> list[keras.Variable]:
        return [*super().variables, *(variable for optimizer in self.optimizers for variable in optimizer.variables)]

    def apply(self, grads, trainable_variables=None) -> None:
        """As of every Keras optimizer: one step, of the variables whose gradient is not None."""
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        given = {self._get_variable_index(v): (g, v) for g, v in zip(grads, variables, strict=True) if g is not None}
        begun = [None if first == 0 else self._iterations >= first for first in self.first_steps]
        if self.loss_scale_factor is not None:
            given = _times(1.0 / self.loss_scale_factor, given)
        if self.global_clipnorm:
            given = _times(self._clip_factor(given, begun), given)
        for optimizer, places, has_begun in zip(self.optimizers, self.places, begun, strict=True):
            own = [given[place] for place in places if place in given]
            if own and has_begun is None:
                optimizer.apply([g for g, _ in own], [v for _, v in own])
            elif own:
                tf.cond(has_begun, lambda optimizer=optimizer, own=own: _apply(optimizer, own), lambda: False)
        self._iterations.assign_add(1)

    def _clip_factor(self, given, begun):
        squares = []
        for places, has_begun in zip(self.places, begun, strict=True):
            own = [given[place] for place in places if place in given]
            # Not by `tf.nn.l2_loss`, which the train step takes for its `grad_norm`, of one replica alone: TensorFlow
            # would share it there, add up in another order, and the replicas' copies would drift apart.
            of_group = [tf.reduce_sum(tf.square(tf.cast(g, tf.float32))) for g, v in own if not is_overwritten(v)]
            if of_group:
                square = tf.add_n(of_group)
                squares.append(square if has_begun is None else tf.where(has_begun, square, 0.0))
        norm = tf.sqrt(tf.add_n(squares))
        return self.global_clipnorm / tf.maximum(norm, self.global_clipnorm)

    def finalize_variable_values(self, var_list) -> None:
        for optimizer in self.optimizers:
            optimizer.finalize_variable_values(optimizer._trainable_variables)

    def get_config(self) -> dict[str, Any]:
        rate = super().get_config()["learning_rate"]
        return {
            "name": self.name,
            "learning_rate": rate,
            "optimizers": [keras.optimizers.serialize(optimizer) for optimizer in self.optimizers],
            "places": [list(each) for each in self.places],
            "no_decay": list(self.no_decay),
            "first_steps": list(self.first_steps),
            "global_clipnorm": self.global_clipnorm,
            "loss_scale_factor": self.loss_scale_factor,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None) -> "GroupedOptimizer":
        made = [keras.optimizers.deserialize(each, custom_objects) for each in config["optimizers"]]
        return super().from_config({**config, "optimizers": made}, custom_objects)


def _apply(optimizer: keras.optimizers.Optimizer, own) -> bool:
    optimizer.apply([g for g, _ in own], [v for _, v in own])
    return True


def _times(factor, given):
    """(gradient, variable) pairs by place, each gradient times the factor."""
    return dict(zip(given, times(factor, given.values()), strict=True))
