"""Every Keras name can be bound, later bindings win, files are found, and what differs is reported."""

import inspect

import gin
import keras
import pytest

import trainer
from trainer.config import bindings_of, configurables, differing_lines, operative_config, parse_config, register_keras
from trainer.errors import UserError

ADAM_TO_SGD = "configs/runs/digits_adam_to_sgd.gin"

KINDS = {
    "keras.optimizers": (keras.optimizers, keras.optimizers.Optimizer),
    "keras.optimizers.schedules": (
        keras.optimizers.schedules,
        keras.optimizers.schedules.LearningRateSchedule,
    ),
    "keras.losses": (keras.losses, keras.losses.Loss),
    "keras.metrics": (keras.metrics, keras.metrics.Metric),
}

# What a class cannot be built without.
REQUIRED = {
    "CosineDecay": {"initial_learning_rate": 0.1, "decay_steps": 10},
    "CosineDecayRestarts": {"initial_learning_rate": 0.1, "first_decay_steps": 10},
    "ExponentialDecay": {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5},
    "InverseTimeDecay": {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.5},
    "PiecewiseConstantDecay": {"boundaries": [10], "values": [0.1, 0.01]},
    "PolynomialDecay": {"initial_learning_rate": 0.1, "decay_steps": 10},
    "IoU": {"num_classes": 2, "target_class_ids": [0]},
    "BinaryIoU": {"target_class_ids": [0]},
    "MeanIoU": {"num_classes": 2},
    "OneHotIoU": {"num_classes": 2, "target_class_ids": [0]},
    "OneHotMeanIoU": {"num_classes": 2},
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.5},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
}

# These wrap an object that no config text can write down but as a reference.
WRAPPERS = ("LossScaleOptimizer", "MultiOptimizer", "MeanMetricWrapper")


def public_classes():
    return [
        (module, name, getattr(namespace, name))
        for module, (namespace, base) in KINDS.items()
        for name in dir(namespace)
        if inspect.isclass(getattr(namespace, name))
        and issubclass(getattr(namespace, name), base)
        and getattr(namespace, name) is not base
        and name not in WRAPPERS
    ]


def bound_by_gin(name: str):
    """What `@name` is in a config."""
    register_keras()
    return gin.get_configurable(name)


@pytest.fixture
def parse(tmp_path):
    """Parses a gin text as a file, then bindings."""

    def parse_text(text: str, *gin_params: str, search_paths=()):
        path = tmp_path / "config.gin"
        path.write_text(text)
        parse_config([str(path)], gin_params, search_paths)

    register_keras()
    return parse_text


@pytest.mark.parametrize(
    ("module", "name", "keras_class"), public_classes(), ids=lambda value: getattr(value, "__name__", value)
)
def test_every_public_keras_class_is_bindable_and_builds_the_true_keras_type(module, name, keras_class):
    shared = module == "keras.metrics" and hasattr(keras.losses, name)
    builder = bound_by_gin(f"metrics.{name}" if shared else name)
    built = builder(**REQUIRED.get(name, {}))
    assert type(built) is keras_class
    again = keras_class.from_config(built.get_config())
    assert type(again) is keras_class


def test_an_optimizer_that_wraps_another_is_built_from_its_reference(parse):
    parse("optimizers.LossScaleOptimizer.inner_optimizer = @SGD()\nSGD.learning_rate = 0.25")
    built = bound_by_gin("LossScaleOptimizer")()
    assert type(built) is keras.optimizers.LossScaleOptimizer
    assert float(built.inner_optimizer.learning_rate) == 0.25


def test_a_bare_name_that_loss_and_metric_share_is_the_loss():
    assert isinstance(bound_by_gin("MeanSquaredError")(), keras.losses.Loss)
    assert isinstance(bound_by_gin("metrics.MeanSquaredError")(), keras.metrics.Metric)


APPLICATIONS = [name for name in dir(keras.applications) if inspect.isfunction(getattr(keras.applications, name))]


@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_keras_application_is_bindable_and_downloads_no_weights_by_itself(name):
    parameters = inspect.signature(bound_by_gin(name)).parameters
    assert parameters["weights"].default is None


def test_a_keras_application_is_built_with_what_the_config_binds(parse):
    assert len(APPLICATIONS) > 30
    parse("MobileNet.input_shape = (32, 32, 3)\nMobileNet.classes = 3\nMobileNet.alpha = 0.25")
    model = bound_by_gin("MobileNet")()
    assert model.output_shape == (None, 3)


def test_a_value_that_keras_refuses_is_the_users_mistake_and_names_the_class(parse):
    parse("SGD.momentum = 7")
    with pytest.raises(trainer.UserError, match=r"Keras does not take SGD\(momentum=7\).*between"):
        bound_by_gin("SGD")()


def test_the_last_binding_wins_over_earlier_ones_and_over_files(parse):
    parse("SGD.momentum = 0.1", "SGD.momentum = 0.2", "SGD.momentum = 0.3")
    assert gin.query_parameter("SGD.momentum") == 0.3


def test_the_last_file_wins(tmp_path, parse):
    (tmp_path / "second.gin").write_text("SGD.momentum = 0.2")
    (tmp_path / "first.gin").write_text("SGD.momentum = 0.1")
    parse_config([str(tmp_path / "first.gin"), str(tmp_path / "second.gin")], [])
    assert gin.query_parameter("SGD.momentum") == 0.2


def test_files_and_includes_are_found_in_the_search_paths(tmp_path, monkeypatch, parse):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/rate.gin").write_text("SGD.learning_rate = 0.5")
    (tmp_path / "mine/run.gin").write_text("include 'rate.gin'\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    parse_config(["run.gin"], [], search_paths=[str(tmp_path / "mine")])
    assert gin.query_parameter("SGD.learning_rate") == 0.5


def test_shipped_files_are_found_from_any_folder_without_a_word_on_stderr(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    register_keras()
    parse_config([ADAM_TO_SGD], [])
    assert gin.query_parameter("%NUM_STEPS") == 100
    assert capfd.readouterr().err == ""


def test_a_file_in_the_working_folder_comes_before_one_in_a_search_path(tmp_path, monkeypatch, parse):
    for folder, value in (("here", 0.1), ("there", 0.2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rate.gin").write_text(f"SGD.momentum = {value}")
    monkeypatch.chdir(tmp_path / "here")
    parse_config(["rate.gin"], [], search_paths=[str(tmp_path / "there")])
    assert gin.query_parameter("SGD.momentum") == 0.1


def test_another_optimizer_on_the_command_line_leaves_the_files_bindings_of_the_first_unused():
    register_keras()
    parse_config([ADAM_TO_SGD], ["OPTIMIZER = @Adam", "Adam.learning_rate = 0.01"])
    assert gin.query_parameter("SGD.momentum") == 0.9


def test_a_module_of_the_users_may_use_what_no_line_of_the_config_refers_to():
    register_keras()
    parse_config(["configs/runs/custom_step_source.gin"], ["small_cnn.width = 4"])
    assert gin.query_parameter("small_cnn.width") == 4


def test_the_operative_config_names_what_was_used_and_not_what_was_not(parse):
    parse("SGD.momentum = 0.9\nAdam.learning_rate = 0.5")
    bound_by_gin("SGD")()
    assert "SGD.momentum = 0.9" in operative_config()
    assert "Adam" not in operative_config()


def test_differing_lines_names_a_changed_a_new_and_a_removed_binding():
    old = "SGD.momentum = 0.9\nSGD.nesterov = True\n"
    new = "SGD.momentum = 0.5\nSGD.clipnorm = 1.0\n"
    assert differing_lines(old, new) == [
        ("SGD.momentum = 0.9", "SGD.momentum = 0.5"),
        ("SGD.nesterov = True", "SGD.nesterov is not set"),
        ("SGD.clipnorm is not set", "SGD.clipnorm = 1.0"),
    ]


def test_differing_lines_reads_a_value_over_several_lines_as_one():
    old = "in_memory.examples = \\\n    {'x': [1.0],\n     'y': [2.0]}\n"
    assert differing_lines(old, old) == []
    assert len(differing_lines(old, old.replace("2.0", "3.0"))) == 1


def test_a_longer_run_or_another_interval_is_still_the_same_run():
    uses = "train.num_steps = %NUM_STEPS\nCosineDecay.decay_steps = %NUM_STEPS\n"
    old = uses + "NUM_STEPS = 100\nIntervals.eval_every = 20\nIntervals.log_every = 1\n"
    new = uses + "NUM_STEPS = 200\nIntervals.eval_every = 50\nIntervals.checkpoint_every = 7\n"
    assert differing_lines(old, new) == []


def test_configurables_lists_every_name_once_with_its_defaults():
    register_keras()
    listed = configurables()
    found = dict(listed)
    assert len(found) == len(listed)
    assert found["models.small_cnn"] == "num_classes=10, width=16"
    assert found["keras.optimizers.SGD"].startswith("learning_rate=0.01, momentum=0.0")
    assert found["pipeline.tfds_data"].startswith("tfds_name, split, data_dir=None"), "the first two must be set"
    assert not any(selector.startswith("gin.") for selector in found)


def test_what_is_evaluated_and_where_data_lies_does_not_make_another_run():
    uses = "train.num_steps = %NUM_STEPS\ntrain.eval_data = %EVAL_DATA\n"
    old = f"{uses}eval/tfds_data.split = 'test'\nEVAL_DATA = @eval/tfds_data()\ntfds_data.data_dir = 'a'\nNUM_STEPS = 5"
    new = f"{uses}eval/tfds_data.split = 'test[:50%]'\nEVAL_DATA = None\ntfds_data.data_dir = 'b'\nNUM_STEPS = 9"
    assert differing_lines(old, new) == []
    assert differing_lines("train/tfds_data.split = 'a'", "train/tfds_data.split = 'b'")


DIFFERENT = {
    "a macro that the run's length shares with something else": (
        "train.num_steps = %N\ntrain.seed = %N\nN = 1\n", "train.num_steps = %N\ntrain.seed = %N\nN = 2\n"),
    "a macro of the length that accumulates": (
        "train.num_steps = %N\nStep.accumulation_steps = %N\nN = 1\n",
        "train.num_steps = %N\nStep.accumulation_steps = %N\nN = 2\n"),
    "an optimizer in a scope called eval": (
        "train.optimizer = @eval/SGD\neval/SGD.momentum = 0.1\n",
        "train.optimizer = @eval/SGD\neval/SGD.momentum = 0.9\n"),
    "training data in the scope of the evaluation's": (
        "train.eval_data = @eval/d()\ntrain.train_data = @eval/d()\neval/d.x = 1\n",
        "train.eval_data = @eval/d()\ntrain.train_data = @eval/d()\neval/d.x = 2\n"),
    "training data by the macro of the evaluation's": (
        "train.eval_data = %D\ntrain.train_data = %D\nD = @v/d()\nv/d.x = 1\n",
        "train.eval_data = %D\ntrain.train_data = %D\nD = @v/d()\nv/d.x = 2\n"),
    "an import": ("import one\n", "import two\n"),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_decides_weights_is_another_run_whatever_it_is_called(what):
    assert differing_lines(*DIFFERENT[what])


def test_what_only_the_evaluation_reads_may_change_whatever_its_scope_is_called():
    old = "train.eval_data = %EVAL_DATA\nEVAL_DATA = @held_out/d()\nheld_out/d.split = 'a'\n"
    assert differing_lines(old, old.replace("'a'", "'b'")) == []


def test_another_scope_of_the_intervals_is_another_run_where_evaluations_decide():
    old, new = "train.intervals = @x/Intervals()\n", "train.intervals = @Intervals()\n"
    assert differing_lines(old, new) == [] and differing_lines(old, new, evaluation_decides=True)


@pytest.mark.parametrize("binding", ["SGD.momentum = 1e999", "M = -1e999", "Restore.rename = [('a', 1e999)]"])
def test_a_number_that_is_not_finite_is_refused_for_no_record_would_hold_it(binding, parse):
    with pytest.raises(UserError, match="is not finite"):
        parse(binding)


def test_a_reference_may_stand_inside_a_rule_of_a_restore():
    gin.external_configurable(lambda: {0: 3}, name="shared_rows", module="test_config")
    parse_config([], ["Restore.copy_rows = [('^head/', @shared_rows())]"])
    assert bindings_of("Restore", "copy_rows") == {"copy_rows": [("^head/", {0: 3})]}


def test_a_reference_inside_a_rule_that_is_not_called_is_refused():
    gin.external_configurable(lambda: {0: 3}, name="other_rows", module="test_config")
    with pytest.raises(UserError, match="Restore.copy_rows must be a list of"):
        parse_config([], ["Restore.copy_rows = [('^head/', @other_rows)]"])
