"""ggml's block types, as bytes: what llama.cpp and its kin compute with and GGUF files hold."""

from typing import Any

from quantarray import _xp, arguments
from quantarray._xp import Array
from quantarray.errors import QuantArrayError, choice, short
from quantarray.gguf import fields, plain, rows, values
from quantarray.records import RECORDS, Record

TYPES = (*RECORDS, *plain.WIDTHS)


def encode(
    x: Array, type: str, importance: Array | None = None, *, nonfinite: str = "raise"
) -> Array:
    """Encode an array as blocks of a ggml type, with the bytes of ggml's `ggml_quantize_chunk`.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64
        In any array library. Its last axis holds whole blocks: a multiple of 256 elements for the
        K and IQ types (but IQ4_NL), of 32, 64 or 128 for the others.
    type : str
        A name of `TYPES`, such as "Q4_K", in any case; F32, F16 and BF16 too.
    importance : array, optional
        What the error of each element counts, not negative, in a shape that broadcasts to that of
        `x`: one vector for all rows, as llama.cpp's importance matrices have. Types without a
        search ignore it, as ggml does; IQ2_XXS, IQ2_XS and IQ1_S need it.
    nonfinite : {"raise", "propagate", "saturate"}
        What becomes of NaN and Inf: as for `quantize`.

    Returns
    -------
    array of uint8, shape (..., row bytes)
        In the namespace and on the device of `x`. Arithmetic is float32, as in C. What JAX flushes
        to 0, below about 1e-38, it encodes as 0.

    Raises
    ------
    QuantArrayError
        If an argument is not of these, or a scale is more than float16 holds (C would store Inf).
    """
    x, xp = _xp.as_array("gguf.encode", x)
    choice("gguf.encode", "nonfinite", nonfinite, arguments.NONFINITE)
    record = rows.find("gguf.encode", type)
    if isinstance(record, str):
        return rows.encode_plain("gguf.encode", x, record, nonfinite, xp)
    return rows.encode("gguf.encode", x, record, importance, nonfinite, xp)


def decode(data: Array, type: str, dtype: Any = "float32") -> Array:
    """Decode blocks of a ggml type, with the bits of ggml's own decoders.

    Parameters
    ----------
    data : array of uint8, shape (..., row bytes)
        Whole blocks along the last axis, in any array library.
    type : str
        A name of `TYPES`, in any case.
    dtype : dtype or str
        A floating dtype; values are computed in float32.

    Returns
    -------
    array of dtype, shape (..., elements)
        In the namespace and on the device of `data`.

    Raises
    ------
    QuantArrayError
        If an argument is not of these.
    """
    data, record, xp = _blocks("gguf.decode", data, rows.find("gguf.decode", type))
    name = _xp.dtype_name(arguments.float_dtype("gguf.decode", dtype, xp))
    if isinstance(record, str):
        with _xp.quietly(xp):  # NaN of any payload
            return rows.narrowed(plain.decode(data, record, xp), name, xp)
    return rows.decode(data, record, name, None, xp)


def parts(data: Array, type: str) -> dict[str, Array]:
    """Take blocks of a ggml type apart.

    Parameters
    ----------
    data, type
        As for `decode`.

    Returns
    -------
    dict of str to array
        "codes", shape (..., blocks, elements); "scale" and perhaps "offset", float32, shape (...,
        blocks, groups): elements decode to ``scale * v(code) + offset``. And what these come from,
        where the type has it: "base" and "base_offset", float32, shape (..., blocks), and the codes
        "scales" and "mins", int32, shape (..., blocks, groups).

    Raises
    ------
    QuantArrayError
        If an argument is not of these.
    """
    record = rows.find("gguf.parts", type)
    if isinstance(record, str):
        raise QuantArrayError(f"gguf.parts: type={record}: plain floats have no parts")
    data, _, xp = _blocks("gguf.parts", data, record)
    blocks = values.blocks_of(data, record, xp)
    found = {"codes": values.codes(blocks, record, xp), "scale": values.scales(blocks, record, xp)}
    offset = values.offsets(blocks, record, xp)
    if offset is not None:
        found["offset"] = offset
    for name, runs in (("base", record.base), ("base_offset", record.offset)):
        if runs:
            half = fields.read(blocks, runs, xp)[..., 0]
            found[name] = fields.half_to_value(half, xp)
    for name, runs in (("scales", record.scales), ("mins", record.mins)):
        if runs:
            found[name] = fields.read(blocks, runs, xp)
    return found


def _blocks(operation: str, data: Any, record: Record | str) -> tuple[Array, Record | str, Any]:
    """Check that data are bytes of whole blocks, and give their namespace."""
    size, name = (
        (plain.WIDTHS[record], record)
        if isinstance(record, str)
        else (
            record.size,
            record.name,
        )
    )
    try:
        xp, dtype = _xp.namespace(data), _xp.dtype_name(data.dtype)
    except (TypeError, AttributeError):
        raise QuantArrayError(
            f"{operation}: data is a {short(data)}: expected an array of uint8"
        ) from None
    shape = tuple(data.shape)
    if dtype != "uint8" or not shape or shape[-1] % size:
        raise QuantArrayError(
            f"{operation}: data has dtype {dtype} and shape {shape}: expected uint8, and a last "
            f"axis that is a multiple of {size}, the bytes of a block of {name}"
        )
    return data, record, xp
