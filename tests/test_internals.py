"""What gin and Keras keep to themselves and we use is there, stands in one module each, and is missed loudly."""

import re
from pathlib import Path

import keras
import pytest

from trainer import keras_internals
from trainer.config import gin_tables

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = [path for package in ("trainer", "launch") for path in (REPOSITORY / package).rglob("*.py")]


def users_of(pattern: str) -> set[str]:
    return {path.name for path in MODULES if re.search(pattern, path.read_text())}


def test_private_names_of_gin_are_used_in_one_module():
    assert users_of(r"\bgin(\.config)?\._|from gin import config") == {"gin_tables.py"}


def test_private_names_of_keras_are_used_in_one_module_and_in_subclasses():
    names = "trainable_variables|non_trainable_variables|flatten_layers|iterations|u_product|model_variables_moving"
    subclasses = {"grouped_optimizer.py", "phased_optimizer.py"}
    assert users_of(rf"\._({names})|keras\.src\b") == {"keras_internals.py", *subclasses}


@pytest.mark.parametrize("name", ["_CONFIG", "_REGISTRY", "_IMPORTS", "_LOCATION_PREFIXES", "_FILE_READERS"])
def test_a_gin_without_what_we_use_is_named(name, monkeypatch):
    gin_tables.check()
    monkeypatch.setattr(f"gin.config.{name}", None)
    with pytest.raises(RuntimeError, match=name):
        gin_tables.check()


def test_a_keras_that_draws_by_another_function_is_named(monkeypatch):
    keras_internals.check()
    monkeypatch.setattr(keras_internals.RANDOM, "laplace", lambda shape: None, raising=False)
    with pytest.raises(RuntimeError, match="draws random numbers by other functions: laplace"):
        keras_internals.check()


def test_a_keras_that_applies_gradients_in_another_way_is_named(monkeypatch):
    monkeypatch.setattr(keras_internals, "UPDATE_STEP", "_another_step")
    with pytest.raises(RuntimeError, match="Optimizer has no _another_step any more"):
        keras_internals.check()


def test_the_parts_of_layers_and_optimizers_are_where_we_look():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    norm = model.layers[1]
    assert [v.path for v in keras_internals.own_variables(norm)] == [v.path for v in norm.weights]
    assert len(keras_internals.trainable_variables_of(norm)) == 2 and keras_internals.own_variables(model) == []
    assert set(map(id, keras_internals.sub_layers(model))) >= set(map(id, model.layers))
    optimizer = keras.optimizers.Nadam(use_ema=True)
    optimizer.build(model.trainable_variables)
    assert keras_internals.step_count(optimizer) is optimizer.iterations
    assert list(map(id, keras_internals.optimized_variables(optimizer))) == list(map(id, model.trainable_variables))
    assert len(keras_internals.moving_averages(optimizer)) == len(model.trainable_variables)
    assert float(keras_internals.momentum_product(optimizer)) == 1.0
    assert vars(optimizer).keys() >= {"_variables"} and callable(keras_internals.update_step(optimizer))
