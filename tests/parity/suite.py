"""The tests that every theme of the parity suite imports; its rows are those of THEME."""

import functools
import json

import numpy as np
import pytest
from conftest import make_strategy
from parity.rows import IN_TWO_WORKERS, ROWS, THEMES, VARIATIONS, train, weights
from test_multi_worker import run_workers

from trainer.cluster.replicas import first_value, replica_values


def pytest_generate_tests(metafunc):
    """`row` on `replicas`: 3 in `make test`, where variations are left out, 2 and 3 else. `row_of_two` in workers."""
    rows = THEMES[metafunc.module.THEME]
    if "replicas" in metafunc.fixturenames:
        cases = [
            pytest.param(row, replicas, id=f"{row}-{replicas}", marks=full_where(replicas == 2 or row in VARIATIONS))
            for row in rows
            for replicas in (2, 3)
        ]
        metafunc.parametrize(("row", "replicas"), cases)
    if "row_of_two" in metafunc.fixturenames:
        every = metafunc.config.getoption("--parity-table")
        metafunc.parametrize("row_of_two", [row for row in rows if every or row in IN_TWO_WORKERS])


def full_where(condition: bool):
    return [pytest.mark.full] if condition else []


def train_row(replicas: int, row: str, **more):
    return train(make_strategy(replicas), **{"eval_data": None, **ROWS[row], **more})


@functools.cache
def on_one_replica(row: str):
    return train_row(1, row, **ROWS[row].get("one", {}))


def largest_difference(row: str, arrays) -> float:
    tolerance = ROWS[row].get("tolerance", 1e-6)
    one = on_one_replica(row)
    largest = 0.0
    for first, second, weight in zip(weights(one), arrays, one.model.weights, strict=True):
        np.testing.assert_allclose(first, second, atol=tolerance, rtol=0, err_msg=weight.path)
        largest = max(largest, float(np.max(np.abs(first - second), initial=0.0)))
    return largest


def assert_trained(row: str) -> None:
    one = on_one_replica(row)
    assert all(np.isfinite(array).all() for array in weights(one))
    # LoRA trains no bias; all of them begin at zero.
    biases = [weight for weight in one.model.weights if weight.path.endswith("bias")]
    assert "lora" in ROWS[row] or any(first_value(bias).any() for bias in biases), "nothing was trained"
    if one.final_metrics:
        assert one.final_metrics["loss"] != one.initial_metrics["loss"], "nothing was trained"


def test_several_replicas_make_the_steps_of_one(row, replicas, parity_cell):
    assert_trained(row)
    one, other = on_one_replica(row), train_row(replicas, row)
    parity_cell(row, f"{replicas} replicas", largest_difference(row, weights(other)))
    for weight in other.model.weights:
        copies = replica_values(weight)
        assert all(np.array_equal(copies[0], copy) for copy in copies[1:]), "the replicas' copies are apart"
    assert other.final_metrics == pytest.approx(one.final_metrics, abs=max(1e-6, ROWS[row].get("tolerance", 0)))


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("workers")
    chosen = [getattr(item, "callspec", None) for item in request.session.items if item.module is request.module]
    rows = [callspec.params["row_of_two"] for callspec in chosen if callspec and "row_of_two" in callspec.params]
    statuses, texts = run_workers(2, "tests.parity.rows", str(folder), *rows, timeout_seconds=300 + 60 * len(rows))
    assert statuses == [0, 0], texts
    return folder


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_two_workers_make_the_steps_of_one_replica(row_of_two, two_workers, parity_cell):
    found = []
    for worker in ("worker 0", "worker 1"):
        with np.load(two_workers / worker / f"{row_of_two}.npz") as file:
            found.append([file[name] for name in file.files])
        metrics = json.loads((two_workers / worker / f"{row_of_two}.json").read_text())
        tolerance = max(1e-6, ROWS[row_of_two].get("tolerance", 0))
        assert metrics == pytest.approx(on_one_replica(row_of_two).final_metrics, abs=tolerance)
    assert all(np.array_equal(one, two) for one, two in zip(*found, strict=True)), "the workers' copies are apart"
    parity_cell(row_of_two, "2 workers", largest_difference(row_of_two, found[0]))
