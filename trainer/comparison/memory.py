"""The most memory that is held at one time, of this process and of its GPUs."""

import re
from pathlib import Path

import tensorflow as tf


def reset_peaks() -> bool:
    """Starts the measurement again; returns False where the kernel does not allow it, for the process' own memory."""
    for device in _gpus():
        tf.config.experimental.reset_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory, see proc(5)
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int | None:
    """Of this process since `reset_peaks`: all that it holds, what earlier runs left in it included."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def peak_device_memory_bytes() -> int | None:
    """Of the fullest GPU since `reset_peaks`; None where there is no GPU."""
    return max((tf.config.experimental.get_memory_info(device)["peak"] for device in _gpus()), default=None)


def _gpus() -> list[str]:
    return [f"GPU:{index}" for index in range(len(tf.config.list_logical_devices("GPU")))]
