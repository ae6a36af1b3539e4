"""Operations whose results, or whose names, differ between array libraries."""

import sys

from quantarray._xp.libraries import JAX, NUMPY, TORCH, Array, Namespace, dtype, dtype_name
from quantarray.formats import DTYPES


def divide(a: Array, b: Array | float, xp: Namespace) -> Array:
    """Divide as IEEE 754 does."""
    if xp.__name__ == JAX:
        # XLA's CPU compiler turns division by a broadcast or constant into multiplication by its
        # reciprocal, which differs in the last bit; it cannot see through this select.
        b = xp.where(a == a, b, 1)
    return a / b


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
    if xp.__name__ != JAX:
        return xp.astype(xp.searchsorted(table, x, side="left"), xp.int32, copy=False)
    if table.size < 32:
        return xp.searchsorted(table, x, side="left", method="compare_all")
    # A binary search without a loop, three times as fast as JAX's own, which no mesh can shard.
    steps = [1 << bit for bit in reversed(range(table.size.bit_length()))]
    padding = xp.full((2 * steps[0] - 1 - table.size,), xp.inf, dtype=table.dtype)
    table, index = xp.concat([table, padding]), xp.zeros_like(x, dtype=xp.int32)
    for step in steps:
        index = xp.where(lookup(table, index + (step - 1), xp) < x, index + step, index)
    return index


def multiply(a: Array, b: Array, xp: Namespace) -> Array:
    """Multiply and round, before anything is added to the product."""
    product = a * b
    if xp.__name__ == JAX:
        # jax.jit contracts a * b + c to one rounding; it cannot see through this select, as it can
        # through one on a factor that it knows not to be NaN.
        product = xp.where(product == product, product, xp.nan)
    return product


def extremes(x: Array, axes: tuple[int, ...], xp: Namespace) -> tuple[Array, Array]:
    """Give the smallest and largest elements along axes, which stay with length 1.

    Where an element is NaN neither is finite.
    """
    low = high = x
    if xp.__name__ == JAX:
        # XLA's reduction on a CPU loses NaN once it is vectorized, from some 4000 elements on.
        low, high = xp.where(x == x, x, -xp.inf), xp.where(x == x, x, xp.inf)
    return xp.min(low, axis=axes, keepdims=True), xp.max(high, axis=axes, keepdims=True)


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
