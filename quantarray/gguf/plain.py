"""The types of GGUF that are plain floats, as bytes."""

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.gguf import fields

# Bytes of an element.
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


def encode(x: Array, name: str, xp: Namespace) -> tuple[Array, Array]:
    """Give the bytes of numbers, rounded to a type, and which of them overflow it.

    Parameters
    ----------
    x : array of a floating dtype, shape (..., n)
        Rounded to float32 first, as ggml has it.
    name : str
        A key of `WIDTHS`.
    xp : namespace
        The array's.

    Returns
    -------
    tuple of array of uint8, shape (..., n * width), and array of bool, shape of x
        Little-endian. NaN becomes a quiet NaN.
    """
    x = _xp.cast(x, "float32", xp)
    bits = _xp.float_bits(x, xp)
    if name == "F16":
        bits = fields.value_to_half(x, xp)
        over = (bits & 0x7FFF) == 0x7C00
    elif name == "BF16":
        rounded = (bits >> 16) + (((bits & 0xFFFF) + 0x7FFF + ((bits >> 16) & 1)) >> 16)
        bits = _xp.where(xp.isnan(x), (bits >> 16) | 64, rounded, xp)
        over = (bits & 0x7FFF) == 0x7F80
    else:
        over = xp.isinf(x)
    bytes_ = [xp.astype((bits >> (8 * i)) & 255, xp.uint8) for i in range(WIDTHS[name])]
    shape = (*x.shape[:-1], x.shape[-1] * len(bytes_))
    return xp.reshape(xp.stack(bytes_, axis=-1), shape), over


def decode(data: Array, name: str, xp: Namespace) -> Array:
    """Give the float32 numbers of bytes, shape (..., n * width)."""
    width = WIDTHS[name]
    pieces = xp.reshape(data, (*data.shape[:-1], data.shape[-1] // width, width))
    pieces = xp.astype(pieces, xp.int32)
    bits = pieces[..., 0]
    for i in range(1, width):
        bits = bits | (pieces[..., i] << (8 * i))
    if name == "F16":
        return fields.half_to_value(bits, xp)
    return _xp.bits_float(bits << 16 if name == "BF16" else bits, xp)
