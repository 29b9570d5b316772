"""TFDS builders that ship with the project; importing this package registers them with TFDS."""

from trainer.datasets.handwritten_digits import HandwrittenDigits

__all__ = ["HandwrittenDigits"]
