"""Damages checkpoints of every format, also behind right checksums, and counts how their restores end.

python tests/restore/fuzz.py [CASES] [SEED]

A restore must end with all of the writer's values or, refused, with none. Every case runs in another process, so that
one which ends it or never ends is counted as well.
"""

import collections
import json
import random
import select
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent.parent)]
LONGEST_SECONDS, LONGEST_START_SECONDS = 60.0, 600.0
ENDS = ("whole", "refused", "crash", "hang", "partial", "silent", "raw")


def main(cases: int, seed: int) -> int:
    """Prints the table; 1 if anything ended otherwise than whole or refused."""
    table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    case = 0
    while case < cases:
        case = _run_in_child(case, cases, seed, table)
    print(f"| format | {' | '.join(ENDS)} |\n|{'---|' * (len(ENDS) + 1)}")
    for name, ends in sorted(table.items()):
        print(f"| {name} | {' | '.join(str(ends[end]) for end in ENDS)} |")
    total = sum(table.values(), collections.Counter())
    print(f"{sum(total.values())} cases: {', '.join(f'{total[end]} {end}' for end in ENDS)}")
    return int(any(total[end] for end in ENDS[2:]))


def _run_in_child(case: int, cases: int, seed: int, table) -> int:
    """Runs the cases from `case` on until the process ends; returns the next one."""
    command = [sys.executable, __file__, "--child", str(case), str(cases), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as child:
        name, what = "", "none yet"
        while True:
            end = "crash"
            if not select.select([child.stdout], [], [], LONGEST_SECONDS if name else LONGEST_START_SECONDS)[0]:
                child.kill()
                end = "hang"
            line = child.stdout.readline()
            if not line:
                break
            found = json.loads(line)
            if "end" not in found:
                name, what = found["format"], found["what"]
                continue
            table[name][found["end"]] += 1
            if found["end"] not in ENDS[:2]:
                print(f"case {case}: {name}, {what}: {found['end']}: {found['said']}", flush=True)
            case += 1
    if case < cases:
        assert name, "the process that runs the cases does not start"
        table[name][end] += 1
        print(f"case {case}: {name}, {what}: {end}", flush=True)
    return case + 1


def _run_cases(first: int, cases: int, seed: int) -> None:
    from fuzz_bench import FORMATS, Bench  # imports TensorFlow

    with tempfile.TemporaryDirectory(prefix="regraft-fuzz-") as folder:
        bench = Bench(Path(folder))
        for case in range(first, cases):
            name = list(FORMATS)[case % len(FORMATS)]
            print(json.dumps({"format": name, "what": "(the damage itself)"}), flush=True)
            victim, what = bench.damaged(name, random.Random(f"{seed} {case}"))
            print(json.dumps({"format": name, "what": what}), flush=True)
            end, said = bench.end_of(victim)
            print(json.dumps({"end": end, "said": said[:300]}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _run_cases(*map(int, sys.argv[2:]))
    else:
        cases, seed = (*map(int, sys.argv[1:]), *(2000, 1)[len(sys.argv) - 1 :])
        sys.exit(main(cases, seed))
