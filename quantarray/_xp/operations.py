"""Operations whose results, or whose names, differ between array libraries."""

import contextlib
import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from quantarray._xp.libraries import (
    JAX,
    NUMPY,
    TORCH,
    Array,
    Namespace,
    dtype,
    dtype_name,
    is_concrete,
)
from quantarray.formats import DTYPES, Float


def divide(a: Array, b: Array | float, xp: Namespace) -> Array:
    """Divide as IEEE 754 does."""
    if xp.__name__ == JAX:
        # XLA's CPU compiler turns division by a broadcast or constant into multiplication by its
        # reciprocal, which differs in the last bit; it cannot see through the inner select. The
        # outer one lets it compute what is done with the quotient in the same loop: it stores a
        # quotient that is used twice, but not a selected one.
        number = a == a
        return xp.where(number, a / xp.where(number, b, 1), xp.nan)
    return a / b


def reciprocal(x: Array, xp: Namespace) -> Array:
    """Divide 1 as IEEE 754 does."""
    if xp.__name__ == JAX:
        # XLA makes b / a of 1 / (a / b); in `divide` it knows that the constant 1 is a number.
        number = x == x
        return xp.where(number, 1 / xp.where(number, x, 1), xp.nan)
    return xp.ones_like(x) / x


def lookup(table: Array, codes: Array, xp: Namespace) -> Array:
    """Take the entries of a 1-d table that codes of any shape and integer dtype name."""
    # Never by an index of uint8, which torch takes for a mask.
    indices = xp.astype(codes, xp.int32)
    if xp.__name__ == JAX:  # it shards no other way of indexing over meshes of explicit axes
        return table.at[indices].get(out_sharding=sys.modules["jax"].typeof(indices).sharding)
    if xp.__name__ == NUMPY:
        return xp.take(table, indices, axis=0)
    return xp.reshape(xp.take(table, xp.reshape(indices, (-1,)), axis=0), codes.shape)


def count_below(table: Array, x: Array, xp: Namespace) -> Array:
    """Count the entries of an ascending table that lie strictly below each element, as int32."""
    if xp.__name__ == TORCH:  # which warns of others
        x = x.contiguous()
    if xp.__name__ != JAX:
        return xp.astype(xp.searchsorted(table, x, side="left"), xp.int32, copy=False)
    if table.size < 32:
        return _jax_compare_all()(table, x)
    # A binary search without a loop, three times as fast as JAX's own, which no mesh can shard.
    steps = [1 << bit for bit in reversed(range(table.size.bit_length()))]
    padding = xp.full((2 * steps[0] - 1 - table.size,), xp.inf, dtype=table.dtype)
    table, index = xp.concat([table, padding]), xp.zeros_like(x, dtype=xp.int32)
    for step in steps:
        index = xp.where(lookup(table, index + (step - 1), xp) < x, index + step, index)
    return index


@functools.cache
def _jax_compare_all() -> Any:
    """Give a search that XLA's CPU compiler vectorizes, as it does not that of searchsorted."""
    jax = sys.modules["jax"]

    def count(table: Array, x: Array) -> Array:
        index = jax.numpy.zeros_like(x, dtype=jax.numpy.int32)
        for entry in table:  # a sum over an axis of them would not do inside a reduction
            index = index + (entry < x)
        return index

    return jax.jit(count)


def nearest_magnitude(x: Array, format_: Float, most: int, xp: Namespace) -> Array | None:
    """Round magnitudes to those of a format, ties to even.

    Parameters
    ----------
    x : array of float32 or float64
        Not negative.
    format_ : Float
        With a mantissa.
    most : int
        The largest code.
    xp : namespace
        The array's.

    Returns
    -------
    array of int32, or None
        Codes; None in libraries where `count_below` has to do.
    """
    # XLA vectorizes these few operations on bits, but no search in a table.
    return _jax_nearest(format_, most)(x) if xp.__name__ == JAX else None


@functools.cache
def _jax_nearest(format_: Float, most: int) -> Any:
    jax = sys.modules["jax"]
    jnp, lax = jax.numpy, jax.lax

    def nearest(x: Array) -> Array:
        wide, integer = DTYPES[dtype_name(x.dtype)], jnp.dtype(f"int{8 * x.dtype.itemsize}")
        lost = wide.mantissa - format_.mantissa
        bits = lax.bitcast_convert_type(x, integer)
        rounded = (bits + ((1 << (lost - 1)) - 1) + ((bits >> lost) & 1)) >> lost
        normal = rounded - ((wide.bias - format_.bias) << format_.mantissa)
        # Adding a number whose last bit is worth the smallest step rounds to steps.
        shift = x.dtype.type(2.0 ** (1 - format_.bias + lost))
        small = lax.bitcast_convert_type(x + shift, integer) - shift.view(integer)
        code = jnp.where(x < format_.smallest_normal, small, normal)
        return jnp.minimum(code, most).astype(jnp.int32)

    return jax.jit(nearest)


def ordered_sum(x: Array, xp: Namespace) -> Array:
    """Add the entries of the first axis one after the other, each sum rounded."""

    def add(total: Array, entries: tuple[Array, ...]) -> tuple[Array, None]:
        return total + entries[0], None

    if x.shape[0] <= 64:  # which libraries that fuse operations fuse with others
        total = x[0, ...]
        for index in range(1, x.shape[0]):
            total = total + x[index, ...]
        return total
    return scan(add, x[0, ...], (x[1:, ...],), xp)[0]


def scan(
    function: Callable[[Any, tuple[Array, ...]], tuple[Any, Array | None]],
    carry: Any,
    arrays: tuple[Array, ...],
    xp: Namespace,
) -> tuple[Any, Array | None]:
    """Call a function with each entry of the first axis of some arrays, one after the other.

    Parameters
    ----------
    function : callable
        Takes what is carried, an array or a tuple of them, and the entries; gives what is carried
        on and, if anything, a result of this entry.
    carry : array or tuple of array
        What the first call takes.
    arrays : tuple of array
        Of one length.
    xp : namespace
        The arrays'.

    Returns
    -------
    tuple
        What the last call gave to carry on, and the results, stacked, or None.
    """
    first = carry[0] if isinstance(carry, tuple) else carry
    if xp.__name__ == JAX and not is_concrete(first, xp):  # its compiler unrolls no loop well
        found: tuple[Any, Array | None] = sys.modules["jax"].lax.scan(function, carry, arrays)
        return found
    results = []
    for index in range(arrays[0].shape[0]):
        carry, result = function(carry, tuple(array[index, ...] for array in arrays))
        results.append(result)
    return carry, None if results[-1] is None else xp.stack(results, axis=0)


def compiles_shapes(xp: Namespace) -> bool:
    """Tell whether a library compiles its operations anew for each shape."""
    return bool(xp.__name__ == JAX)


def quietly(xp: Namespace) -> AbstractContextManager[None]:
    """Give a context in which NumPy warns of nothing."""
    if xp.__name__ == TORCH:  # which never warns, and whose compiler traces no np.errstate
        return contextlib.nullcontext()
    quiet: AbstractContextManager[None] = np.errstate(all="ignore")
    return quiet


def sqrt(x: Array, xp: Namespace) -> Array:
    """Take square roots of float32 numbers as IEEE 754 does."""
    if xp.__name__ == TORCH:  # whose vector library is wrong in the last bit
        return xp.astype(xp.sqrt(xp.astype(x, xp.float64)), xp.float32)
    return xp.sqrt(x)


def multiply(a: Array, b: Array, xp: Namespace) -> Array:
    """Multiply and round, before anything is added to the product."""
    product = a * b
    if xp.__name__ == JAX:
        # jax.jit contracts a * b + c to one rounding; it cannot see through this select, as it can
        # through one on a factor that it knows not to be NaN.
        product = xp.where(product == product, product, xp.nan)
    return product


def matmul(a: Array, b: Array, exact: int | None, xp: Namespace) -> Array:
    """Multiply matrices of float32 or float64 in full precision, or of 8 bit codes in int32.

    `exact` is None for floats; for codes it is how many of their products any sum of which is at
    most 2**24, so that float32 holds it in whatever order it is summed.
    """
    if xp.__name__ == JAX:
        # By default it rounds float32 to fewer bits on GPUs and TPUs; it alone widens codes itself.
        wide = None if exact is None else xp.int32
        return xp.matmul(a, b, precision="highest", preferred_element_type=wide)
    if exact is None:
        return xp.matmul(a, b)
    # Matrix products of integers wrap, and of int32 they take ten times as long or more. Codes of 8
    # bits survive also where a library multiplies float32 as TF32 or bfloat16.
    total = None
    size = a.shape[-1]
    for start in range(0, size, exact):
        part = slice(start, min(start + exact, size))
        left = xp.astype(a[..., part], xp.float32)
        right = xp.astype(b[part] if b.ndim == 1 else b[..., part, :], xp.float32)
        product = xp.astype(xp.matmul(left, right), xp.int32)
        total = product if total is None else total + product
    return total


def extremes(x: Array, axes: tuple[int, ...], xp: Namespace) -> tuple[Array, Array]:
    """Give the smallest and largest elements along axes, which stay with length 1.

    Where an element is NaN, so is one of them at least.
    """
    if xp.__name__ == JAX:
        return _jax_extremes(x, axes)
    return xp.min(x, axis=axes, keepdims=True), xp.max(x, axis=axes, keepdims=True)


def _jax_extremes(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Keep NaN, which XLA's own reductions on a CPU lose once they are vectorized.

    What would be computed for them alone is stored first, as another array of x's size.
    """
    jax = sys.modules["jax"]
    lax, jnp = jax.lax, jax.numpy
    if x.ndim - 1 not in axes:
        # One loop over both, as below, would jump from row to row.
        lost = jnp.any(x != x, axis=axes, keepdims=True)
        low, high = jnp.min(x, axis=axes, keepdims=True), jnp.max(x, axis=axes, keepdims=True)
        return jnp.where(lost, jnp.nan, low), jnp.where(lost, jnp.nan, high)
    # Integers that have the order of the numbers, and NaN beyond Inf, reduced in one loop.
    limits = jnp.iinfo(f"int{8 * x.dtype.itemsize}")

    def in_order(bits: Array) -> Array:  # its own inverse
        return bits ^ ((bits >> (limits.bits - 1)) & limits.max)

    def both(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return lax.min(a[0], b[0]), lax.max(a[1], b[1])

    keys = in_order(lax.bitcast_convert_type(x, limits.dtype))
    start = limits.dtype.type(limits.max), limits.dtype.type(limits.min)
    low, high = (
        lax.bitcast_convert_type(in_order(jnp.expand_dims(found, axes)), x.dtype)
        for found in lax.reduce((keys, keys), start, both, axes)
    )
    return low, high


def clip(x: Array, low: float, high: float, xp: Namespace) -> Array:
    """Clip to Python numbers; NaN stays NaN."""
    # compat's clip takes array bounds too, at several times the cost of the call on small arrays,
    # and its promotion of scalars for torch does not compile in one graph.
    if xp.__name__ == NUMPY:
        return x.clip(low, high)
    if xp.__name__ == TORCH:
        return sys.modules["torch"].clamp(x, low, high)
    return xp.clip(x, low, high)


def flush(x: Array, smallest_normal: float, xp: Namespace) -> Array:
    """Take subnormal elements for zeros of their sign, as JAX does on a CPU."""
    return where(xp.abs(x) < smallest_normal, xp.copysign(xp.zeros_like(x), x), x, xp)


def where(condition: Array, x: Array, y: Array | float, xp: Namespace) -> Array:
    """Select `x` or `y`, a Python number or an array of x's dtype."""
    if xp.__name__ == TORCH:  # for the same reason as in clip
        return sys.modules["torch"].where(condition, x, y)
    return xp.where(condition, x, y)


def cast(x: Array, name: str, xp: Namespace) -> Array:
    """Cast to the dtype of a name, if that is another."""
    # astype would do as much, at several times the cost on small arrays.
    return x if dtype_name(x.dtype) == name else xp.astype(x, dtype(xp, name))


def contiguous(x: Array, xp: Namespace) -> Array:
    """Copy an array whose elements do not lie in C order, in libraries that have strides."""
    if xp.__name__ == NUMPY:
        return xp.ascontiguousarray(x)
    return x.contiguous() if xp.__name__ == TORCH else x


def in_order(x: Array, xp: Namespace) -> bool:
    """Tell whether the elements of an array lie in C order, as they are."""
    if xp.__name__ == TORCH:
        return bool(x.is_contiguous()) and not x.is_neg()
    return xp.__name__ != NUMPY or bool(x.flags.c_contiguous)


def round_to(x: Array, name: str, xp: Namespace) -> Array:
    """Round float32 or float64 numbers to what a narrower dtype holds, keeping their dtype."""
    if xp.__name__ == JAX:  # XLA takes a cast to a narrower dtype and back for no operation
        format_ = DTYPES[name]
        lax = sys.modules["jax"].lax
        normal = lax.reduce_precision(x, format_.exponent, format_.mantissa)
        if format_.smallest_normal == DTYPES[dtype_name(x.dtype)].smallest_normal:
            return normal
        step = format_.magnitude(1)  # of subnormal numbers, for which it gives 0
        low = xp.abs(x) < format_.smallest_normal
        return xp.where(low, xp.round(xp.where(low, x, 0) / step) * step, normal)
    return xp.astype(xp.astype(x, dtype(xp, name)), x.dtype)
