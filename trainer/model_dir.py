"""Names every path that a run writes, and locks the folder against a second writer."""

import dataclasses
import fcntl
import os
import re
import socket
from pathlib import Path

from trainer.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelDir:
    """The files of one run. Naming them creates nothing; `create` does.

    path: the folder. Two runs never share one.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def operative_config(self) -> Path:
        return self.path / "operative_config.gin"

    @property
    def run_identity(self) -> Path:
        return self.path / "run_identity.txt"

    @property
    def restore_report_json(self) -> Path:
        return self.path / "restore_report.json"

    @property
    def restore_report_text(self) -> Path:
        return self.path / "restore_report.txt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def continuous_metrics(self) -> Path:
        """What `launch.evaluate --continuous` has evaluated."""
        return self.path / "continuous_metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def summary_plot(self) -> Path:
        return self.path / "summary.png"

    @property
    def images(self) -> Path:
        """Pictures that the task makes, such as those of style transfer."""
        return self.path / "images"

    @property
    def final_weights(self) -> Path:
        """Of the step that the run ends at; there only while it is there."""
        return self.path / "final.weights.h5"

    def weights_of(self, step: int) -> Path:
        """Where those of an earlier end are, once the run goes on past it."""
        return self.path / f"step_{step}.weights.h5"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    def events(self, name: str) -> Path:
        """The TensorBoard folder of `train`, `eval` or `continuous_eval`."""
        return self.path / name

    def create(self) -> None:
        """Makes the folder; raises `UserError` where it cannot be made or written."""
        if re.match(r"\w+:/", str(self.path)):
            raise UserError(f"model_dir {self.path} is remote; runs are written to local and mounted folders only.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"model_dir {self.path} cannot be made: {error.strerror}.") from error
        if not os.access(self.path, os.W_OK):
            raise UserError(f"model_dir {self.path} is not writable.")


class ModelDirLock:
    """Holds a model_dir for one writer; two writers delete each other's checkpoints in silence.

    The lock is the kernel's (`flock`), so it ends with its process, however that ends, and a file
    left behind by a dead one locks nobody out.
    """

    def __init__(self, model_dir: ModelDir):
        self._path = model_dir.lock_file

    def __enter__(self):
        self._file = open(self._path, "a+")  # noqa: SIM115  held until __exit__
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(
                f"model_dir {self._path.parent} is being written by {holder}. "
                "Wait for it, stop it, or choose another --model_dir."
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
        return self

    def __exit__(self, *unused):
        self._file.close()
