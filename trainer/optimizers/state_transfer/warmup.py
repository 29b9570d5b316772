"""Raises the learning rate from near zero again once the optimizer's state was taken over, beside the schedule."""

import keras
import tensorflow as tf

from trainer.cluster.replicas import first_value


class RewarmedRate(keras.optimizers.schedules.LearningRateSchedule):
    """`rate` times (n + 1) / warmup_steps in the n-th update after `start`, and `rate` from then on.

    rate: a schedule, a function of nothing, or a number.
    start: the step count that was taken over.
    """

    def __init__(self, rate, start: int, warmup_steps: int):
        super().__init__()
        self._rate, self._start, self._warmup_steps = rate, start, warmup_steps

    def __call__(self, step):
        rate = self._rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = rate(step)
        elif callable(rate):
            rate = rate()
        # As whole numbers first: float32 does not count beyond 16 million.
        made = tf.cast(keras.ops.convert_to_tensor(step), tf.int64) - self._start + 1
        return rate * tf.minimum(tf.cast(made, tf.float32) / self._warmup_steps, 1.0)

    def get_config(self):
        return {"rate": self._rate, "start": self._start, "warmup_steps": self._warmup_steps}


def warm_up_again(optimizer: keras.optimizers.Optimizer, start: int, warmup_steps: int) -> None:
    """Gives a built optimizer the rate above; call when its own is what it shall be. 0 steps leave it as it is.

    It is set beside the optimizer's own `learning_rate`, whose variable stays what checkpoints hold.
    """
    if not warmup_steps:
        return
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rate = inner._learning_rate
    if isinstance(rate, keras.Variable):
        # Under another name it is still one of the optimizer's parts, for checkpoints and for its copies.
        inner._rate_without_warmup = rate
        rate = float(first_value(rate))
    inner._learning_rate = RewarmedRate(rate, start, warmup_steps)
