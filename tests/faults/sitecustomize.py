"""Makes this process's calendar jump, as FAULT_CLOCK asks, and its checkpoints slow, by FAULT_SLOW_DISK seconds.

The calendar goes to and fro by years; the monotonic clock goes on.
"""

import os
import time

if os.environ.get("FAULT_CLOCK"):
    _true = time.time
    _calls = 0

    def _jumping() -> float:
        global _calls
        _calls += 1
        return _true() + (-1) ** _calls * 86_400 * 400

    time.time = _jumping

if os.environ.get("FAULT_SLOW_DISK"):
    _fsync = os.fsync

    def _slow_fsync(file) -> None:
        number = file if isinstance(file, int) else file.fileno()
        if "ckpt-" in os.readlink(f"/proc/self/fd/{number}"):
            time.sleep(float(os.environ["FAULT_SLOW_DISK"]))
        _fsync(file)

    os.fsync = _slow_fsync
