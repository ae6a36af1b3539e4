"""Arrays for the tests of layouts: what each layout holds, in the ways that it holds it."""

from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

import quantarray as qa
from quantarray.io.layouts import LAYOUTS
from quantarray.scheme import Block, Rounding

SHAPE = (64, 256)
NAME = "model.layers.0.q_proj.weight"
MODULE = NAME.removesuffix("weight")
CT, INT = "compressed-tensors", "compressed-tensors:int-quantized"


@dataclass(frozen=True)
class Case:
    """An array, in a layout."""

    layout: str
    # A key of the layout's schemes.
    scheme: str
    dtype: str = "float16"
    options: dict = field(default_factory=dict)
    shape: tuple = SHAPE

    @property
    def id(self):
        sizes = {k: v for k, v in self.options.items() if not isinstance(v, Rounding)}
        choices = "".join(f" {key}={value}" for key, value in sizes.items())
        return f"{self.layout} {self.scheme} {self.dtype}{choices} {self.shape}"


def make_plain(shape, dtype):
    rng = np.random.default_rng(len(dtype) + shape[0])
    x = rng.standard_normal(shape, dtype=np.float32)
    return x.astype(getattr(ml_dtypes, dtype, dtype))


def make(case):
    # The first version of GPTQ has no zero points of 0, so that no scheme always fits.
    known = LAYOUTS["gptq_v2" if case.layout == "gptq" else case.layout].schemes
    scheme = qa.scheme(known[case.scheme], **case.options)
    q = qa.quantize(make_plain(case.shape, case.dtype), scheme)
    if q.zero_point is None or case.layout != "gptq":
        return q
    return qa.from_codes(
        np.asarray(q.codes),
        replace(scheme, block=q.scheme.block),
        scale=np.asarray(q.scale, np.float32),
        zero_point=np.maximum(q.zero_point, 1),
        shape=case.shape,
        dtype=case.dtype,
    )


WAYS = {
    "tensor": {"block": Block()},
    "channel": {"channel_axis": 0},
    "group": {"group_size": 32},
    "tiles": {"block": (24, 100)},
}
DTYPES = ("float32", "float16", "bfloat16")

CASES = [
    *(
        Case(CT, f"{sign}int{bits}", "bfloat16", WAYS[way])
        for bits in range(2, 9)
        for sign in ("", "u")
        for way in ("channel", "group")
    ),
    Case(CT, "int4", "float32", WAYS["group"], (5, 96)),
    Case(CT, "uint3", "float16", WAYS["channel"], (5, 7)),
    Case(CT, "int4", "float16", WAYS["channel"], (1, 40)),
    *(Case(CT, "fp8_e4m3", dtype, WAYS[way]) for way in WAYS for dtype in DTYPES),
    # The owner's compressor writes no -0.
    *(
        Case(CT, name, dtype, {"rounding": Rounding(negative_zero="never")})
        for name in ("mxfp4", "nvfp4")
        for dtype in DTYPES
    ),
    *(
        Case(INT, f"{sign}int8", dtype, WAYS[way])
        for way in WAYS
        for sign in ("", "u")
        for dtype in DTYPES
    ),
    *(
        Case("bitsandbytes", name, dtype, {"flat": size}, shape)
        for name in ("nf4", "fp4_bnb", "nf4_nested", "fp4_nested")
        for dtype in DTYPES
        for size, shape in ((64, SHAPE), (128, (7, 33)))
    ),
    *(Case("bitsandbytes", "int8", dtype) for dtype in DTYPES),
    *(
        Case(layout, name, dtype, {"group_size": size})
        for layout in ("gptq", "gptq_v2")
        for name in ("int2", "int3", "int4", "int8")
        for dtype in DTYPES
        for size in (64, 256)
    ),
    *(
        Case(layout, f"uint{bits}", "float16", {"group_size": 100})
        for layout in ("gptq", "gptq_v2")
        for bits in (2, 3, 4, 8)
    ),
    *(Case("awq", "int4", dtype, {"group_size": size}) for dtype in DTYPES for size in (64, 256)),
]
