"""The dtypes that array libraries have of their own for number formats of a few bits."""

import operator
import sys
from collections.abc import Callable

import numpy as np

from quantarray._xp.libraries import Array, Namespace, backend, ml_dtypes

# Number formats by the name that ml_dtypes, JAX and torch give to their dtypes.
_NATIVE = {
    "e4m3fn": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "e4m3fnuz": "float8_e4m3fnuz",
    "e5m2fnuz": "float8_e5m2fnuz",
    "e8m0fnu": "float8_e8m0fnu",
    "e3m2fn": "float6_e3m2fn",
    "e2m3fn": "float6_e2m3fn",
    "e2m1fn": "float4_e2m1fn",
    "int4": "int4",
    "uint4": "uint4",
    "int2": "int2",
    "uint2": "uint2",
}


def native_view(
    name: str,
    bits: int,
    packed: Array | None,
    codes: Callable[[], Array],
    count: int,
    xp: Namespace,
) -> Array | None:
    """View the codes of a number format as the dtype that a library has for it.

    Parameters
    ----------
    name : str
        Of the format.
    bits : int
        Of a code.
    packed : array of uint8, or None
        The codes, packed from the lowest bits of each byte on; None if they lie in another way.
    codes : callable
        Gives the codes as they are, one in a byte.
    count : int
        Codes in a row.
    xp : namespace
        The arrays'.

    Returns
    -------
    array or None
        None if the library has no such dtype, or none for codes that lie so.
    """
    library, native = backend(xp), _NATIVE.get(name)
    if native is None:
        return None
    if library in ("numpy", "dask"):
        # A byte for each: of packed bytes it would take the lowest code and forget the rest.
        dtype = np.dtype(getattr(ml_dtypes(native), native))
        if library == "numpy":
            return codes().view(dtype)
        # Its own `view` fails on arrays without axes.
        return codes().map_blocks(operator.methodcaller("view", dtype), dtype=dtype)
    if library == "jax" and not native.startswith("float6"):  # a dtype without any operation
        dtype = getattr(xp, native, None)
        if dtype is None or bits == 8:
            return None if dtype is None else codes().view(dtype)
        if packed is not None:
            return packed.view(dtype)[..., :count]
        return codes().astype(getattr(xp, f"{'' if name[0] == 'i' else 'u'}int{bits}")).view(dtype)
    if library == "torch" and native.startswith(("float8", "float4")):  # its int4 has no packing
        dtype = getattr(sys.modules["torch"], native if bits == 8 else f"{native}_x2", None)
        if dtype is None or bits == 8:
            return None if dtype is None else codes().view(dtype)
        return None if packed is None or count % 2 else packed.view(dtype)
    return None
