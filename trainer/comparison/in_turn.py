"""Makes the runs that are missing one after the other in this process."""

from collections.abc import Callable

import tensorflow as tf

from trainer.comparison.display import ComparisonDisplay
from trainer.comparison.folder import ComparisonDir
from trainer.comparison.one_run import make_run
from trainer.comparison.plan import Plan
from trainer.run.signals import StopSignals


def make_in_turn(
    plan: Plan,
    files: ComparisonDir,
    missing: list[tuple[str, int]],
    strategy: tf.distribute.Strategy,
    source_data,
    display: ComparisonDisplay,
    after_each: Callable[[], None],
) -> bool:
    """Returns False where a signal ended it before the last run; the run that it came in has saved itself."""
    with StopSignals() as noted:
        for member, seed in missing:
            if noted.received:
                return False
            display.begin(member, seed)
            record = make_run(plan, files, member, seed, strategy, source_data)
            display.end(member, seed, record)
            if record.state == "stopped":
                return False
            after_each()
    return True
