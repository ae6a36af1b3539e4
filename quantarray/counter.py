"""Counter-based random bits: the same key and element give the same bits everywhere.

Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as
1, 2, 3", SC11), in int32 arithmetic that wraps: torch has no shifts of uint32, and JAX has no
64-bit integers unless asked.
"""

import math

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.blocks import Slices
from quantarray.errors import QuantArrayError

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key: int, low: Array, high: Array) -> tuple[Array, Array]:
    """Encrypt a counter.

    Parameters
    ----------
    key : int
        64 bits; the low 32 are the first word.
    low, high : array of int32, at least 1-d
        The counter's words, as two's complement.

    Returns
    -------
    tuple of two arrays of int32
        Two words of random bits for each counter.
    """
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    keys = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = low + _signed(k0), high + _signed(k1)
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = _rotate(x1, rotation) ^ x0
        x0 = x0 + _signed(keys[(block + 1) % 3])
        x1 = x1 + _signed(keys[(block + 2) % 3] + block + 1)
    return x0, x1


def uniform(key: int, shape: tuple[int, ...], where: Slices, x: Array, xp: Namespace) -> Array:
    """Give each element of a piece of an array its own number in [0, 1).

    Parameters
    ----------
    key : int
        64 bits.
    shape : tuple of int
        The whole array's shape: an element's counter is its index in C order.
    where : tuple of slice
        Where the piece lies in the array.
    x : array of float32 or float64
        The piece.
    xp : namespace
        The array's.

    Returns
    -------
    array, shape and dtype of x
        Multiples of 2**-24.
    """
    if _xp.is_compiling():
        # Inlining the rounds takes torch's compiler time exponential in their number.
        raise QuantArrayError(
            "stochastic rounding: torch.compile cannot compile it: quantize outside"
        )
    low, high = _counters(shape, where, x, xp)
    bits, _ = threefry(key, low, high)
    return xp.reshape(xp.astype((bits >> 8) & 0xFFFFFF, x.dtype) * 2.0**-24, x.shape)


def _counters(
    shape: tuple[int, ...], where: Slices, x: Array, xp: Namespace
) -> tuple[Array, Array]:
    size = math.prod(shape)
    wide = size >= 2**31
    if wide and not _xp.has_64_bits(xp):
        raise QuantArrayError(
            f"stochastic rounding: x has {size} elements: from 2**31 on, JAX needs jax_enable_x64"
        )
    dtype = xp.int64 if wide else xp.int32
    index = xp.zeros(
        (1,), dtype=dtype, device=_xp.beside(x)
    )  # 1-d: NumPy warns of scalars that wrap
    for axis, length in enumerate(shape):
        along = xp.arange(where[axis].start, where[axis].stop, dtype=dtype, device=_xp.beside(x))
        index = index[..., None] * length + along
    if not wide:
        return index, index & 0
    low = ((index & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
    return xp.astype(low, xp.int32), xp.astype(index >> 32, xp.int32)


def _signed(word: int) -> int:
    return ((word + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _rotate(x: Array, left: int) -> Array:
    return (x << left) | ((x >> (32 - left)) & ((1 << left) - 1))
