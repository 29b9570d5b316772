"""Which casts a restore makes, and what one to a narrower floating dtype does to values beyond rounding them."""

import dataclasses

import ml_dtypes
import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class CastLosses:
    """Numbers of values. nonzero: of the finite ones, in the file.
    infinite, zero, subnormal: what became so."""

    nonzero: int = 0
    infinite: int = 0
    zero: int = 0
    subnormal: int = 0

    def __add__(self, other: "CastLosses") -> "CastLosses":
        return CastLosses(
            self.nonzero + other.nonzero,
            self.infinite + other.infinite,
            self.zero + other.zero,
            self.subnormal + other.subnormal,
        )


def cast_losses(piece: np.ndarray, finite: np.ndarray, target: type) -> CastLosses:
    """Casts a flat array of floats to the dtype `target`.

    finite: whether each value is.  A value counts as subnormal only if it was none in its own dtype.
    """
    ours, theirs = ml_dtypes.finfo(target), ml_dtypes.finfo(piece.dtype)
    if ours.max >= theirs.max and ours.smallest_subnormal <= theirs.smallest_subnormal:
        return CastLosses()
    magnitudes = np.abs(piece)
    nonzero = piece != 0
    with np.errstate(over="ignore", under="ignore"):  # the caller says it, with the variable's name
        # Only what lies near the ends of the range is cast: a cast to 16 bits takes longer than a comparison.
        large = piece[finite & (magnitudes >= piece.dtype.type(ours.max))].astype(target)
        is_small = nonzero & (magnitudes < piece.dtype.type(ours.smallest_normal))
        small: np.ndarray = piece[is_small].astype(target)
    was_normal = magnitudes[is_small] >= theirs.smallest_normal
    is_below = np.abs(small.astype(np.float64)) < float(ours.smallest_normal)
    return CastLosses(
        nonzero=int(np.count_nonzero(nonzero & finite)),
        infinite=int(np.count_nonzero(~np.isfinite(large))),
        zero=int(np.count_nonzero(small == 0)),
        subnormal=int(np.count_nonzero((small != 0) & is_below & was_normal)),
    )


def castable(source: tf.DType, target: tf.DType) -> bool:
    """Whether a restore casts between the two: between floats, and to integers that hold all of the source's."""
    widened = source.is_integer and target.is_integer and target.min <= source.min and source.max <= target.max
    return source == target or widened or (source.is_floating and target.is_floating)
