"""Seconds and CPU time a step of this trainer beside the bare floor, Orbit and Keras fit, interleaved in one run.

python tests/benchmarks/step_speed.py [--workload=mlp]... [--strategy=mirrored]... [--peer=regraft]... [--rounds=7]
    [--results=rows.json]

In every round each peer takes the same number of steps, one after the other, in one process (with two
workers: in two, each pinned to a core of its own). Only ratios inside a row mean something. Exit status 1
if a bar does not hold. A row of which one does not is measured on, for twice as many rounds again: a median close to
its bar falls on either side by chance. All of its rounds count, and the row says how many they are. With --results
each row is kept as it comes, and one that is there, of as many rounds and the same peers, is not measured again.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from spread import median_and_spread

HERE = Path(__file__).resolve().parent
STRATEGIES = ("none", "one device", "mirrored", "two workers")
WORKLOADS = ("mlp", "cnn", "mobilenet", "transformer")


def measure(workload_name: str, strategy_name: str, peer_names: list[str], rounds: int) -> dict:
    """{peer: {'wall': [seconds a step, a round], 'cpu': [...]}}, or {'failed': message} for one that cannot run."""
    import tensorflow as tf
    from peers import MORE_PEERS, PEERS
    from workloads import WORKLOADS as workloads

    from trainer.cluster.strategy import build_strategy

    strategy = {
        "none": tf.distribute.get_strategy,
        "one device": lambda: build_strategy("one_device"),
        "mirrored": lambda: build_strategy("mirrored", 2),
        "two workers": lambda: build_strategy("multi_worker"),
    }[strategy_name]()
    workload = workloads[workload_name]
    found: dict = {}
    ways = {}
    for name in peer_names or PEERS:
        try:
            ways[name] = (PEERS | MORE_PEERS)[name](workload, strategy)
            ways[name](50)  # traces; a whole loop of 50, so that nothing is traced later
            if workload.steps > 50:
                ways[name](workload.steps)
            found[name] = {"wall": [], "cpu": []}
        except ModuleNotFoundError:
            raise  # a peer that is not installed is no result
        except Exception as error:  # noqa: BLE001  that a peer cannot run under this strategy is a result
            ways.pop(name, None)
            found[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    for index in range(rounds):
        # Each comes first, last and after every other: what one leaves in caches and clock rates falls on all alike.
        first = index % len(ways)
        for name, take_steps in [*ways.items()][first:] + [*ways.items()][:first]:
            if workload.steps > 50:
                take_steps(50)  # small steps feel that another has filled the caches
            cpu, wall = time.process_time(), time.perf_counter()
            take_steps(workload.steps)
            found[name]["wall"].append((time.perf_counter() - wall) / workload.steps)
            found[name]["cpu"].append((time.process_time() - cpu) / workload.steps)
    return found


def in_new_processes(workload: str, strategy: str, peers: list[str], rounds: int) -> dict:
    """`measure` in a process of its own, or in two workers of which the first one's figures count."""
    workers = 2 if strategy == "two workers" else 1
    ports = _free_ports(workers)
    processes = []
    for index in range(workers):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, "--in_this_process", f"--workload={workload}", f"--strategy={strategy}"]
        command += [f"--rounds={rounds}", *(f"--peer={peer}" for peer in peers)]
        if workers > 1:
            cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
            command.append(f"--core={index}")
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        texts = [process.communicate(timeout=1800) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        sys.exit(f"{workload}, {strategy}: no answer after 30 minutes.")
    if any(process.returncode for process in processes):
        sys.exit("\n".join(error[-3000:] for _, error in texts))
    return json.loads(texts[0][0].splitlines()[-1])


def measured_until_sure(workload: str, strategy: str, peers: list[str], rounds: int) -> dict:
    """The same, measured on where a bar breaks; not if only some peers were asked for."""
    found = in_new_processes(workload, strategy, peers, rounds)
    if peers or "failed" in found["floor"] or not broken_bars({(workload, strategy): found}):
        return found
    more = in_new_processes(workload, strategy, peers, 2 * rounds)
    for peer, measured in more.items():
        if "failed" not in found[peer]:
            failed = "failed" in measured
            found[peer] = measured if failed else {kind: found[peer][kind] + measured[kind] for kind in measured}
    return found


def show(results: dict) -> None:
    peers = list(dict.fromkeys(peer for found in results.values() for peer in found))
    print("\nSteps a second as a ratio to the bare floor's (median of the rounds' ratios), and its spread:\n")
    _table(results, peers, "wall")
    print("\nCPU time a step as a ratio to the bare floor's, likewise:\n")
    _table(results, peers, "cpu")
    for (workload, strategy), found in results.items():
        for peer, measured in found.items():
            if "failed" in measured:
                print(f"{workload}, {strategy}: {peer} failed: {measured['failed']}")


# (workload, strategy, peer, least ratio of speeds): small steps, where the loop and the feeding are what is measured.
BARS = [
    *(
        ("mlp", strategy, peer, least)
        for strategy in ("none", "one device")
        for peer, least in (("orbit 50", 1.2), ("fit 50", 1.1), ("floor", 0.8))
    ),
    ("mlp", "mirrored", "orbit 50", 1.5),
    ("mlp", "mirrored", "fit 1", 5.0),
    ("mlp", "mirrored", "floor", 0.8),
]
# Of a median of seven rounds on two shared cores: twice the root mean square, over the rows of two whole runs, of
# what the fed floor and Orbit differ by, whose graphs are the same.
NOISE = 0.07


def broken_bars(results: dict) -> list[str]:
    """What does not hold; fit, where it cannot run at all under a strategy, is as slow as one likes."""
    broken = []
    for (workload, strategy), found in results.items():
        ran = [peer for peer in found if "failed" not in found[peer] and peer != "regraft"]
        bars = [(peer, least) for *place, peer, least in BARS if tuple(place) == (workload, strategy)]
        if workload != "mlp":
            bars = [(peer, 1.0 - NOISE) for peer in found if peer in ("orbit 50", "fit 50", "fit 1")]
            cpu = statistics.median(ratios(found, "regraft", "floor", "cpu"))
            if cpu > 1.05 + NOISE:
                broken.append(
                    f"{workload}, {strategy}: {cpu:.2f} times the floor's CPU time a step, and not {1.05 + NOISE:.2f}"
                )
        for peer, least in bars:
            if peer not in found:
                broken.append(f"{workload}, {strategy}: {peer} was not measured, so no bar is known to hold")
                continue
            if peer not in ran and not peer.startswith("fit"):
                broken.append(f"{workload}, {strategy}: {peer} failed, so no bar is known to hold")
                continue
            seen = statistics.median(ratios(found, "regraft", peer, "wall")) if peer in ran else least
            if seen < least:
                broken.append(f"{workload}, {strategy}: {seen:.2f} times as fast as {peer}, and not {least:.2f}")
    return broken


def ratios(found: dict, peer: str, other: str, kind: str) -> list[float]:
    """Round by round: how many times as fast as `other`, or how many times its CPU time."""
    pairs = zip(found[peer][kind], found[other][kind], strict=True)
    return [theirs / own if kind == "wall" else own / theirs for own, theirs in pairs]


def _table(results: dict, peers: list[str], kind: str) -> None:
    print("| | rounds | floor, ms a step | " + " | ".join(peer for peer in peers if peer != "floor") + " |")
    print("|---" * (len(peers) + 2) + "|")
    for (workload, strategy), found in results.items():
        print(_row(f"{workload}, {strategy}", found, peers, kind))


def _row(name: str, found: dict, peers: list[str], kind: str) -> str:
    cells = [name, str(len(found["floor"][kind])), f"{1e3 * statistics.median(found['floor'][kind]):.3g}"]
    for peer in peers:
        if peer != "floor":
            cells.append("fails" if "failed" in found[peer] else median_and_spread(ratios(found, peer, "floor", kind)))
    return "| " + " | ".join(cells) + " |"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=WORKLOADS)
    parser.add_argument("--strategy", action="append", choices=STRATEGIES)
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, help="a JSON file of the rows that are measured already")
    parser.add_argument("--in_this_process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_this_process:
        if arguments.core is not None:
            os.sched_setaffinity(0, {arguments.core})
        sys.path[:0] = [str(HERE), str(HERE.parents[1])]
        found = measure(arguments.workload[0], arguments.strategy[0], arguments.peer, arguments.rounds)
        print(json.dumps(found), flush=True)
        from trainer.cluster.heartbeat import current_watch

        if current_watch() is not None:
            current_watch().leave()  # else the other worker takes the end below for a death, and ends with it
        # At once: where a peer failed, TensorFlow's own end waits for the other worker without end.
        os._exit(0)
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more.")
    if arguments.results and not arguments.results.parent.is_dir():
        parser.error(f"--results: there is no folder {arguments.results.parent}.")
    kept = json.loads(arguments.results.read_text()) if arguments.results and arguments.results.exists() else {}
    results = {}
    for workload in arguments.workload or WORKLOADS:
        # One device is what `train` takes where nothing else is; only small steps feel what a strategy costs.
        usual = [name for name in STRATEGIES if workload == "mlp" or name != "one device"]
        for strategy in arguments.strategy or usual:
            name = f"{workload}, {strategy}"
            # Small steps cost little time, and their rounds differ more.
            rounds = max(arguments.rounds, 21) if workload == "mlp" else arguments.rounds
            row = f"{name}, {rounds} rounds of {', '.join(sorted(arguments.peer)) or 'all'}"
            if row not in kept:
                kept[row] = measured_until_sure(workload, strategy, arguments.peer, rounds)
                if arguments.results:
                    arguments.results.write_text(json.dumps(kept))
            found = results[workload, strategy] = kept[row]
            floor = found.get("floor", {"failed": "it was not asked for"})
            if "failed" in floor:
                sys.exit(f"{name}: there is no floor to compare with: {floor['failed']}")
            others = ", ".join(peer for peer in found if peer != "floor")
            print(f"\nRounds, the floor, ms a step, and as a ratio to its speed and CPU time: {others}")
            print(_row(name, found, list(found), "wall"))
            print(_row(f"{name}, CPU", found, list(found), "cpu"), flush=True)
    show(results)
    broken = broken_bars(results)
    print("\n" + ("\n".join(broken) if broken else "Every bar holds."))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
