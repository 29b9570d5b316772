"""A TPU by its name -> its strategy, or within seconds why not."""

import os
import socket
import threading

import tensorflow as tf

from trainer.errors import UserError

_TPU_ANSWER_SECONDS = 6
_TPU_HOST_SECONDS = 3


def names_tpu(tpu: str | None) -> bool:
    """Whether a TPU is named, by the flag or the environment, or attached to this machine."""
    return bool(tpu or os.environ.get("TPU_NAME") or tf.config.list_physical_devices("TPU"))


def tpu_strategy(tpu: str | None) -> tf.distribute.Strategy:
    """Connects to the TPU and initializes it; raises `UserError` where there is none, or it does not answer."""
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

    # A daemon, which is not waited for at the end either: it may hang in a name server or the metadata server.
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
