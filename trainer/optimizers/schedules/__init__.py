"""Learning rate as a function of step: schedules beside Keras' own, and what an optimizer will use."""

from trainer.optimizers.schedules.checks import check_rate, disagreement
from trainer.optimizers.schedules.plot import block_plot
from trainer.optimizers.schedules.rates import learning_rate_at, rate_at, rate_of, sample_learning_rate, sample_rate
from trainer.optimizers.schedules.scaled import ScaledRate, scaled
from trainer.optimizers.schedules.shapes import InverseSquareRoot, OneCycle, inverse_square_root, one_cycle
from trainer.optimizers.schedules.warmup import Warmup, warmup

__all__ = [
    "InverseSquareRoot",
    "OneCycle",
    "ScaledRate",
    "Warmup",
    "block_plot",
    "check_rate",
    "disagreement",
    "inverse_square_root",
    "learning_rate_at",
    "one_cycle",
    "rate_at",
    "rate_of",
    "sample_learning_rate",
    "sample_rate",
    "scaled",
    "warmup",
]
