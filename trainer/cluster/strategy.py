"""Flags and environment -> the `tf.distribute` strategy, and who is chief."""

import functools
from collections.abc import Callable, Mapping

import gin
import tensorflow as tf

from trainer.cluster.rendezvous import RollCall
from trainer.cluster.tf_config import cluster_workers
from trainer.cluster.tpu import names_tpu, tpu_strategy
from trainer.config import gin_tables
from trainer.config.settings import may_change
from trainer.errors import UserError
from trainer.suggest import nearest

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

    name: one of `STRATEGIES`. `auto` takes a named TPU, else the cluster of TF_CONFIG if it has several workers, else
      all GPUs, else the virtual devices, else one device.
    virtual_devices: splits the CPU into this many logical devices, so that every distributed path runs on a laptop. 0
      leaves the CPU whole. Must come before TensorFlow has touched a device.
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
        "tpu": lambda: tpu_strategy(tpu),
    }[name]()


may_change("communication", "implementation", "bytes_per_pack", "timeout_seconds")


@gin.register(module="strategy")
def communication(
    implementation: str = "auto", bytes_per_pack: int = 0, timeout_seconds: float | None = None
) -> tf.distribute.experimental.CommunicationOptions:
    """How workers add up gradients: what `tf.distribute` offers.

    implementation: "auto", "ring" (gRPC) or "nccl" (GPUs).
    bytes_per_pack: gradients are sent in packs of so many bytes; 0 leaves it to TensorFlow.
    timeout_seconds: of one exchange; None for no end.
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
    if len(cluster_workers()[0]) > 1:
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
                f"device(s) in this process. {_who_was_first()}"
            ) from error


def _who_was_first() -> str:
    modules = gin_tables.imported_modules()
    if not modules:
        return "Ask for them before anything else uses TensorFlow."
    return (
        f"An import line of the config may have done so ({', '.join(modules)}): a module that makes a tensor, a layer "
        "or a model while it is imported. Move that into a function."
    )


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
    workers, index = cluster_workers()
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


def _is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _short(device: str) -> str:
    return device.rsplit("device:", 1)[-1]
