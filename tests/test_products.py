"""Products: exact where codes are integers, otherwise as close as sums of floats can be."""

import itertools

import numpy as np
import pytest
from helpers import (
    SESSION,
    assert_same,
    device_of,
    dtypes_of,
    moved,
    to_backend,
    to_numpy,
)

import quantarray as qa
from quantarray import QuantArrayError, _xp
from quantarray.products import matmul

# JAX compiles anew for every shape.
some = slice(None, None, 2 if SESSION == "jax" else 1)
RNG = np.random.default_rng(31)
# Shapes of a and b: matrices, vectors on either side, batches that broadcast, empty ones.
SHAPES = [
    ((3, 5), (5, 4)),
    ((5,), (5, 4)),
    ((3, 5), (5,)),
    ((5,), (5,)),
    ((1, 1), (1, 1)),
    ((2, 1, 3, 5), (6, 5, 4)),
    ((5,), (2, 5, 4)),
    ((2, 3, 5), (5,)),
    ((0, 5), (5, 4)),
    ((3, 0), (0, 4)),
    ((3, 5), (5, 0)),
]
RANGES = {"int8": (-128, 128), "uint8": (0, 256)}
PAIRS = list(itertools.product(RANGES, repeat=2))
SCHEMES = [
    ("int8", {}),
    ("int8", {"channel_axis": 0}),
    ("int8", {"channel_axis": 1}),
    ("int8", {"group_size": 32}),
    ("int4", {"group_size": 128}),
    ("int4", {"group_size": 32, "group_axis": 0}),
    ("int4", {"group_size": 5}),
    ("int4", {"block": (16, 16)}),
    ("uint4", {"group_size": 32}),
    ("uint8", {"channel_axis": 0}),
    ("uint8", {"group_size": 24}),
    ("int3", {"group_size": 32}),
    ("nf4", {}),
    ("bnb:nf4", {}),
    ("mxfp4", {}),
    ("fp8_e4m3", {"channel_axis": 0}),
    ("nvfp4", {}),
    ("ct:int4", {}),
    ("gptq:int4", {}),
    ("awq:int4", {}),
    ("mlx:affine4", {}),
    ("faiss:sq8", {}),
]


def codes(dtype, *shape):
    return RNG.integers(*RANGES[dtype], shape).astype(dtype)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def exact(a, b):
    return (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)


def assert_close(product, a, b, xp, epsilon=2.0**-23):
    """Assert that a product errs no more than sums in any order do; `a` and `b` are float64.

    Each of K products and K sums is rounded once, and the decoded value and the result once more.
    """
    assert _xp.namespace(product) is xp
    assert _xp.device(product) == device_of(xp)
    found, expected = to_numpy(product).astype(np.float64), a @ b
    assert found.shape == expected.shape
    bound = (a.shape[-1] + 4) * 2.0**-24 * (np.abs(a) @ np.abs(b)) + epsilon * np.abs(expected)
    wrong = ~(np.abs(found - expected) <= bound + 1e-37)
    assert not wrong.any(), (found[wrong][:3], expected[wrong][:3], bound[wrong][:3])


@pytest.mark.parametrize("dtypes", PAIRS, ids="-".join)
@pytest.mark.parametrize(("left", "right"), SHAPES[some])
def test_codes_are_multiplied_exactly(left, right, dtypes, xp):
    a, b = codes(dtypes[0], *left), codes(dtypes[1], *right)
    assert_same(matmul(to_backend(a, xp), to_backend(b, xp)), exact(a, b), xp)


@pytest.mark.parametrize("dtype", RANGES)
def test_every_product_of_two_codes(dtype, xp):
    all_ = np.arange(*RANGES[dtype]).astype(dtype)
    a, b = to_backend(all_[:, None], xp), to_backend(all_[None], xp)
    assert_same(matmul(a, b), exact(all_[:, None], all_[None]), xp)


@pytest.mark.parametrize("length", [255, 257, 1023, 1025, 33025])
@pytest.mark.parametrize("dtypes", PAIRS, ids="-".join)
def test_the_largest_sums(dtypes, length, xp):
    a = np.full((2, length), RANGES[dtypes[0]][0] or 255, dtypes[0])
    b = np.full((length, 3), RANGES[dtypes[1]][0] or 255, dtypes[1])
    b[-1, 1] = 1  # an odd sum, which float32 would lose
    assert_same(matmul(to_backend(a, xp), to_backend(b, xp)), exact(a, b), xp)
    v = np.ascontiguousarray(b[:, 1])
    assert_same(matmul(to_backend(a, xp), to_backend(v, xp)), exact(a, v), xp)
    assert_same(matmul(to_backend(v, xp), to_backend(a.T, xp)), exact(v, a.T), xp)


def test_the_longest_sums(xp):
    a = np.full((1, 131071), -128, np.int8)
    assert_same(matmul(to_backend(a, xp), to_backend(a[0], xp)), exact(a, a[0]), xp)


@pytest.mark.parametrize(
    ("dtypes", "length", "most"),
    [
        (("int8", "int8"), 131072, 131071),
        (("uint8", "uint8"), 33026, 33025),
        (("int8", "uint8"), 65794, 65793),
    ],
)
def test_sums_beyond_int32_are_refused(dtypes, length, most, xp):
    a, b = (to_backend(np.zeros(length, dtype), xp) for dtype in dtypes)
    message = f"sums of {length} products of {dtypes[0]} and {dtypes[1]} can exceed int32: "
    with pytest.raises(QuantArrayError, match=f"{message}expected at most {most}"):
        matmul(a, b)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("int8", {}), ("int8", {})),
        (("int8", {"channel_axis": 0}), ("int8", {"channel_axis": 1})),
        (("int8", {"block": (2, -1)}), ("int4", {"block": (-1, 3)})),
        (("int4", {"channel_axis": 0}), ("int3", {"flat": 10**6})),
        (("int8", {"group_size": 1500}), ("int8", {"group_size": 1500, "group_axis": 0})),
    ][some],
)
def test_quantized_pairs_sum_codes_exactly(left, right, xp):
    """Sums beyond 2**24, on every backend the same bits."""
    qs = [
        qa.quantize(x, qa.scheme(name, **o))
        for x, (name, o) in zip(
            (RNG.uniform(0.9, 1, (5, 1500)), RNG.uniform(0.9, 1, (1500, 7))),
            (left, right),
            strict=True,
        )
        for x in [x.astype(np.float32)]
    ]
    sums = exact(*[q.codes for q in qs]).astype(np.float32)
    rows, columns = qs[0].scale, qs[1].scale
    rows = np.repeat(rows, -(-5 // len(rows)), axis=0)[:5] if rows.size > 1 else rows.reshape(1, 1)
    if columns.size > 1:
        columns = np.repeat(columns, -(-7 // columns.shape[1]), axis=1)[:, :7]
    else:
        columns = columns.reshape(1, 1)
    assert_same(matmul(*[moved(q, xp) for q in qs]), sums * rows * columns, xp)


@pytest.mark.parametrize(("left", "right"), SHAPES[some])
def test_quantized_pairs_of_every_shape(left, right, xp):
    a, b = (qa.quantize(normal(*shape), "int8", channel_axis=-1) for shape in (left, right))
    values = [q.dequantize("float64") for q in (a, b)]
    assert_close(matmul(moved(a, xp), moved(b, xp)), *values, xp)
    a, b = (qa.quantize(normal(*shape), "int8") for shape in (left, right))
    values = [q.dequantize("float64") for q in (a, b)]
    assert_close(matmul(moved(a, xp), moved(b, xp)), *values, xp)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("int8", {"channel_axis": 1}), ("int8", {})),
        (("int8", {"group_size": 16}), ("int8", {"channel_axis": 1})),
        (("uint8", {}), ("int8", {})),
        (("nf4", {}), ("fp8_e4m3", {})),
        (("mxint8", {}), ("faiss:sq8", {})),
    ][some],
)
def test_other_quantized_pairs(left, right, xp):
    a, b = (
        qa.quantize(normal(*shape), name, **options)
        for shape, (name, options) in zip(((6, 70), (70, 5)), (left, right), strict=True)
    )
    values = [q.dequantize("float64") for q in (a, b)]
    assert_close(matmul(moved(a, xp), moved(b, xp)), *values, xp)


def test_pairs_whose_sums_could_exceed_int32_are_decoded(xp):
    a, b = (qa.quantize(np.ones(s, np.float32), "int8") for s in ((1, 131072), (131072, 1)))
    assert_close(matmul(moved(a, xp), moved(b, xp)), np.ones((1, 131072)), np.ones((131072, 1)), xp)


def test_large_scales_of_a_pair_do_not_overflow(xp):
    a = qa.quantize(np.full((1, 4), 1e30, np.float32), "int8")
    b = qa.quantize(np.full((4, 1), 1e-30, np.float32), "int8")
    assert_close(
        matmul(moved(a, xp), moved(b, xp)), a.dequantize("float64"), b.dequantize("float64"), xp
    )


@pytest.mark.parametrize(("scheme", "options"), SCHEMES[some])
def test_products_with_floats(scheme, options, xp):
    """Both sides, a vector and a matrix, ragged groups."""
    for shape in ((32, 128), (40, 72)):
        try:
            q = qa.quantize(normal(*shape), scheme, **options)
        except QuantArrayError:  # packed into words that these rows do not fill
            assert shape == (40, 72)
            continue
        w, mine = q.dequantize("float64"), moved(q, xp)
        for x in (normal(shape[1]), normal(shape[1], 3)):
            assert_close(matmul(mine, to_backend(x, xp)), w, x.astype(np.float64), xp)
        for x in (normal(shape[0]), normal(3, shape[0])):
            assert_close(matmul(to_backend(x, xp), mine), x.astype(np.float64), w, xp)


@pytest.mark.parametrize(("left", "right"), SHAPES[some])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_products_of_every_shape(left, right, scheme, xp):
    a, b = normal(*left), normal(*right)
    q = qa.quantize(a, scheme)
    product = matmul(moved(q, xp), to_backend(b, xp))
    assert_close(product, q.dequantize("float64"), b.astype(np.float64), xp)
    q = qa.quantize(b, scheme)
    product = matmul(to_backend(a, xp), moved(q, xp))
    assert_close(product, a.astype(np.float64), q.dequantize("float64"), xp)


def test_the_result_has_the_dtype_of_the_floating_array(xp):
    for of_q, dtype in itertools.product(dtypes_of(xp), repeat=2):
        w = to_backend(normal(6, 64), xp)
        q = qa.quantize(_xp.cast(w, of_q, xp), "int8", group_size=16)
        x = _xp.cast(to_backend(normal(64), xp), dtype, xp)
        product = matmul(q, x)
        assert product.dtype == x.dtype
        epsilon = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 2.0**-23)
        decoded = to_numpy(q.dequantize("float32")).astype(np.float64)
        assert_close(product, decoded, to_numpy(x).astype(np.float64), xp, epsilon)


def test_the_dtype_of_a_pair(xp):
    for one, two in itertools.product(dtypes_of(xp), repeat=2):
        a = qa.quantize(_xp.cast(to_backend(normal(3, 8), xp), one, xp), "int8")
        b = qa.quantize(_xp.cast(to_backend(normal(8, 2), xp), two, xp), "int8")
        expected = one if one == two else "float64" if "float64" in (one, two) else "float32"
        assert _xp.dtype_name(matmul(a, b).dtype) == expected


def test_float16_sums_in_float32(xp):
    if "float16" not in dtypes_of(xp):
        pytest.skip("no float16")
    x = _xp.cast(to_backend(np.ones(4096, np.float32), xp), "float16", xp)
    q = qa.quantize(to_backend(np.full((1, 4096), 2.0, np.float32), xp), "int8")
    assert float(to_numpy(matmul(q, x))[0]) == 8192  # float16 sums of 2 stop at 4096


def test_nan_scales_stay_nan(xp):
    w = normal(6, 64)
    w[2, 40] = np.nan
    for scheme in ("int8", "int4", "nf4"):
        q = moved(qa.quantize(w, scheme, group_size=32, nonfinite="propagate"), xp)
        found = to_numpy(matmul(q, to_backend(np.zeros(64, np.float32), xp)))
        assert (np.isnan(found) == (np.arange(6) == 2)).all()
        found = to_numpy(matmul(to_backend(np.zeros(6, np.float32), xp), q))
        assert (np.isnan(found) == (np.arange(64) >= 32)).all()


def quantized(xp, *shape):
    return qa.quantize(to_backend(normal(*shape), xp), "int8")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda xp: ([1.0], quantized(xp, 1, 2)), "a is a list: expected a QuantizedArray or an"),
        (lambda xp: (quantized(xp, 1, 2), 3.0), "b is a float: expected a QuantizedArray or an"),
        (
            lambda xp: (quantized(xp, 3, 2), to_backend(np.ones(2, np.int32), xp)),
            "b has dtype int32: expected float16, bfloat16, float32, float64, int8, uint8",
        ),
        (
            lambda xp: (quantized(xp, 3, 2), to_backend(np.ones(2, np.int8), xp)),
            "a is quantized and b is int8: expected two QuantizedArrays, one and an array of a",
        ),
        (
            lambda xp: [to_backend(np.ones(2, np.float32), xp)] * 2,
            "a is float32 and b is float32: expected two QuantizedArrays",
        ),
        (
            lambda xp: (quantized(xp), to_backend(np.ones(2, np.float32), xp)),
            r"a has shape \(\): expected at least one axis",
        ),
        (
            lambda xp: (quantized(xp, 4, 2), to_backend(np.ones((3, 2), np.float32), xp)),
            r"a has shape \(4, 2\) and b has shape \(3, 2\): expected a.shape\[-1\] = "
            r"b.shape\[-2\], not 2 and 3",
        ),
        (
            lambda xp: (
                to_backend(np.ones((3, 4), np.int8), xp),
                to_backend(np.ones(3, np.int8), xp),
            ),
            r"expected a.shape\[-1\] = b.shape\[-1\], not 4 and 3",
        ),
        (
            lambda xp: (quantized(xp, 2, 4, 2), to_backend(np.ones((3, 2, 5), np.float32), xp)),
            r"expected axes before the last two that broadcast, not \(2,\) and \(3,\)",
        ),
    ],
)
def test_errors(make, message, xp):
    with pytest.raises(QuantArrayError, match=f"^matmul: .*{message}"):
        matmul(*make(xp))


def test_two_libraries_are_refused(xp):
    other = _xp.load("array_api_strict" if _xp.backend(xp) == "numpy" else "numpy")
    with pytest.raises(QuantArrayError, match=r"matmul: a is of .* and b of .*: expected one"):
        matmul(quantized(xp, 3, 2), to_backend(np.ones(2, np.float32), other))


def test_masked_arrays_are_refused():
    with pytest.raises(QuantArrayError, match="matmul: b is a masked array: fill it first"):
        matmul(quantized(_xp.load("numpy"), 3, 2), np.ma.ones(2, np.float32))
