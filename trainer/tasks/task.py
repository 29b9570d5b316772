"""The interface of every task: the features that the model is called with, its loss and its metrics."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from trainer.errors import UserError
from trainer.suggest import nearest

# What TensorFlow's cross entropy says, on a CPU, of a label outside of the classes.
_WRONG_LABEL = re.compile(r"Received a label value of (-?\d+) which is outside the valid range of \[0, (\d+)\)")


@contextlib.contextmanager
def naming_wrong_labels(data) -> Iterator[None]:
    """Raises a `UserError` in place of TensorFlow's error for a label outside of the classes."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = _WRONG_LABEL.search(error.message)
        if found is None:
            raise
        raise UserError(
            f"The data {data.label} have the label {found[1]}, but the model has {found[2]} outputs, for classes 0 to "
            f"{int(found[2]) - 1}. Mend the labels, or give the model more outputs."
        ) from error


class Task:
    """The interface of every task. A batch is a dict of features; `weight` [batch] is 0 for filling, None for ones.

    inputs: the feature that the model is called with, a list of them, or a dict of the model's names for them.
    """

    def __init__(self, inputs: str | Sequence[str] | Mapping[str, str]):
        self.inputs = inputs

    def model_inputs(self, batch):
        """The features (or their specs) that the model is called with, as one value, a list or a dict."""
        if isinstance(self.inputs, str):
            return feature_of(batch, self.inputs)
        if isinstance(self.inputs, Mapping):
            return {name: feature_of(batch, feature) for name, feature in self.inputs.items()}
        return [feature_of(batch, name) for name in self.inputs]

    def features(self) -> list[str]:
        """The features that a batch must have; a loss of the user's own may want more."""
        if isinstance(self.inputs, str):
            return [self.inputs]
        return list(self.inputs.values() if isinstance(self.inputs, Mapping) else self.inputs)

    def describe(self) -> dict:
        """The settings that distinguish this task from another, as JSON values."""
        raise NotImplementedError

    def check_values(self, outputs: tf.TensorSpec, examples: Mapping) -> None:
        """Raises `UserError` for examples, feature -> [num_examples, ...], that don't fit the model's outputs."""

    def check_features(self, batch_spec: Mapping, what: str = "The data") -> None:
        """Raises `UserError` for the first feature that the data lacks.

        what: which data, for the message.
        """
        for name in self.features():
            feature_of(batch_spec, name, what)

    def completed(self, data):
        """The `Data` with what the task computes of each example once, before the first step."""
        return data

    def notes(self) -> dict[str, str]:
        """Notes that are printed before the first step, by heading."""
        return {}

    def write_artifacts(self, model, data, folder: Path, step: int) -> None:
        """Writes what is to be looked at, such as pictures; called on the chief with each evaluation.

        data: completed.
        folder: may not be there yet. A resumed run calls it for the same step again.
        """

    def loss(self, model, batch, weight, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """(sum of weighted losses, sum of weights), float32 scalars; their ratio is the mean loss.

        The sum of weights is a Python number where it follows from the batch's shape alone.
        """
        return self.loss_and_outputs(model, batch, weight, training)[:2]

    def loss_and_outputs(self, model, batch, weight, training: bool) -> tuple:
        """The result of `loss`, and the model's outputs; None where a loss of the user's own calls the model itself."""
        raise NotImplementedError

    def new_metrics(self) -> dict[str, keras.metrics.Metric]:
        """Fresh metrics by name, `loss` among them."""
        raise NotImplementedError

    def update_metrics(self, metrics, model, batch, weight) -> None:
        """Adds one batch to the metrics, in inference mode."""
        raise NotImplementedError


def feature_of(batch, name: str, what: str = "The data"):
    """One feature of a batch, or of its specs. Raises `UserError` where the data lack it."""
    if name not in batch:
        raise UserError(
            f"{what} has no feature {name!r}; it has {', '.join(batch)}.{nearest(name, batch)} Set the task's inputs "
            "and target."
        )
    return batch[name]


def check_metrics(metrics) -> None:
    """Raises `UserError` for metrics that no evaluation can have."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise UserError(f"metrics maps names to metrics, {{'accuracy': ...}}; it is {metrics!r}.")
    for name, metric in (metrics or {}).items():
        if name in ("loss", "num_examples"):
            raise UserError(f"A metric must not be named {name!r}; every evaluation has one of that name.")
        if not callable(metric):
            raise UserError(f"metrics[{name!r}] must be a metric's class or a function, not {metric!r}.")
