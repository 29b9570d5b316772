"""A worker's fingerprint: the versions, code, config and data that it must share with the others."""

import hashlib
import importlib.metadata
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import gin
import keras
import tensorflow as tf


def worker_card() -> dict[str, str]:
    """The part that is known before there is a strategy, by its name for people; the config as it was parsed."""
    return {
        "the version of Python": platform.python_version(),
        "the version of TensorFlow": tf.__version__,
        "the version of Keras": keras.__version__,
        "the version of regraft": importlib.metadata.version("regraft"),
        "the code of regraft": _digest(sorted(Path(__file__).parent.parent.rglob("*.py"))),
        "the code that the config imports": _imported_code(),
        "the config": gin.config_str(max_line_length=10_000),
    }


def _imported_code() -> str:
    """A line for each module that the config's `import` lines name."""
    names = [line.split()[1] for line in gin.config_str().splitlines() if line.startswith(("import ", "from "))]
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names}
    return "\n".join(f"{name} {_digest([Path(file)])}" for name, file in files.items() if file) or "none"


def _digest(paths: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()[:12]
