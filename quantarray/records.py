"""The block types of ggml: which bits of a block's bytes are codes, scales and offsets.

Every one decodes as ``x = s * v(c) + m``, each product and sum rounded to float32. Its definition
is `ggml-common.h`, and `ggml-quants.c` of llama.cpp. A new type is a new row of `RECORDS`.
"""

import math

from quantarray import lattices
from quantarray.formats import FLOAT32, Codebook, Float, Integer
from quantarray.runs import Record as Record
from quantarray.runs import Run as Run
from quantarray.runs import Runs as Runs


def _half(start: int) -> Runs:
    """Give the runs of a little-endian float16."""
    return (Run(start, 8), Run(start + 1, 8, left=8))


def _unsigned(bits: int, zero: int = 0) -> Integer:
    return Integer(bits, signed=False, origin=float(zero))


def _affine(count: int, plus: float, times: float = 1.0) -> tuple[float, ...]:
    return tuple((code + plus) * times for code in range(count))


# The scales and mins of Q4_K and Q5_K: 6 bits each, those of the last four groups cut in two.
_K_SCALES = (
    Run(4, 6, unit=4),
    Run(12, 4, unit=4, first=4),
    Run(4, 2, unit=4, right=6, first=4, left=4),
)
_K_MINS = (
    Run(8, 6, unit=4),
    Run(12, 4, unit=4, right=4, first=4),
    Run(8, 2, unit=4, right=6, first=4, left=4),
)
# Seven bits for the signs of eight elements, four times in 28 bits of each fourth byte on.
_IQ2_XXS_SIGNS = (
    Run(6, 7, units=8, step=8, each=4),
    Run(6, 1, units=8, step=8, each=4, first=1, right=7),
    Run(7, 6, units=8, step=8, each=4, first=1, left=1),
    Run(7, 2, units=8, step=8, each=4, first=2, right=6),
    Run(8, 5, units=8, step=8, each=4, first=2, left=2),
    Run(8, 3, units=8, step=8, each=4, first=3, right=5),
    Run(9, 4, units=8, step=8, each=4, first=3, left=3),
)
_IQ3_XXS_SIGNS = (
    Run(66, 7, units=8, step=4, each=4),
    Run(66, 1, units=8, step=4, each=4, first=1, right=7),
    Run(67, 6, units=8, step=4, each=4, first=1, left=1),
    Run(67, 2, units=8, step=4, each=4, first=2, right=6),
    Run(68, 5, units=8, step=4, each=4, first=2, left=2),
    Run(68, 3, units=8, step=4, each=4, first=3, right=5),
    Run(69, 4, units=8, step=4, each=4, first=3, left=3),
)

# The values of IQ4_NL and IQ4_XS.
_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ4_NL = Codebook("iq4_nl", tuple(map(float, _IQ4_NL)))
# Twice those of E2M1, and half the scales. Code 8 is 0 without a sign.
_HALVES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
DOUBLED_E2M1 = Codebook("doubled_e2m1", tuple(map(float, _HALVES)))
_E8M0_HALF = tuple(2.0 ** (code - 128) for code in range(256))
# Of a code of E4M3 the sign is ignored, and NaN is 0, but for that with a sign.
_UE4M3_HALF = tuple(
    0.0 if math.isnan(value) else value / 2 for value in Float(4, 3, 7, "nan", signed=False).table
)
_SIGN = Codebook("sign", (-1.0, 1.0))
_LATTICE = Integer(8)
_EIGHTHS = Integer(8, steps=8.0)

RECORDS: dict[str, Record] = {
    record.name: record
    for record in (
        Record("Q4_0", 2, 32, 18, 32, (Run(2, 4, 16, 2),), _unsigned(4, 8), _half(0)),
        Record("Q4_1", 3, 32, 20, 32, (Run(4, 4, 16, 2),), _unsigned(4), _half(0), offset=_half(2)),
        Record(
            "Q5_0",
            6,
            32,
            22,
            32,
            (Run(6, 4, 16, 2), Run(2, 1, 1, 8, 4, left=4)),
            _unsigned(5, 16),
            _half(0),
        ),
        Record(
            "Q5_1",
            7,
            32,
            24,
            32,
            (Run(8, 4, 16, 2), Run(4, 1, 1, 8, 4, left=4)),
            _unsigned(5),
            _half(0),
            offset=_half(2),
        ),
        Record("Q8_0", 8, 32, 34, 32, (Run(2, 8, 32),), Integer(8), _half(0), importance="ignored"),
        Record(
            "Q2_K",
            10,
            256,
            84,
            16,
            (Run(16, 2, 32, 4, 2),),
            _unsigned(2),
            _half(80),
            (Run(0, 4, 16),),
            _affine(16, 0),
            _half(82),
            (Run(0, 4, 16, right=4),),
        ),
        Record(
            "Q3_K",
            11,
            256,
            110,
            16,
            (Run(32, 2, 32, 4, 2), Run(0, 1, 32, 8, left=2)),
            _unsigned(3, 4),
            _half(108),
            (Run(96, 4, 8, 2), Run(104, 2, 4, 4, left=4)),
            _affine(64, -32),
        ),
        Record(
            "Q4_K",
            12,
            256,
            144,
            32,
            (Run(16, 4, 32, 2, 4),),
            _unsigned(4),
            _half(0),
            _K_SCALES,
            _affine(64, 0),
            _half(2),
            _K_MINS,
        ),
        Record(
            "Q5_K",
            13,
            256,
            176,
            32,
            (Run(48, 4, 32, 2, 4), Run(16, 1, 32, 8, left=4)),
            _unsigned(5),
            _half(0),
            _K_SCALES,
            _affine(64, 0),
            _half(2),
            _K_MINS,
        ),
        Record(
            "Q6_K",
            14,
            256,
            210,
            16,
            (Run(0, 4, 64, 2, 2), Run(128, 2, 32, 4, 2, left=4)),
            _unsigned(6, 32),
            _half(208),
            (Run(192, 8, 16),),
            (*_affine(128, 0), *_affine(128, -128)),
        ),
        Record(
            "IQ2_XXS",
            16,
            256,
            66,
            32,
            (Run(2, 8, 4, units=8, step=8),),
            _LATTICE,
            _half(0),
            (Run(9, 4, right=4, units=8, step=8),),
            _affine(16, 0.5, 0.25),
            lattice=lattices.IQ2_XXS,
            signs=_IQ2_XXS_SIGNS,
            sign_bits="parity",
            importance="needed",
        ),
        Record(
            "IQ2_XS",
            17,
            256,
            74,
            16,
            (Run(2, 8, units=32, step=2), Run(3, 1, units=32, step=2, left=8)),
            _LATTICE,
            _half(0),
            (Run(66, 4, 1, 2, 8),),
            _affine(16, 0.5, 0.25),
            lattice=lattices.IQ2_XS,
            signs=(Run(3, 7, units=32, step=2, right=1),),
            sign_bits="parity",
            importance="needed",
        ),
        Record(
            "IQ3_XXS",
            18,
            256,
            98,
            32,
            (Run(2, 8, 64),),
            _LATTICE,
            _half(0),
            (Run(69, 4, right=4, units=8, step=4),),
            _affine(16, 0.5, 0.5),
            lattice=lattices.IQ3_XXS,
            signs=_IQ3_XXS_SIGNS,
            sign_bits="parity",
            importance="used",
        ),
        Record(
            "IQ1_S",
            19,
            256,
            50,
            32,
            (
                Run(2, 8, 32),
                Run(34, 3, units=8, step=2, each=4, left=8),
                Run(34, 3, units=8, step=2, each=4, left=8, first=1, right=3),
                Run(34, 2, units=8, step=2, each=4, left=8, first=2, right=6),
                Run(35, 1, units=8, step=2, each=4, left=10, first=2),
                Run(35, 3, units=8, step=2, each=4, left=8, first=3, right=1),
            ),
            _EIGHTHS,
            _half(0),
            (Run(35, 3, right=4, units=8, step=2),),
            _affine(8, 0.5, 2.0),
            lattice=lattices.IQ1,
            deltas=tuple(
                Run(35, 1, units=8, step=2, each=4, right=7, first=first) for first in range(4)
            ),
            importance="needed",
        ),
        Record("IQ4_NL", 20, 32, 18, 32, (Run(2, 4, 16, 2),), IQ4_NL, _half(0)),
        Record(
            "IQ3_S",
            21,
            256,
            110,
            32,
            (Run(2, 8, 64), Run(66, 1, 1, 8, 8, left=8)),
            _LATTICE,
            _half(0),
            (Run(106, 4, 1, 2, 4),),
            _affine(16, 0.5, 2.0),
            lattice=lattices.IQ3_S,
            signs=(Run(74, 8, 32),),
            importance="used",
        ),
        Record(
            "IQ2_S",
            22,
            256,
            82,
            16,
            (Run(2, 8, 32), Run(66, 2, 1, 4, 8, left=8)),
            _LATTICE,
            _half(0),
            (Run(74, 4, 1, 2, 8),),
            _affine(16, 0.5, 0.25),
            lattice=lattices.IQ2_S,
            signs=(Run(34, 8, 32),),
            importance="used",
        ),
        Record(
            "IQ4_XS",
            23,
            256,
            136,
            32,
            (Run(8, 4, 16, 2, 8),),
            IQ4_NL,
            _half(0),
            (Run(4, 4, 1, 2, 4), Run(2, 2, 1, 4, 2, left=4)),
            _affine(64, -32),
        ),
        Record(
            "IQ1_M",
            29,
            256,
            56,
            16,
            (
                Run(0, 8, 32),
                Run(32, 3, units=16, each=2, left=8),
                Run(32, 3, units=16, each=2, left=8, first=1, right=4),
            ),
            _EIGHTHS,
            tuple(Run(49 + 2 * i, 4, right=4, left=4 * i) for i in range(4)),
            (
                Run(48, 3, units=4, step=2, each=4),
                Run(48, 3, units=4, step=2, each=4, first=1, right=3),
                Run(48, 2, units=4, step=2, each=4, first=2, right=6),
                Run(49, 1, units=4, step=2, each=4, first=2, left=2),
                Run(49, 3, units=4, step=2, each=4, first=3, right=1),
            ),
            _affine(8, 0.5, 2.0),
            lattice=lattices.IQ1,
            deltas=(
                Run(32, 1, units=16, each=2, right=3),
                Run(32, 1, units=16, each=2, right=7, first=1),
            ),
            importance="used",
        ),
        Record(
            "TQ1_0",
            34,
            256,
            54,
            256,
            (
                Run(0, 8, 32, 5, base=3),
                Run(32, 8, 16, 5, first=160, base=3),
                Run(48, 8, 4, 4, first=240, base=3),
            ),
            _unsigned(2, 1),
            _half(52),
            importance="ignored",
        ),
        Record(
            "TQ2_0",
            35,
            256,
            66,
            256,
            (Run(0, 2, 32, 4, 2),),
            _unsigned(2, 1),
            _half(64),
            importance="ignored",
        ),
        Record(
            "MXFP4",
            39,
            32,
            17,
            32,
            (Run(1, 4, 16, 2),),
            DOUBLED_E2M1,
            scales=(Run(0, 8),),
            scale_values=_E8M0_HALF,
            importance="ignored",
            reach=FLOAT32.max,
        ),
        Record(
            "NVFP4",
            40,
            64,
            36,
            16,
            (Run(4, 4, 8, 2, 4),),
            DOUBLED_E2M1,
            scales=(Run(0, 8, 4),),
            scale_values=(*_UE4M3_HALF, *_UE4M3_HALF[:-1], 240.0),
            importance="ignored",
            # From farther away C finds all values equally near, and takes 0.
            reach=2.0**32,
        ),
        Record(
            "Q1_0", 41, 128, 18, 128, (Run(2, 1, 1, 8, 16),), _SIGN, _half(0), importance="ignored"
        ),
        Record(
            "Q2_0",
            42,
            64,
            18,
            64,
            (Run(2, 2, 1, 4, 16),),
            _unsigned(2, 1),
            _half(0),
            importance="ignored",
        ),
    )
}
