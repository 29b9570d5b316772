"""The environment variable TF_CONFIG -> the workers of a cluster."""

import json
import os
import re

from trainer.errors import UserError


def cluster_workers() -> tuple[list[str], int]:
    """The addresses of chief and workers in TF_CONFIG, and which of them this is; none where there is no cluster."""
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return [], 0
    try:
        tf_config = json.loads(text)
        jobs = {str(job): _addresses(job, listed) for job, listed in tf_config.get("cluster", {}).items()}
        workers = jobs.get("chief", []) + jobs.get("worker", [])
        task: dict = tf_config.get("task", {}) if workers else {"type": "worker", "index": 0}
        kind, index = str(task["type"]), int(task["index"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            "TF_CONFIG must be of the form {'cluster': {'worker': ['host:port', ...]}, 'task': {'type': "
            f"'worker', 'index': 0}}}}, but {said}; it is {text!r}."
        ) from error
    if workers and not 0 <= index < len(jobs.get(kind, [])):
        here = ", ".join(f"{len(listed)} {job}" for job, listed in jobs.items())
        raise UserError(f"TF_CONFIG: there is no {kind} {index} in its cluster of {here}; indices start at 0.")
    return workers, index + (len(jobs.get("chief", [])) if kind == "worker" else 0)


def _addresses(job: str, listed) -> list[str]:
    if not isinstance(listed, list) or not all(re.fullmatch(r".+:\d+", str(address)) for address in listed):
        raise ValueError(f"cluster.{job} is not a list of 'host:port'")
    return [str(address) for address in listed]
