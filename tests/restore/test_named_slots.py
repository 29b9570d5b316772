"""An optimizer's slots in a file of names are no weights of the model, and a weight is never taken for a slot."""

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import full
from safetensors.numpy import save_file

import trainer
from trainer.restore import open_checkpoint

KERNEL, BIAS = np.full((4, 3), 2.0, np.float32), np.full(3, 5.0, np.float32)
WEIGHTS = {"dense/kernel": KERNEL, "dense/bias": BIAS}


def model() -> keras.Model:
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(3, name="dense")])


def saved(folder, tensors: dict[str, np.ndarray]) -> str:
    """A checkpoint of names alone, by the operation that TF1's Saver runs."""
    tensors = tensors | {"global_step": np.int64(5)}
    prefix = str(folder / "model.ckpt-5")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    return prefix


def slots(*patterns: str, shape=lambda value: value) -> dict[str, np.ndarray]:
    return {pattern.format(name): shape(value) for name, value in WEIGHTS.items() for pattern in patterns}


def restored_without(path, num_slots: int):
    target = model()
    report = trainer.restore_weights(target, path)
    np.testing.assert_array_equal(target.layers[0].kernel, KERNEL)
    assert report.unused == [] and len(report.optimizer_keys) == num_slots
    return report


OPTIMIZERS = {
    "TF1": ["{}/Adam", "{}/Adam_1"],
    "TF1, named by the user": ["{}/Adam_G", "{}/Adam_G_1"],
    "TF1, centered": ["{}/RMSProp", "{}/RMSProp_1", "{}/RMSProp_2"],
    "T5": ["{}_slot_v", "{}_slot_m"],
    "BERT": ["{}/adam_m", "{}/adam_v"],
    "ALBERT": ["{}/AdamWeightDecayOptimizer", "{}/AdamWeightDecayOptimizer_1"],
    "contrib": ["{}/AdamW", "{}/AdamW_1"],
    "LAMB": ["{}/lamb_m", "{}/lamb_v"],
    "NovoGrad": ["{}/NovoGrad", "{}/NovoGrad_1"],
    "AdaMax": ["{}/AdaMax", "{}/AdaMax_1"],
    "LARS": ["{}/LARSOptimizer"],
    "Mesh TensorFlow": ["{}_momentum_v"],
    "Keras in TF1": ["training/Adam/{}/m", "training/Adam/{}/v"],
    "Keras in TF1, a class of the user's": ["training_2/Mine/{}/m"],
    "Keras 3": ["adam/{}_velocity"],
    "Keras in TF2": ["SGD/{}/momentum"],
    "Keras 2.11": ["Adam/m/{}", "Adam/v/{}"],
}


@pytest.mark.parametrize("name", [name if name in ("TF1", "T5", "Keras in TF1") else full(name) for name in OPTIMIZERS])
def test_slots_of_known_optimizers_are_no_weights(name, tmp_path):
    restored_without(saved(tmp_path, WEIGHTS | slots(*OPTIMIZERS[name])), 2 * len(OPTIMIZERS[name]))


def test_factored_and_scalar_slots_are_no_weights(tmp_path):
    factored = {"dense/kernel_slot_vr": np.zeros(4, "f"), "dense/kernel_slot_vc": np.zeros(3, "f")}
    layerwise = {"dense/kernel/NovoGrad_1": np.float32(0), "dense/kernel/Adafactor": np.zeros((1, 3), "f")}
    powers = {"beta1_power": np.float32(0.9), "dense/beta2_power_1": np.float32(0.9)}
    restored_without(saved(tmp_path, WEIGHTS | factored | layerwise | powers), 6)


def test_keras_optimizer_settings_in_a_tf1_file_are_no_weights(tmp_path):
    settings = {f"training/SGD/{name}": np.float32(1) for name in ("decay", "learning_rate", "momentum")}
    unnamed = {"training/SGD/Variable": np.zeros_like(KERNEL), "training/SGD/Variable_1": np.zeros_like(BIAS)}
    restored_without(saved(tmp_path, WEIGHTS | settings | unnamed), 5)


@pytest.mark.parametrize(
    "name", [full("AdamOptimizer"), full("AdadeltaOptimizer"), full("FtrlOptimizer"), "RMSPropOptimizer"]
)
def test_a_file_of_tf1_itself_is_restored(name, tmp_path):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = [v1.get_variable(key, initializer=value, use_resource=False) for key, value in WEIGHTS.items()]
        loss = sum(tf.reduce_sum(variable) for variable in variables)
        getattr(v1.train, name)(0.1).minimize(loss)
        session.run(v1.global_variables_initializer())
        count = len(v1.global_variables()) - 2
        path = v1.train.Saver().save(session, str(tmp_path / "model.ckpt"))
    restored_without(path, count)


def save_hdf5(tensors, path) -> None:
    with h5py.File(path, "w") as file:
        for name, value in tensors.items():
            file[name] = value


DUMPS = {"m.npz": lambda tensors, path: np.savez(path, **tensors), "m.safetensors": save_file, "m.h5": save_hdf5}


@pytest.mark.parametrize("name", ["m.npz", full("m.safetensors"), full("m.h5")])
def test_slots_in_a_dump_of_variables_are_no_weights(name, tmp_path):
    """Names of TF1 end in `:0`, also that of the variable that a slot stands below."""
    tensors = WEIGHTS | slots("{}/Adam", "{}/Adam_1")
    tensors |= {"beta1_power": np.float32(0.9), "adam/learning_rate": np.float32(0.1)}
    DUMPS[name]({f"{key}:0": np.asarray(value) for key, value in tensors.items()}, tmp_path / name)
    restored_without(tmp_path / name, 6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("w", "w_1"), ("w", "w/v"), full("gamma", "gamma_v"), full("w", "w/lambda"), full("w", "w_slot_values"),
        full("training/w", "w"), full("encoder/dense/w", "momentum_encoder/dense/w"), full("adam/w", "eve/w"),
        full("dense/w", "momentum/dense/w"), full("dense/w", "momentum/dense/w_1"), full("w", "momentum/dense/w"),
    ],
)  # fmt: skip
def test_a_weight_beside_another_is_no_slot(one, other, tmp_path):
    path = saved(tmp_path, {one: KERNEL, other: KERNEL})
    source = open_checkpoint(path)
    assert {entry.key for entry in source.of_kind("weight")} == {one, other}
    assert source.of_kind("optimizer") == []


def test_a_known_suffix_of_another_shape_is_a_weight(tmp_path):
    path = saved(tmp_path, WEIGHTS | {"dense/kernel/Adam": np.zeros((3, 7), "f"), "other/Adam": KERNEL})
    with pytest.raises(trainer.RestoreError, match="2 checkpoint weights unused"):
        trainer.restore_weights(model(), path)


def test_slots_of_an_unknown_optimizer_are_refused_until_their_suffix_is_ignored(tmp_path):
    path = saved(tmp_path, WEIGHTS | slots("{}/Bespoke", "{}/Bespoke_1"))
    with pytest.raises(trainer.RestoreError, match="4 checkpoint weights unused"):
        trainer.restore_weights(model(), path)
    trainer.restore_weights(model(), path, ignore=["/Bespoke(_1)?$"])
