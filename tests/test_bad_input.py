"""Bad input from the command line: one clear message, exit status 2, nothing written, the nearest right name."""

import concurrent.futures
import fcntl
import re
from pathlib import Path

import gin
import numpy as np
import pytest
from commands import run_command
from conftest import make_strategy

import trainer
from trainer.config import parse_config, register_keras

ADAM_TO_SGD = "configs/runs/digits_adam_to_sgd.gin"
FILE = f"--gin_file={ADAM_TO_SGD}"
MIRRORED = ("--strategy=mirrored", "--virtual_devices=2")


def param(binding: str) -> str:
    return f"--gin_param={binding}"


# what is wrong -> (command, its flags, the message). SOURCE is a checkpoint that fits, RUN a model_dir
# that holds a run, BUSY one that a live process writes, BELOW a path below a file.
COMMANDS = {
    "no checkpoint": (
        "train", [FILE, param("INIT_CHECKPOINT = None")], "no checkpoint to start from.*train.restore = None"),
    "a path without a checkpoint": (
        "train", [FILE, param("INIT_CHECKPOINT = '/nowhere/ckpt-1'")], "no checkpoint at /nowhere/ckpt-1"),
    "a checkpoint that fits no variable": (
        "train", [FILE, "SOURCE", param("MODEL = @linear")], "fits no variable of the model"),
    "a file of weights that was cut off": ("train", [FILE, "CUT_OFF"], "m.weights.h5 cannot be read"),
    "a file of pickles": ("train", [FILE, "PICKLES"], "m.npz: the array weights holds Python objects"),
    "a file whose header lies": ("train", [FILE, "LYING"], "m.safetensors cannot be read"),
    "a batch that does not divide": (
        "train", [FILE, "SOURCE", *MIRRORED, param("GLOBAL_BATCH_SIZE = 21")],
        "global_batch_size 21 does not divide over 2 replicas.* nearest that does is 20"),
    "an unknown gin name": (
        "train", [FILE, "SOURCE", param("OPTIMIZER = @SDG")], "no configurable 'SDG'.* Did you mean 'SGD'?"),
    "an unknown gin parameter": (
        "train", [FILE, "SOURCE", param("SGD.learing_rate = 0.5")],
        "SGD has no parameter 'learing_rate'.* Did you mean 'learning_rate'?"),
    "an unknown data set": (
        "train", [FILE, "SOURCE", param("tfds_data.tfds_name = 'mnsit'")],
        "no TFDS data set 'mnsit'. Did you mean 'mnist'"),
    "a data set that needs the network": (
        "train", [FILE, "SOURCE", param("tfds_data.tfds_name = 'mnist'")],
        "mnist is not prepared in .* would need the network: set tfds_data.download = True"),
    "another config's model_dir": (
        "train", ["--gin_file=configs/runs/digits_source.gin", "RUN", param("Adam.learning_rate = 0.5")],
        r"holds a run of another config:\s+was: Adam.learning_rate = 0.001\s+now: Adam.learning_rate = 0.5"),
    "a model_dir that another process writes": ("train", [FILE, "SOURCE", "BUSY"], "is being written by process 42"),
    "a model_dir that cannot be made": ("train", [FILE, "SOURCE", "BELOW"], "model_dir .* cannot be made: Not a dir"),
    "a value of the wrong type": (
        "train", [FILE, "SOURCE", param("GLOBAL_BATCH_SIZE = 'abc'")],
        "train.global_batch_size must be a whole number, not 'abc' .*%GLOBAL_BATCH_SIZE"),
    "a feature that the data does not have": (
        "train", [FILE, "SOURCE", param("supervised.target = 'lable'")], "no feature 'lable'; it has image, label"),
    "an unknown flag": ("train", [FILE, "--gin_parm=x"], "Unknown command line flag 'gin_parm'.*gin_param"),
    "a config file that is not there": (
        "train", ["--gin_file=configs/runs/digits_adam_to_sdg.gin"], "is not there.* Did you mean .*adam_to_sgd.gin"),
    "mirrored without devices": (
        "train", [FILE, "SOURCE", "--strategy=mirrored"], "mirrored needs GPUs.*here are 0 GPUs and 1 CPU"),
    "an evaluation without a checkpoint": (
        "evaluate", [FILE, "--checkpoint=/nowhere/ckpt-1"], "no checkpoint at /nowhere/ckpt-1"),
    "an inspection of nothing": ("inspect", [], "--checkpoint is missing"),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(request, digits_source, tmp_path_factory):
    """Runs the selected commands, two at a time."""
    folder = tmp_path_factory.mktemp("bad_input")
    (folder / "file").write_text("not a folder")
    (folder / "busy").mkdir()
    lock = open(folder / "busy/.lock", "a+")  # noqa: SIM115  held until all commands ran
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write("process 42 on this machine")
    lock.flush()
    whole = (digits_source / "final.weights.h5").read_bytes()
    (folder / "m.weights.h5").write_bytes(whole[: len(whole) // 2])
    np.savez(folder / "m.npz", weights=np.array([print], dtype=object))
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (folder / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    meant = {
        "CUT_OFF": param(f"INIT_CHECKPOINT = '{folder / 'm.weights.h5'}'"),
        "PICKLES": param(f"INIT_CHECKPOINT = '{folder / 'm.npz'}'"),
        "LYING": param(f"INIT_CHECKPOINT = '{folder / 'm.safetensors'}'"),
        "SOURCE": f"--gin_param=INIT_CHECKPOINT = '{digits_source}'",
        "RUN": f"--model_dir={digits_source}",
        "BUSY": f"--model_dir={folder / 'busy'}",
        "BELOW": f"--model_dir={folder / 'file/run'}",
    }

    def run(what):
        command, given, _ = COMMANDS[what]
        model_dir = folder / re.sub(r"\W", "_", what)
        arguments = [meant.get(argument, argument) for argument in given]
        if command == "train" and not any(argument.startswith("--model_dir") for argument in arguments):
            arguments.append(f"--model_dir={model_dir}")
        written = contents(digits_source), contents(folder / "busy")
        done = run_command(f"launch.{command}", *arguments)
        unchanged = written == (contents(digits_source), contents(folder / "busy")) and not model_dir.exists()
        return done, unchanged

    chosen = [item.callspec.params["what"] for item in request.session.items if "what" in _params(item)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {what: pool.submit(run, what) for what in chosen}
    lock.close()


def _params(item) -> dict:
    return item.callspec.params if hasattr(item, "callspec") and item.path == Path(__file__) else {}


def contents(folder: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", COMMANDS)
def test_the_command_stops_with_one_message_and_writes_nothing(what, finished):
    done, unchanged = finished[what].result()
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("regraft: ") and done.stderr.count("regraft: ") == 1
    assert "Traceback" not in done.stderr
    assert re.search(COMMANDS[what][2], done.stderr, re.DOTALL), done.stderr
    assert unchanged


def refused(*gin_params: str, files=(ADAM_TO_SGD,)) -> str:
    """What `parse_config` says."""
    register_keras()
    with pytest.raises(trainer.UserError) as caught:
        parse_config(list(files), gin_params)
    return str(caught.value)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        # names
        ("OPTIMIZER = @sgd", "no configurable 'sgd' (--gin_param: OPTIMIZER = @sgd). Did you mean 'SGD'?"),
        ("OPTIMIZER = @Nothing_Like_It_At_All", "launch.configurables` lists what can be bound"),
        ("SGDD.momentum = 0.9", "no configurable 'SGDD' (--gin_param: SGDD.momentum = 0.9). Did you mean 'SGD'?"),
        ("optimzers.SGD.momentum = 0.9", "no configurable 'optimzers.SGD'"),
        ("supervised.loss = @MeanSquaredEror()", "Did you mean 'MeanSquaredError'?"),
        ("train.evalevery = 3", "train has no parameter 'evalevery'"),
        ("train.evalevery = 3", "Did you mean Intervals.eval_every?"),
        ("train/tfds_data.splt = 'x'", "tfds_data has no parameter 'splt'"),
        # macros
        ("CosineDecay.decay_steps = %NUM_STEP", "macro %NUM_STEP is used but never set. Did you mean 'NUM_STEPS'?"),
        ("NUM_STEP = 7", "macro NUM_STEP is set, but nothing uses %NUM_STEP. Did you mean 'NUM_STEPS'?"),
        ("num_steps = 7", "Did you mean 'NUM_STEPS'?"),
        ("ANYTHING = 7", "nothing uses %ANYTHING. Known macros: EVAL_DATA, GLOBAL_BATCH_SIZE"),
        # scopes and bindings that nothing uses
        ("evl/tfds_data.split = 'train'", "nothing runs in the scope 'evl'. Did you mean 'eval'?"),
        ("other/tfds_data.split = 'train'", "nothing runs in the scope 'other'. Known scopes: eval, train."),
        ("Adam.learning_rate = 0.1", "this run does not use Adam; it uses CosineDecay, Finetune"),
        ("metrics.MeanSquaredError.name = 'x'", "this run does not use metrics.MeanSquaredError"),
        # types
        ("NUM_STEPS = 1.5", "train.num_steps must be a whole number, not 1.5 (it comes from %NUM_STEPS)."),
        ("SEED = 'abc'", "train.seed must be a whole number, not 'abc'"),
        ("train.seed = True", "train.seed must be a whole number, not True."),
        ("Intervals.eval_every = 'a'", "Intervals.eval_every must be a whole number"),
        ("Step.jit_compile = 'yes'", "Step.jit_compile must be True or False, not 'yes'."),
        ("Restore.reinitialize = 'head'", "Restore.reinitialize must be a list of text in quotes, not 'head'."),
        ("Restore.copy_rows = [('^head/', 3)]", "Restore.copy_rows must be a list of (a text in quotes, a dict"),
        ("Restore.grow = '^embed/'", "Restore.grow must be a list of text in quotes, not '^embed/'."),
        ("Restore.match = 3", "Restore.match must be a text in quotes, not 3"),
        ("Restore.rename = ['a']", "Restore.rename must be a list of (a text in quotes, a text in quotes)"),
        ("INIT_CHECKPOINT = 3", "Restore.checkpoint must be a text in quotes or a PathLike, not 3"),
        ("MODEL = 'small_cnn'", "train.model must be a reference such as @name"),
        ("TASK = @supervised", "so write @supervised() with parentheses"),
        ("supervised.metrics = [@SparseCategoricalAccuracy]", "supervised.metrics must be a dict"),
        ("tfds_data.tfds_name = 3", "tfds_data.tfds_name must be a text in quotes, not 3."),
        ("tfds_data.features = 'image'", "tfds_data.features must be a list of text in quotes"),
        ("SGD.learning_rate = 'fast'", "SGD.learning_rate must be a number, not 'fast'."),
        ("SGD.nesterov = 'yes'", "SGD.nesterov must be True or False"),
        ("SGD.learning_rate = @CosineDecay", "so write @CosineDecay() with parentheses"),
        # text that is no config
        ("SGD.momentum 0.9", "cannot be read at --gin_param: 'SGD.momentum 0.9'"),
        ("SGD.momentum = foo", "text needs 'quotes', a configurable @, a macro %"),
        ("SGD.momentum = (1,", "is a bracket or a quote not closed?"),
        ("import no_such_module", "imports a module that is not there (--gin_param: import no_such_module)"),
    ],
)  # fmt: skip
def test_a_binding_that_is_wrong_is_refused_before_anything_is_built(binding, message):
    assert message in refused(binding)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include 'configs/bse.gin'", "line 1, includes 'configs/bse.gin', which is not there"),
        ("include 'configs/bse.gin'", "Did you mean 'configs/base.gin'?"),
        ("SEED = 1\nNUM_STEPS = 3\nSEED = 2", "sets SEED twice, in line 1 and in line 3"),
        ("NUM_STEPS = 3\nSEED = = 2", "line 2: 'SEED = = 2'"),
        ("SEED = [1,\n", "is a bracket or a quote not closed?"),
        ("include 'SELF'", "includes itself"),
        (f"include '{ADAM_TO_SGD}'\nSGD.momentun = 0.9", "config.gin, line 2). Did you mean 'momentum'?"),
        (f"include '{ADAM_TO_SGD}'\nevl/tfds_data.split = 'train'", "Did you mean 'eval'?"),
        (f"include '{ADAM_TO_SGD}'\nNUM_STEP = 7", "Did you mean 'NUM_STEPS'?"),
        ("import module_that_raises", "fails: RuntimeError: not today ("),
        ("import module_that_raises", "module_that_raises.py, line 2)"),
        ("import module_with_a_slip", "module_with_a_slip.py, line 1: 'x = = 1'"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_place(tmp_path, monkeypatch, text, message):
    (tmp_path / "module_that_raises.py").write_text("import gin\nraise RuntimeError('not today')\n")
    (tmp_path / "module_with_a_slip.py").write_text("x = = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "config.gin"
    path.write_text(text.replace("SELF", str(path)))
    assert message in refused(files=[str(path)])


def test_a_binding_in_a_file_may_wait_for_an_optimizer_or_data_that_another_run_chooses(tmp_path):
    path = tmp_path / "config.gin"
    path.write_text(f"include '{ADAM_TO_SGD}'\nAdam.learning_rate = 0.1\nEVAL_DATA = None\n")
    register_keras()
    parse_config([str(path)], ["SGD.momentum = 0.5"])


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("NUM_STEPS = 0", "num_steps = 0 must be a whole number, 1 or more"),
        ("GLOBAL_BATCH_SIZE = 0", "global_batch_size = 0 must be a whole number, 1 or more"),
        ("Intervals.eval_every = -1", "eval_every = -1 must be 0 or more"),
        ("train.restore = @Restore()", "does not set INIT_CHECKPOINT .or train.restore = None"),
        ("OPTIMIZER = @MeanSquaredError", "must be a Keras optimizer, e.g. OPTIMIZER = @SGD"),
        ("OPTIMIZER = 3", "train.optimizer must be a reference such as @name, not 3"),
        ("supervised.loss = @Adam()", "supervised.loss must be a Keras loss"),
        ("supervised.loss = @SparseCategoricalAccuracy()", "supervised.loss must be a Keras loss"),
        ("MODEL = @Adam", "must return a keras.Model; it returned Adam"),
        ("OPTIMIZER = @SGD\nSGD.momentum = 7", r"Keras does not take SGD\(momentum=7\): .* between"),
        ("small_cnn.width = 0", "The model cannot be made: ValueError: .*filters=0"),
        ("supervised.inputs = 'imge'", "no feature 'imge'; it has image, label"),
        ("tfds_data.features = ['imag']", "no feature 'imag'.* Did you mean 'image'?"),
        ("train/tfds_data.split = 'trian'", "no split 'trian'.* Did you mean 'train'?"),
        ("tfds_data.tfds_name = 'handwritten_digits/rotatd'", "Did you mean 'rotated'?"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_and_nothing_is_written(tmp_path, binding, message):
    register_keras()
    with pytest.raises(trainer.UserError, match=message):
        parse_config(["configs/runs/digits_source.gin"], [binding])
        gin.get_configurable("experiment.train")(model_dir=tmp_path / "run", strategy=make_strategy(1))
    assert not (tmp_path / "run").exists()


def test_what_the_config_leaves_out_is_named(tmp_path):
    path = tmp_path / "config.gin"
    path.write_text("train.num_steps = 3\n")
    done = run_command("launch.train", f"--gin_file={path}", f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert re.match(r"regraft: The config does not set train.model, .*train.optimizer", done.stderr)
