"""Number formats against ml_dtypes and NumPy, code by code."""

import ml_dtypes
import numpy as np
import pytest

from quantarray import QuantArrayError
from quantarray.formats import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FORMATS,
    Codebook,
    Float,
    Integer,
    number_format,
)

pytestmark = pytest.mark.backend_independent

MINIFLOATS = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
    "e8m0fnu": ml_dtypes.float8_e8m0fnu,
}


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize(("signed", "narrow"), [(True, False), (True, True), (False, False)])
def test_integer_range_is_that_of_its_codes(bits, signed, narrow):
    if bits == 1 and narrow:
        pytest.skip("one signed bit cannot be narrow")
    codes = np.arange(1 << bits)
    values = np.where(signed & (codes >> (bits - 1) == 1), codes - (1 << bits), codes)
    element = Integer(bits, signed, narrow)
    assert (element.min, element.max) == (values.min() + narrow, values.max())


@pytest.mark.parametrize("name", ["int8", "int16", "uint8", "uint16"])
def test_integer_formats_are_numpys(name):
    info = np.iinfo(name)
    assert (FORMATS[name].bits, FORMATS[name].min, FORMATS[name].max) == (
        info.bits,
        info.min,
        info.max,
    )


@pytest.mark.parametrize("name", ["int2", "int4", "uint1", "uint2", "uint4"])
def test_integer_formats_are_those_of_ml_dtypes(name):
    if not hasattr(ml_dtypes, name):
        pytest.skip(f"ml_dtypes has no {name}")
    info = ml_dtypes.iinfo(getattr(ml_dtypes, name))
    assert (FORMATS[name].bits, FORMATS[name].min, FORMATS[name].max) == (
        info.bits,
        info.min,
        info.max,
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_found_by_its_name(name):
    assert number_format(name) is FORMATS[name]


def test_every_format_has_a_test_here():
    floats = {name for name, f in FORMATS.items() if isinstance(f, Float)}
    assert floats <= set(MINIFLOATS)


@pytest.mark.parametrize(("name", "dtype"), MINIFLOATS.items(), ids=list(MINIFLOATS))
def test_minifloat_codes_are_those_of_ml_dtypes(name, dtype):
    element, info = FORMATS[name], ml_dtypes.finfo(dtype)
    assert element.bits == info.bits
    assert element.max == float(info.max)
    assert element.min == float(info.min)
    assert element.smallest_normal == float(info.smallest_normal)
    codes = np.arange(1 << (element.bits - element.signed), dtype=np.uint8)
    values = codes.view(dtype).astype(np.float64)
    finite = np.isfinite(values)
    assert [element.magnitude(int(c)) for c in codes[finite]] == values[finite].tolist()
    special = {"ieee": 1 << element.mantissa, "nan": 1, "nan_zero": 0, "none": 0}[element.specials]
    assert np.sum(~finite) == special
    if element.specials == "nan_zero":
        assert np.isnan(np.uint8([0x80]).view(dtype).astype(np.float32))


@pytest.mark.parametrize(
    ("element", "info"),
    [
        (FLOAT64, np.finfo(np.float64)),
        (FLOAT32, np.finfo(np.float32)),
        (FLOAT16, np.finfo(np.float16)),
        (BFLOAT16, ml_dtypes.finfo(ml_dtypes.bfloat16)),
    ],
)
def test_dtypes_are_numpys(element, info):
    assert element.bits == info.bits
    assert element.max == float(info.max)
    assert element.min == float(info.min)
    assert element.smallest_normal == float(info.smallest_normal)
    assert element.magnitude(1) == float(info.smallest_subnormal)
    assert element.magnitude(0) == 0


@pytest.mark.parametrize(
    ("values", "bits"), [((-1.0, 1.0), 1), ((0.0, 1.0, 2.0), 2), (tuple(range(16)), 4)]
)
def test_codebook(values, bits):
    book = Codebook("book", tuple(map(float, values)))
    assert (book.bits, book.min, book.max) == (bits, min(values), max(values))


@pytest.mark.parametrize("element", FORMATS.values(), ids=list(FORMATS))
def test_formats_are_data(element):
    assert hash(element) == hash(type(element)(**vars(element)))
    assert element == type(element)(**vars(element))
    with pytest.raises(AttributeError):
        element.bits = 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Integer(0), "bits=0: expected .*1 to 16"),
        (lambda: Integer(17), "bits=17: expected .*1 to 16"),
        (lambda: Integer(-8), "bits=-8: expected .*1 to 16"),
        (lambda: Integer(True), "bits=True: expected"),
        (lambda: Integer(4.0), r"bits=4\.0: expected"),
        (lambda: Integer("4"), "bits='4': expected"),
        (lambda: Integer(8, signed=False, narrow=True), "narrow=True: only signed"),
        (lambda: Integer(1, narrow=True), "narrow=True: only signed integers of 2 bits or more"),
        (lambda: Float(-1, 2, 3, "ieee"), "exponent=-1.*expected"),
        (lambda: Float(10**12, 2, 3, "ieee"), "exponent=10{12}.*expected"),
        (lambda: Float(8, -1, 3, "ieee"), "mantissa=-1.*expected"),
        (lambda: Float(8, 10**12, 3, "ieee"), "mantissa=10{12}.*expected"),
        (lambda: Float(8, 3, 10**12, "ieee"), "bias=10{12}.*expected"),
        (lambda: Float(8, 3, 127, "x"), "specials='x'.*expected"),
        (lambda: Float("8", 3, 127, "ieee"), "exponent='8'.*expected"),
        (lambda: Codebook("empty", ()), "'empty'.*expected 2"),
        (lambda: Codebook("poisoned", (0.0, float("nan"))), "finite"),
        (lambda: Codebook("long", (0.0,) * 1000), "to 256"),
        (lambda: number_format("int99"), "'int99' is not known; known: int2, "),
        (lambda: number_format("INT8"), "'INT8' is not known"),
    ],
)
def test_what_is_no_format_is_refused(build, message):
    with pytest.raises(QuantArrayError, match=message):
        build()
