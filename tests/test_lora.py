"""LoRA trains a change of low rank, beside kernels that stay, and what is exported holds both merged."""

import json

import keras
import numpy as np
import pytest
from commands import run_command
from conftest import make_strategy
from parity.rows import DATA, INIT, TASK, sgd, weights
from parity.rows import train as train_by_parity

import trainer
from trainer import RestoreError, UserError
from trainer.cluster.replicas import first_value
from trainer.restore import weights_of
from trainer.run.evaluate_checkpoint import load_and_evaluate


def net():
    return keras.Sequential([
        keras.layers.Conv2D(4, 3, activation="relu", name="conv", **INIT),
        keras.layers.LayerNormalization(name="norm"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(3, name="head", **INIT),
    ])  # fmt: skip


def train(strategy, **options):
    return train_by_parity(strategy, **({"model": net} | options))


def named(model) -> dict[str, np.ndarray]:
    return {weight.name: first_value(weight.variable) for weight in weights_of(model)}


def kinds():
    """A layer of every kind that Keras gives a change of low rank."""
    return keras.Sequential([
        keras.layers.Embedding(5, 4, name="embed"),
        keras.layers.EinsumDense("abc,cd->abd", (4, 4), name="einsum"),
        keras.layers.Conv1D(4, 2, name="conv"),
        keras.layers.Flatten(),
        keras.layers.Dense(3, name="head"),
    ])  # fmt: skip


TOKENS = dict(
    model=kinds,
    task=trainer.supervised(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), inputs="token", target="label"
    ),
)


@pytest.fixture
def source(tmp_path):
    """A run's folder, whose checkpoint others start from."""
    train(make_strategy(1), num_steps=3, model_dir=tmp_path / "source")
    return tmp_path / "source"


def tune(source, folder=None, replicas=1, **options):
    defaults = dict(
        lora=trainer.lora(2), optimizer=lambda: keras.optimizers.Adam(0.05), model_dir=folder,
        checkpoint=source / "checkpoints", num_steps=6,
    )  # fmt: skip
    return train(make_strategy(replicas), **(defaults | options))


def test_the_run_begins_as_restored_trains_the_matrices_alone_and_gets_better(source):
    before = train(make_strategy(1), checkpoint=source / "checkpoints", num_steps=1, optimizer=sgd())
    result = tune(source)
    assert result.initial_metrics == before.initial_metrics
    assert result.final_metrics["loss"] < result.initial_metrics["loss"]
    after, old = named(result.model), named_weights(source)
    assert {name for name in after if "lora" in name} == {
        f"{layer}/lora_kernel_{matrix}" for layer in ("conv", "head") for matrix in "ab"
    }
    for name, value in old.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert after["head/lora_kernel_b"].any() and after["conv/lora_kernel_b"].any()


def named_weights(folder) -> dict[str, np.ndarray]:
    model = net()
    model.build((None, 6, 6, 2))
    trainer.restore_weights(model, folder / "final.weights.h5")
    return named(model)


def test_what_is_exported_is_the_merged_kernel_and_evaluates_as_the_run_did(source, tmp_path):
    result = tune(source, tmp_path / "run", lora=trainer.lora(2, alpha=6.0))
    after, merged = named(result.model), named_weights(tmp_path / "run")
    change = 6.0 / 2 * after["head/lora_kernel_a"] @ after["head/lora_kernel_b"]
    np.testing.assert_allclose(merged["head/kernel"], after["head/kernel"] + change, atol=1e-6)
    _, metrics = load_and_evaluate(
        net, TASK, DATA, tmp_path / "run" / "final.weights.h5", 12, make_strategy(1), lora=trainer.lora(2)
    )
    assert metrics == pytest.approx(result.final_metrics, abs=1e-6)


@pytest.mark.full
def test_a_checkpoint_of_the_run_evaluates_as_the_run_did_and_is_no_start_for_a_plain_model(source, tmp_path):
    result = tune(source, tmp_path / "run", lora=trainer.lora(2, alpha=6.0))
    checkpoint = tmp_path / "run" / "checkpoints"
    _, metrics = load_and_evaluate(net, TASK, DATA, checkpoint, 12, make_strategy(2), lora=trainer.lora(2, alpha=6.0))
    assert metrics == pytest.approx(result.final_metrics, abs=1e-6)
    with pytest.raises(RestoreError, match="matrices of LoRA.*Name the run's final.weights.h5 instead") as refused:
        train(make_strategy(1), checkpoint=checkpoint)
    assert "Restore.ignore" not in str(refused.value)


@pytest.mark.full
def test_every_kind_of_layer_learns_and_is_merged(tmp_path):
    train(make_strategy(1), num_steps=2, model_dir=tmp_path / "source", **TOKENS)
    result = tune(tmp_path / "source", tmp_path / "run", **TOKENS)
    after = named(result.model)
    assert sorted(name for name in after if name.endswith("_b")) == [
        "conv/lora_kernel_b", "einsum/lora_kernel_b", "embed/lora_embeddings_b", "head/lora_kernel_b",
    ]  # fmt: skip
    assert all(after[name].any() for name in after if name.endswith("_b"))
    _, metrics = load_and_evaluate(
        kinds, TOKENS["task"], DATA, tmp_path / "run" / "final.weights.h5", 12, make_strategy(1)
    )
    assert metrics == pytest.approx(result.final_metrics, abs=1e-6)


def test_layers_are_chosen_by_name_and_others_may_be_trained_as_a_whole(source, tmp_path):
    result = tune(source, lora=trainer.lora(2, layers=["^conv"], also_trained=["^head/bias"]))
    after, old = named(result.model), named_weights(source)
    assert {name for name in after if "lora" in name} == {"conv/lora_kernel_a", "conv/lora_kernel_b"}
    changed = {name for name in old if not np.array_equal(after[name], old[name])}
    assert changed == {"head/bias"}


@pytest.mark.full
def test_a_frozen_kernel_that_has_matrices_is_no_mistake_and_frozen_matrices_are(source):
    assert tune(source, frozen=["^conv/kernel$"], num_steps=1).step == 1
    with pytest.raises(UserError, match="Finetune.frozen leaves none of its matrices to train"):
        tune(source, frozen=["kernel"])


@pytest.mark.full
def test_a_fresh_head_must_be_trained(source):
    with pytest.raises(UserError, match="head/kernel, head/bias start fresh.*lora.also_trained = \\['\\^head'\\]"):
        tune(source, lora=trainer.lora(2, layers=["^conv"]), reinitialize=["^head/"])
    tune(source, lora=trainer.lora(2, layers=["^conv"], also_trained=["^head"]), reinitialize=["^head/"])


@pytest.mark.full
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_run_with_lora_resumes_to_the_bits_of_an_unbroken_one(source, tmp_path, replicas):
    whole = tune(source, replicas=replicas, ema_decay=0.9)
    tune(source, tmp_path / "run", replicas, num_steps=4, ema_decay=0.9)
    resumed = tune(source, tmp_path / "run", replicas, ema_decay=0.9)
    for one, two in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, two)
    # Averages of the matrices are merged into what is exported.
    _, metrics = load_and_evaluate(net, TASK, DATA, tmp_path / "run" / "final.weights.h5", 12, make_strategy(1))
    assert metrics == pytest.approx(resumed.final_metrics, abs=1e-6)


@pytest.mark.full
def test_another_rank_is_another_run(source, tmp_path):
    tune(source, tmp_path / "run", num_steps=2)
    with pytest.raises(UserError, match="holds a run of another config"):
        tune(source, tmp_path / "run", lora=trainer.lora(3))


def constrained():
    return keras.Sequential([
        keras.layers.Flatten(), keras.layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(1.0), **INIT)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": 4}, "Finetune.lora must be @lora\\(\\), not 4"),
        ({"lora": trainer.lora(2), "trained": "bitfit"}, "both say what is trained"),
        ({"lora": trainer.lora(2, layers=["^haed"])}, "lora.layers: '\\^haed' matches no layer"),
        ({"lora": trainer.lora(2, layers=["^flatten"])}, "finds flatten, which cannot learn.*conv, head"),
        ({"lora": trainer.lora(2, also_trained=["^nothing"])}, "lora.also_trained: '\\^nothing' matches no variable"),
        ({"lora": trainer.lora(2), "model": constrained}, "the layer 'dense.*' cannot have it: .*constraint"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_first_step(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(make_strategy(1), model_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "lora.rank = 0"),
        ({"rank": 2, "alpha": 0}, "lora.alpha = 0"),
        ({"rank": 2, "layers": "^head"}, "write lora.layers = \\['\\^head'\\]"),
    ],
)
def test_impossible_numbers_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        trainer.lora(**arguments)


def test_the_dry_run_says_what_learns(source, capsys):
    tune(source, dry_run=True)
    page = " ".join(capsys.readouterr().out.split())
    assert "lora rank 2 on conv, head, " in page and "merged into final.weights.h5" in page
    assert "in 4 variables" in page and "frozen" in page


@pytest.mark.full
def test_the_commands_train_evaluate_and_follow_a_run_with_lora(tmp_path):
    common = ["--gin_file=configs/runs/digits_source.gin", "--gin_param=small_cnn.width = 2"]
    tuning = [
        *common, "--gin_file=configs/optimizers/lora.gin", "--gin_param=train.restore = @Restore()",
        f"--gin_param=INIT_CHECKPOINT = '{tmp_path / 'source'}'", f"--model_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    for command in (
        ["launch.train", *common, "--gin_param=NUM_STEPS = 20", f"--model_dir={tmp_path / 'source'}"],
        ["launch.train", *tuning, "--gin_param=NUM_STEPS = 10"],
    ):
        done = run_command(*command)
        assert done.returncode == 0, done.stderr
    final = json.loads((tmp_path / "run" / "summary.json").read_text())["final_metrics"]
    for more in ([], [f"--checkpoint={tmp_path / 'run' / 'final.weights.h5'}"], ["--continuous"]):
        done = run_command("launch.evaluate", *tuning, *more)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["accuracy"] == final["accuracy"] and found["loss"] == pytest.approx(final["loss"], abs=1e-5)
