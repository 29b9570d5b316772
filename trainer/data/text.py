"""Text to token numbers, by a tokenizer of the `tokenizers` library."""

import functools
import os
from collections.abc import Mapping

import gin
import numpy as np
import tensorflow as tf

from trainer.data.padding import pad_to
from trainer.errors import UserError

_PAD_TOKENS = ("[PAD]", "<pad>", "<|padding|>")


@gin.register(module="pipeline")
def tokenize(
    example: Mapping, file: str, length: int, key: str = "text", into: str = "tokens", mask: str | None = None
) -> dict:
    """Turns a text into token numbers, int64 [length]; for `prepare`.

    example: feature -> tensor; `key` is a scalar string and is left out of what is returned.
    file: `tokenizer.json`, as Hugging Face folders hold it.
    length: a longer text is cut as the tokenizer cuts, its special tokens kept; a shorter one is padded at its end by
      the tokenizer's padding token, or 0 where it has none.
    key: the feature that holds the text.
    into: the feature that holds the numbers.
    mask: a feature that is True for tokens and False for padding, bool [length]; None for none.

    Raises `UserError` for a file that is no tokenizer, and where the package `tokenizers` is missing.
    """
    if key not in example or example[key].dtype != tf.string or example[key].shape.rank:
        known = ", ".join(example)
        raise UserError(f"tokenize.key: the feature {key!r} must be one text an example; the features are {known}.")
    tokenizer, padding = _tokenizer(os.path.expanduser(file), length)

    def encode(text: bytes) -> np.ndarray:
        return np.array(tokenizer.encode(text.decode("utf-8", errors="replace")).ids, np.int64)

    numbers = tf.ensure_shape(tf.numpy_function(encode, [example[key]], tf.int64, stateful=False), [None])
    others = {name: value for name, value in example.items() if name != key}
    found = pad_to({into: numbers}, {into: length}, padding)
    if mask is not None:
        found[mask] = tf.range(length) < tf.shape(numbers)[0]
    return {**others, **found}


@functools.lru_cache(maxsize=4)
def _tokenizer(file: str, length: int):
    """(the tokenizer, which cuts at `length`, the number of its padding token)."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError("tokenize needs the package tokenizers: pip install 'regraft[text]'.") from error
    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # noqa: BLE001  the library raises bare Exception for whatever is wrong with a file
        raise UserError(f"tokenize.file {file} is no tokenizer of the tokenizers library: {error}.") from error
    given = tokenizer.padding
    numbers = [number for number in map(tokenizer.token_to_id, _PAD_TOKENS) if number is not None]
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return tokenizer, given["pad_id"] if given else (numbers or [0])[0]
