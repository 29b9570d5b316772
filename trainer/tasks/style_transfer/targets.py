"""Data whose examples are target images: a content photograph, and the photograph whose style it shall get."""

import dataclasses
from collections.abc import Sequence

import gin
import numpy as np

from trainer.data.data import Data
from trainer.errors import UserError
from trainer.tasks.style_transfer.photographs import read_photograph, title_of


@dataclasses.dataclass(frozen=True)
class TargetImages(Data):
    """titles: what files and headings call each example, every one another."""

    titles: Sequence[str] = ()


@gin.register(module="pipeline")
def target_images(contents: Sequence[str], styles: Sequence[str], size: int = 128) -> Data:
    """One example for each image that is to be made, in memory.

    contents: the content photographs, each a path or a shipped one's name, see `read_photograph`.
    styles: the style photographs, one for each of `contents`, or a single one for all.
    size: height and width of all of them, in pixels.

    The features: `image`, the content photograph, and `style`, [size, size, 3] float32 from 0 to 1, and
    `index`, int32, the example's place in `contents`.

    Raises `UserError` for images that cannot be read, and for numbers that do not go together.
    """
    check_photographs("target_images.contents", contents)
    check_photographs("target_images.styles", styles)
    if size < 1:
        raise UserError(f"target_images.size = {size} must be 1 or more.")
    if len(styles) not in (1, len(contents)):
        raise UserError(
            f"target_images has {len(contents)} contents and {len(styles)} styles; give one for each, or one for all."
        )
    read = {name: read_photograph(name, size) for name in dict.fromkeys([*contents, *styles])}
    each_style = list(styles) if len(styles) > 1 else list(styles) * len(contents)
    examples = {
        "image": np.stack([read[name] for name in contents]),
        "style": np.stack([read[name] for name in each_style]),
        "index": np.arange(len(contents), dtype=np.int32),
    }
    return TargetImages("target_images", len(contents), examples=examples, titles=_titles(contents))


def check_photographs(what: str, names) -> None:
    """Raises `UserError` for what is no list of names with something in it."""
    if isinstance(names, str):
        raise UserError(f"{what} is a list of images; write {what} = [{names!r}].")
    if not names:
        raise UserError(f"{what} names no image.")


def _titles(names: Sequence[str]) -> list[str]:
    titles = [title_of(name) for name in names]
    return [title if titles.count(title) == 1 else f"{title}_{place}" for place, title in enumerate(titles)]
