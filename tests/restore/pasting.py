"""Reads the lines that a refusal proposes as gin does, pastes them, and restores; and models that need them."""

import re

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import built, layers, values

import trainer
from trainer.restore import weights_of


def refusal(model, path, **rules) -> str:
    before = values(model)
    with pytest.raises(trainer.RestoreError) as caught:
        trainer.restore_weights(model, path, **rules)
    assert values(model) == before
    return str(caught.value)


def proposed(message: str) -> list[dict]:
    """The alternatives in a message, each as what gin reads from its lines."""
    lines = [line for line in message.splitlines() if line.startswith(("  Restore.", "  # "))]
    blocks = re.split(r"^  # or.*$", "\n".join(lines), flags=re.M)
    found = []
    for block in filter(str.strip, blocks):
        with gin.unlock_config():
            gin.clear_config()
            gin.parse_config(block.replace("\n  ", "\n").strip(), skip_unknown=False)
        found.append(gin.get_bindings("Restore"))
    return found


def paste_all(build, path, message: str, **rules) -> list[tuple[dict, keras.Model]]:
    """(proposal, the model that it filled) of each proposal; one that leaves problems must say how many."""
    said = re.search(r"leaves (\d+) (of \d+ )?problem", message)
    assert said, message
    left = int(said[1])
    found = []
    for proposal in proposed(message):
        model = build()
        if left:
            with pytest.raises(trainer.RestoreError) as caught:
                trainer.restore_weights(model, path, **rules | proposal)
            assert len(caught.value.report.problems) == left
        else:
            assert trainer.restore_weights(model, path, **rules | proposal).problems == []
        found.append((proposal, model))
    assert found
    return found


class Words(keras.Model):
    def __init__(self, tokens: int, width: int = 4):
        super().__init__()
        self.embed = layers.Embedding(tokens, width)
        self.head = layers.Dense(2)

    def call(self, tokens):
        return self.head(self.embed(tokens))


class Stack(keras.Model):
    """Dense layers of four units under the names that are asked for."""

    def __init__(self, *names: str, last: int = 4):
        super().__init__()
        self.order = names
        for name in names:
            setattr(self, name, layers.Dense(last if name == names[-1] else 4))

    def call(self, x):
        for name in self.order:
            x = getattr(self, name)(x)
        return x


def image_model(channels: int) -> keras.Model:
    model = keras.Sequential([keras.Input([5, 5, channels]), layers.Conv2D(3, 3, name="conv"), layers.Flatten()])
    return built(model, tf.TensorSpec([None, 5, 5, channels]))


def named(model, end: str = "") -> dict[str, np.ndarray]:
    return {weight.name + end: weight.variable.numpy() for weight in weights_of(model)}


def written_by_tf1(folder, tensors: dict[str, np.ndarray]) -> str:
    path = str(folder / "model.ckpt")
    tf.raw_ops.SaveV2(
        prefix=path, tensor_names=list(tensors), shape_and_slices=[""] * len(tensors), tensors=list(tensors.values())
    )
    return path
