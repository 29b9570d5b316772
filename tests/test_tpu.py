"""A TPU by a stand-in for Google Cloud's: what is chosen, connected and called what, and what is not there."""

import socket

import pytest
import tensorflow as tf
from commands import REPOSITORY, run_command

import trainer
from trainer.cluster.strategy import build_strategy, describe_strategy, is_chief, num_workers

PATH = f"{REPOSITORY / 'tests/faults'}:{REPOSITORY}"
RUN = ["--gin_file=tests/faults/run.gin", "--strategy=tpu"]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(name, raising=False)


class Resolver(tf.distribute.cluster_resolver.ClusterResolver):
    """Answers for a slice whose hosts are given, as Google Cloud's does; `local` has none to name."""

    task_type, task_id = "worker", 0

    def __init__(self, tpu, hosts=()):
        self.tpu, self.hosts = tpu, hosts

    def cluster_spec(self):
        return tf.train.ClusterSpec({"worker": list(self.hosts)} if self.hosts else {})

    def master(self, *arguments):
        return f"grpc://{self.hosts[0]}" if self.hosts else ""


class Tpu(tf.distribute.MirroredStrategy):
    """Stands in for TPUStrategy: replicas on this machine's devices that are said to be a TPU's cores."""

    def __init__(self, resolver):
        super().__init__(["/CPU:0", "/CPU:1"])
        self.resolver = resolver

    cluster_resolver = property(lambda self: self.resolver)


@pytest.fixture
def done(monkeypatch):
    """What was done to which TPU, in order; a host that answers stands at its end."""
    listener = socket.create_server(("127.0.0.1", 0))
    events: list = []
    hosts = {"slice": [f"127.0.0.1:{listener.getsockname()[1]}"] * 2, "local": ()}

    def resolve(tpu):
        events.append(("resolve", tpu))
        if tpu not in hosts:
            raise ValueError(f"Could not find TPU {tpu}")
        return Resolver(tpu, hosts[tpu])

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", resolve)
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", lambda it: events.append(("connect", it.tpu)))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", lambda it: events.append(("initialize", it.tpu)))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", Tpu)
    yield events
    listener.close()


@pytest.mark.parametrize("strategy", ["tpu", "auto"])
@pytest.mark.parametrize("by", ["flag", "environment"])
def test_a_named_tpu_is_found_connected_and_initialized_in_this_order(done, monkeypatch, strategy, by):
    if by == "environment":
        monkeypatch.setenv("TPU_NAME", "slice")
    built = build_strategy(strategy, tpu="slice" if by == "flag" else None)
    assert type(built) is Tpu
    assert done == [("resolve", "slice"), ("connect", "slice"), ("initialize", "slice")]


def test_a_flag_wins_over_the_environment_and_a_tpu_over_a_cluster(done, monkeypatch):
    monkeypatch.setenv("TPU_NAME", "another")
    monkeypatch.setenv(
        "TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'
    )  # fmt: skip
    assert type(build_strategy("auto", tpu="slice")) is Tpu
    assert done[0] == ("resolve", "slice")


def test_an_attached_tpu_is_the_local_one(done, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [kind] if kind == "TPU" else [])
    assert type(build_strategy("auto")) is Tpu
    assert done == [("resolve", "local"), ("connect", "local"), ("initialize", "local")]


def test_one_program_drives_all_hosts_so_it_is_the_chief_and_alone(done):
    strategy = build_strategy("tpu", tpu="slice")
    assert is_chief(strategy) and num_workers(strategy) == 1
    assert describe_strategy(strategy) == "Tpu, 2 replicas on CPU:0, CPU:1"


def test_a_name_that_google_does_not_know_is_said(done):
    with pytest.raises(trainer.UserError, match="the TPU 'away' cannot be reached: Could not find TPU away"):
        build_strategy("tpu", tpu="away")
    assert done == [("resolve", "away")]


@pytest.mark.parametrize(
    "error", [tf.errors.NotFoundError(None, None, "no chips"), IndexError("no chips"), RuntimeError("no chips")]
)
def test_chips_that_do_not_start_are_the_user_s_to_know(done, monkeypatch, error):
    def refuse(resolver):
        raise error

    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", refuse)
    with pytest.raises(trainer.UserError, match="the TPU 'slice' cannot be reached: .*no chips"):
        build_strategy("tpu", tpu="slice")


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("host", [None, "no-such-host.invalid:8470"], ids=["no one listens", "no such host"])
def test_an_address_where_no_tpu_is_is_named_within_ten_seconds(host):
    address = host or free_address()
    # TensorFlow itself would wait for more than a minute, and say something else.
    with pytest.raises(trainer.UserError, match=f"cannot be reached: {address} does not answer"):
        build_strategy("tpu", tpu=f"grpc://{address}")


@pytest.mark.full
def test_a_metadata_server_that_never_answers_does_not_hold_us_for_more_than_ten_seconds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(trainer.UserError, match="'no-such-name' cannot be reached: nothing has answered for 6 s"):
            build_strategy("tpu", tpu="no-such-name")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no TPU is named (--tpu, TPU_NAME) and none is attached to this machine"),
        (["--tpu=no-such-name"], "the TPU 'no-such-name' cannot be reached"),
    ],
    ids=["none named", "an unknown name"],
)
def test_asking_for_a_tpu_where_none_is_ends_with_2_and_one_message(flags, message, tmp_path):
    ended = run_command("launch.train", *RUN, *flags, f"--model_dir={tmp_path / 'run'}", PYTHONPATH=PATH)
    assert ended.returncode == 2 and not (tmp_path / "run").exists()
    assert ended.stderr.startswith("regraft: --strategy=tpu: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert message in ended.stderr
