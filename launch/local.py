"""Runs `launch.train` in several processes of this machine, as workers of one MultiWorkerMirroredStrategy.

python -m launch.local --num_workers=2 -- --gin_file=configs/runs/digits_adam_to_sgd.gin --model_dir=runs/two

What follows `--` are flags of launch.train. The chief's output is shown here, that of every worker is in
`worker-<index>.log` in --log_dir (absl's flag; a new folder by default). When one ends badly all are ended;
at Ctrl-C or SIGTERM all get SIGTERM, so that they save together. Exit status: that of the worker which was the
cause; 75, "run it again", also where one was killed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from absl import flags

from launch import command_line
from launch.command_line import EXIT_RUN_AGAIN, Mistake

flags.DEFINE_integer("num_workers", 2, "How many processes.", lower_bound=1)
flags.DEFINE_integer("max_restarts", 0, "How often to start all again when they end with 75.", lower_bound=0)
flags.DEFINE_bool("pin_cpus", False, "Give every worker processors of its own.")
flags.DEFINE_integer("grace_seconds", 60, "How long workers may take to save and leave.", lower_bound=1)

_WITHOUT_IT_SECONDS = 5


class Workers:
    """One generation of processes, which start and end together."""

    def __init__(self, num_workers: int, arguments: list[str], log_dir: Path, pin_cpus: bool):
        self._logs = [log_dir / f"worker-{index}.log" for index in range(num_workers)]
        self._ended = False
        addresses = [f"127.0.0.1:{port}" for port in free_ports(num_workers)]
        processors = sorted(os.sched_getaffinity(0))
        command = [sys.executable, "-m", "launch.train", *arguments]
        self.processes = []
        for index in range(num_workers):
            cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            own = processors[index::num_workers] or [processors[index % len(processors)]]
            # Over the shell's own, which may stand in for many; and appended to: a restart is the same run.
            with open(self._logs[index], "ab") as log:
                self.processes.append(
                    subprocess.Popen(
                        _pinned(own, command) if pin_cpus else command,
                        env={**os.environ, "TF_CONFIG": json.dumps(cluster), "PYTHONUNBUFFERED": "1"},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE if index == 0 else log,
                        stderr=subprocess.STDOUT,
                        # A Ctrl-C in the terminal reaches us alone, and we pass it on once.
                        start_new_session=True,
                    )
                )
        self._echo = threading.Thread(target=self._show_chief, daemon=True)
        self._echo.start()

    def wait(self, grace_seconds: float, asked: list[int]) -> int:
        """Returns the exit status of all: that of the first which ended neither with 0 nor with 75, or else 75 or 0.

        A worker that a signal ended counts as 75.
        asked: the signals that this process has got, to which more may be added meanwhile; at the first the workers get
          SIGTERM, at the second they are killed.
        """
        statuses: dict[int, int] = {}
        causes: list[int] = []
        passed_on = 0
        deadline = None
        while len(statuses) < len(self.processes):
            if passed_on < min(len(asked), 2):
                # A Python that has only begun to start takes SIGINT for an error of its own.
                self._send(signal.SIGKILL if passed_on else signal.SIGTERM)
                passed_on += 1
            for index, process in enumerate(self.processes):
                status = process.poll()
                if status is None or index in statuses:
                    continue
                statuses[index] = status
                if status and deadline is None:
                    deadline = time.monotonic() + grace_seconds
                if status in (0, EXIT_RUN_AGAIN):
                    continue
                causes.append(status)
                if self._ended or len(causes) > 1:
                    continue
                if EXIT_RUN_AGAIN not in statuses.values():
                    self._send(signal.SIGTERM)
                    # The others wait for it in a step or a save, which no time would bring to an end.
                    deadline = time.monotonic() + _WITHOUT_IT_SECONDS
                # Reported also for one that is seen after another has left with 75, perhaps because it missed this one.
                self._tell(index, status)
            if deadline is not None and time.monotonic() > deadline:
                self._send(signal.SIGKILL)
            time.sleep(0.05)
        self._echo.join(timeout=5)
        if not causes:
            return max(statuses.values())
        return EXIT_RUN_AGAIN if causes[0] < 0 else causes[0]

    def _send(self, number: int) -> None:
        self._ended = True
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _show_chief(self) -> None:
        output = self.processes[0].stdout
        assert output is not None
        with open(self._logs[0], "ab", buffering=0) as log:
            for line in output:
                log.write(line)
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()

    def _tell(self, index: int, status: int) -> None:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        print(f"worker {index} {how}; the others are ended. Its last lines, of {self._logs[index]}:", file=sys.stderr)
        if index == 0:
            self._echo.join(timeout=2)  # its last lines pass through us
        for line in self._logs[index].read_text(errors="replace").splitlines()[-10:]:
            print(f"worker {index}: {line}", file=sys.stderr)


def _pinned(processors: list[int], command: list[str]) -> list[str]:
    """The command on these processors only; by `taskset`, since a fork of ours could not run Python code safely."""
    taskset = shutil.which("taskset")
    if taskset is None:
        raise Mistake("--pin_cpus needs the command taskset (util-linux), which is not here.")
    return [taskset, "--cpu-list", ",".join(map(str, processors)), *command]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that are free now; all are held until the last is found, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def train_flags(arguments: list[str]) -> list[str]:
    """The flags for launch.train, with the strategy that several workers need."""
    given = [argument for argument in arguments if argument.lstrip("-").split("=")[0] == "strategy"]
    if given and given != ["--strategy=multi_worker"]:
        raise Mistake(f"{given[0]}: several workers need --strategy=multi_worker, which launch.local sets.")
    return [*arguments, *([] if given else ["--strategy=multi_worker"])]


def main(arguments: list[str]) -> int:
    if not arguments:
        raise Mistake("Name the run: what follows -- are flags of launch.train.")
    train_arguments = train_flags(arguments)
    log_dir = Path(flags.FLAGS.log_dir or tempfile.mkdtemp(prefix="regraft-workers-"))
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"--log_dir={log_dir} cannot be made: {error.strerror}. Name a folder that can.") from error
    print(f"workers          {flags.FLAGS.num_workers}, logs in {log_dir}", flush=True)
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    status = EXIT_RUN_AGAIN
    for restart in range(flags.FLAGS.max_restarts + 1):
        if asked:
            break
        if restart:
            print(f"restart {restart} of at most {flags.FLAGS.max_restarts}", file=sys.stderr, flush=True)
        workers = Workers(flags.FLAGS.num_workers, train_arguments, log_dir, flags.FLAGS.pin_cpus)
        status = workers.wait(flags.FLAGS.grace_seconds, asked)
        if status != EXIT_RUN_AGAIN:
            break
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # The status is decided.
    return status


if __name__ == "__main__":
    command_line.run_plain(main)
