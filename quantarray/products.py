"""Matrix products with quantized arrays, and exact ones of their codes."""

import math
from typing import Any

import numpy as np

from quantarray import _xp, kernels
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import working_dtype
from quantarray.array import QuantizedArray
from quantarray.blocks import Blocks
from quantarray.errors import QuantArrayError
from quantarray.formats import DTYPES, Integer

# The largest magnitudes of the codes that can be multiplied as they are.
CODES = {"int8": 128, "uint8": 255}
# What an exact sum may reach.
LIMIT = 2**31 - 1


def matmul(a: QuantizedArray | Array, b: QuantizedArray | Array) -> Array:
    """Multiply matrices of which at least one is quantized, or two matrices of codes.

    Shapes follow `numpy.matmul`: vectors are allowed, and batches broadcast.

    Parameters
    ----------
    a, b : QuantizedArray or array
        Two quantized arrays; one, and an array of a floating dtype; or two arrays of int8 or uint8.
        Both of one array library.

    Returns
    -------
    array
        In the namespace of `a` and `b`.

        - With a floating array: of its dtype. The product with the decoded array, computed in
          float32, or in float64 for float64.
        - Of two quantized arrays: of their dtype, or of float32 (float64 if either is) where that
          differs. Where both have integer codes of at most 8 bits without a zero point, and one
          scale for all that is summed (per tensor, per row of `a`, per column of `b`), the products
          of codes are summed exactly, and the sum is multiplied with the scale of `a`, then that of
          `b`. Elsewhere, and where such a sum could exceed int32, it is the product of the decoded
          arrays.
        - Of two arrays of codes: exact, of int32.

    Raises
    ------
    QuantArrayError
        If an argument is not of these, the shapes do not fit, or sums of codes could exceed int32.
    """
    xp = _check(a, b)
    shape = _result_shape(tuple(a.shape), tuple(b.shape))
    if isinstance(a, QuantizedArray) or isinstance(b, QuantizedArray):
        return _product(a, b, shape, xp)
    names = _xp.dtype_name(a.dtype), _xp.dtype_name(b.dtype)
    largest, length = CODES[names[0]] * CODES[names[1]], a.shape[-1]
    if length * largest > LIMIT:
        raise QuantArrayError(
            f"matmul: sums of {length} products of {names[0]} and {names[1]} can exceed int32: "
            f"expected at most {LIMIT // largest}"
        )
    return _integer_product(a, b, largest, shape, xp)


def _check(a: Any, b: Any) -> Namespace:
    """Refuse what cannot be multiplied, whatever its shape, and give the namespace."""
    (xp, kind), (other, kind_of_b) = _namespace_and_kind("a", a), _namespace_and_kind("b", b)
    if xp is not other:
        raise QuantArrayError(
            f"matmul: a is of {_xp.backend(xp)} and b of {_xp.backend(other)}: "
            "expected one array library"
        )
    kinds = {kind, kind_of_b}
    if kinds not in ({"quantized"}, {"quantized", "float"}, {"codes"}):
        names = [
            _xp.dtype_name(x.dtype) if k != "quantized" else k
            for x, k in zip((a, b), (kind, kind_of_b), strict=True)
        ]
        raise QuantArrayError(
            f"matmul: a is {names[0]} and b is {names[1]}: expected two QuantizedArrays, one and "
            "an array of a floating dtype, or two arrays of int8 or uint8"
        )
    return xp


def _namespace_and_kind(argument: str, x: Any) -> tuple[Namespace, str]:
    quantized = isinstance(x, QuantizedArray)
    try:
        xp = _xp.namespace(x.data if quantized else x)
    except TypeError:
        raise QuantArrayError(
            f"matmul: {argument} is a {type(x).__name__}: expected a QuantizedArray or an array"
        ) from None
    if isinstance(x, np.ma.MaskedArray):
        raise QuantArrayError(f"matmul: {argument} is a masked array: fill it first")
    if not x.shape:
        raise QuantArrayError(f"matmul: {argument} has shape (): expected at least one axis")
    if quantized:
        return xp, "quantized"
    name = _xp.dtype_name(x.dtype)
    if name not in DTYPES and name not in CODES:
        raise QuantArrayError(
            f"matmul: {argument} has dtype {name}: expected {', '.join((*DTYPES, *CODES))}"
        )
    return xp, "float" if name in DTYPES else "codes"


def _result_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Give the shape of the product, as NumPy does."""
    if a[-1] != b[-2:][0]:
        raise QuantArrayError(
            f"matmul: a has shape {a} and b has shape {b}: "
            f"expected a.shape[-1] = b.shape[{-min(2, len(b))}], not {a[-1]} and {b[-2:][0]}"
        )
    try:
        batch = np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        raise QuantArrayError(
            f"matmul: a has shape {a} and b has shape {b}: expected axes before the last two "
            f"that broadcast, not {a[:-2]} and {b[:-2]}"
        ) from None
    return (*batch, *a[-2:-1], *b[-1:][: len(b) - 1])


def _product(
    a: QuantizedArray | Array, b: QuantizedArray | Array, shape: tuple[int, ...], xp: Namespace
) -> Array:
    """Multiply where one or both are quantized."""
    if isinstance(a, QuantizedArray) and isinstance(b, QuantizedArray):
        names = {a.dtype_name, b.dtype_name}
        dtype = names.pop() if len(names) == 1 else _wider(names)
        product = _scaled_product(a, b, working_dtype(dtype), shape, xp)
        if product is not None:
            return _xp.cast(product, dtype, xp)
    else:
        dtype = _xp.dtype_name((b if isinstance(a, QuantizedArray) else a).dtype)
        product = _fused_product(a, b, xp)
        if product is not None:
            return _xp.cast(product, dtype, xp)
    left, right = (_values(x, working_dtype(dtype), xp) for x in (a, b))
    return _xp.cast(_xp.matmul(left, right, None, xp), dtype, xp)


def _fused_product(
    a: QuantizedArray | Array, b: QuantizedArray | Array, xp: Namespace
) -> Array | None:
    """Multiply without decoding the whole array; None where no kernel can, or a sum overflows."""
    left = isinstance(a, QuantizedArray)
    q, x = (a, b) if left else (b, a)
    if not isinstance(x, np.ndarray) or 0 in x.shape or _kernels() is None:
        return None
    if "float64" in (q.dtype_name, _xp.dtype_name(x.dtype)):
        return None
    w = _kernels().weights(q.data, q.scale, q.zero_point, q.blocks, q.shape, q.scheme)
    if w is None:
        return None
    x = x.astype(np.float32, copy=False)
    product = _kernels().times_columns(w, x) if left else _kernels().rows_times(x, w)
    # A step on the way may overflow where a decoded value, or its product, does not.
    return product if np.isfinite(product).all() else None


def _kernels() -> Any:
    """Give the compiled kernels, or None without Numba or where they are turned off."""
    if not kernels.enabled() or not _xp.is_installed("numba"):
        return None
    from quantarray.kernels import products

    return products


def _wider(names: set[str]) -> str:
    return "float64" if "float64" in names else "float32"


def _values(x: QuantizedArray | Array, dtype: str, xp: Namespace) -> Array:
    return x.dequantize(dtype) if isinstance(x, QuantizedArray) else _xp.cast(x, dtype, xp)


def _scaled_product(
    a: QuantizedArray, b: QuantizedArray, dtype: str, shape: tuple[int, ...], xp: Namespace
) -> Array | None:
    """Multiply codes exactly and scale the sums; None where codes do not allow it."""
    largest = _magnitude(a) * _magnitude(b)
    rows, columns = _scales(a, -1, xp), _scales(b, max(-2, -b.ndim), xp)
    if not largest or a.shape[-1] * largest > LIMIT or rows is None or columns is None:
        return None
    left, right = a.codes, b.codes
    if a.ndim == 1:
        left, rows = xp.reshape(left, (1, -1)), xp.reshape(rows, (1, 1))
    if b.ndim == 1:
        right, columns = xp.reshape(right, (-1, 1)), xp.reshape(columns, (1, 1))
    full = _result_shape(tuple(left.shape), tuple(right.shape))
    sums = _integer_product(left, right, largest, full, xp)
    rows, columns = _xp.cast(rows, dtype, xp), _xp.cast(columns, dtype, xp)
    # One after the other: the product of two scales can overflow where this does not.
    return xp.reshape(_xp.cast(sums, dtype, xp) * rows * columns, shape)


def _magnitude(q: QuantizedArray) -> int:
    """Give the largest magnitude of stored codes that are values; 0 if they are not."""
    element = q.scheme.element
    if not isinstance(element, Integer) or not element.plain or element.bits > 8:
        return 0
    if q.zero_point is not None or q.offset is not None:
        return 0
    # Of all codes that can be stored, also where those of the format are fewer.
    return 1 << (element.bits - 1) if element.signed else (1 << element.bits) - 1


def _scales(q: QuantizedArray, axis: int, xp: Namespace) -> Array | None:
    """Give scales that broadcast with an array without an axis; None if they differ along it."""
    scale, blocks = q.scale, q.blocks
    if math.prod(scale.shape) == 1:
        return xp.reshape(scale, (1,) * q.ndim)
    if q.scheme.block.flat is not None or scale.shape[axis] != 1:
        return None
    shape, extents = list(blocks.shape), list(blocks.extents)
    shape[axis] = extents[axis] = 1
    rest = Blocks(tuple(shape), tuple(extents))
    return rest.merge(xp.broadcast_to(rest.spread(scale, xp), rest.view), xp)


def _integer_product(
    a: Array, b: Array, largest: int, shape: tuple[int, ...], xp: Namespace
) -> Array:
    """Multiply codes exactly, none of whose products has a magnitude above `largest`."""
    if 0 in (*shape, a.shape[-1]):
        return xp.zeros(shape, dtype=xp.int32, device=_xp.beside(a))
    if isinstance(a, np.ndarray) and _kernels() is not None:
        product = _kernels().integers(a, b)
        if product is not None:
            return product
    return _xp.matmul(a, b, 2**24 // largest, xp)
