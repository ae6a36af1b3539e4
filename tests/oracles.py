"""Whose bytes each preset has to give: one record per preset, and the comparison.

An owner is the package that publishes a format (owner_packages.py), or, where none runs on a CPU,
its published formulas (owner_formulas.py). Nothing of quantarray takes part in what is expected.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import owner_formulas as formulas
import owner_packages as packages
import pytest
from helpers import bits as bits_of
from oracle_inputs import make_input

import quantarray as qa

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
    # Whether some results are equal: that depends on the machine, or on the blocks.
    sometimes: bool = False

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
    # One of `owner_packages.PACKAGES`; or else its formulas are written in owner_formulas.py.
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
    # Inputs beyond what the scales of the format hold: refused, where the owner saturates.
    refused: tuple[str, ...] = ()


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
        if self.name in self.oracle.refused:
            with pytest.raises(qa.QuantArrayError, match="beyond"):
                self.ours()
            return []
        found = self.differences()
        wrong = {part for part in found if found[part].count}
        unknown, messages = set(wrong), []
        for known in self.oracle.deviations:
            covered = {part for part in found if known.covers(self, part)}
            if covered and not covered & wrong and not known.sometimes:
                messages.append(f"{self}: {', '.join(covered)}: equal, though {known.why}")
            unknown -= covered
        return messages + [f"{self}: {part}: {found[part]}" for part in found if part in unknown]


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
    integers = all(array.dtype.kind in "iub" for array in (theirs, ours))
    if theirs.dtype != ours.dtype and not integers:
        return Difference(size, size, f": the owner's are {theirs.dtype}, and not {ours.dtype}")
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
    """Name the packages that are not installed."""
    return [name for name in packages.PACKAGES if importlib.util.find_spec(name) is None]


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
    "a subnormal counts as a zero, as it does in JAX", inputs=("subnormals",), dtypes=WIDE
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
    return Oracle(scheme, "numpy", partial(formulas.native_microscaling, kind=kind), options=RULES)


def _onnx_record(kind: str) -> Oracle:
    function = partial(packages.onnx_linear, kind=kind)
    known = (SUBNORMALS,) if kind == "float4e2m1" else ()  # its zeros have no sign
    shapes = (SHAPE, RAGGED)
    return Oracle(f"onnx:{kind}", "onnx", function, shapes=shapes, deviations=known)


def _torchao_affine(bits: int, signed: bool) -> Oracle:
    return Oracle(
        f"torchao:{'' if signed else 'u'}int{bits}",
        "torchao",
        partial(packages.torchao_affine, bits=bits, signed=signed),
        options=GROUPS,
        dtypes=DTYPES,
    )


def _torchao_microscaling(scheme: str, element: str) -> Oracle:
    return Oracle(
        f"torchao:{scheme}",
        "torchao",
        partial(packages.torchao_microscaling, element=element),
        options=RULES,
        dtypes=WIDE,
    )


def _compressed_tensors(bits: int, symmetric: bool) -> Oracle:
    known = Deviation(
        "compressed-tensors divides by a scale that underflowed to 0 for the zero point",
        inputs=("wide",),
        parts=("codes", "data", "zero_point"),
        dtypes=("float16",),
        sometimes=True,
    )
    return Oracle(
        f"ct:int{bits}{'' if symmetric else '_asymmetric'}",
        "compressed_tensors",
        partial(packages.compressed_tensors_integer, bits=bits, symmetric=symmetric),
        options=GROUPS if bits < 8 else ({},),
        dtypes=DTYPES,
        deviations=() if symmetric else (known,),
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
    return Oracle(
        f"gptq:int{bits}", "AutoGPTQ", partial(formulas.gptq, bits=bits), deviations=(known,)
    )


def _mlx(bits: int) -> Oracle:
    return Oracle(
        f"mlx:affine{bits}",
        "mlx",
        partial(packages.mlx_affine, bits=bits),
        options=tuple({"group_size": size} for size in (32, 64, 128)),
        dtypes=DTYPES,
    )


def _mlx_float(name: str, mode: str, bits: int, block: int, **choices: Any) -> Oracle:
    function = partial(
        packages.mlx_float, mode=mode, bits=bits, group_size=block, known="global" in name
    )
    return Oracle(f"mlx:{name}", "mlx", function, **choices)


def _sentence_transformers(name: str, kind: str, release: int) -> Oracle:
    function = partial(formulas.sentence_transformers, kind=kind, release=release)
    known = (SUBNORMALS,) if "binary" in kind else ()
    shapes = (SHAPE, RAGGED)
    return Oracle(name, "sentence-transformers", function, shapes=shapes, deviations=known)


def _faiss(bits: int) -> Oracle:
    known = Deviation(
        "faiss multiplies and adds with one rounding where it decodes 8 dimensions at once",
        parts=("decoded",),
        shapes=(SHAPE, SMALL),
        sometimes=True,
    )
    function = partial(packages.faiss_scalar, bits=bits)
    shapes = (SHAPE, RAGGED, (64, 509))
    return Oracle(f"faiss:sq{bits}", "faiss", function, shapes=shapes, deviations=(known,))


ORACLES: tuple[Oracle, ...] = (
    *(_native(f"int{bits}", formulas.native_integer, bits=bits) for bits in range(2, 9)),
    *(_native(f"uint{bits}", formulas.native_unsigned, bits=bits) for bits in range(2, 9)),
    Oracle("ternary", "numpy", formulas.ternary, mean="scale"),
    Oracle("binary", "numpy", formulas.binary, mean="scale"),
    *(_native(name, formulas.native_float, kind=kind) for name, kind in MINIFLOATS.items()),
    Oracle("nf4", "numpy", partial(formulas.native_codebook, table=formulas.NF4)),
    Oracle("fp4_bnb", "numpy", partial(formulas.native_codebook, table=formulas.FP4_BNB)),
    _microscaling("mxfp8_e4m3", ml_dtypes.float8_e4m3fn),
    _microscaling("mxfp8_e5m2", ml_dtypes.float8_e5m2),
    _microscaling("mxfp6_e3m2", ml_dtypes.float6_e3m2fn),
    _microscaling("mxfp6_e2m3", ml_dtypes.float6_e2m3fn),
    _microscaling("mxfp4", ml_dtypes.float4_e2m1fn),
    _microscaling("mxint8", None),
    Oracle("nvfp4", "numpy", formulas.native_nvfp4),
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
        packages.torchao_nvfp4,
        dtypes=WIDE,
        deviations=(Deviation("torchao divides 0 by 0, and stores NaN", inputs=("zeros",)),),
    ),
    *(_compressed_tensors(bits, symmetric) for symmetric in (True, False) for bits in (4, 8)),
    Oracle(
        "ct:nvfp4",
        "compressed_tensors",
        packages.compressed_tensors_nvfp4,
        deviations=(SUBNORMALS,),  # its zeros have no sign
    ),
    *(_gptq(bits) for bits in (2, 3, 4, 8)),
    Oracle("awq:int4", "llm-awq", formulas.awq),
    _bitsandbytes(
        "nf4",
        partial(packages.bitsandbytes_4bit, kind="nf4"),
        *(32, 128, 256, 2048),
        deviations=(ZERO_TAIL,),
    ),
    _bitsandbytes(
        "fp4",
        partial(packages.bitsandbytes_4bit, kind="fp4"),
        *(32, 128, 256, 2048),
        deviations=(ZERO_TAIL, SUBNORMALS),
    ),
    _bitsandbytes(
        "nf4_nested",
        partial(packages.bitsandbytes_4bit, kind="nf4", nested=True),
        128,
        mean="global_offset",
        deviations=(
            replace(ZERO_TAIL, parts=("scale", "global_scale", "global_offset", "decoded")),
            Deviation("the mean of bitsandbytes overflows", inputs=("huge",), dtypes=WIDE),
        ),
    ),
    _bitsandbytes("int8", packages.bitsandbytes_8bit, 64, 256),
    Oracle(
        "bnb:int8_rows",
        "bitsandbytes",
        packages.bitsandbytes_rows,
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
    _mlx_float("mxfp4", "mxfp4", 4, 32),
    _mlx_float("mxfp8", "mxfp8", 8, 32),
    _mlx_float("nvfp4", "nvfp4", 4, 16, refused=("large", "huge", "wide")),
    _mlx_float(
        "nvfp4_global",
        "nvfp4",
        4,
        16,
        deviations=(Deviation("MLX divides by a global scale of 0", inputs=("zeros",)),),
    ),
    _sentence_transformers("st:int8", "int8", release=5),
    _sentence_transformers("st6:int8", "int8", release=6),
    _sentence_transformers("st:uint8", "uint8", release=6),
    _sentence_transformers("st:binary", "binary", release=6),
    _sentence_transformers("st:ubinary", "ubinary", release=6),
    *(_faiss(bits) for bits in (4, 8)),
)


if __name__ == "__main__":
    write_golden()
