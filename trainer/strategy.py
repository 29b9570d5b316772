"""Flags and environment -> the `tf.distribute` strategy, and who is chief."""

import functools
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping

import gin
import tensorflow as tf

from trainer.errors import UserError
from trainer.nearest import nearest
from trainer.roll_call import RollCall

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def build_strategy(
    name: str = "auto",
    virtual_devices: int = 0,
    tpu: str | None = None,
    communication: tf.distribute.experimental.CommunicationOptions | None = None,
    start_timeout_seconds: float = 600,
    worker_timeout_seconds: float = 60,
    worker_card: Callable[[], Mapping[str, str]] = dict,
) -> tf.distribute.Strategy:
    """Builds the strategy asked for, or raises `UserError` saying what there is instead.

    name: one of `STRATEGIES`. `auto` takes a named TPU, else the cluster of TF_CONFIG if it has
      several workers, else all GPUs, else the virtual devices, else one device.
    virtual_devices: splits the CPU into this many logical devices, so that every distributed path
      runs on a laptop. 0 leaves the CPU whole. Must come before TensorFlow has touched a device.
    tpu: name or address of a TPU; where it is None the environment (TPU_NAME) decides.
    communication: of several workers, see `communication`; TensorFlow's own choice by default.
    start_timeout_seconds, worker_timeout_seconds: of several workers, see `RollCall`. Once they are together, this
      process ends with status 75 when one of the others is gone. Raises `RunAgain` where one does not come.
    worker_card: returns what several workers must have in common, by what people call it.

    Source: https://www.tensorflow.org/guide/distributed_training
    """
    if name not in STRATEGIES:
        advice = nearest(str(name), STRATEGIES, cutoff=0.6) or f" Choose one of {', '.join(STRATEGIES)}."
        raise UserError(f"There is no strategy {name!r}.{advice}")
    if virtual_devices < 0:
        raise UserError(f"--virtual_devices={virtual_devices} must not be negative.")
    if virtual_devices:
        _split_cpu(virtual_devices)
    if name == "auto":
        name = _choose(tpu)
    return {
        "one_device": _one_device,
        "mirrored": _mirrored,
        "multi_worker": lambda: _multi_worker(
            communication, start_timeout_seconds, worker_timeout_seconds, worker_card
        ),
        "tpu": lambda: _tpu(tpu),
    }[name]()


@gin.register(module="strategy")
def communication(
    implementation: str = "auto", bytes_per_pack: int = 0, timeout_seconds: float | None = None
) -> tf.distribute.experimental.CommunicationOptions:
    """How workers add up gradients: what `tf.distribute` offers.

    implementation: "auto", "ring" (gRPC) or "nccl" (GPUs).  bytes_per_pack: gradients are sent in packs of so many
    bytes; 0 leaves it to TensorFlow.  timeout_seconds: of one exchange; None for no end.
    """
    known = {each.name.lower(): each for each in tf.distribute.experimental.CommunicationImplementation}
    if implementation not in known:
        raise UserError(f"communication.implementation = {implementation!r} must be one of {', '.join(known)}.")
    try:
        return tf.distribute.experimental.CommunicationOptions(
            bytes_per_pack=bytes_per_pack, timeout_seconds=timeout_seconds, implementation=known[implementation]
        )
    except ValueError as error:
        raise UserError(f"communication.bytes_per_pack = {bytes_per_pack!r}: {error}") from error


def names_tpu(tpu: str | None) -> bool:
    """Whether a TPU is named, by the flag or the environment, or attached to this machine."""
    return bool(tpu or os.environ.get("TPU_NAME") or tf.config.list_physical_devices("TPU"))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's files: worker 0, or the only one."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec().jobs:
        return True
    if resolver.task_type == "chief":
        return True
    return (
        resolver.task_type in ("worker", None)
        and not resolver.task_id
        and ("chief" not in resolver.cluster_spec().jobs)
    )


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """How many processes train together."""
    if not _is_multi_worker(strategy):
        return 1
    jobs = strategy.cluster_resolver.cluster_spec().as_dict()
    return max(len(jobs.get("chief", [])) + len(jobs.get("worker", [])), 1)


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """How many of the replicas live in this process."""
    return strategy.num_replicas_in_sync // num_workers(strategy)


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """This process's place among the workers; a chief comes first."""
    if not _is_multi_worker(strategy):
        return 0
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    return (resolver.task_id or 0) + (len(jobs.get("chief", [])) if resolver.task_type == "worker" else 0)


def describe_strategy(strategy: tf.distribute.Strategy) -> str:
    """One line: `MirroredStrategy, 2 replicas on CPU:0, CPU:1`."""
    replicas = strategy.num_replicas_in_sync
    try:
        devices = strategy.extended.worker_devices
    except RuntimeError:  # the default strategy, of a process that chose none
        devices = ()
    places = ", ".join(_short(device) for device in devices) or "the default device"
    workers = f" in {num_workers(strategy)} workers" if num_workers(strategy) > 1 else ""
    name = "MultiWorkerMirroredStrategy" if _is_multi_worker(strategy) else type(strategy).__name__
    return f"{name}, {replicas} replica{'s' * (replicas > 1)}{workers} on {places}"


def _choose(tpu: str | None) -> str:
    if names_tpu(tpu):
        return "tpu"
    if len(_cluster_workers()[0]) > 1:
        return "multi_worker"
    if tf.config.list_physical_devices("GPU") or len(tf.config.list_logical_devices("CPU")) > 1:
        return "mirrored"
    return "one_device"


def _split_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        present = len(tf.config.list_logical_devices("CPU"))
        if present != count:
            raise UserError(
                f"--virtual_devices={count} came too late: TensorFlow has already set up {present} CPU "
                "device(s) in this process. Ask for them before anything else uses TensorFlow."
            ) from error


def _one_device() -> tf.distribute.Strategy:
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return tf.distribute.OneDeviceStrategy(f"/{kind}:0")


def _mirrored() -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU")
    cpus = tf.config.list_logical_devices("CPU")
    if len(cpus) > 1 and len(gpus) < 2:
        return _mirrored_on(tuple(device.name for device in cpus))
    if not gpus:
        raise UserError(
            "--strategy=mirrored needs GPUs, or a CPU split with --virtual_devices=2 or more; "
            "here are 0 GPUs and 1 CPU device. On one device use --strategy=one_device."
        )
    return _mirrored_on(tuple(device.name for device in gpus))


@functools.cache
def _mirrored_on(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    # One for a process: TensorFlow counts collectives by strategy, so a second one on the same devices
    # would use the first one's keys, and is aborted as soon as its gradients have other shapes.
    return tf.distribute.MirroredStrategy(devices)


def _multi_worker(
    communication,
    start_timeout_seconds: float,
    worker_timeout_seconds: float,
    worker_card: Callable[[], Mapping[str, str]],
) -> tf.distribute.Strategy:
    workers, index = _cluster_workers()
    if not workers:
        raise UserError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG with cluster.worker and "
            "task, one process a worker; it is not set. On one machine use --strategy=mirrored."
        )
    try:
        with RollCall(workers, index, start_timeout_seconds, worker_timeout_seconds).answered(worker_card()):
            return tf.distribute.MultiWorkerMirroredStrategy(communication_options=communication)
    except tf.errors.OpError as error:
        raise UserError(
            f"--strategy=multi_worker: this worker cannot join the cluster of TF_CONFIG: {error.message}. "
            "Is its address one of this machine's, and its port free?"
        ) from error


def _cluster_workers() -> tuple[list[str], int]:
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


def _tpu(tpu: str | None) -> tf.distribute.Strategy:
    if not names_tpu(tpu):
        raise UserError(
            "--strategy=tpu: no TPU is named (--tpu, TPU_NAME) and none is attached to this machine; "
            f"here are {len(tf.config.list_physical_devices('GPU'))} GPUs and one CPU."
        )
    name = tpu or os.environ.get("TPU_NAME", "local")
    try:
        resolver = _find_tpu(name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, IndexError, OSError, tf.errors.OpError) as error:
        raise UserError(f"--strategy=tpu: the TPU {name!r} cannot be reached: {error}") from error


_TPU_ANSWER_SECONDS = 6
_TPU_HOST_SECONDS = 3


def _find_tpu(name: str) -> tf.distribute.cluster_resolver.TPUClusterResolver:
    """The resolver of a TPU whose hosts answer, or an `OSError`: TensorFlow asks and connects without a time limit."""
    found: list = []

    def find() -> None:
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
            for listed in resolver.cluster_spec().as_dict().values():
                for address in listed:
                    _connect_once(address)
            found.append(resolver)
        except Exception as error:  # noqa: BLE001  raised below, in the thread that asked
            found.append(error)

    # A daemon, which nobody waits for at the end either: it may hang in a name server or the metadata server.
    asking = threading.Thread(target=find, daemon=True)
    asking.start()
    asking.join(_TPU_ANSWER_SECONDS)
    if not found:
        raise TimeoutError(
            f"nothing has answered for {_TPU_ANSWER_SECONDS} s, neither Google Cloud's metadata server nor its hosts"
        )
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _connect_once(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_TPU_HOST_SECONDS).close()
    except OSError as error:
        raise OSError(f"{address} does not answer ({error})") from error


def _is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _short(device: str) -> str:
    return device.rsplit("device:", 1)[-1]
