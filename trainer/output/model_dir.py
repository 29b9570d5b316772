"""Names every path that a run writes, and locks the folder against a second writer."""

import contextlib
import dataclasses
import errno
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
        """Evaluations by `launch.evaluate --continuous`."""
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
        """Weights of the step that the run ends at; there only while the run is there."""
        return self.path / "final.weights.h5"

    def weights_of(self, step: int) -> Path:
        """Where those of an earlier end are, once the run continues past it."""
        return self.path / f"step_{step}.weights.h5"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    @property
    def follower_lock_file(self) -> Path:
        """The lock of `launch.evaluate --continuous`, which writes beside the run."""
        return self.path / ".follower.lock"

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

    follower: holds it, beside the writer, for the one `launch.evaluate --continuous` that follows the run.

    The lock is the kernel's (`flock`), so it ends with its process, however that ends, and a file left behind by a
    dead one locks no other process out. It holds between hosts where the file system carries it over, as NFS and
    Lustre (mounted with `flock`) do; one that locks within each host alone, such as Lustre with `localflock`, NFS
    with `local_lock` and most mounted buckets, keeps no process on another host out.

    left_by: once it is held, who on another host held it before and never let go: killed, or still at work on such a
      file system; None for no process.

    Raises `UserError` where another process holds it, or it cannot be locked.
    """

    def __init__(self, model_dir: ModelDir, follower: bool = False):
        self._path = model_dir.follower_lock_file if follower else model_dir.lock_file
        self._held: list[int] = []
        self.left_by: str | None = None
        self._what = "followed" if follower else "written"
        # Who deletes the file of a lock that is held would let a second one in: the folder itself is locked too.
        self._lock_folder = not follower

    def __enter__(self):
        try:
            self._take()
        except BlockingIOError:
            self._let_go()
            holder = "another process"
            with contextlib.suppress(OSError):  # deleted, or not for us to read
                holder = self._path.read_text(errors="replace").strip() or holder
            raise UserError(
                f"model_dir {self._path.parent} is being {self._what} by {holder}. "
                "Wait for it, stop it, or choose another --model_dir."
            ) from None
        except OSError as error:
            self._let_go()
            raise UserError(f"{self._path} cannot be locked: {error.strerror}. {_advice(error)}") from error
        return self

    def _take(self) -> None:
        if self._lock_folder:
            self._held.append(os.open(self._path.parent, os.O_RDONLY))
            try:
                fcntl.flock(self._held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                pass  # NFS locks what is open to be written, and no folder is; the file's own lock must do there
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            self._held.append(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, self._path):
                break
            os.close(self._held.pop())  # deleted before it was locked
        before = os.pread(descriptor, 1_000, 0).decode(errors="replace").strip()
        self.left_by = before if before and not before.endswith(_HERE) else None
        # Over what is there, which takes no room on a full disk.
        os.ftruncate(descriptor, os.pwrite(descriptor, _own_name().encode(), 0))

    def _let_go(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def __exit__(self, *unused):
        with contextlib.suppress(OSError):  # it need not be empty; the next process asks what was left
            os.ftruncate(self._held[-1], 0)
        self._let_go()


_HERE = f" on {socket.gethostname()}"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def _advice(error: OSError) -> str:
    if error.errno in _NO_LOCKS:
        return (
            "The file system has no locks as it is mounted: mount it with them (NFS: its lock service, or version 4; "
            "Lustre: the option flock), or choose a --model_dir on another one."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            "It is another user's: ask for the right to write there, or choose another --model_dir. If no "
            "process writes there any more, delete the file."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Make room there, and run the same command again."
    return "Mend that, or choose another --model_dir."


def _own_name() -> str:
    return f"process {os.getpid()}{_HERE}"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
