"""The published formulas of formats without a package that runs on a CPU, and of native schemes.

All are written for float32 arrays of rows that hold whole blocks. Nothing of quantarray is used.
"""

import ml_dtypes
import numpy as np


def _split(x: np.ndarray, group_size: int | None) -> np.ndarray:
    """View an array as blocks: of some elements of a row, or all."""
    return x.reshape(1, -1) if group_size is None else x.reshape(-1, group_size)


def _flushed(x: np.ndarray) -> np.ndarray:
    """Take subnormal numbers for zeros of their sign, as all native schemes do."""
    return np.where(
        np.abs(x) < np.finfo(x.dtype).smallest_normal, np.copysign(x.dtype.type(0), x), x
    )


def _absmax(blocks: np.ndarray) -> np.ndarray:
    return np.abs(blocks).max(axis=1, keepdims=True)


def _nearest(scaled: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Give the indices of the nearest values of a table; a tie goes to the smaller value."""
    order = np.argsort(table, kind="stable")
    middle = (table[order][1:] + table[order][:-1]) / np.float32(2)
    return order[np.searchsorted(middle, scaled, side="left")].astype(np.uint8)


def _minifloat(scaled: np.ndarray, kind: type) -> np.ndarray:
    top = np.float32(ml_dtypes.finfo(kind).max)
    return np.clip(scaled, -top, top).astype(kind).view(np.uint8)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack each row of codes as one large number, whose lowest bits are the first code."""
    size, rest = -(-codes.shape[1] * bits // 8), (1 << bits) - 1
    rows = [
        sum((code & rest) << (bits * i) for i, code in enumerate(row)).to_bytes(size, "little")
        for row in codes.tolist()
    ]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, size)


def _native_parts(x, codes, bits, scale, values):
    rows = codes.reshape(x.shape)
    data = rows if bits == 8 else _packed(rows, bits)
    return {"codes": codes, "data": data, "scale": scale, "decoded": values * scale}


def native_integer(x, *, bits, group_size=None):
    """Symmetric: absmax over the largest code."""
    blocks, top = _split(x, group_size), np.float32(2 ** (bits - 1) - 1)
    scale = _absmax(blocks) / top
    scale[scale == 0] = 1
    codes = np.clip(np.rint(blocks / scale), -top, top).astype(np.int8)
    return _native_parts(x, codes, bits, scale, codes)


def native_unsigned(x, *, bits, group_size=None):
    """Asymmetric: the range, widened to hold 0, over the largest code."""
    blocks, top = _split(x, group_size), np.float32(2**bits - 1)
    low = np.minimum(blocks.min(axis=1, keepdims=True), np.float32(0))
    high = np.maximum(blocks.max(axis=1, keepdims=True), np.float32(0))
    scale = (high - low) / top
    scale[scale == 0] = 1
    zero = np.clip(np.rint(-low / scale), 0, top)
    codes = np.clip(np.rint(blocks / scale) + zero, 0, top)
    parts = _native_parts(x, codes.astype(np.uint8), bits, scale, codes - zero)
    return parts | {"zero_point": zero.astype(np.uint8)}


def native_float(x, *, kind, group_size=None):
    """Absmax over the largest value of a minifloat."""
    blocks = _split(x, group_size)
    scale = _absmax(blocks) / np.float32(ml_dtypes.finfo(kind).max)
    scale[scale == 0] = 1
    codes = _minifloat(blocks / scale, kind)
    values = codes.view(kind).astype(np.float32)
    return _native_parts(x, codes, ml_dtypes.finfo(kind).bits, scale, values)


NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
FP4_BNB = tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))


def native_codebook(x, *, table, group_size=64):
    """Absmax, and the nearest value of a table."""
    blocks, table = _split(_flushed(x), group_size), np.asarray(table, np.float32)
    scale = _absmax(blocks)
    scale[scale == 0] = 1
    codes = _nearest(blocks / scale, table)
    return _native_parts(x, codes, 4, scale, table[codes])


def native_microscaling(x, *, kind, scale_rule="floor", group_size=32):
    """Give OCP Microscaling 1.0: the scale is a power of two, its exponent plus 127 is stored."""
    blocks = _split(x, group_size)
    largest = _absmax(blocks).astype(np.float64)
    top = 127 / 64 if kind is None else float(ml_dtypes.finfo(kind).max)
    if scale_rule == "even":  # absmax is rounded to the bits of the element first, half up
        steps = 2.0 ** (7 if kind is None else ml_dtypes.finfo(kind).nmant + 1)
        fraction, exponent = np.frexp(largest)
        largest = np.ldexp(np.floor(fraction * steps + 0.5) / steps, exponent)
    if scale_rule != "rceil":
        top = 2.0 ** np.floor(np.log2(top))
    fraction, exponent = np.frexp(largest / top)  # 1.0 is 0.5 * 2**1
    exponent = exponent - (fraction == 0.5 if scale_rule in ("ceil", "rceil") else 1)
    exponent = np.where(largest == 0, 0, np.clip(exponent, -127, 127)).astype(int)
    scale = np.ldexp(np.float32(1), exponent)
    if kind is None:
        codes, bits = np.clip(np.rint(blocks / scale * 64), -127, 127).astype(np.int8), 8
        values = codes / np.float32(64)
    else:
        codes, bits = _minifloat(blocks / scale, kind), ml_dtypes.finfo(kind).bits
        values = codes.view(kind).astype(np.float32)
    parts = _native_parts(x, codes, bits, scale, values)
    return parts | {"scale": (exponent + 127).astype(np.uint8)}


def native_nvfp4(x):
    """Two levels: absmax / (6 * 448) for all, then e4m3 for 16 elements each."""
    blocks = _split(x, 16)
    outer = np.abs(x).max() / np.float32(6 * 448)
    outer = np.float32(outer or 1)
    inner = _absmax(blocks) / np.float32(6) / outer
    inner = np.where(inner == 0, 1, np.clip(inner, np.float32(2**-9), np.float32(448)))
    inner = inner.astype(ml_dtypes.float8_e4m3fn)
    scale = inner.astype(np.float32) * outer
    codes = _minifloat(blocks / scale, ml_dtypes.float4_e2m1fn)
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    parts = _native_parts(x, codes, 4, scale, values)
    return parts | {"scale": inner.view(np.uint8), "global_scale": np.asarray(outer)}


def ternary(x, *, mean=None):
    """Quantize as BitNet b1.58 does: mean |x|, and the nearest of -1, 0 and 1."""
    scale = np.float32(np.abs(x).mean(dtype=np.float64) or 1) if mean is None else mean
    codes = np.clip(np.rint(x / scale), -1, 1).astype(np.int8)
    return _native_parts(x, codes, 2, np.asarray(scale), codes)


def binary(x, *, mean=None):
    """Binary weights: mean |x|, and the sign."""
    x = _flushed(x)
    scale = np.float32(np.abs(x).mean(dtype=np.float64)) if mean is None else mean
    codes = (x > 0).astype(np.uint8)
    return _native_parts(x, codes, 1, np.asarray(scale), codes * np.float32(2) - np.float32(1))


def gptq(x, *, bits, group_size=128):
    """AutoGPTQ's symmetric quantizer, and its packing along the rows of the transposed codes."""
    blocks, top = _split(x, group_size), np.float32(2**bits - 1)
    low = np.minimum(blocks.min(axis=1, keepdims=True), np.float32(0))
    high = np.maximum(np.abs(low), blocks.max(axis=1, keepdims=True))
    low = np.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = np.where(empty, np.float32(-1), low), np.where(empty, np.float32(1), high)
    scale, zero = (high - low) / top, np.full(low.shape, (top + 1) / 2, np.float32)
    codes = np.clip(np.rint(blocks / scale) + zero, 0, top)
    packed = _packed(codes.astype(np.uint8).reshape(x.shape), bits).view("<i4")
    return {
        "codes": codes.astype(np.uint8),
        "data": np.ascontiguousarray(packed.T),
        "scale": scale,
        "zero_point": zero.astype(np.uint8),
        "decoded": scale * (codes - zero),
    }


def awq(x, *, group_size=128):
    """AWQ's asymmetric quantizer, and the packing of its matrix product, along the columns."""
    blocks, top = _split(x, group_size), np.float32(15)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    scale = np.maximum(high - low, np.float32(1e-5)) / top
    zero = np.clip(-np.rint(low / scale), 0, top)
    codes = np.clip(np.rint(blocks / scale) + zero, 0, top)
    columns = codes.astype(np.uint8).reshape(x.shape).T  # input features x output features
    eights = columns.reshape(len(columns), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
    return {
        "codes": codes.astype(np.uint8),
        "data": _packed(eights.reshape(columns.shape), 4),
        "scale": scale,
        "zero_point": zero.astype(np.uint8),
        "decoded": (codes - zero) * scale,
    }


def sentence_transformers(x, *, release, kind):
    """Its own lines: each dimension's range in 255 steps, truncated, or the signs."""
    if "binary" in kind:
        packed = np.packbits(x > 0, axis=-1)
        data = packed if kind == "ubinary" else (packed - 128).astype(np.int8)
        return {"codes": (x > 0).astype(np.uint8), "data": data}
    starts = x.min(axis=0) + np.float32(0)  # which zero is the smallest depends on the order
    steps = (x.max(axis=0) - starts) / 255
    steps = np.where(steps == 0, 1, steps).astype(np.float32)
    values = (x - starts) / steps
    if release >= 6:
        codes = np.clip(np.floor(values), 0, 255)
        codes = (codes - 128).astype(np.int8) if kind == "int8" else codes.astype(np.uint8)
    else:
        codes = (values - 128).astype(np.int8) if kind == "int8" else values.astype(np.uint8)
    return {"codes": codes, "scale": steps, "offset": starts}
