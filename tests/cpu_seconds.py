"""Runs a command, then prints its CPU seconds and how many `import trainer` that is: a figure that lasts.

python tests/cpu_seconds.py COMMAND [ARGUMENT...]

Seconds depend on the machine and on what else it does; their ratio to what an import takes on it does so much less.
All processes count that the command waited for, and theirs. Exits with the command's status.
"""

import resource
import subprocess
import sys


def cpu_seconds_of(command: list[str], **options) -> tuple[float, int]:
    """(user and system seconds of the command and its children, exit status)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = subprocess.run(command, **options).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(after[:2]) - sum(before[:2]), status


def main() -> int:
    seconds, status = cpu_seconds_of(sys.argv[1:])
    importing = [sys.executable, "-c", "import trainer"]
    unit = min(cpu_seconds_of(importing, stderr=subprocess.DEVNULL)[0] for _ in range(2))
    print(f"{seconds:.0f} CPU seconds, {seconds / unit:.0f} times those of `import trainer` ({unit:.1f} s)")
    return status


if __name__ == "__main__":
    sys.exit(main())
