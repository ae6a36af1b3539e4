"""What presets and their owners are given: functions of the scheme and a shape, in float64."""

from collections.abc import Callable
from functools import cache

import ml_dtypes
import numpy as np

import quantarray as qa
from quantarray.formats import Integer


def _random(shape: tuple[int, ...]) -> np.random.Generator:
    return np.random.default_rng(shape)


def _gaussian(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return _random(shape).standard_normal(shape)


def _heavy_tailed(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return np.clip(_random(shape).standard_t(1.5, shape), -3e4, 3e4)


def _wide(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    """Blocks whose magnitudes lie far apart."""
    x, random = _gaussian(scheme, shape), _random(shape)
    exponents = random.integers(-24, 24, (shape[0], -(-shape[1] // 16)))
    return x * 2.0 ** exponents.repeat(16, axis=1)[:, : shape[1]]


def _bfloat16_valued(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return (_gaussian(scheme, shape) * 3).astype(ml_dtypes.bfloat16).astype(np.float64)


def _large(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return _gaussian(scheme, shape) * 1e30


def _huge(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return _gaussian(scheme, shape) * 2e37


def _small(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return _gaussian(scheme, shape) * 1e-30


def _mixed(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    x = _bfloat16_valued(scheme, shape)
    x[1::2] = _ties_of_rows(scheme, shape)[1::2]
    return x


def _positive(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return np.abs(_gaussian(scheme, shape)) + 0.1


def _negative(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return -_positive(scheme, shape)


def _constant(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, -3.3)


def _constant_rows(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return np.repeat(_gaussian(scheme, shape)[:, :1], shape[1], axis=1)


def _constant_columns(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return np.repeat(_gaussian(scheme, shape)[:1], shape[0], axis=0)


def _zeros(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape)


def _zero_blocks(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    """Blocks of zeros of both signs, and zeros among other numbers."""
    x = _gaussian(scheme, shape)
    x[:, ::5] = 0.0
    x[:, 1::5] = -0.0
    x[1], x[2], x[3, ::2], x[3, 1::2] = 0.0, -0.0, 0.0, -0.0
    x[:, 128:256], x[4:8, 256:384] = 0.0, -0.0
    x[:, -30:-20] = 0.0
    return x


def _subnormals(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    """Subnormal elements of both signs among normal ones."""
    x = _gaussian(scheme, shape)
    x[1::2, 3::10] *= 1e-39
    return x


def _grid(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    """Values that fall on, or one float beside, what separates codes, if the scale is a power of 2.

    Every 16th column and the rest of the first row are the largest value, the columns halfway and
    the rest of the second row the smallest, so that almost all blocks have the same range.
    """
    element, divisor, tiny = scheme.element, scheme.scale.divisor, np.float32(2.0**-60)
    if isinstance(element, Integer):
        low, high = element.codes
        values = (np.arange(low, high + 1) - element.origin) / element.steps
    else:
        values = np.asarray(element.table, np.float64)
    values = np.unique(values[np.isfinite(values)]).astype(np.float32)
    if scheme.scale.rule in ("absmax", "absmean", "one"):
        top, bottom = divisor, -divisor
        values -= (values[0] >= 0) * np.float32((values.size + 1) // 2)
    else:  # 0 lies within the range, or is its end
        top = divisor if scheme.zero == "offset" else divisor - divisor // 3
        bottom = top - divisor
        values += np.float32(bottom - values[0])
    between = np.concatenate([values, (values[1:] + values[:-1]) / np.float32(2), [-tiny, tiny]])
    down, up = (np.nextafter(between, np.float32(end)) for end in (-np.inf, np.inf))
    candidates = np.concatenate([between, down, up])
    normal = (candidates == 0) | (np.abs(candidates) >= 2.0**-100)
    candidates = candidates[normal & (candidates >= bottom) & (candidates <= top)]
    x = _random(shape).choice(candidates, shape).astype(np.float64)
    x[0], x[1] = top, bottom
    x[:, ::16], x[:, 8::16] = top, bottom
    return x


def _ties(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return _grid(scheme, shape) * 0.125


def _ties_of_rows(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return _grid(scheme, shape) * 2.0 ** (np.arange(shape[0])[:, None] % 9 - 5)


def _near_ties(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    """Quotients within a rounding or two of a tie, as the scale is no power of two."""
    return _grid(scheme, shape) * 1.1


def _near_ties_of_rows(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return _grid(scheme, shape) * _random(shape).uniform(0.5, 2.0, (shape[0], 1))


INPUTS: dict[str, Callable[[qa.Scheme, tuple[int, ...]], np.ndarray]] = {
    function.__name__[1:]: function
    for function in (
        _gaussian,
        _heavy_tailed,
        _wide,
        _bfloat16_valued,
        _mixed,
        _ties,
        _ties_of_rows,
        _near_ties,
        _near_ties_of_rows,
        _zero_blocks,
        _zeros,
        _positive,
        _negative,
        _constant,
        _constant_rows,
        _constant_columns,
        _large,
        _huge,
        _small,
        _subnormals,
    )
}


@cache
def make_input(name: str, scheme: qa.Scheme, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Give an input as a read-only array."""
    x = INPUTS[name](scheme, shape)
    if dtype == "float16":  # its exponents reach less far
        x = np.clip(x, -3e4, 3e4) if name == "wide" else x
        x = x * {"large": 5e-27, "huge": 2.5e-34, "small": 1e28}.get(name, 1.0)
    x = x.astype(getattr(ml_dtypes, dtype, dtype))
    x.flags.writeable = False
    return x
