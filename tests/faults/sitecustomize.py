"""Lets this process's calendar jump to and fro by years, as FAULT_CLOCK asks; its monotonic clock goes on."""

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
