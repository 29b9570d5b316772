"""Which strategy flags and environment lead to, who is chief, and what is said when it is not there."""

import json
import types

import pytest
import tensorflow as tf

import trainer
from trainer.cluster.strategy import (
    STRATEGIES,
    build_strategy,
    describe_strategy,
    is_chief,
    local_replicas,
    num_workers,
    worker_index,
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(name, raising=False)


class Worker(tf.distribute.MultiWorkerMirroredStrategy):
    """A multi-worker strategy that knows its cluster and has not connected to it; one replica a worker."""

    def __init__(self, cluster: dict, task_type: str, task_id: int):
        self._resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster), task_type=task_type, task_id=task_id
        )
        self._replicas = sum(len(addresses) for job, addresses in cluster.items() if job != "evaluator")

    cluster_resolver = property(lambda self: self._resolver)
    num_replicas_in_sync = property(lambda self: self._replicas)
    extended = property(lambda self: types.SimpleNamespace(_num_replicas_in_process=1))


@pytest.fixture
def only_one_cpu(monkeypatch):
    cpu = tf.config.list_logical_devices("CPU")[:1]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: cpu if kind == "CPU" else [])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])


def test_auto_takes_all_logical_devices_of_a_split_cpu():
    strategy = build_strategy("auto")
    assert type(strategy) is tf.distribute.MirroredStrategy
    assert strategy.num_replicas_in_sync == 3


def test_auto_takes_one_device_where_there_is_one(only_one_cpu):
    assert type(build_strategy("auto")) is tf.distribute.OneDeviceStrategy


def test_one_device_stays_on_one_device_though_there_are_more():
    assert build_strategy("one_device").num_replicas_in_sync == 1


def test_mirrored_uses_the_virtual_devices_asked_for():
    assert build_strategy("mirrored", virtual_devices=3).num_replicas_in_sync == 3


def test_other_virtual_devices_than_are_set_up_already_come_too_late():
    with pytest.raises(trainer.UserError, match="--virtual_devices=2 came too late.* set up 3 CPU"):
        build_strategy("mirrored", virtual_devices=2)


def test_mirrored_without_devices_says_what_there_is(only_one_cpu):
    with pytest.raises(trainer.UserError, match="here are 0 GPUs and 1 CPU device.*one_device"):
        build_strategy("mirrored")


def test_tpu_without_a_tpu_says_so_at_once():
    with pytest.raises(trainer.UserError, match="no TPU is named .*and none is attached"):
        build_strategy("tpu")


def test_an_unknown_strategy_gets_the_nearest_name():
    with pytest.raises(trainer.UserError, match="no strategy 'mirored'. Did you mean 'mirrored'?"):
        build_strategy("mirored")
    with pytest.raises(trainer.UserError, match=", ".join(STRATEGIES)):
        build_strategy("horovod")


def test_a_negative_number_of_virtual_devices_is_refused():
    with pytest.raises(trainer.UserError, match="--virtual_devices=-1 must not be negative"):
        build_strategy("auto", virtual_devices=-1)


TWO = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize(
    ("tf_config", "message"),
    [
        ("", "needs the environment variable TF_CONFIG.*not set.*--strategy=mirrored"),
        ("{}", "needs the environment variable TF_CONFIG"),
        ("{broken", "TF_CONFIG must be of the form .*Expecting property name"),
        ("[1]", "TF_CONFIG must be of the form"),
        ({"cluster": TWO}, "'type' is missing"),
        ({"cluster": TWO, "task": {"type": "worker"}}, "'index' is missing"),
        ({"cluster": TWO, "task": {"type": "worker", "index": "x"}}, "invalid literal"),
        ({"cluster": TWO, "task": {"type": "worker", "index": 2}}, "no worker 2 in its cluster of 2 worker"),
        ({"cluster": TWO, "task": {"type": "worker", "index": -1}}, "no worker -1"),
        ({"cluster": TWO, "task": {"type": "chief", "index": 0}}, "no chief 0 in its cluster of 2 worker"),
        ({"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}, "is not a list of 'host:port'"),
        ({"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}, "is not a list of 'host:port'"),
    ],
    ids=[
        "none", "empty", "no JSON", "a list", "no task", "no index", "index is text", "index too high",
        "index below 0", "no such job", "one address", "no port",
    ],
)  # fmt: skip
def test_a_tf_config_that_does_not_describe_a_cluster_is_refused(monkeypatch, tf_config, message):
    monkeypatch.setenv("TF_CONFIG", tf_config if isinstance(tf_config, str) else json.dumps(tf_config))
    with pytest.raises(trainer.UserError, match=message):
        build_strategy("multi_worker")


def test_auto_does_not_take_a_cluster_of_one_worker_for_several(monkeypatch, only_one_cpu):
    monkeypatch.setenv(
        "TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}})
    )
    assert type(build_strategy("auto")) is tf.distribute.OneDeviceStrategy


def test_without_a_cluster_the_process_is_chief_and_alone():
    strategy = build_strategy("mirrored")
    assert is_chief(strategy)
    assert (num_workers(strategy), worker_index(strategy), local_replicas(strategy)) == (1, 0, 3)


@pytest.mark.parametrize(
    ("cluster", "task", "chief", "workers", "index"),
    [
        (TWO, ("worker", 0), True, 2, 0),
        (TWO, ("worker", 1), False, 2, 1),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, ("chief", 0), True, 3, 0),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, ("worker", 0), False, 3, 1),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, ("worker", 1), False, 3, 2),
    ],
)
def test_one_worker_is_chief_and_each_has_its_place(cluster, task, chief, workers, index):
    strategy = Worker(cluster, *task)
    assert is_chief(strategy) is chief
    assert num_workers(strategy) == workers
    assert worker_index(strategy) == index
    assert local_replicas(strategy) == 1


def test_a_strategy_is_described_by_name_replicas_and_devices():
    text = describe_strategy(build_strategy("mirrored"))
    assert text == "MirroredStrategy, 3 replicas on CPU:0, CPU:1, CPU:2"
    assert describe_strategy(build_strategy("one_device")) == "OneDeviceStrategy, 1 replica on CPU:0"
