"""Reports when a phase has begun, and ends one whose evaluations no longer get better."""

from collections.abc import Callable, Mapping, Sequence

import keras

from trainer.cluster.replicas import first_value
from trainer.optimizers.build import describe_kind
from trainer.optimizers.learning_rate import learning_rate_at
from trainer.optimizers.phased_optimizer import PhasedOptimizer
from trainer.optimizers.phases import Phase, Plateau, in_words, waits_for_plateau


class PhaseWatch:
    """Looks at the run's optimizer on the host, between two loops of the device.

    phases: those after the first; none for a run without.
    say: takes a line for a person, once for each phase that begins while this watch is there.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, phases: Sequence[Phase], say: Callable[[str], None]):
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        self._optimizer = inner if isinstance(inner, PhasedOptimizer) else None
        self._phases = phases
        self._say = say
        self._reported = self._optimizer.current_phase() if self._optimizer is not None else 0

    def row(self, step: int) -> dict[str, int]:
        """The phase in a logged row: its number, from 1, and the steps before it began.

        step: the updates that the optimizer had finished before that of the row.
        """
        self.report()
        if self._optimizer is None:
            return {}
        number = self._optimizer.phase_at(step)
        return {"phase": number + 1, "phase_began": int(first_value(self._optimizer.began)[number])}

    def report(self) -> None:
        """Prints a line for each phase that has begun since the last look."""
        if self._optimizer is None:
            return
        number = self._optimizer.current_phase()
        began = [int(step) for step in first_value(self._optimizer.began)]
        # A run that went back after a loss that was not finite may be in an earlier one again.
        for begun in range(min(self._reported, number) + 1, number + 1):
            follower, start = self._optimizer.optimizers[begun], self._phases[begun - 1].start
            self._say(
                f"phase {begun + 1:<11}from step {began[begun]:,} on {describe_kind(follower)}, new, learning rate "
                f"{learning_rate_at(follower, 0):g}" + ("" if isinstance(start, int) else f": begins {in_words(start)}")
            )
        self._reported = number

    def decides_at(self, step: int, eval_every: int) -> bool:
        """Whether the evaluation after `step` may begin a phase; none at the end of the run, which may be continued."""
        return bool(eval_every) and step % eval_every == 0 and waits_for_plateau(self._phases)

    def look_at(self, evaluation: Mapping[str, float]) -> None:
        """Takes note of an evaluation; the next phase begins if it is to, after so many without progress."""
        number = self._optimizer.current_phase() if self._optimizer is not None else 0
        if self._optimizer is None or number >= len(self._phases):
            return
        start = self._phases[number].start
        if not isinstance(start, Plateau):
            return
        optimizer, value = self._optimizer, evaluation[start.metric]
        best, evaluations, since = (
            first_value(each).item()
            for each in (optimizer.best, optimizer.evaluations, optimizer.evaluations_since_best)
        )
        gained = best - value if start.mode == "min" else value - best
        is_better = evaluations == 0 or gained > start.min_delta
        optimizer.best.assign(value if is_better else best)
        optimizer.evaluations.assign(evaluations + 1)
        optimizer.evaluations_since_best.assign(0 if is_better else since + 1)
        if not is_better and since + 1 >= start.patience:
            optimizer.begin_next()
            self.report()
