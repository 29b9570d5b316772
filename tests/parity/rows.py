"""The rows of the parity suite: what is trained on one replica and on several, through the same train step.

TF_CONFIG=... python -m tests.parity.rows FOLDER ROW...   trains rows as one worker of several; each writes
FOLDER/worker INDEX/ROW.npz, its weights, and ROW.json, the metrics.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import trainer  # noqa: E402
from tests.grouped import train_with  # noqa: E402
from trainer.cluster.replicas import first_value  # noqa: E402
from trainer.data.data import in_memory  # noqa: E402

RANDOM = np.random.default_rng(7)
DATA = in_memory(
    examples={
        "x": RANDOM.normal(size=[48, 6, 6, 2]),
        "token": RANDOM.integers(0, 5, [48, 4]),
        "label": RANDOM.integers(0, 3, 48),
        "tags": RANDOM.integers(0, 3, [48, 4]),
        "one_hot": np.eye(3, dtype=np.float32)[RANDOM.integers(0, 3, 48)],
        "weight": RANDOM.uniform(0.1, 2.0, 48),
        "is_bad": (np.arange(48) == 17).astype(np.float32),
    }
)
INIT = dict(kernel_initializer=keras.initializers.GlorotUniform(seed=3))
TASK = trainer.supervised(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="x", target="label")


TOKEN_TASK = trainer.supervised(
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="token", target="label"
)


TAGS_TASK = trainer.supervised(
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="token", target="tags"
)


METRICS_TASK = trainer.supervised(
    loss=keras.losses.CategoricalCrossentropy(from_logits=True), inputs="x", target="one_hot",
    metrics={
        "accuracy": keras.metrics.CategoricalAccuracy,
        "auc": lambda name: keras.metrics.AUC(name=name, from_logits=True),
        "recall_of_2": lambda name: keras.metrics.Recall(class_id=2, top_k=1, name=name),
        "precision_of_0": lambda name: keras.metrics.Precision(class_id=0, top_k=1, name=name),
    },
)  # fmt: skip


def ended_by(tail: int):
    """Two batches of 12 and a last one of so few examples that replicas may get none."""
    return in_memory(examples={name: DATA.examples[name][: 24 + tail] for name in ("x", "one_hot")})


class Adding(keras.layers.Layer):
    """Adds the mean square of its input to the loss."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


def infinite_for_one_example(model, batch):
    """One example of the epoch has a gradient that is not finite, on whatever replica it comes to lie."""
    logits, is_bad = model(batch["x"]), batch["is_bad"]
    total = tf.reduce_sum(logits, axis=-1)
    # Of the root of 0, whose slope is infinite. Not by `tf.where`, which would spoil the other examples' gradients too.
    root = tf.sqrt(is_bad * (total - tf.stop_gradient(total)) + 1.0 - is_bad)
    return root + keras.losses.sparse_categorical_crossentropy(batch["label"], logits, from_logits=True)


def mixed(policy: str, head: str = "float32"):
    options = dict(INIT, dtype=policy)
    return keras.Sequential([
        keras.layers.Conv2D(4, 3, activation="relu", **options),
        keras.layers.Flatten(dtype=policy),
        keras.layers.Dense(3, **dict(options, dtype=head)),
    ])  # fmt: skip


def recurrent():
    return keras.Sequential([
        keras.layers.Embedding(5, 4, embeddings_initializer=keras.initializers.GlorotUniform(seed=3)),
        keras.layers.GRU(4, dropout=0.3, recurrent_dropout=0.3, seed=5, recurrent_initializer="glorot_uniform", **INIT),
        keras.layers.Dense(3, **INIT),
    ])  # fmt: skip


def tagger():
    """A class for each token; token 0 is padding."""
    return keras.Sequential([
        keras.layers.Embedding(5, 4, mask_zero=True, embeddings_initializer=keras.initializers.GlorotUniform(seed=3)),
        keras.layers.Dense(3, **INIT),
    ])  # fmt: skip


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


# What one replica does otherwise than the several that are compared with it.
WHOLE_BATCH = {"accumulation_steps": 1}

# Rows by theme, a test file for each. A row is what `train` is called with, and `tolerance` and `one`. A row has
# evaluation data only where it is about them: they cost it a third of its time.
OPTIMIZERS = {
    "sgd": {},
    "momentum": {"optimizer": sgd(momentum=0.9)},
    "nesterov": {"optimizer": sgd(momentum=0.9, nesterov=True)},
    "weight decay": {"optimizer": sgd(weight_decay=0.05)},
    "ema": {"optimizer": sgd(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=5)},
    "schedule": {"optimizer": lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10))},
    "adam": {"optimizer": lambda: keras.optimizers.Adam(0.01)},
    "nadam": {"optimizer": lambda: keras.optimizers.Nadam(0.01)},
    "rmsprop": {"optimizer": lambda: keras.optimizers.RMSprop(0.003, epsilon=1e-3)},
    "adagrad": {"optimizer": lambda: keras.optimizers.Adagrad(0.05)},
    "amsgrad": {"optimizer": lambda: keras.optimizers.Adam(0.01, amsgrad=True)},
    "adamw": {"optimizer": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1)},
    "adamax": {"optimizer": lambda: keras.optimizers.Adamax(0.01)},
    "adadelta": {"optimizer": lambda: keras.optimizers.Adadelta(1.0)},
    "rmsprop, centered": {"optimizer": lambda: keras.optimizers.RMSprop(0.003, 0.9, 0.9, 1e-3, centered=True)},
    "ftrl": {"optimizer": lambda: keras.optimizers.Ftrl(0.05)},
    "lion": {"optimizer": lambda: keras.optimizers.Lion(0.001)},
    "lamb": {"optimizer": lambda: keras.optimizers.Lamb(0.003)},
    "adafactor": {"optimizer": lambda: keras.optimizers.Adafactor(0.01)},
    "muon": {"optimizer": lambda: keras.optimizers.Muon(0.01)},
    **(
        {"schedule-free adamw": {"optimizer": lambda: keras.optimizers.ScheduleFreeAdamW(0.01, warmup_steps=3)}}
        if hasattr(keras.optimizers, "ScheduleFreeAdamW")
        else {}
    ),
    "loss scale": {"optimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))},
    "loss scale, infinite gradient": {
        "optimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9)),
        "task": trainer.custom_loss(loss=infinite_for_one_example, inputs="x"),
    },
}  # fmt: skip

STEPS = {
    "clip by global norm": {"optimizer": sgd(global_clipnorm=0.1)},
    "clip by norm": {"optimizer": sgd(clipnorm=0.05)},
    "clip by value": {"optimizer": sgd(clipvalue=0.01)},
    "accumulation": {"accumulation_steps": 2, "one": WHOLE_BATCH},
    "averages": {"ema_decay": 0.9, "eval_data": DATA},
    "averages, update once": {"ema_decay": 0.9, "update": "once"},
    "adam, update once": {"optimizer": lambda: keras.optimizers.Adam(0.01), "update": "once"},
    "accumulation of four": {"accumulation_steps": 4, "global_batch_size": 24, "one": WHOLE_BATCH},
}  # fmt: skip

FINE_TUNING = {
    "frozen": {"frozen": ["conv2d"]},
    "group with a rate of its own": {"groups": [trainer.group("^conv2d", learning_rate_multiplier=0.1)]},
    "groups, clip by global norm": {
        "optimizer": sgd(global_clipnorm=0.1, weight_decay=0.05, momentum=0.9),
        "groups": [trainer.group("^conv2d.*kernel", 0.1), trainer.group("bias$", weight_decay=0.1, learning_rate=0.2)],
    },
    "group with an optimizer of its own": {
        "groups": [trainer.group("^dense", optimizer=lambda: keras.optimizers.Adam(0.01))],
        "optimizer": sgd(global_clipnorm=0.5),
    },
    "groups, update once": {
        "groups": [trainer.group("^dense", optimizer=lambda: keras.optimizers.Nadam(0.01), unfreeze_at=4)],
        "update": "once",
    },
    "groups and loss scale": {
        "groups": [trainer.group("^dense", optimizer=lambda: keras.optimizers.Adam(0.01), unfreeze_at=4)],
        "optimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
    },
    "layer decay": {
        "optimizer": lambda: keras.optimizers.AdamW(trainer.warmup(0.01, 4), weight_decay=0.1), "layer_decay": 0.5
    },
    "gradual unfreezing": {
        "optimizer": lambda: keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(0.01, 10), global_clipnorm=1.0
        ),
        "groups": [trainer.group("^conv2d", unfreeze_at=5)],
        "ema_decay": 0.9,
    },
    "only biases": {"trained": "biases"},
    "lora": {"lora": trainer.lora(2), "optimizer": lambda: keras.optimizers.Adam(0.01), "eval_data": DATA},
    "lora, and a layer as a whole": {
        "lora": trainer.lora(2, alpha=4.0, layers=["^conv2d"], also_trained=["^dense"]), "ema_decay": 0.9,
    },
    "phases": {
        "optimizer": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.5),
        "phases": [trainer.phase(sgd(momentum=0.9, global_clipnorm=0.1), start=4)],
    },
    "phases and accumulation": {
        "optimizer": lambda: keras.optimizers.Adam(0.01), "phases": [trainer.phase(sgd(), 4)], "accumulation_steps": 2,
        "one": WHOLE_BATCH,
    },
    "phases, update once": {
        "optimizer": lambda: keras.optimizers.Nadam(0.01), "phases": [trainer.phase(sgd(momentum=0.9), start=4)],
        "update": "once",
    },
    "phases and groups": {
        "optimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.01, weight_decay=0.1)),
        "groups": [trainer.group("^conv2d", 0.1)], "phases": [trainer.phase(sgd(), start=3)], "ema_decay": 0.9,
    },
    "phases by a plateau": {
        "optimizer": lambda: keras.optimizers.SGD(2.0, momentum=0.9), "eval_data": DATA, "eval_every": 1,
        "phases": [trainer.phase(sgd(), trainer.plateau(patience=1))],
    },
    "phases by swats": {
        "optimizer": lambda: keras.optimizers.Adam(0.01),
        "phases": [trainer.phase(lambda: keras.optimizers.SGD(momentum=0.9), trainer.swats(0.5, 6e-3))],
    },
    "frozen batch norm": {
        "model": net(keras.layers.BatchNormalization), "frozen": ["conv2d", "batch_normalization"]
    },
    "frozen batch norm, in training mode": {
        "model": net(keras.layers.BatchNormalization), "frozen": ["conv2d", "batch_normalization"],
        "update_frozen_batch_norm": True,
    },
}  # fmt: skip

LOSSES = {
    "regularizer": {
        "model": net(lambda: keras.layers.Conv2D(4, 1, kernel_regularizer=keras.regularizers.L2(0.1), **INIT))
    },
    "sample weights": {
        "eval_data": DATA,
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
    **{
        f"tail of {tail} and metrics": {"train_data": ended_by(tail), "eval_data": ended_by(tail), "task": METRICS_TASK}
        for tail in (1, 3, 5)
    },
    "activity regularizer": {
        "model": net(lambda: keras.layers.Conv2D(4, 1, activity_regularizer=keras.regularizers.L2(0.1), **INIT))
    },
    "activity regularizer and tails": {
        "model": net(lambda: keras.layers.Conv2D(4, 1, activity_regularizer=keras.regularizers.L2(0.1), **INIT)),
        "train_data": ended_by(5), "eval_data": ended_by(5), "task": METRICS_TASK,
    },
    "add_loss": {"model": net(Adding)},
    "add_loss and accumulation": {"model": net(Adding), "accumulation_steps": 2, "one": WHOLE_BATCH},
    "class weights": {
        "task": trainer.supervised(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            inputs="x", target="label", class_weight={0: 0.2, 2: 3.0},
        )
    },
    "class weights and accumulation": {
        "eval_data": DATA,
        "task": trainer.supervised(
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            inputs="x", target="one_hot", class_weight={0: 0.2, 2: 3.0}, sample_weight="weight",
        ),
        "accumulation_steps": 2, "one": WHOLE_BATCH,
    },
    "ignored class": {
        "eval_data": DATA,
        "task": trainer.supervised(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1),
            inputs="x", target="label",
        ),
        "accumulation_steps": 2, "one": WHOLE_BATCH,
    },
    "masked tokens": {
        "model": lambda: tagger(), "task": TAGS_TASK, "accumulation_steps": 2, "one": WHOLE_BATCH, "eval_data": DATA,
    },
}  # fmt: skip

LAYERS = {
    "batch norm": {"model": net(keras.layers.BatchNormalization), "eval_data": DATA},
    "batch norm and accumulation": {"model": net(keras.layers.BatchNormalization), "accumulation_steps": 2},
    "layer norm": {"model": net(keras.layers.LayerNormalization)},
    "embedding": {
        "model": token_net,
        "task": TOKEN_TASK,
    },
    "constraint": {
        "model": net(lambda: keras.layers.Conv2D(4, 1, kernel_constraint=keras.constraints.MaxNorm(0.5), **INIT))
    },
    **{
        f"mixed_{kind}": {"model": lambda policy=f"mixed_{kind}": mixed(policy), "tolerance": tolerance}
        for kind, tolerance in (("bfloat16", 5e-3), ("float16", 5e-4))
    },
    # A mistake of any size shows here, where float32 would hide it in rounding.
    "float64": {
        "model": lambda: mixed("float64", "float64"),
        "task": trainer.supervised(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64"),
            inputs="x", target="label",
        ),
        "tolerance": 1e-13,
    },
    "float32 and float64": {"model": lambda: mixed("float64", "float32")},
    "group norm": {"model": net(lambda: keras.layers.GroupNormalization(2))},
}  # fmt: skip

XLA = {
    **{
        f"jit{name}": {"jit_compile": True, "one": {"jit_compile": False}, **more}
        for name, more in (
            ("", {}),
            (" and accumulation", {"accumulation_steps": 2}),
            (", masked tokens", {"model": lambda: tagger(), "task": TAGS_TASK}),
            (", embedding and clipping", {
                "model": token_net, "task": TOKEN_TASK, "optimizer": sgd(momentum=0.9, global_clipnorm=0.1),
            }),
            # XLA adds up in another order: 3e-6 seen.
            (", layer norm", {"model": net(keras.layers.LayerNormalization), "tolerance": 1e-5}),
            (", class weights and averages", {
                "ema_decay": 0.9,
                "task": trainer.supervised(
                    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                    inputs="x", target="label", class_weight={0: 0.2, 2: 3.0},
                ),
            }),
        )
    },
}  # fmt: skip

RANDOM_NUMBERS = {
    **{
        f"{name}, by example": {"model": model, "random_numbers": "per_example", **more}
        for name, model, more in (
            ("dropout", net(lambda: keras.layers.Dropout(0.4, seed=5)), {}),
            ("dropout and accumulation", net(lambda: keras.layers.Dropout(0.4, seed=5)), {"accumulation_steps": 2}),
            ("spatial dropout", net(lambda: keras.layers.SpatialDropout2D(0.4, seed=5)), {}),
            ("gaussian noise", net(lambda: keras.layers.GaussianNoise(0.5, seed=5)), {}),
            ("gaussian dropout", net(lambda: keras.layers.GaussianDropout(0.4, seed=5)), {}),
            ("alpha dropout", net(lambda: keras.layers.AlphaDropout(0.4, seed=5)), {}),
            ("jit dropout", net(lambda: keras.layers.Dropout(0.4, seed=5)), {"jit_compile": True}),
            ("recurrent dropout", lambda: recurrent(), {"task": TOKEN_TASK}),
        )
    },
}  # fmt: skip


THEMES = {
    "optimizers": OPTIMIZERS, "steps": STEPS, "fine-tuning": FINE_TUNING, "losses": LOSSES, "layers": LAYERS,
    "xla": XLA, "random numbers": RANDOM_NUMBERS,
}  # fmt: skip
ROWS = {name: row for rows in THEMES.values() for name, row in rows.items()}

# Variations of a feature that another row of `make test` has; `make test-all` has them all.
VARIATIONS = {
    "sgd", "nesterov", "adagrad", "amsgrad", "adamax", "adadelta", "rmsprop, centered", "ftrl", "lamb", "ema",
    "loss scale", "nadam", "lion", "clip by value", "accumulation of four", "averages, update once",
    "group with a rate of its own", "groups, update once",
    "lora, and a layer as a whole", "phases and accumulation", "phases, update once",
    "frozen", "frozen batch norm, in training mode", "groups and loss scale", "phases and groups",
    "phases by a plateau", "ignored class", "jit, layer norm", "jit, masked tokens", "recurrent dropout, by example",
    "gradual unfreezing", "layer decay", "group norm", "constraint", "scalar loss", "class weights",
    "add_loss and accumulation", "activity regularizer and tails",
    "tail of 3 and metrics", "tail of 5 and metrics", "batch norm and accumulation", "float32 and float64",
    "jit and accumulation", "jit, embedding and clipping", "jit, class weights and averages",
    "dropout and accumulation, by example", "spatial dropout, by example", "gaussian noise, by example",
    "gaussian dropout, by example", "alpha dropout, by example", "jit dropout, by example",
}  # fmt: skip
# What two real processes have too; the table of `make test-parity` has all rows.
IN_TWO_WORKERS = {
    "momentum", "adam", "clip by global norm", "accumulation", "batch norm", "embedding", "sample weights", "averages",
    "masked tokens", "dropout, by example", "loss scale, infinite gradient", "groups, clip by global norm",
    "gradual unfreezing", "phases by swats", "lora", "tail of 1 and metrics", "class weights and accumulation", "jit",
}  # fmt: skip
assert ROWS.keys() >= VARIATIONS | IN_TWO_WORKERS


def train(strategy, **options):
    defaults = dict(
        model=net(), train_data=DATA, eval_data=DATA, task=TASK, optimizer=sgd(), global_batch_size=12, num_steps=10,
        eval_every=0, strategy=strategy,
    )  # fmt: skip
    ours = ("tolerance", "one")
    return train_with(**{**defaults, **{name: value for name, value in options.items() if name not in ours}})


def weights(result) -> list[np.ndarray]:
    return [first_value(weight) for weight in result.model.weights]


def main(folder: Path, names: list[str]) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    for name in names:
        result = train(strategy, **{"eval_data": None, **ROWS[name]})
        worker = folder / f"worker {strategy.cluster_resolver.task_id}"
        worker.mkdir(exist_ok=True)
        np.savez(worker / f"{name}.npz", *weights(result))
        (worker / f"{name}.json").write_text(json.dumps(result.final_metrics))


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main(Path(sys.argv[1]), sys.argv[2:])
