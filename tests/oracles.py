"""Whose bytes each preset has to give: one record per preset, and the inputs to compare on.

An owner is the package that publishes a format, and is imported where it is called. For formats
without a package that runs on a CPU, the published formulas are written out below, in NumPy.
Nothing of quantarray takes part in what is expected.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from helpers import bits as bits_of

import quantarray as qa
from quantarray.formats import Integer

Parts = dict[str, np.ndarray]
SHAPE, SMALL, RAGGED = (64, 512), (8, 128), (7, 101)


@dataclass(frozen=True)
class Deviation:
    """Where an owner's result is not to be had, and why."""

    why: str
    inputs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    # Whether the result depends on the machine, and may be equal.
    machine: bool = False

    def covers(self, case: "Case", part: str) -> bool:
        """Tell whether a part of a result is one of those; an empty choice is any."""
        pairs = (
            (self.inputs, case.name),
            (self.parts, part),
            (self.dtypes, case.dtype),
            (self.shapes, case.shape),
        )
        return all(value in chosen for chosen, value in pairs if chosen)


@dataclass(frozen=True)
class Oracle:
    """An owner, and how to have it quantize."""

    scheme: str
    # The module that is the owner's package; "numpy" where its formulas are written here.
    owner: str
    quantize: Callable[..., Parts]
    # Keyword arguments for `quantize` and for `quantarray.scheme`.
    options: tuple[Mapping[str, Any], ...] = ({},)
    dtypes: tuple[str, ...] = ("float32",)
    shapes: tuple[tuple[int, ...], ...] = (SHAPE,)
    # A part that is a mean: its last bits are the order of a sum. Where they differ, the owner is
    # given ours as `mean`, and all that follows from it is compared.
    mean: str = ""
    deviations: tuple[Deviation, ...] = ()


@dataclass(frozen=True)
class Case:
    """One array to quantize, in one way."""

    oracle: Oracle
    name: str
    options: Mapping[str, Any]
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        choices = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"{self.oracle.scheme}{choices}: {self.name} {self.dtype} {self.shape}"

    @property
    def scheme(self) -> qa.Scheme:
        """The scheme with its options."""
        return qa.scheme(self.oracle.scheme, **self.options)

    @property
    def x(self) -> np.ndarray:
        """The array."""
        return make_input(self.name, self.scheme, self.dtype, self.shape)

    def theirs(self, **given: np.ndarray) -> Parts:
        """Give the owner's result, perhaps with a mean that is not its own."""
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return self.oracle.quantize(self.x, **self.options, **given)

    def ours(self) -> qa.QuantizedArray:
        """Give our result."""
        return qa.quantize(self.x, self.scheme)

    def differences(self) -> dict[str, "Difference"]:
        """Compare every part that the owner has."""
        theirs, mean = self.theirs(), self.oracle.mean
        ours = parts_of(self.ours(), theirs)
        if mean and np.allclose(ours[mean], theirs[mean], rtol=1e-6, atol=0):
            theirs = self.theirs(mean=ours[mean])
        return {part: compare(theirs[part], ours[part], part == "data") for part in theirs}

    def failures(self) -> list[str]:
        """Say what differs, but for known deviations; and what deviates no more."""
        found = self.differences()
        wrong = {part for part in found if found[part].count}
        messages = []
        for known in self.oracle.deviations:
            covered = {part for part in found if known.covers(self, part)}
            if covered and not covered & wrong and not known.machine:
                messages.append(f"{self}: {', '.join(covered)}: equal, though {known.why}")
            wrong -= covered
        return messages + [f"{self}: {part}: {found[part]}" for part in found if part in wrong]


def cases(oracle: Oracle, name: str) -> Iterator[Case]:
    """Give all that an oracle is asked about one input."""
    for options in oracle.options:
        for dtype in oracle.dtypes:
            for shape in oracle.shapes:
                yield Case(oracle, name, options, dtype, shape)


@dataclass(frozen=True)
class Difference:
    """How many elements of a part differ, and the first of them."""

    count: int
    size: int
    first: str = ""

    def __str__(self) -> str:
        return f"{self.count} of {self.size} differ{self.first}"


def compare(theirs: np.ndarray, ours: np.ndarray, as_bytes: bool = False) -> Difference:
    """Compare bit for bit: integers by value, floats also by dtype; the shape may differ."""
    if as_bytes:
        theirs, ours = (np.frombuffer(a.tobytes(), np.uint8) for a in (theirs, ours))
    theirs, ours = theirs.reshape(-1), ours.reshape(-1)
    size = max(theirs.size, ours.size)
    if theirs.size != ours.size:
        return Difference(size, size, f": the owner has {theirs.size}, and not {ours.size}")
    if (integers := [a.dtype.kind in "iub" for a in (theirs, ours)]) != [True, True] and (
        any(integers) or theirs.dtype != ours.dtype
    ):
        return Difference(size, size, f": the owner's are {theirs.dtype}, and not {ours.dtype}")
    if all(integers):
        wrong = np.nonzero(theirs.astype(np.int64) != ours.astype(np.int64))[0]
    else:
        wrong = np.nonzero(bits_of(theirs) != bits_of(ours))[0]
    if not wrong.size:
        return Difference(0, size)
    at = wrong[0]
    return Difference(
        wrong.size, size, f"; at {at} the owner has {theirs[at]!r}, and not {ours[at]!r}"
    )


def parts_of(q: qa.QuantizedArray, theirs: Parts) -> Parts:
    """Give our form of the parts an owner has."""
    names = {"scale": "scale_data"}
    return {
        name: q.dequantize(part.dtype.name)
        if name == "decoded"
        else np.asarray(getattr(q, names.get(name, name)))
        for name, part in theirs.items()
    }


@dataclass(frozen=True)
class Score:
    """Elements of an oracle's parts: compared, different, and different for known reasons."""

    compared: int = 0
    different: int = 0
    known: int = 0


def score(oracle: Oracle) -> Score:
    """Count over all inputs."""
    total = Score()
    for name in INPUTS:
        for case in cases(oracle, name):
            for part, found in case.differences().items():
                known = any(one.covers(case, part) for one in oracle.deviations)
                total = Score(
                    total.compared + found.size,
                    total.different + (0 if known else found.count),
                    total.known + (found.count if known else 0),
                )
    return total


GOLDEN = Path(__file__).parent / "golden" / "owners.npz"


def write_golden() -> None:
    """Write what every owner gives, so that it can be tested where no owner is installed."""
    arrays = {}
    for oracle in ORACLES:
        case = Case(oracle, "mixed", {}, "float32", SMALL)
        if failures := case.failures():
            raise SystemExit("\n".join(failures))
        q = case.ours()
        parts = {"x": case.x, **q.parts(), "decoded": q.dequantize()}
        arrays |= {f"{oracle.scheme}/{name}": part for name, part in parts.items()}
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)


def missing() -> list[str]:
    """Name the owners that are not installed."""
    owners = {oracle.owner for oracle in ORACLES}
    return sorted(owner for owner in owners if importlib.util.find_spec(owner) is None)


# Inputs: each a function of the scheme and of a shape that gives float64 values.


def _random(shape: tuple[int, ...]) -> np.random.Generator:
    return np.random.default_rng(shape)


def _gaussian(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return _random(shape).standard_normal(shape)


def _heavy_tailed(scheme: qa.Scheme, shape: tuple[int, ...]) -> np.ndarray:
    return np.clip(_random(shape).standard_t(1.5, shape), -3e4, 3e4)


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
        x = x * {"large": 5e-27, "huge": 2.5e-34, "small": 1e28}.get(name, 1.0)
    x = x.astype(getattr(ml_dtypes, dtype, dtype))
    x.flags.writeable = False
    return x


# What the formulas of several owners share.


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


# Formulas without an owner that runs here.


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


# Owners' packages.


def _tensor(x):
    import torch

    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def _array(tensor):
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        tensor = tensor.view(torch.uint8)
    return tensor.numpy()


def _arrays(**tensors):
    return {name: _array(tensor) for name, tensor in tensors.items()}


def torchao_affine(x, *, bits, signed, group_size=None):
    import torch
    from torchao.quantization import quant_primitives as ao

    kind = ao.MappingType.SYMMETRIC if signed else ao.MappingType.ASYMMETRIC
    dtype = torch.int8 if signed else torch.uint8
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    size = (1, group_size or (128 if bits < 8 else x.shape[-1]))
    x = _tensor(x)
    scale, zero = ao.choose_qparams_affine(x, kind, size, dtype, low, high)
    codes = ao.quantize_affine(x, size, scale, zero, dtype, low, high)
    decoded = ao.dequantize_affine(codes, size, scale, zero, dtype, low, high)
    parts = _arrays(codes=codes, scale=scale, decoded=decoded)
    return parts if signed else parts | _arrays(zero_point=zero)


def torchao_microscaling(x, *, element, scale_rule="floor"):
    import torch
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_dtype, to_mx

    element = getattr(torch, element, element)
    mode = ScaleCalculationMode[scale_rule.upper()]
    scale, data = to_mx(_tensor(x), element, 32, mode)
    decoded = to_dtype(data, scale, element, 32, torch.float32)
    stored = "data" if element == torch.float4_e2m1fn_x2 else "codes"
    return _arrays(scale=scale, decoded=decoded, **{stored: data})


def torchao_nvfp4(x):
    import torch
    from torchao.prototype.mx_formats import nvfp4_tensor as nvfp4

    x = _tensor(x)
    outer = nvfp4.per_tensor_amax_to_scale(x.abs().max())
    scale, data = nvfp4.nvfp4_quantize(x, per_tensor_scale=outer)
    decoded = nvfp4.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=outer).dequantize(torch.float32)
    return _arrays(data=data, scale=scale, global_scale=outer, decoded=decoded)


def compressed_tensors_integer(x, *, bits, symmetric, group_size=None):
    import torch
    from compressed_tensors.compressors.pack_quantized import helpers
    from compressed_tensors.quantization import QuantizationArgs, utils
    from compressed_tensors.quantization.lifecycle import forward

    group_size = group_size or (128 if bits < 8 else None)
    by_group = {"strategy": "group", "group_size": group_size}
    strategy = by_group if group_size else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)
    x = _tensor(x)
    blocks = x.unflatten(-1, (-1, group_size)) if group_size else x.unsqueeze(1)
    scale, zero = utils.calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    codes = forward.quantize(x, scale, zero, args, dtype=torch.int8)
    decoded = forward.dequantize(codes, scale, zero, args)
    parts = _arrays(codes=codes, scale=scale, decoded=decoded)
    if bits < 8:
        data = helpers.pack_to_int32(codes, bits)
        assert torch.equal(helpers.unpack_from_int32(data, bits, x.shape), codes)
        parts |= _arrays(data=data)
    return parts if symmetric else parts | _arrays(zero_point=zero)


def compressed_tensors_nvfp4(x):
    import torch
    from compressed_tensors.compressors.nvfp4 import helpers
    from compressed_tensors.quantization import QuantizationArgs, utils
    from compressed_tensors.quantization.lifecycle import forward

    args = QuantizationArgs(
        num_bits=4,
        type="float",
        symmetric=True,
        strategy="tensor_group",
        group_size=16,
        scale_dtype=torch.float8_e4m3fn,
    )
    x = _tensor(x)
    outer = utils.generate_gparam(x.amin(), x.amax())
    blocks = x.unflatten(-1, (-1, 16))
    scale, zero = utils.calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, outer)
    values = forward.quantize(x, scale, zero, args, global_scale=outer)
    decoded = forward.dequantize(values, scale, None, args, global_scale=outer)
    data = helpers.pack_fp4_to_uint8(values)
    scale = scale.to(args.scale_dtype)
    return _arrays(data=data, scale=scale, global_scale=outer, decoded=decoded)


def bitsandbytes_4bit(x, *, kind, flat=64, nested=False, mean=None):
    from bitsandbytes import functional

    data, state = functional.quantize_4bit(
        _tensor(x), blocksize=flat, quant_type=kind, compress_statistics=nested
    )
    if mean is not None:
        absmax = functional.quantize_4bit(_tensor(x), blocksize=flat, quant_type=kind)[1].absmax
        state.offset = _tensor(mean).reshape(())
        state.absmax, state.state2 = functional.quantize_blockwise(
            absmax - state.offset, blocksize=256
        )
    with _eager():
        decoded = functional.dequantize_4bit(data, state)
    parts = _arrays(data=data, scale=state.absmax, decoded=decoded)
    if nested:
        parts |= _arrays(global_scale=state.state2.absmax, global_offset=state.offset)
    return parts


def bitsandbytes_8bit(x, *, flat=4096):
    from bitsandbytes import functional

    codes, state = functional.quantize_blockwise(_tensor(x), blocksize=flat)
    decoded = functional.dequantize_blockwise(codes, state)
    return _arrays(codes=codes, scale=state.absmax, decoded=decoded)


def bitsandbytes_rows(x):
    from bitsandbytes import functional

    codes, absmax, _ = functional.int8_vectorwise_quant(_tensor(x))
    decoded = functional.int8_vectorwise_dequant(codes, absmax)
    return _arrays(codes=codes, scale=absmax, decoded=decoded)


def _eager():
    """Let nothing be compiled: that takes seconds for each shape."""
    import torch

    return torch.compiler.set_stance("force_eager")


def mlx_affine(x, *, bits, group_size=64):
    import mlx.core as mx

    def array(a):
        if a.dtype == mx.bfloat16:
            return np.array(a.view(mx.uint16)).view(ml_dtypes.bfloat16)
        return np.array(a)

    x = mx.array(x.astype(np.float32)).astype(getattr(mx, x.dtype.name))
    size = {"group_size": group_size, "bits": bits}
    data, scales, biases = mx.quantize(x, **size)
    decoded = mx.dequantize(data, scales, biases, **size)
    parts = {"data": data, "scale": scales, "offset": biases, "decoded": decoded}
    return {name: array(part) for name, part in parts.items()}


def faiss_scalar(x, *, bits):
    import faiss

    kind = getattr(faiss.ScalarQuantizer, f"QT_{bits}bit")
    index = faiss.IndexScalarQuantizer(x.shape[1], kind)
    index.train(x)
    offset, scale = np.split(faiss.vector_to_array(index.sq.trained), 2)
    offset = offset + np.float32(0)  # which zero is the smallest depends on the order
    data = index.sa_encode(x)
    return {"data": data, "scale": scale, "offset": offset, "decoded": index.sa_decode(data)}


def onnx_linear(x, *, kind):
    """QuantizeLinear and DequantizeLinear, for uint8 with the scale of DynamicQuantizeLinear."""
    from onnx import TensorProto, helper

    element = np.dtype(helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind.upper())))
    limits = ml_dtypes.finfo(element) if kind.startswith("float") else ml_dtypes.iinfo(element)
    span = np.float32(limits.max)
    if kind == "uint8":
        codes, scale, zero = _onnx("DynamicQuantizeLinear", kind)(x)
    else:
        low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
        extent = high - low if kind.startswith("uint") else max(high, -low)
        scale = extent / span or np.float32(1) / (span if kind.startswith("uint") else 1)
        zero = np.clip(np.rint(-low / scale), 0, span) if kind.startswith("uint") else 0.0
        zero = np.asarray(zero).astype(np.int32).astype(element)
        (codes,) = _onnx("QuantizeLinear", kind)(x, scale, zero)
    (decoded,) = _onnx("DequantizeLinear", kind)(codes, scale, zero)
    codes = codes.view(np.uint8) if kind.startswith("float") else codes.astype(np.int32)
    parts = {"codes": codes, "scale": np.asarray(scale), "decoded": decoded}
    return parts | ({"zero_point": zero.astype(np.int32)} if kind.startswith("uint") else {})


@cache
def _onnx(operator: str, kind: str) -> Callable[..., list[np.ndarray]]:
    """Give a function that runs one operator of the ONNX reference."""
    from onnx import TensorProto, helper, reference

    number, element = TensorProto.FLOAT, getattr(TensorProto, kind.upper())
    inputs = {"x": number, "scale": number, "zero_point": element}
    outputs = {"y": element}
    if operator == "DynamicQuantizeLinear":
        inputs, outputs = {"x": number}, outputs | {"scale": number, "zero_point": element}
    if operator == "DequantizeLinear":
        inputs["x"], outputs = element, {"y": number}
    node = helper.make_node(operator, list(inputs), list(outputs))
    values = (
        [helper.make_tensor_value_info(name, dtype, None) for name, dtype in side.items()]
        for side in (inputs, outputs)
    )
    graph = helper.make_graph([node], operator, *values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
    evaluator = reference.ReferenceEvaluator(model)
    return lambda *arrays: evaluator.run(None, dict(zip(inputs, arrays, strict=True)))


GROUPS = ({}, {"group_size": 32})
RULES = tuple({"scale_rule": rule} for rule in ("floor", "ceil", "even", "rceil"))
DTYPES = ("float32", "float16", "bfloat16")
MINIFLOATS = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "fp8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
WIDE = ("float32", "bfloat16")  # the dtypes with the exponents of float32
SUBNORMALS = Deviation(
    "a positive subnormal counts as zero, as it does in JAX", inputs=("subnormals",), dtypes=WIDE
)
ZERO_TAIL = Deviation(
    "bitsandbytes stores 1e-38, a subnormal, for zeros in a short block at the end",
    inputs=("zeros",),
    parts=("scale",),
    shapes=(RAGGED,),
)


def _native(scheme: str, function: Callable[..., Parts], **choices: Any) -> Oracle:
    return Oracle(scheme, "numpy", partial(function, **choices), options=GROUPS)


def _microscaling(scheme: str, kind: type | None) -> Oracle:
    return Oracle(scheme, "numpy", partial(native_microscaling, kind=kind), options=RULES)


def _onnx_record(kind: str) -> Oracle:
    function = partial(onnx_linear, kind=kind)
    return Oracle(f"onnx:{kind}", "onnx", function, shapes=(SHAPE, RAGGED))


def _torchao_affine(bits: int, signed: bool) -> Oracle:
    return Oracle(
        f"torchao:{'' if signed else 'u'}int{bits}",
        "torchao",
        partial(torchao_affine, bits=bits, signed=signed),
        options=GROUPS,
        dtypes=DTYPES,
    )


def _torchao_microscaling(scheme: str, element: str) -> Oracle:
    return Oracle(
        f"torchao:{scheme}",
        "torchao",
        partial(torchao_microscaling, element=element),
        options=RULES,
        dtypes=WIDE,
    )


def _compressed_tensors(bits: int, symmetric: bool) -> Oracle:
    return Oracle(
        f"ct:int{bits}{'' if symmetric else '_asymmetric'}",
        "compressed_tensors",
        partial(compressed_tensors_integer, bits=bits, symmetric=symmetric),
        options=GROUPS if bits < 8 else ({},),
        dtypes=DTYPES,
    )


def _bitsandbytes(scheme: str, function: Callable[..., Parts], *sizes: int, **more: Any) -> Oracle:
    return Oracle(
        f"bnb:{scheme}",
        "bitsandbytes",
        function,
        options=({}, *({"flat": size} for size in sizes)),
        dtypes=DTYPES,
        shapes=(SHAPE, RAGGED),
        **more,
    )


def _gptq(bits: int) -> Oracle:
    known = Deviation(
        "AutoGPTQ's range of a group without negative elements starts at 0, but its zero point is "
        "still in the middle, so that more than half of the range saturates",
        inputs=("positive", "constant_rows"),
        parts=("codes", "data", "scale", "decoded"),
    )
    return Oracle(f"gptq:int{bits}", "numpy", partial(gptq, bits=bits), deviations=(known,))


def _mlx(bits: int) -> Oracle:
    return Oracle(
        f"mlx:affine{bits}",
        "mlx",
        partial(mlx_affine, bits=bits),
        options=tuple({"group_size": size} for size in (32, 64, 128)),
        dtypes=DTYPES,
    )


def _sentence_transformers(name: str, kind: str, release: int) -> Oracle:
    function = partial(sentence_transformers, kind=kind, release=release)
    known = (SUBNORMALS,) if "binary" in kind else ()
    return Oracle(name, "numpy", function, shapes=(SHAPE, RAGGED), deviations=known)


def _faiss(bits: int) -> Oracle:
    known = Deviation(
        "faiss multiplies and adds with one rounding where it decodes 8 dimensions at once",
        parts=("decoded",),
        shapes=(SHAPE, SMALL),
        machine=True,
    )
    function = partial(faiss_scalar, bits=bits)
    shapes = (SHAPE, RAGGED, (64, 509))
    return Oracle(f"faiss:sq{bits}", "faiss", function, shapes=shapes, deviations=(known,))


ORACLES: tuple[Oracle, ...] = (
    *(_native(f"int{bits}", native_integer, bits=bits) for bits in range(2, 9)),
    *(_native(f"uint{bits}", native_unsigned, bits=bits) for bits in range(2, 9)),
    Oracle("ternary", "numpy", ternary, mean="scale"),
    Oracle("binary", "numpy", binary, mean="scale"),
    *(_native(name, native_float, kind=kind) for name, kind in MINIFLOATS.items()),
    Oracle("nf4", "numpy", partial(native_codebook, table=NF4)),
    Oracle("fp4_bnb", "numpy", partial(native_codebook, table=FP4_BNB)),
    _microscaling("mxfp8_e4m3", ml_dtypes.float8_e4m3fn),
    _microscaling("mxfp8_e5m2", ml_dtypes.float8_e5m2),
    _microscaling("mxfp6_e3m2", ml_dtypes.float6_e3m2fn),
    _microscaling("mxfp6_e2m3", ml_dtypes.float6_e2m3fn),
    _microscaling("mxfp4", ml_dtypes.float4_e2m1fn),
    _microscaling("mxint8", None),
    Oracle("nvfp4", "numpy", native_nvfp4),
    *(_onnx_record(f"int{bits}") for bits in (2, 4, 8, 16)),
    *(_onnx_record(f"uint{bits}") for bits in (2, 4, 8, 16)),
    *(_onnx_record(kind) for kind in ("float8e4m3fn", "float8e5m2", "float4e2m1")),
    *(_torchao_affine(bits, signed) for signed in (True, False) for bits in (4, 8)),
    _torchao_microscaling("mxfp8_e4m3", "float8_e4m3fn"),
    _torchao_microscaling("mxfp8_e5m2", "float8_e5m2"),
    _torchao_microscaling("mxfp6_e3m2", "fp6_e3m2"),
    _torchao_microscaling("mxfp6_e2m3", "fp6_e2m3"),
    _torchao_microscaling("mxfp4", "float4_e2m1fn_x2"),
    Oracle(
        "torchao:nvfp4",
        "torchao",
        torchao_nvfp4,
        dtypes=WIDE,
        deviations=(Deviation("torchao divides 0 by 0, and stores NaN", inputs=("zeros",)),),
    ),
    *(_compressed_tensors(bits, symmetric) for symmetric in (True, False) for bits in (4, 8)),
    Oracle("ct:nvfp4", "compressed_tensors", compressed_tensors_nvfp4),
    *(_gptq(bits) for bits in (2, 3, 4, 8)),
    Oracle("awq:int4", "numpy", awq),
    _bitsandbytes(
        "nf4",
        partial(bitsandbytes_4bit, kind="nf4"),
        *(32, 128, 256, 2048),
        deviations=(ZERO_TAIL,),
    ),
    _bitsandbytes(
        "fp4",
        partial(bitsandbytes_4bit, kind="fp4"),
        *(32, 128, 256, 2048),
        deviations=(ZERO_TAIL, SUBNORMALS),
    ),
    _bitsandbytes(
        "nf4_nested",
        partial(bitsandbytes_4bit, kind="nf4", nested=True),
        128,
        mean="global_offset",
        deviations=(
            replace(ZERO_TAIL, parts=("scale", "global_scale", "global_offset", "decoded")),
            Deviation("the mean of bitsandbytes overflows", inputs=("huge",), dtypes=WIDE),
        ),
    ),
    _bitsandbytes("int8", bitsandbytes_8bit, 64, 256),
    Oracle(
        "bnb:int8_rows",
        "bitsandbytes",
        bitsandbytes_rows,
        dtypes=DTYPES,
        shapes=(SHAPE, RAGGED),
        deviations=(
            Deviation(
                "code * absmax overflows in bitsandbytes",
                inputs=("huge",),
                parts=("decoded",),
                dtypes=WIDE,
            ),
        ),
    ),
    *(_mlx(bits) for bits in (2, 3, 4, 5, 6, 8)),
    _sentence_transformers("st:int8", "int8", release=5),
    _sentence_transformers("st6:int8", "int8", release=6),
    _sentence_transformers("st:uint8", "uint8", release=6),
    _sentence_transformers("st:binary", "binary", release=6),
    _sentence_transformers("st:ubinary", "ubinary", release=6),
    *(_faiss(bits) for bits in (4, 8)),
)


if __name__ == "__main__":
    write_golden()
