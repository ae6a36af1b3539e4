"""The bits of numbers: put together, taken apart, and seen as another dtype's."""

import operator
import sys
from collections.abc import Sequence

import numpy as np

from quantarray._xp.libraries import JAX, Array, Namespace, backend, beside, dtype, to_numpy
from quantarray._xp.operations import cast


def join_bits(x: Array, lefts: Sequence[int], name: str, xp: Namespace) -> Array:
    """Put the elements of the last axis together, each shifted left by its own number of bits.

    They are cast to the dtype of a name first.
    """
    if xp.__name__ == JAX:
        # XLA's CPU compiler does not vectorize what slices are taken from, and computes it anew for
        # each of them.
        x = cast(x, name, xp)
        return _jax_or(x << xp.asarray(lefts, dtype=x.dtype), -1)
    joined = None
    for index, left in enumerate(lefts):
        piece = cast(x[..., index], name, xp)
        piece = piece << left if left else piece
        joined = piece if joined is None else joined | piece
    return joined


def split_bits(x: Array, rights: Sequence[int], bits: int, xp: Namespace) -> Array:
    """Take bytes apart along a new last axis: some bits, shifted right by their own number each."""
    mask = (1 << bits) - 1
    if xp.__name__ == JAX:  # which vectorizes no stack either
        return (xp.expand_dims(x, -1) >> xp.asarray(rights, dtype=x.dtype)) & mask
    parts = []
    for right in rights:
        piece = x >> right if right else x
        parts.append(piece & mask if right + bits < 8 else piece)  # higher bits are those of others
    return xp.stack(parts, axis=-1) if len(parts) > 1 else xp.expand_dims(x, axis=-1)


def join_bytes(
    x: Array, lefts: Sequence[int], places: Sequence[int], xp: Namespace
) -> Array | None:
    """Give bytes of the number that `join_bits` would give, were there integers so wide.

    Parameters
    ----------
    x : array of uint8
        Fields of the number along the last axis.
    lefts : sequence of int
        By how much each is shifted; evenly, if there are more than 4 bytes.
    places : sequence of int
        The lowest bit of each byte, of at most 8.
    xp : namespace
        The array's.

    Returns
    -------
    array of uint8, shape (..., len(places)), or None
        None in libraries where the bytes are put together as fast one by one.
    """
    if xp.__name__ != JAX:  # for the same reason as in join_bits
        return None
    table = np.reshape(lefts, (-(-len(places) // 4), -1))
    first = np.min(table, axis=1)
    fields = xp.reshape(xp.astype(x, xp.uint32), (*x.shape[:-1], *table.shape))
    words = _jax_or(fields << xp.asarray(table - first[:, None], dtype=xp.uint32), -1)
    up = first[:, None] - np.asarray(places)
    bytes_ = xp.expand_dims(words, -1) << xp.asarray(np.maximum(up, 0), dtype=xp.uint32)
    bytes_ = (bytes_ >> xp.asarray(np.maximum(-up, 0), dtype=xp.uint32)) & 255
    return xp.astype(_jax_or(bytes_, -2), xp.uint8)


def _jax_or(x: Array, axis: int) -> Array:
    lax = sys.modules["jax"].lax
    return lax.reduce(x, x.dtype.type(0), lax.bitwise_or, (axis % x.ndim,))


def float_bits(x: Array, xp: Namespace) -> Array:
    """Give the bits of float32 numbers as int32."""
    return _bits_as(x, "int32", xp)


def bits_float(x: Array, xp: Namespace) -> Array:
    """Give the float32 numbers whose bits are these, of int32."""
    return _bits_as(x, "float32", xp)


def _bits_as(x: Array, name: str, xp: Namespace) -> Array:
    library, wanted = backend(xp), dtype(xp, name)
    if library == "jax":
        return sys.modules["jax"].lax.bitcast_convert_type(x, wanted)
    if library == "array_api_strict":  # which has no views
        return xp.asarray(to_numpy(x).view(name), device=beside(x))
    if library == "dask":  # whose own `view` fails on arrays without axes
        return x.map_blocks(operator.methodcaller("view", wanted), dtype=wanted)
    return x.view(wanted)
