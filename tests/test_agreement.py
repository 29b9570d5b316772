"""Workers that must do the same: what each gives, and what all get."""

import numpy as np
from conftest import make_strategy

from trainer.cluster.collectives import Agreement
from trainer.run.preemption import Preemption


class OneOfSeveral(Agreement):
    """A worker of two local replicas, whose peer gives nothing; so its sums are its own numbers."""

    def __init__(self, strategy):
        super().__init__(strategy)
        self.workers = 2


def test_alone_a_worker_gets_what_it_gives():
    for replicas in (1, 2):
        agreement = Agreement(make_strategy(replicas))
        assert agreement.all_reduce_sum([3, -4]).tolist() == [3, -4] and agreement.broadcast_from_chief(
            [7]
        ).tolist() == [7]


def test_a_worker_of_several_replicas_counts_once():
    assert OneOfSeveral(make_strategy(2)).all_reduce_sum([10, 2**40]).tolist() == [10, 2**40]


def test_the_steps_allowed_are_those_of_one_replica():
    preemption = Preemption(make_strategy(2))
    preemption._agreement = OneOfSeveral(make_strategy(2))
    assert preemption.next_steps(10) == 10 and preemption.next_steps(10, 3.0) == 3
    assert preemption.next_steps(10, 0) == 0 and isinstance(preemption.next_steps(10, np.inf), int)
