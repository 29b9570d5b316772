"""The most memory that is held at one time, of this process and of its GPUs."""

import re
from pathlib import Path

import tensorflow as tf


def peak_memory_bytes() -> int | None:
    """The peak of all memory that this process has held; None where the kernel does not report it."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def peak_device_memory_bytes() -> int | None:
    """The peak of the fullest GPU since the process began; None where there is no GPU."""
    return max((tf.config.experimental.get_memory_info(device)["peak"] for device in _gpus()), default=None)


def _gpus() -> list[str]:
    return [f"GPU:{index}" for index in range(len(tf.config.list_logical_devices("GPU")))]
