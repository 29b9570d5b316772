"""Describes the first examples of data, as the task sees them."""

import tensorflow as tf

from trainer.data.batches import eval_batches
from trainer.data.data import Data

_LOOKED_AT = 3


def describe_first(data: Data) -> str:
    """`image float32 [8, 8, 3] 0 to 1` of each feature, with the range of values of the first examples."""
    batch, weight = next(data.elements(eval_batches(data, min(_LOOKED_AT, data.num_examples)).take(1)))
    texts = []
    for name, value in batch.items():
        if not isinstance(value, tf.Tensor):
            texts.append(f"{name} {type(value).__name__}")
            continue
        values = value.numpy()
        shape = ", ".join(map(str, values.shape[1:]))
        if value.dtype == tf.string:
            shown = repr(values.reshape(-1)[0].decode(errors="replace")[:30]) if values.size else ""
        else:
            shown = f"{values.min():.4g} to {values.max():.4g}" if values.size else ""
        texts.append(f"{name} {value.dtype.name} [{shape}] {shown}".rstrip())
    return f"the first {int(weight.shape[0])}: {'; '.join(texts)}"
