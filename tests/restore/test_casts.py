"""Casts to a narrower float: what underflows is counted, said, and refused where it is much."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from conftest import full
from zoo import TwoDense, built, saved, values

import trainer

NARROWING = [
    ("float32", "float16", 1e-9, 1e-6),
    full("float32", "bfloat16", 1e-45, 1e-39),
    full("float64", "float32", 1e-50, 1e-40),
    full("bfloat16", "float16", 1e-9, 1e-6),
    full("float64", "bfloat16", 1e-50, 1e-39),
]

SAME_RANGE = [NARROWING[1]]  # what is subnormal in bfloat16 was so in float32


def written(folder, dtype: str, kernel) -> str:
    """A file of TwoDense's weights in `dtype`, whose encoder has the given kernel, [4, 4]."""
    model = built(TwoDense())
    weights = {"encoder/kernel": kernel, **{name: w for name, w in arrays(model).items() if name != "encoder/kernel"}}
    path = str(folder / "model.safetensors")
    dtype = tf.as_dtype(dtype).as_numpy_dtype
    safetensors.numpy.save_file({name: np.asarray(w).astype(dtype) for name, w in weights.items()}, path)
    return path


def arrays(model) -> dict[str, np.ndarray]:
    return {
        f"{layer}/{part}": getattr(getattr(model, layer), part).numpy()
        for layer in ("encoder", "head")
        for part in ("kernel", "bias")
    }


@pytest.mark.parametrize("dtype, narrow, tiny, small", NARROWING)
def test_a_variable_that_underflows_is_refused_before_any_changes(dtype, narrow, tiny, small, tmp_path):
    path = written(tmp_path, dtype, np.full([4, 4], tiny))
    model = built(TwoDense(dtype=narrow), seed=2)
    before = values(model)
    with pytest.raises(trainer.RestoreError, match=f"encoder/kernel: 16 of 16 values .* become 0 in {narrow}"):
        trainer.restore_weights(model, path)
    assert values(model) == before


@pytest.mark.parametrize("dtype, narrow, tiny, small", [case for case in NARROWING if case not in SAME_RANGE])
def test_subnormal_values_are_restored_and_reported(dtype, narrow, tiny, small, tmp_path):
    kernel = np.ones([4, 4])
    kernel[0, :3] = small
    model = built(TwoDense(dtype=narrow), seed=2)
    report = trainer.restore_weights(model, written(tmp_path, dtype, kernel))
    assert "cast             0 values became 0 and 3 subnormal, in encoder/kernel (0 and 3)" in str(report)
    assert json.loads(report.to_json())["casts"] == {"encoder/kernel": {"zero": 0, "subnormal": 3}}


def test_one_value_in_a_hundred_may_vanish_and_is_reported(tmp_path):
    class Wide(TwoDense):
        def __init__(self, dtype=None):
            super().__init__(num_classes=50, dtype=dtype)

    source, model = built(Wide()), built(Wide("float16"), seed=2)
    kernel = np.ones([4, 50], np.float32)
    kernel[0, :2] = 1e-9
    source.head.kernel.assign(kernel)
    report = trainer.restore_weights(model, saved(tmp_path, model=source))
    assert "2 values became 0 and 0 subnormal, in head/kernel (2 and 0)" in str(report)
    kernel[0, :3] = 1e-9
    source.head.kernel.assign(kernel)
    with pytest.raises(trainer.RestoreError, match="head/kernel: 3 of 200 values .* more than 1%"):
        trainer.restore_weights(model, saved(tmp_path, model=source))


@pytest.mark.parametrize("dtype, wide", [("float16", "float32"), ("float16", "bfloat16"), ("float32", "float32")])
def test_what_fits_the_dtype_is_not_called_lossy(dtype, wide, tmp_path):
    kernel = np.full([4, 4], 6e-8)  # subnormal in float16 already
    kernel[1] = 0
    report = trainer.restore_weights(built(TwoDense(dtype=wide), seed=2), written(tmp_path, dtype, kernel))
    assert "became 0" not in str(report)


@pytest.mark.full
def test_every_count_is_that_of_a_whole_cast():
    from trainer.restore.casts import cast_losses

    random = np.random.default_rng(0)
    for source, target in [("float32", "float16"), ("float64", "float32"), ("bfloat16", "float16")]:
        source, target = (tf.as_dtype(name).as_numpy_dtype for name in (source, target))
        with np.errstate(over="ignore", under="ignore"):
            values = (random.normal(size=20_000) * 2.0 ** random.uniform(-200, 200, 20_000)).astype(source)
            values[:3] = [0, np.inf, np.nan]
            cast = values.astype(target)
        finite, tiny = np.isfinite(values), float(ml_dtypes.finfo(target).smallest_normal)
        found = cast_losses(values, finite, target)
        below = np.abs(cast.astype(np.float64)) < tiny
        normal = np.abs(values.astype(np.float64)) >= float(ml_dtypes.finfo(source).smallest_normal)
        assert found.infinite == np.sum(finite & ~np.isfinite(cast)) > 0
        assert found.zero == np.sum((values != 0) & (cast == 0)) > 0
        assert found.subnormal == np.sum((cast != 0) & below & normal) > 0
