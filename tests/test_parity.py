"""N replicas = 1 replica: the same weights after ten steps through the same train step, row by row."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy

import trainer
from trainer.pipeline import in_memory
from trainer.replicas import first_value, replica_values

RANDOM = np.random.default_rng(7)
DATA = in_memory(
    examples={
        "x": RANDOM.normal(size=[48, 6, 6, 2]),
        "token": RANDOM.integers(0, 5, [48, 4]),
        "label": RANDOM.integers(0, 3, 48),
        "weight": RANDOM.uniform(0.1, 2.0, 48),
    }
)
INIT = dict(kernel_initializer=keras.initializers.GlorotUniform(seed=3))
TASK = trainer.supervised(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label")


def net(*middle):
    def build():
        layers = [keras.layers.Conv2D(4, 3, activation="relu", **INIT)]
        return keras.Sequential(
            [*layers, *(make() for make in middle), keras.layers.Flatten(), keras.layers.Dense(3, **INIT)]
        )

    return build


def token_net():
    return keras.Sequential([
        keras.layers.Embedding(5, 4, embeddings_initializer=keras.initializers.GlorotUniform(seed=3)),
        keras.layers.Flatten(),
        keras.layers.Dense(3, **INIT),
    ])  # fmt: skip


def sgd(**options):
    return lambda: keras.optimizers.SGD(0.1, **options)


ROWS = {
    "sgd": {},
    "momentum": {"optimizer": sgd(momentum=0.9)},
    "nesterov": {"optimizer": sgd(momentum=0.9, nesterov=True)},
    "weight decay": {"optimizer": sgd(weight_decay=0.05)},
    "clip by global norm": {"optimizer": sgd(global_clipnorm=0.1)},
    "clip by norm": {"optimizer": sgd(clipnorm=0.05)},
    "clip by value": {"optimizer": sgd(clipvalue=0.01)},
    "ema": {"optimizer": sgd(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=5)},
    "schedule": {"optimizer": lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10))},
    "adam": {"optimizer": lambda: keras.optimizers.Adam(0.01)},
    "nadam": {"optimizer": lambda: keras.optimizers.Nadam(0.01)},
    "rmsprop": {"optimizer": lambda: keras.optimizers.RMSprop(0.003, epsilon=1e-3)},
    "adagrad": {"optimizer": lambda: keras.optimizers.Adagrad(0.05)},
    "accumulation": {"accumulation_steps": 2},
    "batch norm": {"model": net(keras.layers.BatchNormalization)},
    "batch norm and accumulation": {"model": net(keras.layers.BatchNormalization), "accumulation_steps": 2},
    "layer norm": {"model": net(keras.layers.LayerNormalization)},
    "embedding": {
        "model": token_net,
        "task": trainer.supervised(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="token", target="label"
        ),
    },
    "regularizer": {
        "model": net(lambda: keras.layers.Conv2D(4, 1, kernel_regularizer=keras.regularizers.L2(0.1), **INIT))
    },
    "sample weights": {
        "task": trainer.supervised(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            inputs="x", target="label", sample_weight="weight",
        )
    },
    "scalar loss": {
        "task": trainer.custom_loss(
            loss=lambda model, batch: tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(batch["label"], model(batch["x"]), from_logits=True)
            ),
            inputs="x",
        )
    },
    "frozen": {"frozen": ["conv2d"]},
}  # fmt: skip


def train(replicas, **options):
    defaults = dict(
        model=net(), train_data=DATA, eval_data=DATA, task=TASK, optimizer=sgd(), global_batch_size=12, num_steps=10,
        from_scratch=True, eval_every=0,
    )  # fmt: skip
    return trainer.train(**{**defaults, **options}, strategy=make_strategy(replicas))


@pytest.mark.parametrize("row", ROWS)
def test_two_and_three_replicas_make_the_steps_of_one(row):
    results = [train(replicas, **ROWS[row]) for replicas in (1, 2, 3)]
    start, one = train(1, **{**ROWS[row], "num_steps": 1}), results[0]
    assert any(
        (first_value(a) != first_value(b)).any() for a, b in zip(start.model.weights, one.model.weights, strict=True)
    )
    for other in results[1:]:
        for first, second in zip(one.model.weights, other.model.weights, strict=True):
            np.testing.assert_allclose(first_value(first), first_value(second), atol=1e-6, rtol=0, err_msg=first.path)
            copies = replica_values(second)
            assert all(np.array_equal(copies[0], copy) for copy in copies[1:]), "the replicas' copies are apart"
        assert other.final_metrics == pytest.approx(one.final_metrics, abs=1e-5)


def test_frozen_variables_stay_bit_identical_on_every_replica():
    model = net()
    frozen = train(2, model=model, frozen=["conv2d"], optimizer=sgd(weight_decay=0.1))
    fresh = model()
    fresh(np.zeros([1, 6, 6, 2], np.float32))
    for variable, initial in zip(frozen.model.weights[:2], fresh.weights[:2], strict=True):
        for copy in replica_values(variable):
            np.testing.assert_array_equal(copy, initial.numpy())
