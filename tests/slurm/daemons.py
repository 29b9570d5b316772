"""A Slurm of one node, for real: munged, slurmctld and slurmd on the loopback, with all their files in one folder."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from launch.local import free_ports

PACKAGES = {
    "util-linux": ["setpriv", "unshare"],
    "munge": ["munged"],
    "slurm-wlm": ["slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo"],
}

# Workers call each other by the node's name, so it is one that is the loopback everywhere. The daemons listen on the
# address of their host's name, by the last two of CommunicationParameters, instead of on all.
# A requeued job waits for cred_expire: two minutes unless set otherwise, and 5 seconds is the least.
# The node has 4 processors whatever the machine has.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=1
KillWait=10
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# The host's own name may be the address of a network card; only these processes see another.
RENAMED = ["unshare", "--uts", "sh", "-c", 'hostname localhost && exec "$@"', "sh"]


def why_not() -> str | None:
    """What is missing for a Slurm here; None if nothing is."""
    missing = {
        name: package
        for package, programs in PACKAGES.items()
        for name in programs
        if not shutil.which(name, path=_path())
    }
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        return f"no Slurm: {', '.join(missing)} not found; as root: apt-get install --no-install-recommends {packages}"
    if _renaming() is None:
        name = socket.gethostname()
        return f"no Slurm on the loopback alone: host name {name} is not 127.0.0.1 and `unshare --uts` is not permitted"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _renaming() -> list[str] | None:
    """The prefix of a command under which its host is called localhost; None where there is none."""
    if subprocess.run([*RENAMED, "true"], capture_output=True, env={"PATH": _path()}).returncode == 0:
        return RENAMED
    try:
        return [] if socket.gethostbyname(socket.gethostname()).startswith("127.") else None
    except OSError:
        return None


class Slurm:
    """Daemons that run from `start` to `stop`.  folder: empty, and its path short, since sockets lie in it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        folder = self._folder
        for name in ("controller", "node"):
            (folder / name).mkdir()
        (folder / "munge.key").touch(mode=0o600)
        (folder / "munge.key").write_bytes(os.urandom(128))
        controller_port, node_port = free_ports(2)
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(folder=folder, user=os.getuid(), controller_port=controller_port, node_port=node_port)
        )
        # --force: the folder is closed to others, which is what munged complains about.
        self._run_daemon(
            "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
            f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed", f"--log-file={folder}/munged.log",
        )  # fmt: skip
        self._wait_until(lambda: (folder / "munge.socket").exists(), 20)
        self._run_daemon("slurmctld", "-D", "-c")
        self._run_daemon("slurmd", "-D", "-c", "-N", "localhost")
        self._wait_until(lambda: "idle" in self.command("sinfo", "--noheader", "--format=%t", check=False), 40)

    def stop(self) -> None:
        """Ends the jobs, then the daemons, then whatever they have left."""
        try:
            if len(self._daemons) == 3:
                self.command("scancel", "--state=PENDING,RUNNING", f"--user={os.getuid()}", check=False)
                # What a job runs belongs to slurmstepd, which goes when it has gone.
                self._wait_until(lambda: not self._processes("slurmstepd"), 30, required=False)
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in self._daemons:
                try:
                    daemon.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            for pid in self._processes():
                os.kill(pid, signal.SIGKILL)

    def submit(self, *words: str | Path, **environment: str) -> str:
        """`sbatch` in this repository; returns the job's number."""
        return self.command("sbatch", "--parsable", *words, **environment).strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode, Reason and more."""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: str, seconds: float, **wanted: str) -> dict[str, str]:
        """Waits until the job shows these values, and returns all."""
        self._wait_until(lambda: wanted.items() <= self.job(number).items(), seconds, number)
        return self.job(number)

    def command(self, *words: str | Path, check: bool = True, **environment: str) -> str:
        done = subprocess.run(
            words, env={**self._environment, **environment}, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def listeners(self) -> dict[str, set[str]]:
        """The addresses that Slurm's processes listen on, by the name of the program."""
        rows = [line.split() for path in ("tcp", "tcp6") for line in Path("/proc/net", path).read_text().splitlines()]
        listening = {f"socket:[{row[9]}]": row[1].split(":")[0] for row in rows if row[3] == "0A"}
        found: dict[str, set[str]] = {}
        for name in ("munged", "slurmctld", "slurmd", "slurmstepd", "srun"):
            for pid in self._processes(name):
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    held = os.readlink(descriptor) if descriptor.is_symlink() else ""
                    if held in listening:
                        found.setdefault(name, set()).add(_dotted(listening[held]))
        return found

    def _run_daemon(self, *words: str) -> None:
        with open(self._folder / f"{words[0]}.out", "wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    # A killed pytest comes to no `stop`: they end with it all the same.
                    [*(_renaming() or []), "setpriv", "--pdeathsig", "TERM", "--", *words],
                    env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    # A Ctrl-C in the terminal is pytest's; `stop` ends us in order.
                    start_new_session=True,
                )
            )  # fmt: skip

    def _processes(self, name: str | None = None) -> list[int]:
        """Processes that the daemons or their jobs have started, by the configuration that they were given."""
        mine = f"SLURM_CONF={self._folder / 'slurm.conf'}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                given = mine in (path / "environ").read_bytes().split(b"\0")
                if given and name in (None, (path / "comm").read_text().strip()):
                    found.append(int(path.name))
            except OSError:
                continue  # it has gone, or is another user's
        return found

    def _wait_until(self, condition, seconds: float, number: str = "", required: bool = True) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                assert not required, f"not within {seconds} s. {self._evidence(number)}"
                return
            time.sleep(0.2)

    def _evidence(self, number: str) -> str:
        logs = sorted(self._folder.glob("*.out"))
        ends = [f"{log.name}: {' | '.join(log.read_text().splitlines()[-5:])}" for log in logs]
        return "\n".join([str(self.job(number)) if number else "", *ends])


def _dotted(address: str) -> str:
    """An address as the kernel's tables have it, 32 bits in the order of the machine."""
    return socket.inet_ntoa(bytes.fromhex(address)[::-1]) if len(address) == 8 else address
