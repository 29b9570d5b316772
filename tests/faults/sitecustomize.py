"""Makes this process's calendar jump, as FAULT_CLOCK asks, and its files slow.

The calendar goes to and fro by years; the monotonic clock continues. Checkpoints take FAULT_SLOW_DISK seconds to be
on the disk, the final weights FAULT_SLOW_WEIGHTS, and the very end of the process FAULT_SLOW_EXIT.
"""

import atexit
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

_SLOW = {"ckpt-": "FAULT_SLOW_DISK", "final.weights": "FAULT_SLOW_WEIGHTS"}

if any(os.environ.get(name) for name in _SLOW.values()):
    _fsync = os.fsync

    def _slow_fsync(file) -> None:
        number = file if isinstance(file, int) else file.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        for part, name in _SLOW.items():
            if part in path and os.environ.get(name):
                time.sleep(float(os.environ[name]))
        _fsync(file)

    os.fsync = _slow_fsync

if os.environ.get("FAULT_SLOW_EXIT"):

    def _slow_exit() -> None:
        print("about to end", flush=True)
        time.sleep(float(os.environ["FAULT_SLOW_EXIT"]))

    atexit.register(_slow_exit)
