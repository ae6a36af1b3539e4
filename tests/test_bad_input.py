"""Bad input: an exact, documented result, or an error that names what is wrong and expected."""

import warnings

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same, device_of, dtypes_of, to_backend, to_numpy

import quantarray as qa
from quantarray import QuantArrayError, _xp

FAMILIES = {
    "symmetric": qa.scheme("int8"),
    "packed groups": qa.scheme("int4", group_size=8),
    "asymmetric tiles": qa.scheme("uint8", block=(2, 5)),
    "packed flat": qa.scheme("uint3", flat=20),
}
families = pytest.mark.parametrize("scheme", FAMILIES.values(), ids=list(FAMILIES))
backend_independent = pytest.mark.backend_independent
X = np.linspace(-3, 4, 48, dtype=np.float32).reshape(4, 12)
X.flags.writeable = False


def poisoned(value):
    x = X.copy()
    x[1, 2:4] = value
    return x


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@families
def test_nan_and_inf_are_refused_by_default_or_stay_in_their_blocks(scheme, value, xp):
    x = to_backend(poisoned(value), xp)
    if _xp.is_concrete(x, xp):
        message = (
            r"quantize: x has 2 NaN or Inf of 48 elements, the first at \((1, 2|14,)\): expected"
        )
        with pytest.raises(QuantArrayError, match=message + ".*nonfinite='propagate'"):
            qa.quantize(x, scheme)
        return
    decoded = to_numpy(qa.quantize(x, scheme).dequantize())
    expected = qa.quantize(poisoned(value), scheme, nonfinite="propagate").dequantize()
    assert np.isnan(decoded[1, 2:4]).all()
    assert (np.isnan(decoded) == np.isnan(expected)).all()
    assert decoded[3].tobytes() == expected[3].tobytes()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool", "complex64"])
@families
def test_other_dtypes_are_refused(scheme, dtype, xp):
    x = xp.asarray(np.ones((4, 12), dtype), device=device_of(xp))
    for call in (qa.quantize, qa.fake_quantize):
        with pytest.raises(
            QuantArrayError, match=f"quantize: x has dtype {dtype}: expected float16"
        ):
            call(x, scheme)


@backend_independent
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([None, 1.0]), "x has dtype object: expected float16"),
        (np.array(["a"]), "x has dtype str.*: expected float16"),
        (np.array([1j]), "x has dtype complex128: expected"),
        (np.zeros(3, "V4"), "x has dtype void.*: expected"),
        (np.zeros(3, [("a", "f4")]), "x has dtype void.*: expected"),
        (np.zeros(3, "M8[s]"), "x has dtype datetime64.*: expected"),
        (np.longdouble([1.0]), "x has dtype (float128|float96|longdouble): expected"),
        (np.zeros(3, ml_dtypes.float8_e4m3fn), "x has dtype float8_e4m3fn: expected"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), "x is a masked array.*fill"),
        ([1.0, 2.0], "x is a list: expected an array"),
        ((1.0,), "x is a tuple: expected an array"),
        (1.0, "x is a float: expected an array"),
        ("x" * 9999, "x is a str: expected an array"),
        (None, "x is a NoneType: expected an array"),
        (np.ndarray, "x is a type: expected an array"),
    ],
    ids=lambda value: str(value)[:30],
)
@families
def test_what_is_no_floating_array_is_refused(scheme, x, message):
    if getattr(x, "dtype", None) == np.float64 and np.dtype(np.longdouble) == np.float64:
        pytest.skip("long double is float64 here")
    with pytest.raises(QuantArrayError, match=f"quantize: {message}") as caught:
        qa.quantize(x, scheme)
    assert len(str(caught.value)) < 300


@backend_independent
@families
def test_numpys_other_floating_arrays_give_the_same_bits(scheme):
    expected = qa.quantize(X, scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix(X)
    for x in (X.astype(">f4"), matrix, X.view(np.recarray), np.ma.array(X).data):
        q = qa.quantize(x, scheme)
        assert type(q.data) is type(q.dequantize()) is np.ndarray
        assert q.dequantize().dtype == np.float32
        assert q.dequantize().dtype.isnative
        assert q.data.tobytes() == expected.data.tobytes()
        assert q.scale.tobytes() == expected.scale.tobytes()
    assert qa.quantize(np.float32(2), "int8").shape == ()


@pytest.mark.parametrize("name", ["int8", "int4", "uint8"])
def test_0_d_arrays_have_one_scale(name, xp):
    x = to_backend(np.float32(-2.5), xp)
    q = qa.quantize(x, name)
    assert (q.shape, tuple(q.scale.shape)) == ((), ())
    assert_same(q.dequantize(), qa.quantize(np.float32([-2.5]), name).dequantize()[0], xp)
    for options in ({"channel_axis": 0}, {"group_size": 4}):
        with pytest.raises(
            QuantArrayError, match=r"axis (0|-1) .*shape \(\), so expected one scale"
        ):
            qa.quantize(x, name, **options)


def test_65_columns_leave_a_smaller_last_block(xp):
    x = np.random.default_rng(0).standard_normal((3, 65)).astype(np.float32)
    q = qa.quantize(to_backend(x, xp), "int4", group_size=32)
    ends = [(slice(64), slice(2)), (slice(64, 65), slice(2, 3))]
    for elements, blocks in ends:
        alone = qa.quantize(x[:, elements], "int4", group_size=32)
        assert to_numpy(q.codes)[:, elements].tobytes() == alone.codes.tobytes()
        assert to_numpy(q.scale)[:, blocks].tobytes() == alone.scale.tobytes()


@families
def test_float64_beyond_float32(scheme, xp):
    if "float64" not in dtypes_of(xp):
        pytest.skip("JAX has no float64 while jax_enable_x64 is off")
    x = X.astype(np.float64) * 2.0**1000
    q, small = qa.quantize(to_backend(x, xp), scheme), qa.quantize(X.astype(np.float64), scheme)
    assert_same(q.data, small.data, xp)
    assert_same(q.dequantize(), small.dequantize() * 2.0**1000, xp)
    assert np.isfinite(to_numpy(q.dequantize("float32"))).all()


ARGUMENTS = [
    ({"group_size": 0}, "group_size=0: expected"),
    ({"group_size": -32}, "group_size=-32: expected"),
    ({"group_size": True}, "group_size=True: expected an integer"),
    ({"group_size": 1.5}, r"group_size=1\.5: expected an integer"),
    ({"group_size": "8"}, "group_size='8': expected an integer"),
    ({"group_size": [8]}, r"group_size=\[8\]: expected an integer"),
    ({"group_size": 8, "group_axis": 2}, r"axis 2 .*shape \(4, 12\), so expected -2 to 1"),
    ({"group_size": 8, "group_axis": -3}, r"axis -3 .*shape \(4, 12\), so expected -2 to 1"),
    ({"group_size": 8, "group_axis": None}, "group_axis=None: expected an integer"),
    ({"group_axis": 0}, "group_axis=0 needs a group_size"),
    ({"channel_axis": 2}, r"axis 2 .*shape \(4, 12\), so expected -2 to 1"),
    ({"channel_axis": -3}, r"axis -3 .*shape \(4, 12\), so expected -2 to 1"),
    ({"channel_axis": True}, "channel_axis=True: expected an integer"),
    ({"channel_axis": "0"}, "channel_axis='0': expected an integer"),
    ({"channel_axis": 10**30}, "10+.*expected"),
    ({"channel_axis": 0, "group_size": 8}, "channel_axis and group_size exclude one another"),
    ({"group_size": 8, "block": (1, 8)}, "group_size and block exclude one another"),
    ({"block": (1,)}, r"block=\(1,\).*shape \(4, 12\).*an extent for each axis"),
    ({"block": (1, 2, 3)}, r"block=\(1, 2, 3\).*shape \(4, 12\).*an extent for each axis"),
    ({"block": (0, 8)}, "axis -2.*0: expected"),
    ({"block": (1, -2)}, "-2: expected"),
    ({"block": (1, 2.0)}, r"block=2\.0: expected an integer"),
    ({"block": "8"}, "block='8': expected"),
    ({"block": 8}, "block=8: expected"),
    ({"nonfinite": "ignore"}, "nonfinite='ignore': expected one of .*raise.*propagate.*saturate"),
    ({"nonfinite": None}, "nonfinite=None: expected one of"),
    ({"key": 1}, "key=1: rounding 'half_even' takes no key"),
    ({"scheme": "int9"}, "scheme: 'int9' is not known: expected one of schemes\\(\\), such as int"),
    ({"scheme": None}, "scheme: None is not known"),
    ({"scheme": 8}, "scheme: 8 is not known"),
    ({"zero_point": 3}, "zero_point needs the scale it belongs to"),
    ({"scale": 0.0}, r"scale lies in 0\.0\.\.0\.0: expected 1\.17549e-38 to 3\.40282e\+38"),
    ({"scale": 0}, r"scale lies in 0\.\.0: expected"),
    ({"scale": -0.5}, r"scale lies in -0\.5\.\.-0\.5: expected"),
    ({"scale": float("nan")}, r"scale lies in nan\.\.nan: expected"),
    ({"scale": float("inf")}, r"scale lies in inf\.\.inf: expected"),
    ({"scale": 1e-40}, r"scale lies in 1e-40\.\.1e-40: expected 1\.17549e-38"),
    ({"scale": 1e300}, r"scale lies in 1e\+300\.\.1e\+300: expected"),
    ({"scale": 10**400}, "scale lies in .*: expected"),
    ({"scale": True}, "scale=True.*: expected"),
    ({"scale": "0.1"}, "scale='0.1'.*: expected"),
    ({"scale": [0.1]}, r"scale=\[0\.1\].*: expected"),
    ({"scale": 1j}, "scale=1j.*: expected"),
    ({"scale": 0.1, "zero_point": 1.5}, r"zero_point=1\.5.*: expected"),
    ({"scale": 0.1, "zero_point": True}, "zero_point=True.*: expected"),
    ({"scale": 0.1, "zero_point": 128}, r"zero_point lies in 128\.\.128: expected -127 to 127"),
    ({"scale": 0.1, "zero_point": -128}, r"zero_point lies in -128\.\.-128: expected -127 to 127"),
    ({"scale": 0.1, "zero_point": 10**30}, "zero_point lies in .*: expected -127 to 127"),
    ({"scheme": "uint8", "scale": 0.1}, "uint8 needs its zero_point: give zero_point with scale"),
]


@pytest.mark.parametrize(("options", "message"), ARGUMENTS, ids=[m[:40] for _, m in ARGUMENTS])
def test_arguments_are_refused_with_their_value(options, message, xp):
    with pytest.raises(QuantArrayError, match=message) as caught:
        qa.quantize(to_backend(X, xp), **options)
    assert len(str(caught.value)) < 400


ARRAYS = [
    (
        "scale",
        np.ones(3, np.float32),
        r"scale has shape \(3,\): expected one entry per block, shape \(4, 2\)",
    ),
    ("scale", np.ones((2, 4), np.float32), r"scale has shape \(2, 4\): expected .*\(4, 2\)"),
    ("scale", np.ones((4, 2), bool), "scale=.*bool.*: expected"),
    ("scale", np.ones((4, 2), np.complex64), "scale=.*complex64.*: expected"),
    ("zero_point", np.ones(3, np.int8), r"zero_point has shape \(3,\): expected .*\(4, 2\)"),
    ("zero_point", np.ones((4, 2), np.float32), "zero_point=.*float32.*: expected"),
    ("zero_point", np.ones((4, 2), bool), "zero_point=.*bool.*: expected"),
]
VALUES = [
    (
        "scale",
        np.float32([[1, 1], [1, 0], [1, 1], [1, 1]]),
        r"scale lies in 0\.0\.\.1\.0: expected",
    ),
    ("scale", np.full((4, 2), np.nan, np.float32), "scale lies in nan.*: expected"),
    ("scale", np.full((4, 2), -1, np.float32), r"scale lies in -1\.0\.\.-1\.0: expected"),
    (
        "zero_point",
        np.full((4, 2), 16, np.int32),
        r"zero_point lies in 16(\.0)?\.\.16(\.0)?: expected 0 to 15",
    ),
    ("zero_point", np.full((4, 2), -1, np.int32), r"zero_point lies in -1.*: expected 0 to 15"),
]


@pytest.mark.parametrize(("argument", "value", "message"), ARRAYS + VALUES)
def test_given_arrays_are_refused(argument, value, message, xp):
    value = xp.asarray(value, device=device_of(xp))
    if "lies" in message and not _xp.is_concrete(value, xp):
        pytest.skip("lazy values cannot be looked at")
    given = {"scale": 0.1, "zero_point": 3} | {argument: value}
    with pytest.raises(QuantArrayError, match=f"quantize: {message}"):
        qa.quantize(to_backend(X, xp), "uint4", group_size=8, **given)


def test_messages_are_one_line(xp):
    for value in (
        np.ones((4, 2), bool),
        np.ones((40, 20), np.complex64),
        np.ones((4, 2), np.float32),
    ):
        with pytest.raises(QuantArrayError) as caught:
            qa.quantize(to_backend(X, xp), "uint4", zero_point=xp.asarray(value), scale=0.1)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4, 2), (4,)])
def test_given_scales_of_every_shape_that_fits(shape, xp):
    options = {"channel_axis": 0} if shape == (4,) else {"group_size": 6}
    scale = np.linspace(0.1, 0.2, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    q = qa.quantize(to_backend(X, xp), "int8", scale=to_backend(scale, xp), **options)
    expected = qa.quantize(X, "int8", scale=scale, **options)
    assert_same(q.data, expected.data, xp)
    assert_same(q.scale, expected.scale, xp)


@backend_independent
@pytest.mark.parametrize("key", [None, -1, 2**64, True, 1.0, "1", [1]])
def test_keys_that_stochastic_rounding_cannot_use_are_refused(key):
    scheme = qa.scheme("int8", rounding="stochastic")
    with pytest.raises(
        QuantArrayError, match=r"quantize: key=.*: expected an integer, 0 to 18446744"
    ):
        qa.quantize(X, scheme, key=key)


@pytest.mark.parametrize("dtype", ["int8", "f4", "", "longdouble", int, 3, [], False])
def test_dtypes_that_are_not_floating_are_refused(dtype, xp):
    q = qa.quantize(to_backend(X, xp))
    with pytest.raises(QuantArrayError, match=r"dequantize: dtype=.*: expected float16, bfloat16"):
        q.dequantize(dtype)


@pytest.mark.parametrize("value", [None, 1.0, "q", X])
def test_only_quantized_arrays_are_dequantized(value):
    with pytest.raises(QuantArrayError, match=r"dequantize: q is a .*: expected a QuantizedArray"):
        qa.dequantize(value)


def test_parameters_of_another_library_give_the_same_bits_or_are_refused(xp):
    scale = np.full((1, 1), 0.05, np.float32)
    expected = qa.quantize(X, "int8", scale=scale)
    q = qa.quantize(to_backend(X, xp), "int8", scale=scale)
    assert_same(q.data, expected.data, xp)
    assert_same(q.scale, scale, xp)
    try:
        q = qa.quantize(X, "int8", scale=to_backend(scale, xp))
    except QuantArrayError as refusal:
        assert "scale" in str(refusal)  # noqa: PT017
    else:
        assert type(q.data) is type(q.scale) is np.ndarray
        assert q.data.tobytes() == expected.data.tobytes()
