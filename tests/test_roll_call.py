"""Workers begin together or not at all, and who is missing, unlike or in the way is said by name."""

import concurrent.futures
import contextlib
import json
import socket
import time

import pytest

from launch.local import free_ports
from trainer.cluster import rendezvous
from trainer.cluster.rendezvous import RollCall, unlike
from trainer.errors import RunAgain, UserError

FOR_EVER = 100_000.0  # seconds, in which a test is ended as hanging


class NoWatch:
    """In place of the watch, which ends the process that it is in."""

    def __init__(self, addresses, index, links, timeout_seconds):
        self.links = links

    def start(self):
        for link in self.links.values():
            link.socket.close()

    def no_longer_than(self, seconds, message):
        return contextlib.nullcontext()


@pytest.fixture(autouse=True)
def no_watch(monkeypatch):
    monkeypatch.setattr(rendezvous, "WorkerWatch", NoWatch)


def addresses(count: int) -> list[str]:
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def outcome(workers: list[str], index: int, card=None, seconds: float = 300.0) -> str:
    try:
        with RollCall(workers, index, seconds).answered(card or {"the config": "a = 1\n"}):
            return "begins"
    except (UserError, RunAgain) as error:
        return f"{type(error).__name__}: {error}"


def together(*calls) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(outcome, *call) for call in calls]]


def test_all_begin_once_all_are_there_in_whatever_order_they_come():
    workers = addresses(3)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        last, first = pool.submit(outcome, workers, 2), pool.submit(outcome, workers, 1)
        time.sleep(0.5)
        assert not last.done() and not first.done()
        assert outcome(workers, 0) == last.result() == first.result() == "begins"


def test_one_worker_alone_waits_for_no_one():
    assert outcome(addresses(1), 0) == "begins"


def test_afterwards_the_port_is_free_for_tensorflows_server():
    workers = addresses(2)
    assert together((workers, 0), (workers, 1)) == ["begins", "begins"]
    for address in workers:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", int(address.rpartition(":")[2])))
            server.listen()


def test_a_worker_that_does_not_come_is_named_to_all_who_did():
    workers = addresses(3)
    said = f"RunAgain: worker 2 ({workers[2]}) did not come within 1 s."
    assert together((workers, 0, None, 1.0), (workers, 1, None, 1.0)) == [said, said]


@pytest.mark.full
def test_a_worker_that_started_earlier_hears_the_chiefs_word_all_the_same():
    workers = addresses(3)
    said = f"RunAgain: worker 2 ({workers[2]}) did not come within 4 s."
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        earlier = pool.submit(outcome, workers, 1, None, 4.0)
        time.sleep(2.5)
        assert [outcome(workers, 0, None, 4.0), earlier.result()] == [said, said]


def test_a_chief_whose_port_is_open_but_silent_does_not_keep_a_worker_for_ever():
    workers = addresses(2)
    with socket.create_server(("127.0.0.1", int(workers[0].rpartition(":")[2]))):
        assert outcome(workers, 1, None, 0.5) == (
            f"RunAgain: worker 0 ({workers[0]}), the chief, did not come within 0.5 s: it does not answer."
        )


def test_a_chief_that_does_not_come_is_named_with_the_reason():
    workers = addresses(2)
    assert outcome(workers, 1, None, 0.5) == (
        f"RunAgain: worker 0 ({workers[0]}), the chief, did not come within 0.5 s: Connection refused."
    )


def test_a_worker_that_was_killed_while_it_waited_may_come_again():
    workers = addresses(3)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        chief = pool.submit(outcome, workers, 0)
        with socket.socket() as killed:
            while killed.connect_ex(("127.0.0.1", int(workers[0].rpartition(":")[2]))):
                time.sleep(0.05)
            card = {"index": 1, "addresses": workers, "card": {"the config": "a = 1\n"}}
            killed.sendall(json.dumps(card).encode() + b"\n")
            time.sleep(0.5)
        second = pool.submit(outcome, workers, 1)
        assert outcome(workers, 2) == chief.result() == second.result() == "begins"


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\xfe\n", b"[1]\n", b'{"index": "one"}\n', b""])
def test_a_stranger_at_the_chiefs_port_disturbs_no_worker(noise):
    workers = addresses(2)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, socket.socket() as stranger:
        chief = pool.submit(outcome, workers, 0)
        while stranger.connect_ex(("127.0.0.1", int(workers[0].rpartition(":")[2]))):
            time.sleep(0.05)
        stranger.sendall(noise)
        time.sleep(0.3)
        assert outcome(workers, 1) == chief.result() == "begins"


@pytest.mark.parametrize("answer", [b'{"wait": "long"}\n', b"{}\n", b'["go"]\n', b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_another_program_at_the_chiefs_address_is_named_and_not_asked_without_a_pause(answer):
    workers = addresses(2)
    asked = []

    def serve(server):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                asked.append(1)
                with connection:
                    connection.recv(2**16)
                    connection.sendall(answer)

    server = socket.create_server(("127.0.0.1", int(workers[0].rpartition(":")[2])))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(serve, server)
        try:
            said = outcome(workers, 1, None, 1.0)
        finally:
            server.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which `close` alone would leave waiting
            server.close()
    assert said == (
        f"RunAgain: worker 0 ({workers[0]}), the chief, did not come within 1 s: another program has its port."
    )
    assert 1 < len(asked) <= 2 + 1.0 / rendezvous._RETRY_SECONDS


def test_different_configs_stop_all_and_both_lines_are_shown():
    workers = addresses(2)
    reported = together((workers, 0, {"the config": "a = 1\nb = 2\n"}), (workers, 1, {"the config": "a = 1\nb = 3\n"}))
    assert reported[0] == reported[1] == (
        f"UserError: The workers are not alike:\n  the config of worker 0 ({workers[0]}): b = 2\n"
        f"  the config of worker 1 ({workers[1]}): b = 3"
    )  # fmt: skip


def test_two_processes_with_one_place_are_refused():
    workers = addresses(3)
    reported = together((workers, 0), (workers, 1), (workers, 1))
    assert f"UserError: Two processes say that they are worker 1 ({workers[1]})." in reported


def test_another_clusters_worker_is_turned_away():
    workers = addresses(2)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        chief = pool.submit(outcome, workers, 0)
        other = [workers[0], *addresses(1)]
        assert outcome(other, 1) == f"UserError: {workers[0]} belongs to another cluster: {', '.join(workers)}."
        assert outcome(workers, 1) == chief.result() == "begins"


def test_a_taken_port_and_an_unknown_host_are_said_at_once():
    workers = addresses(2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(workers[1].rpartition(":")[2])))
        other.listen()
        assert outcome(workers, 1, None, FOR_EVER) == (
            f"UserError: worker 1 ({workers[1]}), this one, cannot use its port: Address already in use. Another "
            "process has it: stop that, or give this worker another port."
        )
        unknown = outcome([workers[0], "no-such-host.invalid:1234"], 0, None, FOR_EVER)
    assert unknown.startswith("UserError: The host name of worker 1 (no-such-host.invalid:1234) does not resolve")


def test_on_kubernetes_a_name_may_become_known_later(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    real, asked = socket.getaddrinfo, []

    def late(host, *arguments, **options):
        asked.append(host)
        if host == "pod-1.service" and asked.count(host) < 3:
            raise socket.gaierror(-2, "Name or service not known")
        return real("127.0.0.1" if host == "pod-1.service" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", late)
    workers = addresses(2)
    workers[1] = workers[1].replace("127.0.0.1", "pod-1.service")
    assert together((workers, 0), (workers, 1)) == ["begins", "begins"]


def test_likeness_shows_few_of_many_lines():
    many, none = "".join(f"line {index}\n" for index in range(9)), ""
    assert unlike({"x": many}, {"x": many}, "a", "b") == ""
    shown = unlike({"x": many}, {"x": none}, "a", "b")
    assert "x of a: line 0\n  x of b: not there" in shown and "and 5 more lines of x" in shown
