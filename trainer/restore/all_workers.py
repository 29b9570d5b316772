"""Makes what all workers of a strategy do together succeed on all of them or on none."""

import contextlib
from collections.abc import Iterator

import google_crc32c
import tensorflow as tf

from trainer.cluster.collectives import Agreement
from trainer.errors import UserError
from trainer.restore.errors import RestoreError
from trainer.restore.report import RestoreReport


class AllWorkers:
    """The workers of the strategy in whose scope this is made; where there is one, nothing is exchanged.

    Every call is a collective: all workers must make it, at the same place.
    """

    def __init__(self):
        self._agreement = Agreement(tf.distribute.get_strategy())

    @contextlib.contextmanager
    def all_or_none(self, what: str) -> Iterator[None]:
        """Raises the worker's own `UserError`, and on the others one that says that a worker could not do `what`."""
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        (failed,) = self._agreement.all_reduce_sum([failure is not None])
        if failure is not None:
            raise failure
        if failed:
            raise RestoreError(
                f"{failed} of {self._agreement.workers} workers could not {what}; their own messages say why."
            )

    def complete(self, report: RestoreReport) -> None:
        """Makes the replicas that were verified those of all workers. Raises where they read different bytes."""
        seen = "".join(f"{record.name} {record.key} {record.checksum}\n" for record in report.records)
        own = google_crc32c.value(seen.encode())
        (chiefs,) = self._agreement.broadcast_from_chief([own])
        replicas, others = self._agreement.all_reduce_sum([report.replicas_verified, own != chiefs])
        if others:
            raise RestoreError(
                f"{others} of {self._agreement.workers} workers restored other values than the chief: "
                f"{report.checkpoint} is not the same file to all of them. Copy it to a folder that they share, and "
                "restore again before the model is used."
            )
        report.replicas_verified = int(replicas)
        report.workers = self._agreement.workers
