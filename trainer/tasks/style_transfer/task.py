"""The task of style transfer: which losses a picture is trained by, and what is written down of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import gin
import keras
import numpy as np
import tensorflow as tf

from trainer.data.data import Data
from trainer.errors import UserError
from trainer.tasks.loss_terms import MeanLoss, of_real_rows, regularization, weighted_sums
from trainer.tasks.style_transfer.contact_sheet import draw_contact_sheet, write_picture
from trainer.tasks.style_transfer.extractor import LAYERS, Vgg19, check_layer, smallest_size
from trainer.tasks.style_transfer.losses import content_loss, gram_matrix, style_loss, total_variation
from trainer.tasks.task import Task

_MAX_PICTURES = 8  # are written down at a time, the first of the data
_ROWS = 8  # examples that are looked at together, before the first step and for pictures


class StyleTransferTask(Task):
    """Content and style losses between what the model makes of an example and the example's two photographs."""

    def __init__(
        self,
        inputs,
        extractor: Vgg19,
        content_layers: Mapping[str, float],
        style_layers: Mapping[str, float],
        content_weight: float,
        style_weight: float,
        total_variation_weight: float,
    ):
        super().__init__(inputs)
        self._extractor = extractor
        self._content_layers = dict(content_layers)
        self._style_layers = dict(style_layers)
        self._weights = {
            "content_loss": content_weight,
            "style_loss": style_weight,
            "total_variation": total_variation_weight,
        }

    @property
    def _layers(self) -> list[str]:
        return [layer for layer in LAYERS if layer in self._content_layers or layer in self._style_layers]

    def describe(self):
        return {
            "inputs": self.inputs,
            "extractor": self._extractor.description.splitlines()[0],
            "content_layers": self._content_layers,
            "style_layers": self._style_layers,
            **self._weights,
        }

    def notes(self):
        return {
            "extractor": f"{self._extractor.description}\n{'':17}{', '.join(self._layers)}; in no checkpoint of the run"
        }

    def features(self):
        return list(dict.fromkeys([*super().features(), "image", "style"]))

    def completed(self, data):
        """Adds what the losses compare with, which stays the same at every step.

        `content/LAYER`: the content photograph's features, [height, width, channels].
        `style/LAYER`: the Gram matrix of the style photograph's, [channels, channels].
        """
        self.check_features(data.batch_spec)
        if data.examples is None or data.preprocess is not None:
            raise UserError(
                f"style_transfer needs its target images in memory and as they are, as target_images() gives them; "
                f"{data.label} is {'streamed' if data.examples is None else 'preprocessed'}."
            )
        self._check_size(data)
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, data.num_examples, _ROWS):
            rows = {key: tf.constant(value[start : start + _ROWS]) for key, value in data.examples.items()}
            for name, value in self._targets(rows["image"], rows["style"]).items():
                parts.setdefault(name, []).append(value.numpy())
        examples = {**data.examples, **{name: np.concatenate(values) for name, values in parts.items()}}
        return dataclasses.replace(data, examples=examples)

    def loss_and_outputs(self, model, batch, weight, training):
        pictures, terms = self._terms(model, batch, training)
        loss_sum, total = weighted_sums(self._total(terms), weight)
        return loss_sum + regularization(model) * total if model.losses else loss_sum, total, pictures

    def new_metrics(self):
        return {"loss": MeanLoss()} | {name: keras.metrics.Mean(name=name) for name in self._weights}

    def update_metrics(self, metrics, model, batch, weight):
        def terms_of(batch, weight):
            return self._terms(model, batch, training=False)[1]

        _, weight, terms = of_real_rows(terms_of, model, batch, weight)
        metrics["loss"].update_state(self._total(terms), weight, regularization(model), weight)
        for name, values in terms.items():
            metrics[name].update_state(values, sample_weight=weight)

    def write_artifacts(self, model, data: Data, folder: Path, step: int) -> None:
        """Writes each picture as `step_000100_TITLE.png`, and all so far, with their photographs, as one sheet."""
        assert data.examples is not None
        folder.mkdir(exist_ok=True)
        count = min(data.num_examples, _MAX_PICTURES)
        rows = {key: tf.constant(value[:count]) for key, value in data.examples.items()}
        pictures = self._pictures(model, rows, training=False).numpy()
        titles = list(getattr(data, "titles", ()))[:count] or [f"image_{place}" for place in range(count)]
        for title, picture in zip(titles, pictures, strict=True):
            write_picture(folder, step, title, picture)
        draw_contact_sheet(folder, step, titles, data.examples["image"][:count], data.examples["style"][:count])

    def _pictures(self, model, batch, training: bool) -> tf.Tensor:
        return tf.cast(model(self.model_inputs(batch), training=training), tf.float32)

    def _terms(self, model, batch, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The pictures that the model makes, and the three losses of each, [batch], before they are weighed."""
        pictures = self._pictures(model, batch, training)
        if pictures.shape[1:] != batch["image"].shape[1:]:
            raise UserError(
                f"The model makes pictures of {pictures.shape[1:]} for photographs of {batch['image'].shape[1:]}; "
                "style_transfer needs them alike."
            )
        seen = self._extractor.features(pictures, self._layers)
        content = {layer: content_loss(seen[layer], batch[f"content/{layer}"]) for layer in self._content_layers}
        style = {layer: style_loss(gram_matrix(seen[layer]), batch[f"style/{layer}"]) for layer in self._style_layers}
        nothing = tf.zeros_like(pictures[:, 0, 0, 0])
        return pictures, {
            "content_loss": tf.add_n(
                [nothing, *(self._content_layers[layer] * loss for layer, loss in content.items())]
            ),
            "style_loss": tf.add_n([nothing, *(self._style_layers[layer] * loss for layer, loss in style.items())]),
            "total_variation": total_variation(pictures),
        }

    def _total(self, terms: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return tf.add_n([self._weights[name] * values for name, values in terms.items()])

    def _targets(self, image: tf.Tensor, style: tf.Tensor) -> dict[str, tf.Tensor]:
        content = self._extractor.features(image, list(self._content_layers))
        of_style = self._extractor.features(style, list(self._style_layers))
        return {f"content/{layer}": seen for layer, seen in content.items()} | {
            f"style/{layer}": gram_matrix(seen) for layer, seen in of_style.items()
        }

    def _check_size(self, data: Data) -> None:
        assert data.examples is not None
        height, width = data.examples["image"].shape[1:3]
        smallest = smallest_size(self._layers)
        if min(height, width) < smallest:
            raise UserError(
                f"The target images have {height} x {width} pixels, of which {self._layers[-1]} of VGG19 would see "
                f"next to nothing; it needs {smallest} x {smallest}. Set target_images.size, or choose lower layers."
            )


@gin.register(module="tasks")
def style_transfer(
    extractor: Vgg19,
    content_layers: Mapping[str, float],
    style_layers: Mapping[str, float],
    content_weight: float = 1.0,
    style_weight: float = 1.0,
    total_variation_weight: float = 0.0,
    inputs: str | Sequence[str] | Mapping[str, str] = "image",
) -> Task:
    """Trains a model whose output is a picture to show one photograph's content in another one's style.

    extractor: made by `vgg19(...)`; the losses compare what it sees.
    content_layers, style_layers: {layer of VGG19: its share}, `{'block4_conv2': 1.0}`.
    content_weight, style_weight, total_variation_weight: of the three losses, which are summed.
    inputs: as for `supervised`: the index of the picture for `trained_images`, the photograph for a network.

    The losses of a picture: content, the sum over `content_layers` of share x the mean of (F - P)^2; style, the sum
    over `style_layers` of share x sum (G - A)^2 / (4 N^2 M^2), with Gram matrices G and A of N channels at M places;
    total variation, the mean squared difference of neighbours. F, P and G, A are of the picture and its photograph.
    The data are made by `target_images(...)`.
    """
    if not isinstance(extractor, Vgg19):
        raise UserError(f"style_transfer.extractor must be made by vgg19(), @vgg19() in gin; it is {extractor!r}.")
    for what, layers in (("content_layers", content_layers), ("style_layers", style_layers)):
        if not isinstance(layers, Mapping):
            raise UserError(f"style_transfer.{what} maps layers to shares, {{'block4_conv2': 1.0}}; it is {layers!r}.")
        for layer, share in layers.items():
            check_layer(f"style_transfer.{what}", layer)
            _check_weight(f"style_transfer.{what}[{layer!r}]", share)
    if not content_layers and not style_layers:
        raise UserError("style_transfer has neither content_layers nor style_layers; nothing would be trained for.")
    weights = {
        "content_weight": content_weight,
        "style_weight": style_weight,
        "total_variation_weight": total_variation_weight,
    }
    for name, value in weights.items():
        _check_weight(f"style_transfer.{name}", value)
    return StyleTransferTask(inputs, extractor, content_layers, style_layers, **weights)


def _check_weight(what: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"{what} = {value!r} must be a number, 0 or more.")
