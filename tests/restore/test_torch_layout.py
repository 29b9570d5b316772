"""A matrix of PyTorch, [out, in], does not go into a Keras kernel as it is; what is alike in both does."""

import json
import textwrap

import keras
import numpy as np
import pytest
from conftest import full
from safetensors.numpy import save_file

import trainer

layers = keras.layers
RENAME = [("weight$", "kernel")]


def random(*shape) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def dense(*sizes: int) -> keras.Model:
    return keras.Sequential(
        [keras.Input(sizes[:1]), *(layers.Dense(n, name=f"fc{i}") for i, n in enumerate(sizes[1:]))]
    )


def state_dict(*sizes: int) -> dict[str, np.ndarray]:
    """Of torch.nn.Linear layers fc0, fc1, ..."""
    tensors = {}
    for index, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        tensors |= {f"fc{index}.weight": random(outputs, inputs), f"fc{index}.bias": random(outputs)}
    return tensors


def save_with_index(tensors, path, metadata) -> None:
    path.parent.mkdir()
    files = {name: f"{index}.safetensors" for index, name in enumerate(tensors)}
    for name, file in files.items():
        save_file({name: tensors[name]}, path.parent / file, metadata)
    path.write_text(json.dumps({"weight_map": files}))


WAYS = {
    "metadata": ("m.safetensors", lambda tensors, path: save_file(tensors, path, {"format": "pt"})),
    "names": ("m.safetensors", save_file),
    "npz": ("m.npz", lambda tensors, path: np.savez(path, **tensors)),
    "shards": ("m/m.safetensors.index.json", lambda tensors, path: save_with_index(tensors, path, {"format": "pt"})),
}


def written(folder, tensors, way="metadata"):
    name, save = WAYS[way]
    save(tensors, folder / name)
    return folder / name


def refusal(model, path, **rules) -> trainer.RestoreError:
    before = [weight.numpy() for weight in model.weights]
    with pytest.raises(trainer.RestoreError) as caught:
        trainer.restore_weights(model, path, **rules)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    return caught.value


def pasted(message: str) -> None:
    """Runs the lines of Python that a message proposes."""
    exec(textwrap.dedent(message[message.index("  import re") :]), {})


@pytest.mark.parametrize("way", ["metadata", "npz", full("names"), full("shards")])
def test_square_torch_matrices_are_refused_and_the_program_pasted_restores_them(way, tmp_path):
    tensors = state_dict(4, 4, 4)
    path = written(tmp_path, tensors, way)
    model = dense(4, 4, 4)
    message = str(refusal(model, path, rename=RENAME))
    assert "PyTorch" in message and "[out, in]" in message and "cannot transpose" in message
    assert "concerns 2 of the model's variables, 2 of them square" in message
    assert "fc0/kernel (4, 4) takes fc0.weight (4, 4)" in message
    assert "reinitialize" not in message and "layout =" not in message
    pasted(message)
    trainer.restore_weights(model, path.parent / "m_keras.npz")
    x = random(2, 4)
    hidden = x @ tensors["fc0.weight"].T + tensors["fc0.bias"]
    expected = hidden @ tensors["fc1.weight"].T + tensors["fc1.bias"]
    np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)


def test_a_torch_matrix_that_fits_transposed_is_said_so(tmp_path):
    model = dense(4, 3)
    error = refusal(model, written(tmp_path, state_dict(4, 3)), rename=RENAME)
    assert "fc0/kernel (4, 3) takes fc0.weight (3, 4); transposed to (4, 3) it fits" in str(error)
    assert "reinitialize" not in str(error)
    (record,) = error.report.mismatched
    assert record.note == "PyTorch's layout; transposed to (4, 3) it fits"
    pasted(str(error))
    trainer.restore_weights(model, tmp_path / "m_keras.npz")


KERNELS = {
    "Conv2D": (lambda: layers.Conv2D(3, 3, name="x", use_bias=False), (5, 5, 3), (3, 3, 3, 3), (2, 3, 1, 0)),
    "Conv1D": (lambda: layers.Conv1D(4, 4, name="x", use_bias=False), (5, 4), (4, 4, 4), (2, 1, 0)),
    "EinsumDense": (lambda: layers.EinsumDense("ab,bc->ac", [4], name="x"), (4,), (4, 4), (1, 0)),
}


@pytest.mark.parametrize("name", ["Conv2D", *map(full, list(KERNELS)[1:])])
def test_square_kernels_of_other_layers_are_refused(name, tmp_path):
    build, inputs, shape, axes = KERNELS[name]
    model = keras.Sequential([keras.Input(inputs), build()])
    value = random(*shape)
    pasted(str(refusal(model, written(tmp_path, {"x.weight": value}), rename=RENAME)))
    trainer.restore_weights(model, tmp_path / "m_keras.npz")
    np.testing.assert_array_equal(model.weights[0], value.transpose(axes))


class Tokens(keras.Model):
    """A square embedding, a normalization over two axes and a vector."""

    def __init__(self):
        super().__init__()
        self.table = layers.Embedding(4, 4)
        self.norm = layers.LayerNormalization(axis=(1, 2))

    def call(self, x):
        return self.norm(self.table(x))


def test_torch_tensors_that_keras_lays_out_alike_are_restored(tmp_path):
    tensors = {"table.weight": random(4, 4), "norm.weight": random(4, 4) + 1, "norm.bias": random(4, 4)}
    model = Tokens()
    model(np.zeros([1, 4], np.int32))
    rename = [("table/weight", "table/embeddings"), ("norm/weight", "norm/gamma"), ("norm/bias", "norm/beta")]
    trainer.restore_weights(model, written(tmp_path, tensors), rename=rename)
    np.testing.assert_array_equal(model.table.embeddings, tensors["table.weight"])
    np.testing.assert_array_equal(model.norm.gamma, tensors["norm.weight"])


@pytest.mark.parametrize(
    ("key", "metadata"),
    [
        ("fc0.kernel", {"format": "pt"}), ("fc0.weight", {"format": "tf"}), full("fc0.weight", {"format": "flax"}),
        full("fc0/weight", None),
    ],
)  # fmt: skip
def test_a_square_kernel_in_keras_layout_is_restored(key, metadata, tmp_path):
    tensors = {key: random(4, 4), key[:4] + "bias": random(4)}
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    model = dense(4, 4)
    trainer.restore_weights(model, tmp_path / "m.safetensors", rename=RENAME)
    np.testing.assert_array_equal(model.layers[0].kernel, tensors[key])


def test_a_torch_matrix_that_fits_only_as_it_is_is_restored(tmp_path):
    """GPT-2 writes [in, out] under the name `weight`."""
    tensors = {"fc0.weight": random(4, 3), "fc0.bias": random(3)}
    model = dense(4, 3)
    trainer.restore_weights(model, written(tmp_path, tensors), rename=RENAME)
    np.testing.assert_array_equal(model.layers[0].kernel, tensors["fc0.weight"])


def test_a_torch_head_that_starts_fresh_is_no_matter(tmp_path):
    model = dense(4, 4)
    trainer.restore_weights(
        model, written(tmp_path, state_dict(4, 4)), rename=RENAME, reinitialize=["kernel"], ignore=["weight"]
    )


def test_rows_of_a_torch_head_are_not_copied_along_the_other_axis(tmp_path):
    message = str(refusal(dense(4, 4), written(tmp_path, state_dict(4, 3)), rename=RENAME, copy_rows=[("fc0", {0: 1})]))
    assert "fc0/kernel (4, 4) takes fc0.weight (3, 4); transposed it is (4, 3)" in message
