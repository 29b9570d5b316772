"""Every kind of model from every way of writing it arrives whole, or is refused with a reason; nothing else happens."""

import json
import time

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from conftest import full, make_strategy
from zoo import FOUR, IMAGE, MODELS, InLists, Plain, Twins, application, built, functional, saved, used_adam, values

import trainer
from trainer.checkpoints.manager import Checkpoints
from trainer.checkpoints.train_state import new_train_state
from trainer.cluster.replicas import replica_values
from trainer.restore import plan_weights, weights_of

KINDS = {**MODELS, "layers in lists": (InLists, FOUR), "MobileNetV2": (application, IMAGE)}


def compiled(model):
    model.compile(optimizer=used_adam(model), loss="mse")
    return model


def with_loss_scale(model):
    return used_adam(model, keras.optimizers.LossScaleOptimizer)


def saved_by_us(folder, model) -> str:
    (folder / "checkpoints").mkdir()
    Checkpoints(new_train_state(model, used_adam(model)), folder / "checkpoints").save()
    return str(folder)


def saved_by_orbit(folder, model) -> str:
    """As Orbit and the Model Garden save: step, optimizer and the backbone a second time."""
    step = tf.Variable(7, dtype=tf.int64)
    backbone = {"backbone": model.layers[0]} if model.layers else {}
    checkpoint = tf.train.Checkpoint(model=model, optimizer=used_adam(model), global_step=step, **backbone)
    tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=2, step_counter=step).save(7)
    return str(folder)


def saved_as_saved_model(folder, model) -> str:
    tf.saved_model.save(model, str(folder / "saved_model"))
    return str(folder / "saved_model")


def exported(folder, model) -> str:
    model.export(str(folder / "export"), verbose=False)
    return str(folder / "export")


def named(model) -> dict[str, np.ndarray]:
    return {weight.name: np.asarray(weight.variable.numpy()) for weight in weights_of(model)}


def saved_by_names(folder, model) -> str:
    """As TF1's Saver does, with Adam's slots."""
    tensors = (
        named(model) | {f"{name}/Adam": value for name, value in named(model).items()} | {"global_step": np.int64(9)}
    )
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt-9"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    return str(folder)


def saved_with(save, name: str):
    def write(folder, model) -> str:
        save(model, folder / name)
        return str(folder / name)

    return write


def save_safetensors(model, path) -> None:
    safetensors.numpy.save_file(named(model), path)


def save_safetensors_shards(model, path) -> None:
    weights = named(model)
    files = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        safetensors.numpy.save_file({n: v for n, v in weights.items() if files[n] == file}, path.parent / file)
    path.write_text(json.dumps({"metadata": {}, "weight_map": files}))


def save_as_hugging_face(model, path) -> None:
    """As its TensorFlow models' save_pretrained does: names without the model's own, and with TensorFlow's number."""
    tensors = {f"{weight.path.removeprefix(f'{model.name}/')}:0": weight.value for weight in model.weights}
    safetensors.numpy.save_file({name: np.asarray(value) for name, value in tensors.items()}, path, {"format": "tf"})


WRITERS = {
    "Checkpoint(model)": lambda folder, model: saved(folder, model=model),
    "Checkpoint(model, optimizer)": lambda folder, model: saved(folder, model=model, optimizer=used_adam(model)),
    "Checkpoint(optimizer first)": lambda folder, model: saved(folder, a=used_adam(model), z=model),
    "Checkpoint(loss scale optimizer)": lambda folder, model: saved(folder, a=with_loss_scale(model), model=model),
    "Checkpoint(compiled model)": lambda folder, model: saved(folder, model=compiled(model)),
    "Checkpoint(net)": lambda folder, model: saved(folder, net=model),
    "Checkpoint(root)": lambda folder, model: saved(folder, root=model),
    "Checkpoint(weights=list)": lambda folder, model: saved(folder, weights=model.weights),
    "Orbit, Model Garden": saved_by_orbit,
    "our train state": saved_by_us,
    "tf.saved_model.save": saved_as_saved_model,
    "model.export": exported,
    "TF1 names": saved_by_names,
    ".weights.h5": saved_with(lambda model, path: model.save_weights(path), "m.weights.h5"),
    ".weights.h5, compiled": saved_with(lambda model, path: compiled(model).save_weights(path), "m.weights.h5"),
    ".weights.json, shards": saved_with(lambda m, path: m.save_weights(path, max_shard_size=2e-6), "m.weights.json"),
    ".keras": saved_with(lambda model, path: model.save(path), "m.keras"),
    ".keras, compiled": saved_with(lambda model, path: compiled(model).save(path), "m.keras"),
    "old .h5 of Keras 3": saved_with(lambda model, path: model.save(path), "m.h5"),
    ".safetensors": saved_with(save_safetensors, "m.safetensors"),
    ".safetensors, shards": saved_with(save_safetensors_shards, "model.safetensors.index.json"),
    "Hugging Face TF safetensors": saved_with(save_as_hugging_face, "model.safetensors"),
    ".npz, named": saved_with(lambda model, path: np.savez(path, **named(model)), "m.npz"),
    ".npz, a list": saved_with(lambda model, path: np.savez(path, *model.get_weights()), "m.npz"),
}
# The names in TensorFlow's checkpoints and SavedModels tell all layers of these apart.
WITH_PATHS = [
    "functional", "sequential", "nested functional", "named functional", "recurrent", "shared layer", "MobileNetV2",
    "EfficientNet stem",
]  # fmt: skip
LISTS = {  # by order, and only on request
    "model.export": "in a bare list", ".npz, a list": "in a bare list",
    "Checkpoint(weights=list)": "fits no variable of the model",
}  # fmt: skip
IN_MAKE_TEST = ("functional", "layers in lists")
IN_MAKE_TEST_TOO = [("Checkpoint(weights=list)", "EfficientNet stem"), ("Keras 2 Checkpoint(weights=list)", "text")]
OBJECT_GRAPHS = [
    name for name in WRITERS if name not in LISTS and (name.startswith("Checkpoint(") or name == "Orbit, Model Garden")
]
SLOW = {"MobileNetV2": ("Checkpoint(model, optimizer)", "model.export", ".weights.h5", ".keras", "old .h5 of Keras 3")}


def cells():
    for writer in WRITERS:
        for kind in KINDS:
            if writer in SLOW.get(kind, WRITERS):
                # Each writer and each kind in `make test`, and all of them with each other in `make test-all`.
                is_fast = kind in IN_MAKE_TEST or writer == "Checkpoint(model)" or (writer, kind) in IN_MAKE_TEST_TOO
                marks = () if is_fast else pytest.mark.full
                yield pytest.param(writer, kind, id=f"{writer}-{kind}", marks=marks)


@pytest.mark.parametrize(("writer", "kind"), cells())
def test_an_unbuilt_model_is_filled_bit_for_bit_or_refused(writer, kind, tmp_path, zoo_cell):
    build, spec = KINDS[kind]
    source = built(build(), spec)
    path = WRITERS[writer](tmp_path, source)
    model = build()
    if kind == "layers in lists" and writer in OBJECT_GRAPHS:
        # TensorFlow does not reach these layers: they are not in the file, or only in the optimizer's list.
        outcome = refused(path, build, spec, "would be missing")
    elif writer == "Hugging Face TF safetensors" and kind == "nested":
        # Keras' paths of a Functional model's layers do not begin with the model's name, those of other layers do.
        outcome = refused(path, build, spec, "fits no variable")
    elif writer in LISTS and not (writer != ".npz, a list" and kind in WITH_PATHS):
        refused(path, build, spec, LISTS[writer])
        report = trainer.restore_weights(model, path, input_spec=spec, match="order")
        assert {record.note for record in report.restored} == {"by order"}
        outcome = "order"
    else:
        report = trainer.restore_weights(model, path, input_spec=spec)
        outcome = "whole"
    if outcome != "refused":
        assert values(model) == values(source)
        assert len(report.restored) == len(model.weights)
        assert report.problems == []
        assert report.optimizer_keys_read == 0
    zoo_cell(writer, kind, outcome)


def refused(path, build, spec, message: str) -> str:
    model = built(build(), spec, seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=message):
        trainer.restore_weights(model, path)
    assert values(model) == before
    return "refused"


@pytest.mark.parametrize("whole", [False, full(True)])
def test_an_efficientnet_h5_is_whole_by_no_rule(whole, tmp_path, zoo_cell):
    build = (lambda: keras.applications.EfficientNetB0(weights=None)) if whole else MODELS["EfficientNet stem"][0]
    model = build()
    source = built(build(), tf.TensorSpec(model.input_shape))
    source.save(tmp_path / "m.h5")
    report = trainer.restore_weights(model, tmp_path / "m.h5")
    assert values(model) == values(source)
    assert len(report.restored) == len(model.weights)
    zoo_cell("EfficientNet .h5", "EfficientNet stem", "whole")


KERAS_2 = {
    "Keras 2 Checkpoint": "checkpoint",
    "Keras 2 Checkpoint(weights=list)": "list_checkpoint",
    "Keras 2 save_weights": "weights",
    "Keras 2 legacy optimizer": "legacy_checkpoint",
    "Keras 2 SavedModel": "saved_model",
    "Keras 2 .h5 weights": "x.h5",
    "Keras 2 .h5 model": "model.h5",
    "Keras 2 .weights.h5": "x.weights.h5",
    "Keras 2 .keras": "model.keras",
}


@pytest.fixture
def keras_2_folder(written_by_keras_2):
    return written_by_keras_2 / "zoo"


# Keras 2 writes no whole subclassed model into an .h5; SavedModels take it seconds each.
KERAS_2_KINDS = {
    "Keras 2 legacy optimizer": ("subclassed", "functional", "sequential", "layers in lists"),
    "Keras 2 SavedModel": ("subclassed", "functional"),
    "Keras 2 .h5 model": tuple(
        kind for kind, (build, _) in KINDS.items() if not isinstance(build, type) and kind != "MobileNetV2"
    ),
}


def keras_2_cells():
    for writer in KERAS_2:
        for kind in KERAS_2_KINDS.get(writer, [kind for kind in KINDS if kind != "MobileNetV2"]):
            is_fast = kind in IN_MAKE_TEST or writer == "Keras 2 Checkpoint" or (writer, kind) in IN_MAKE_TEST_TOO
            marks = () if is_fast else pytest.mark.full
            yield pytest.param(writer, kind, id=f"{writer}-{kind}", marks=marks)


@pytest.mark.parametrize(("writer", "kind"), keras_2_cells())
def test_a_keras_2_file_fills_the_keras_3_model(writer, kind, keras_2_folder, zoo_cell):
    way, name = KERAS_2[writer], kind.replace("layers in lists", "in lists").replace(" ", "_")
    path = keras_2_folder / f"{name}_{way}"
    with np.load(keras_2_folder / f"{name}{'_legacy' * ('legacy' in way)}.npz") as file:
        example, output, *expected = (file[key] for key in file.files)
    build, spec = KINDS[kind]
    model = build()
    rules = {"match": "order"} if way == "list_checkpoint" else {}
    report = trainer.restore_weights(model, path, input_spec=spec, **rules)
    # Keras 2 lists a model's weights in another order: all of them are there, and each does what it did.
    assert sorted(values(model)) == sorted(value.tobytes() for value in expected)
    np.testing.assert_allclose(model(example, training=False), output, rtol=1e-5, atol=1e-6)
    assert report.optimizer_keys_read == 0
    zoo_cell(writer, kind, "order" if any("by order" in record.note for record in report.restored) else "whole")


@pytest.mark.parametrize("kind", ["subclassed", full("functional"), full("nested")])
def test_every_replica_holds_the_file_s_values(kind, strategy, tmp_path):
    build, spec = MODELS[kind]
    source = built(build(), spec)
    path = saved(tmp_path, model=source, optimizer=used_adam(source))
    with strategy.scope():
        model = build()
        report = trainer.restore_weights(model, path, input_spec=spec)

    assert report.replicas_verified == strategy.num_replicas_in_sync
    for weight, expected in zip(model.weights, values(source), strict=True):
        copies = replica_values(weight)
        assert len(copies) == strategy.num_replicas_in_sync
        assert all(copy.tobytes() == expected for copy in copies)


def test_a_model_of_two_replicas_can_be_restored_outside_of_the_scope(tmp_path):
    source = built(Plain())
    with make_strategy(2).scope():
        model = built(Plain(), seed=2)
    report = trainer.restore_weights(model, saved(tmp_path, model=source))
    assert report.replicas_verified == 2
    assert all(
        copy.tobytes() == expected
        for weight, expected in zip(model.weights, values(source), strict=True)
        for copy in replica_values(weight)
    )


@pytest.mark.full
def test_a_plan_costs_in_proportion_to_the_variables(tmp_path):
    def cpu_seconds(layers: int) -> float:
        source = keras.Sequential([keras.Input([2]), *(keras.layers.Dense(2) for _ in range(layers))])
        (tmp_path / str(layers)).mkdir()
        path = saved(tmp_path / str(layers), model=source, optimizer=keras.optimizers.SGD())
        took = []
        for _ in range(3):
            started = time.process_time()
            assert len(plan_weights(source, path).restored) == 2 * layers
            took.append(time.process_time() - started)
        return min(took)

    # Four times as many: 4 times as long, 16 where each is compared with all.
    assert cpu_seconds(800) < 10 * cpu_seconds(200)


@pytest.mark.parametrize("kind", ["subclassed", "functional"])
def test_a_saved_model_that_keeps_its_objects_is_read(kind, tmp_path):
    build, spec = MODELS[kind]
    source = built(build(), spec)
    model = build()
    trainer.restore_weights(model, saved_as_saved_model(tmp_path, source), input_spec=spec)
    assert values(model) == values(source)


def test_an_exported_model_has_no_names_and_is_refused_with_the_reason(tmp_path):
    source = built(Plain())
    source.export(str(tmp_path / "export"), verbose=False)
    model = built(Plain(), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=r"bare list.*model.export\(\)"):
        trainer.restore_weights(model, tmp_path / "export")
    assert values(model) == before


def test_an_exported_model_s_weights_can_be_named_one_by_one(tmp_path):
    source = built(Plain())
    source.export(str(tmp_path / "export"), verbose=False)
    model = Plain()
    names = [
        "body/kernel", "body/bias", "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance",
        "head/kernel", "head/bias",
    ]  # fmt: skip
    places = [0, 1, 2, 3, 4, 5, 7, 8]  # 6 is the Dropout's seed
    rename = [(f"^variables/{place}$", name) for place, name in zip(places, names, strict=True)]
    ignore = ["^all_variables/", "^variables/6$"]
    trainer.restore_weights(model, tmp_path / "export", rename, ignore=ignore, input_spec=FOUR)
    assert values(model) == values(source)


def test_moving_statistics_come_along(tmp_path):
    source = built(Plain())
    source.norm.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    model = Plain()
    trainer.restore_weights(model, saved(tmp_path, model=source), input_spec=FOUR)
    assert model.norm.moving_mean.numpy().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_seed_generators_are_no_weights(tmp_path):
    source = built(Plain())
    assert len(source.variables) == len(source.weights) + 1  # the Dropout's generator
    model = Plain()
    report = trainer.restore_weights(model, saved_by_us(tmp_path, source), input_spec=FOUR)
    assert len(report.restored) == 8
    assert [key for key in report.other_keys if "seed_generator" in key]


@pytest.mark.parametrize(
    ("with_head", "message"), [(True, "4 of 6 model variables would be missing"), (False, "0 of 4 would be restored")]
)
def test_layers_in_python_lists_are_refused_with_the_count_from_a_plain_checkpoint(with_head, message, tmp_path):
    source = built(InLists(with_head))
    model = built(InLists(with_head), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=message):
        trainer.restore_weights(model, saved(tmp_path, model=source))
    with pytest.raises(trainer.RestoreError, match="in a bare list, such as optimizer/trainable_variables/0"):
        trainer.restore_weights(model, saved(tmp_path, model=source, optimizer=used_adam(source)))
    assert values(model) == before


@pytest.mark.parametrize("with_head", [True, False])
def test_layers_in_python_lists_come_back_from_our_own_train_state(with_head, tmp_path):
    source = built(InLists(with_head))
    path = saved_by_us(tmp_path, source)
    model = InLists(with_head)
    trainer.restore_weights(model, path, input_spec=FOUR)
    assert values(model) == values(source)


def test_weights_that_stand_under_the_optimizer_only_are_found_by_the_object_graph(tmp_path):
    source = built(functional())
    path = saved(tmp_path, a=used_adam(source), z_is_a_longer_way=tf.train.Checkpoint(model=source))
    keys = [name for name, _ in tf.train.list_variables(path) if "trainable_variables/0/" in name]
    assert keys == ["a/_trainable_variables/0/.ATTRIBUTES/VARIABLE_VALUE"]
    model = functional()
    report = trainer.restore_weights(model, path)
    assert values(model) == values(source)
    assert keys[0] in [record.key for record in report.restored]
    assert len(report.optimizer_keys) == 2 + 2 * len(source.trainable_variables)  # iterations, rate, two slots each


def test_a_compiled_model_keeps_its_own_optimizer(tmp_path):
    source = compiled(built(Plain()))
    model = built(Plain(), seed=2)
    model.compile(optimizer=keras.optimizers.SGD(0.5, momentum=0.9), loss="mse")
    model.optimizer.build(model.trainable_variables)
    trainer.restore_weights(model, saved(tmp_path, model=source))
    assert values(model) == values(source)
    assert int(model.optimizer.iterations.numpy()) == 0
    assert float(model.optimizer.learning_rate.numpy()) == 0.5


def test_twins_are_not_taken_for_each_other(tmp_path):
    source = built(Twins())
    model = built(Twins(), seed=2)
    report = trainer.restore_weights(model, saved(tmp_path, model=source))
    assert sorted(record.name for record in report.restored) == [
        "_proj/bias", "_proj/kernel", "proj/bias", "proj/kernel",
    ]  # fmt: skip
    assert values(model) == values(source)
