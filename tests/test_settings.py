"""The settings classes: each tests itself, and what is derived of them holds for every field."""

import dataclasses
import inspect
import re

import gin
import keras
import numpy as np
import pytest
from commands import run_command
from conftest import make_strategy

import trainer
from trainer.comparison.plan import read_plan
from trainer.config import (
    check_run_is_complete,
    configurables,
    differing_lines,
    parse_config,
    register_keras,
    settings_of,
)
from trainer.config.settings import DECLARED
from trainer.run.inputs import as_restore
from trainer.run.model import layer_settings

RUN = "--gin_file=configs/runs/linear_source.gin"
FIELDS = [(name, field.name) for name, entry in DECLARED.items() for field in dataclasses.fields(entry.cls)]
OF_CONFIG = [(name, field) for name, field in FIELDS if name != "Invocation"]


def bound(name: str, field: str) -> str:
    """A value that the field may have, in a config's words."""
    special = {
        "optimizer_state": "'step'", "match": "'order'", "on_nan": "'rollback'", "best_mode": "'min'",
        "on_error": "'continue'", "random_numbers": "'per_example'", "update": "'once'", "trained": "'biases'",
        "lora": "@lora()", "groups": "[@group()]", "phases": "[@phase()]", "ema_decay": "0.5", "layer_decay": "0.5",
        "rename": "[('^a', 'b')]", "copy_rows": "[('^a', {0: 0})]", "reinitialize": "['a']", "ignore": "['a']",
        "grow": "['a']", "frozen": "['a']",
    }  # fmt: skip
    if field in special:
        return special[field]
    default = getattr(DECLARED[name].cls, field, "")
    return {bool: "True", int: "7", float: "7.0"}.get(type(default), "'x'")


def test_train_takes_17_parameters_and_its_signature_can_be_read():
    signature = inspect.signature(trainer.train)
    assert len(signature.parameters) == 17
    for name in trainer.__all__:
        target = getattr(trainer, name)
        if callable(target) and not inspect.isclass(target):
            assert "object at 0x" not in str(inspect.signature(target)), name
    required = [name for name, parameter in signature.parameters.items() if parameter.default is parameter.empty]
    assert required[-1] == "restore", "from scratch must be said"


def test_a_path_is_short_for_a_restore(tmp_path):
    common = dict(
        model=lambda: keras.Sequential([keras.Input([2]), keras.layers.Dense(1, name="only")]),
        train_data={"x": np.ones([6, 2]), "y": np.ones([6, 1])},
        task=trainer.supervised(loss=keras.losses.MeanSquaredError(), inputs="x", target="y"),
        optimizer=lambda: keras.optimizers.SGD(0.1),
        num_steps=2, global_batch_size=6, strategy=make_strategy(1),
    )  # fmt: skip
    trainer.train(**common, restore=None, model_dir=tmp_path / "source")
    weights = [
        trainer.train(**common, restore=restore).model.get_weights()
        for restore in (tmp_path / "source", str(tmp_path / "source"), trainer.Restore(tmp_path / "source"))
    ]
    for other in weights[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(weights[0], other, strict=True))


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_value_of_another_type_is_refused_by_name(name, field):
    given = {"checkpoint": "x", field: object()} if name == "Restore" else {field: object()}
    with pytest.raises(trainer.UserError, match=rf"^{name}\.{field} must be "):
        DECLARED[name].cls(**given)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: trainer.Intervals(steps_per_loop=0), "Intervals.steps_per_loop = 0 must be 1 or more"),
        (lambda: trainer.Intervals(eval_every=-1), "Intervals.eval_every = -1 must be 0 or more"),
        (lambda: trainer.Saving(keep=0), r"Saving.keep = 0 must be 1 \(a run needs its last one\) or more"),
        (lambda: trainer.Saving(best_mode="mux"), "Saving.best_mode = 'mux' must be one of .* Did you mean 'max'"),
        (lambda: trainer.Limits(max_seconds=float("nan")), "Limits.max_seconds = nan must be 0"),
        (lambda: trainer.Limits(on_nan="go"), "Limits.on_nan = 'go' must be one of 'stop', 'rollback'"),
        (lambda: trainer.Step(accumulation_steps=0), "Step.accumulation_steps = 0 must be 1 or more"),
        (lambda: trainer.Step(ema_decay=1.0), "Step.ema_decay = 1.0 must lie between 0 and 1"),
        (lambda: trainer.Finetune(frozen="^head/"), "Finetune.frozen must be a list of text in quotes, not '.head/'"),
        (lambda: trainer.Restore(""), "no checkpoint to start from. Set INIT_CHECKPOINT"),
        (lambda: trainer.Restore("x", rewarmup_steps=3), "Restore.optimizer_state = 'fresh' takes none"),
        (lambda: trainer.Invocation(timed_steps=3), "timed_steps belongs to a dry run"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(build, message):
    with pytest.raises(trainer.UserError, match=message):
        build()


@pytest.mark.parametrize(("name", "field"), OF_CONFIG)
def test_what_a_resumed_run_may_change_is_what_the_class_declares(name, field):
    old, new = f"train.seed = 1\n{name}.{field} = 1\n", f"train.seed = 1\n{name}.{field} = 2\n"
    assert (differing_lines(old, new) == []) == DECLARED[name].may_change
    by_macro = [f"{name}.{field} = %VALUE\nVALUE = {value}\n" for value in (1, 2)]
    assert (differing_lines(*by_macro) == []) == DECLARED[name].may_change


def test_a_macro_that_anything_else_uses_too_may_not_change():
    uses = "Limits.max_seconds = %N\nwarmup.warmup_steps = %N\n"
    assert differing_lines(f"{uses}N = 1\n", f"{uses}N = 2\n") == [("N = 1", "N = 2")]
    plateau = "Intervals.eval_every = %N\n"
    assert differing_lines(f"{plateau}N = 1\n", f"{plateau}N = 2\n", evaluation_decides=True) == [("N = 1", "N = 2")]


@pytest.mark.parametrize(("name", "field"), OF_CONFIG)
def test_what_members_of_a_comparison_may_differ_in_is_what_the_class_declares(name, field, tmp_path):
    register_keras()
    config = "\n".join(
        [
            "compare.members = ['one', 'two']", "two/train.optimizer = @SGD", "lora.rank = 2", "group.pattern = 'a'",
            "phase.start = 3", "phase.optimizer = @SGD", "train.seed = 0", "train.num_steps = 3",
            "Restore.checkpoint = 'a'", f"one/{name}.{field} = {bound(name, field)}",
        ]
    )  # fmt: skip
    path = tmp_path / "compare.gin"
    path.write_text(config)
    parse_config([str(path)], [])
    declared = {each.name: each for each in dataclasses.fields(DECLARED[name].cls)}[field]
    if DECLARED[name].may_differ or declared.metadata.get("may_differ"):
        assert read_plan(["one", "two"], 2, "loss", "min", None).members == ["one", "two"]
    else:
        with pytest.raises(trainer.UserError, match=rf"one/{name}\.{field} changes {name}\.{field}"):
            read_plan(["one", "two"], 2, "loss", "min", None)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Invocation.dry_run = True", "Invocation.dry_run is no part of a config: give --dry_run."),
        ("Invocation.allow_config_change = True", "give --allow_config_change."),
        ("Invocation.started_at = 3.0", "the command sets it itself."),
        ("train.model_dir = 'x'", "train.model_dir is no part of a config: give --model_dir."),
        ("train.strategy = None", "give --strategy."),
        ("compare.parallel = 2", "compare.parallel is no part of a config: give --parallel."),
    ],
)
def test_what_a_flag_sets_is_refused_in_a_config_and_the_flag_is_named(binding, message):
    with pytest.raises(trainer.UserError, match=re.escape(message)):
        parse_config([], [binding])


def test_a_command_says_so_in_one_line(tmp_path):
    done = run_command("launch.train", RUN, "--gin_param=train.model_dir = 'x'", f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr == "regraft: train.model_dir is no part of a config: give --model_dir.\n"


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("train.evaluate_every = 3", "train has no parameter 'evaluate_every'.* Did you mean Intervals.eval_every"),
        ("train.rename = []", "train has no parameter 'rename'.* Did you mean Restore.rename"),
        ("Step.lora = None", "Step has no parameter 'lora'.* Did you mean Finetune.lora"),
        ("Saving.kep = 3", "Saving has no parameter 'kep'.* Did you mean Saving.keep"),
    ],
)
def test_a_name_that_another_class_has_is_found_there(binding, message):
    with pytest.raises(trainer.UserError, match=message):
        parse_config([], [binding])


def test_what_base_gin_asks_for_is_named_at_once():
    with pytest.raises(trainer.UserError) as refused:
        parse_config(["configs/base.gin"], ["NUM_STEPS = 3"])
    assert str(refused.value) == (
        "The config does not set MODEL, TRAIN_DATA, TASK, OPTIMIZER, GLOBAL_BATCH_SIZE, INIT_CHECKPOINT (or "
        "train.restore = None, for random weights)."
    )


def test_a_checkpoint_that_is_typed_for_a_run_from_scratch_is_refused():
    with pytest.raises(trainer.UserError, match="INIT_CHECKPOINT is set by --gin_param, but .* Restore.checkpoint"):
        register_keras()
        parse_config(["configs/runs/linear_source.gin"], ["INIT_CHECKPOINT = 'x'"])


def test_a_checkpoint_in_the_files_of_a_run_from_scratch_is_said_not_to_be_read(tmp_path, capsys):
    path = tmp_path / "run.gin"
    path.write_text("include 'configs/runs/linear_source.gin'\nINIT_CHECKPOINT = 'runs/other'\n")
    register_keras()
    parse_config([str(path)], [])
    invocation = trainer.Invocation(dry_run=True)
    gin.get_configurable("experiment.train")(strategy=make_strategy(1), invocation=invocation)
    printed = capsys.readouterr().out
    assert "INIT_CHECKPOINT = 'runs/other' is not read: train.restore = None" in printed


def test_every_field_that_a_config_sets_is_listed_with_its_default():
    listed = dict(configurables())
    for name, field in OF_CONFIG:
        assert field in listed[f"settings.{name}"]
    assert "settings.Invocation" not in listed and "0x" not in listed["experiment.train"]


def test_a_dry_run_shows_each_setting_that_is_not_at_its_default(capsys):
    register_keras()
    parse_config(["configs/runs/linear_source.gin"], ["Finetune.frozen = ['[a-b]?ias$', 'bias']", "Saving.keep = 7"])
    gin.get_configurable("experiment.train")(strategy=make_strategy(1), invocation=trainer.Invocation(dry_run=True))
    printed = capsys.readouterr().out
    assert "Finetune.frozen = ['[a-b]?ias$', 'bias'], Saving.keep = 7\n" in printed and "Step." not in printed


def test_a_settings_class_in_a_scope_is_found_by_every_command():
    lines = [
        "train.restore = @other/Restore()", "Restore.ignore = ['a']", "other/Restore.rename = [('b', 'c')]",
        "train.step = @slow/Step()", "slow/Step.ema_decay = 0.5", "train.seed = 3",
    ]  # fmt: skip
    parse_config([], lines)
    rules = settings_of("restore", "rename", "ignore", "match")
    assert rules == {"rename": [("b", "c")], "ignore": ["a"], "match": "structure"}
    assert settings_of("step", "ema_decay", "jit_compile") == {"ema_decay": 0.5, "jit_compile": False}
    with pytest.raises(trainer.UserError, match=r"train.model, .*, other/Restore.checkpoint, and there is no default"):
        check_run_is_complete()


def test_a_path_in_place_of_restore_has_the_rules_of_the_config_and_none_has_none():
    parse_config([], ["train.restore = None", "train.seed = 3"])
    assert settings_of("restore", "rename", "root") == {"rename": (), "root": None}
    gin.clear_config()
    parse_config([], ["train.restore = 'path'", "train.seed = 3", "Restore.rename = [('b', 'c')]"])
    assert settings_of("restore", "rename", "root") == {"rename": [("b", "c")], "root": None}
    assert as_restore("path") == trainer.Restore("path", rename=[("b", "c")])


def test_a_default_that_is_written_out_makes_no_other_run():
    short, long = "Step.ema_decay = 0.9\n", "Step.ema_decay = 0.9\nFinetune.trained = 'all'\nFinetune.frozen = ()\n"
    assert differing_lines(short, long) == differing_lines(long, short) == []
    assert differing_lines(short, "Finetune.trained = 'biases'\n" + short) == [
        ("Finetune.trained is not set", "Finetune.trained = 'biases'")
    ]


def test_layers_show_the_settings_in_which_two_models_of_equal_shapes_differ():
    def model(rate, penalty):
        dense = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(penalty))
        return keras.Sequential([keras.Input([2]), keras.layers.Dropout(rate), dense])

    assert layer_settings(model(0.5, 0.1)) == layer_settings(model(0.5, 0.1))
    changed = layer_settings(model(0.5, 0.1)).items() ^ layer_settings(model(0.2, 0.3)).items()
    assert {name for name, _ in changed} == {"1.Dropout", "2.Dense"}
    assert any("rate=0.5" in text for _, text in changed) and any("L2(l2=0.3" in text for _, text in changed)


def test_a_number_of_numpys_is_the_same_setting_as_pythons():
    assert trainer.Step(accumulation_steps=np.int64(2)) == trainer.Step(accumulation_steps=2)
    assert type(trainer.Step(ema_decay=np.float32(0.5)).ema_decay) is float
    with pytest.raises(trainer.UserError, match="Saving.keep = 1000000000000000000000 must be 1 .* and finite"):
        trainer.Saving(keep=10**21)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_steps", True), ("num_steps", 2.0), ("seed", True), ("global_batch_size", 3.0), ("global_batch_size", "3")],
)
def test_a_count_that_is_no_whole_number_is_refused(name, value):
    given = dict(num_steps=1, global_batch_size=6, seed=0) | {name: value}
    with pytest.raises(trainer.UserError, match=f"{name} = {value!r} must be a whole number"):
        trainer.train(keras.Sequential, task=None, optimizer=None, train_data=None, restore=None, **given)
