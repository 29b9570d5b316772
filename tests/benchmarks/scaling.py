"""Examples a second a process, of one and of two with a core each, and what accumulation buys over a slow wire.

python tests/benchmarks/scaling.py [--workload=cnn]... [--rounds=7] [--megabits_per_second=100] [--delay_milliseconds=5]

Weak scaling: two workers have twice the batch of one process, and each of them its batch on a core of its own; the
one and the two take turns, in processes of their own that wait for each other. 1.0 would be: the second costs nothing.

The wire: two workers in network namespaces take the same number of micro-batches of one size, all-reducing after
every 1, 2, 4 or 8 of them. That the two are namespaces needs root; where they are not permitted, it says so.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from hosts import PORT, NotPermitted, connected_hosts  # noqa: E402
from spread import median_and_spread  # noqa: E402

from launch.local import free_ports  # noqa: E402

WORKLOADS = ("cnn", "mobilenet")
ACCUMULATION_STEPS = (1, 2, 4, 8)
MICRO_BATCHES = 32  # of each worker, a round over the wire


class Group:
    """Workers that train one workload together, a round whenever they are asked to; the first one's time counts."""

    def __init__(self, workload: str, batch_size: int, steps: int, accumulation_steps: int, places: list):
        """places: (address, what stands before the command) of each worker."""
        self._examples = batch_size * steps / len(places)
        self._workers = []
        for index, (_, before) in enumerate(places):
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
            if len(places) > 1:
                cluster = {"worker": [address for address, _ in places]}
                environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
            command = [sys.executable, __file__, "--in_this_process", f"--core={index}", f"--workload={workload}"]
            command += [f"--batch_size={batch_size}", f"--steps={steps}", f"--accumulation_steps={accumulation_steps}"]
            self._workers.append(
                subprocess.Popen(
                    [*before, *command], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )

    def round(self) -> float:
        """Examples a second that each worker made."""
        for worker in self._workers:
            self._tell(worker, "go\n")
        seconds = [self._answer(worker) for worker in self._workers]
        return self._examples / seconds[0]

    def wait_until_ready(self) -> None:
        for worker in self._workers:
            self._answer(worker)

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()  # all, before one can complain of another
        for worker in self._workers:
            worker.communicate()

    @staticmethod
    def _tell(worker: subprocess.Popen, text: str) -> None:
        assert worker.stdin is not None
        worker.stdin.write(text)
        worker.stdin.flush()

    @staticmethod
    def _answer(worker: subprocess.Popen) -> float:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            sys.exit("A worker ended; what it said stands above.")
        return float(line)


@contextlib.contextmanager
def groups(made: dict[str, Callable[[], Group]]) -> Iterator[dict[str, Group]]:
    """Ready to take turns; they start one after the other, so that none is short of memory or time to connect."""
    running: dict[str, Group] = {}
    try:
        for name, make in made.items():
            running[name] = make()
            running[name].wait_until_ready()
        yield running
    finally:
        for group in running.values():
            group.end()


def work(arguments) -> None:
    """A worker's life: gets ready, then a round for every line that it reads."""
    os.sched_setaffinity(0, {arguments.core})
    import tensorflow as tf
    from peers import regraft
    from workloads import WORKLOADS as workloads

    from trainer.cluster.strategy import build_strategy

    strategy = build_strategy("multi_worker") if "TF_CONFIG" in os.environ else tf.distribute.get_strategy()
    workload = workloads[arguments.workload[0]]
    num_batches = -(-workload.num_batches * workload.batch_size // arguments.batch_size)  # as much memory
    workload = dataclasses.replace(workload, batch_size=arguments.batch_size, num_batches=num_batches)
    take_steps = regraft(workload, strategy, accumulation_steps=arguments.accumulation_steps)
    take_steps(arguments.steps)  # traces
    print(0.0, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        take_steps(arguments.steps)
        print(time.perf_counter() - started, flush=True)


def weak_scaling(workload: str, rounds: int) -> dict[str, list[float]]:
    """{'1 process': [examples a second, a round], '2 processes': [...]}."""
    from workloads import WORKLOADS as workloads

    batch_size, steps = workloads[workload].batch_size, workloads[workload].steps
    places = [(f"127.0.0.1:{port}", []) for port in free_ports(2)]
    made = {
        "1 process": lambda: Group(workload, batch_size, steps, 1, places[:1]),
        "2 processes": lambda: Group(workload, 2 * batch_size, steps, 1, places),
    }
    with groups(made) as running:
        return _in_turns(running, rounds)


def over_the_wire(workload: str, rounds: int, megabits_per_second: float, delay_milliseconds: float):
    """{accumulation_steps: [examples a second, a round]}."""
    from workloads import WORKLOADS as workloads

    micro_batch = 2 * workloads[workload].batch_size
    with connected_hosts(2, megabits_per_second, delay_milliseconds) as hosts:

        def make(index: int, count: int) -> Group:
            places = [(f"{host.address}:{PORT + index}", host.command()) for host in hosts]
            return Group(workload, micro_batch * count, MICRO_BATCHES // count, count, places)

        made = {str(count): (lambda i=i, n=count: make(i, n)) for i, count in enumerate(ACCUMULATION_STEPS)}
        with groups(made) as running:
            return _in_turns(running, rounds)


def _in_turns(running: dict[str, Group], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, group in running.items():
            found[name].append(group.round())
    return found


def show(title: str, found: dict[str, dict[str, list[float]]]) -> None:
    """A row a workload: examples a second of each, and the ratio to the first, round by round."""
    names = list(next(iter(found.values())))
    print(f"\n{title}\n\n| | " + " | ".join(names) + " |" + "\n|---" + "|---" * len(names) + "|")
    for workload, measured in found.items():
        first = measured[names[0]]
        cells = [median_and_spread(first, ".3g")]
        for name in names[1:]:
            ratios = [value / base for value, base in zip(measured[name], first, strict=True)]
            cells.append(f"{median_and_spread(measured[name], '.3g')}: x {median_and_spread(ratios)}")
        print("| " + " | ".join([workload, *cells]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabits_per_second", type=float, default=100)
    parser.add_argument("--delay_milliseconds", type=float, default=5)
    parser.add_argument("--in_this_process", action="store_true", help=argparse.SUPPRESS)
    for name in ("core", "batch_size", "steps", "accumulation_steps"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_this_process:
        work(arguments)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the hosts are to be removed then too
    if (os.cpu_count() or 1) < 2:
        sys.exit("Two workers need a core each; here is one.")
    chosen = arguments.workload or WORKLOADS
    scaled = {workload: weak_scaling(workload, arguments.rounds) for workload in chosen}
    show("Examples a second a process, each on a core of its own:", scaled)
    wire = arguments.megabits_per_second, arguments.delay_milliseconds
    try:
        found = {workload: over_the_wire(workload, arguments.rounds, *wire) for workload in chosen}
    except NotPermitted as error:
        sys.exit(f"The wire was not measured; no network namespaces of one's own: {error}")
    show(
        f"Two workers over {wire[0]:g} Mbit/s and {wire[1]:g} ms, examples a second a worker by accumulation_steps:",
        found,
    )


if __name__ == "__main__":
    main()
