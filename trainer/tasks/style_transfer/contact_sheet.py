"""Writes pictures, and how they came about, as PNG files."""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import tensorflow as tf

from trainer.output.atomic_files import replacing

matplotlib.use("Agg")  # a training machine has no screen
import matplotlib.pyplot as plt  # noqa: E402

SHEET = "contact_sheet.png"
_MAX_STEPS = 6  # columns that are still large enough to look at
_INCHES = 1.6


def write_picture(folder: Path, step: int, title: str, picture: np.ndarray) -> None:
    """Writes `step_000100_TITLE.png`; picture: [height, width, 3] float32, RGB from 0 to 1."""
    pixels = np.round(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)
    with replacing(_path(folder, step, title)) as temporary:
        temporary.write_bytes(tf.io.encode_png(pixels).numpy())


def draw_contact_sheet(
    folder: Path, step: int, titles: Sequence[str], contents: np.ndarray, styles: np.ndarray
) -> None:
    """Writes all pictures of the folder up to `step` as one: a row for each title, between its two photographs.

    contents, styles: [len(titles), height, width, 3] float32 from 0 to 1.
    What is drawn is read from the folder, so that a run that was interrupted has its first pictures too.
    """
    steps = spread([found for found in _steps(folder, titles) if found <= step])
    columns = ["content", *(f"step {found}" for found in steps), "style"]
    figure, axes = plt.subplots(
        len(titles), len(columns), figsize=(_INCHES * len(columns), _INCHES * len(titles) + 0.3), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for row, (title, content, style) in enumerate(zip(titles, contents, styles, strict=True)):
        pictures = [tf.io.decode_png(tf.io.read_file(str(_path(folder, found, title)))).numpy() for found in steps]
        for column, (heading, picture) in enumerate(zip(columns, [content, *pictures, style], strict=True)):
            axis = axes[row, column]
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(heading, fontsize="small")
        axes[row, 0].set_ylabel(title, fontsize="small")
    with replacing(folder / SHEET) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _steps(folder: Path, titles: Sequence[str]) -> list[int]:
    """The steps of which every title has a picture, from the first on."""
    names = [re.fullmatch(r"step_(\d+)_.*\.png", path.name) for path in folder.iterdir()]
    steps = sorted({int(name[1]) for name in names if name})
    return [step for step in steps if all(_path(folder, step, title).exists() for title in titles)]


def _path(folder: Path, step: int, title: str) -> Path:
    return folder / f"step_{step:06d}_{title}.png"


def spread(steps: Sequence[int]) -> list[int]:
    """At most `_MAX_STEPS` of them, the first and the last among them, closer together where more happens: early."""
    if len(steps) <= _MAX_STEPS:
        return list(steps)
    places = np.unique(np.round(np.geomspace(1, len(steps), _MAX_STEPS)).astype(int)) - 1
    return [steps[place] for place in places]
