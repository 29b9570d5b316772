"""Where no rule would be right, a refusal proposes none and names what a person has to look at."""

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from conftest import full
from pasting import Stack, proposed, refusal, written_by_tf1
from test_zoo import WRITERS
from zoo import Plain, TwoDense, built, layers, saved


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["first", "second", "third"], ["x", "y", "z"]),
        full(["layers_0", "layers_1", "layers_2"], ["layer_1", "layer_2", "layer_3"]),
    ],
)
def test_names_that_do_not_decide_are_listed_and_nothing_is_proposed(theirs, ours, tmp_path):
    message = refusal(built(Stack(*ours)), saved(tmp_path, model=built(Stack(*theirs))))
    assert not proposed(message)
    assert "Restore.rename can" in message
    assert f"  {ours[0]}/(kernel, bias): perhaps model/{theirs[0]}/(kernel, bias), model/{theirs[1]}/" in message


@pytest.mark.parametrize("numbers", [(range(3), range(1, 4)), full((range(1, 4), range(3)))])
def test_a_layer_is_not_proposed_for_another_place_in_a_row(numbers, tmp_path):
    """Two layers of three have equal names, by a shift: the third would complete a wrong restore."""
    theirs, ours = (built(Stack(*(f"layer_{number}" for number in row))) for row in numbers)
    message = refusal(ours, saved(tmp_path, model=theirs))
    assert not proposed(message)
    (left,), (open_place,) = set(numbers[0]) - set(numbers[1]), set(numbers[1]) - set(numbers[0])
    assert f"  layer_{open_place}/(kernel, bias): perhaps layer_{left}/(kernel, bias)" in message


def test_a_weight_that_the_file_might_fill_is_never_proposed_to_start_fresh(tmp_path):
    weights = {"norm/scale": np.ones(4, np.float32), "norm/shift": np.zeros(4, np.float32)}
    source = keras.Sequential([keras.Input([4]), layers.LayerNormalization(name="norm"), layers.Dense(2, name="head")])
    safetensors.numpy.save_file(
        weights | {f"head/{name}": np.asarray(getattr(source.layers[1], name)) for name in ("kernel", "bias")},
        tmp_path / "m.safetensors",
    )
    message = refusal(source, tmp_path / "m.safetensors")
    assert not proposed(message)
    assert "norm/(gamma, beta): perhaps norm/(scale, shift)" in message


def test_a_few_layers_that_look_alike_are_no_root(tmp_path):
    """Three blocks have six of the model's 26 variables each; the names are shown whole."""
    model = built(keras.Sequential([keras.Input([4]), *(layers.Dense(4, name=f"d{place}") for place in range(13))]))
    kernel, bias = np.ones([4, 4], np.float32), np.ones([4], np.float32)
    places = [f"net/block{block}/d{place}" for block in range(3) for place in range(3)]
    path = written_by_tf1(
        tmp_path, {f"{place}/kernel": kernel for place in places} | {f"{place}/bias": bias for place in places}
    )
    message = refusal(model, path)
    assert "Restore.root" not in message and not proposed(message)
    assert all(f"d{place}/kernel" in message for place in range(13))
    assert "net/block2/d2/kernel" in message


def test_an_order_that_does_not_fit_is_not_proposed_and_says_why(tmp_path):
    np.savez(tmp_path / "m.npz", *built(Plain()).get_weights()[:-1])
    message = refusal(built(Plain()), tmp_path / "m.npz")
    assert not proposed(message)
    assert "The order of the list does not help: " in message and "arr, 7 long" in message


def quantized():
    model = built(TwoDense(), seed=2)
    model.quantize("int8")
    return model


@pytest.mark.parametrize("write", ["Checkpoint(model)", full(".weights.h5"), full(".safetensors")])
def test_floats_for_a_quantized_model_are_named_and_no_line_is_proposed(write, tmp_path):
    message = refusal(quantized(), WRITERS[write](tmp_path, built(TwoDense())))
    assert "encoder/kernel is int8 in the model, and the checkpoint has floats only" in message
    assert "restore first, quantise afterwards" in message
    assert "  Restore." not in message


@pytest.mark.parametrize("write", ["Checkpoint(model)", full(".weights.h5")])
def test_a_quantized_file_for_a_model_of_floats_is_named(write, tmp_path):
    message = refusal(built(TwoDense()), WRITERS[write](tmp_path, quantized()))
    assert "is int8 in the checkpoint, and the model has floats only" in message
    assert "  Restore." not in message


def test_integers_for_floats_are_named_and_no_line_is_proposed(tmp_path):
    source = built(TwoDense())
    integers = tf.train.Checkpoint(kernel=tf.Variable(tf.ones([4, 2], tf.int32)), bias=tf.Variable([0.0, 0.0]))
    message = refusal(built(TwoDense(), seed=2), saved(tmp_path, encoder=source.encoder, head=integers))
    assert "head/kernel is float32 in the model and int32 in the checkpoint" in message
    assert "  Restore." not in message
