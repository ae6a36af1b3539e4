"""What is true of every scheme, on data that hypothesis looks for."""

import numpy as np
import pytest
from helpers import LAYOUTS, SESSION, assert_same, bits, dtypes_of, lay_out, to_backend, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import quantarray as qa
from quantarray import _xp, pipeline
from quantarray.scheme import Packing, Rounding

SHAPE = (4, 11)
TINY = np.finfo(np.float32).smallest_normal
SCHEMES = {
    "symmetric": qa.scheme("int8"),
    "packed groups": qa.scheme("int4", group_size=4),
    "channels": qa.scheme("uint8", channel_axis=0),
    "ragged tiles": qa.scheme("uint3", block=(3, 5)),
    "flat": qa.scheme("int2", flat=7),
    "columns": qa.scheme("uint5", group_size=3, group_axis=0),
    "other rounding": qa.scheme(
        "uint4",
        block=(1, 6),
        rounding=Rounding("half_away", "reciprocal", "before"),
        packing=Packing("msb"),
    ),
    "truncation": qa.scheme("int6", group_size=8, rounding="toward_zero"),
}
if SESSION in ("dask", "jax"):
    SCHEMES = {name: SCHEMES[name] for name in ("packed groups", "other rounding")}
ROWS = SCHEMES.keys() & {"packed groups", "channels", "other rounding", "truncation"}
SYMMETRIC = [name for name, scheme in SCHEMES.items() if scheme.zero == "none"]

# Lazy and compiled examples take a second each, and other tests compare their bits with NumPy's.
EXAMPLES = {"numpy": 30, "array_api_strict": 6, "torch": 6}
run = settings(deadline=None, max_examples=EXAMPLES.get(SESSION, 2))
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=list(SCHEMES))
symmetric = pytest.mark.parametrize("name", SYMMETRIC)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
anything = arrays(np.float32, SHAPE, elements=finite)
# No block over- or underflows, whatever power of two up to 2**40 multiplies it.
moderate = arrays(
    np.float32,
    SHAPE,
    elements=st.one_of(st.just(0.0), st.floats(2**-20, 2**20, width=32), finite.map(np.sign)),
)


def per_element(q, part):
    """Give each element the entry of its block."""
    blocks, spread = q.blocks, to_numpy(part).reshape(q.blocks.grid)
    for axis, extent in enumerate(blocks.extents):
        spread = np.repeat(spread, extent, axis=axis)
    return spread[tuple(map(slice, blocks.shape))].reshape(q.shape)


def expected_codes(x, q):
    """Encode as the scheme says, in NumPy, with the stored scale and zero point."""
    scale, rounding, element = per_element(q, q.scale), q.scheme.rounding, q.scheme.element
    zero = (
        np.float32(0) if q.zero_point is None else per_element(q, q.zero_point).astype(np.float32)
    )
    x = np.where(np.abs(x) < TINY, np.float32(0), x)
    quotient = x / scale if rounding.quotient == "divide" else x * (np.float32(1) / scale)
    before = zero if rounding.zero_added == "before" else np.float32(0)
    y = (quotient + before).astype(np.float64)
    rounded = {
        "half_even": np.rint(y),
        "half_away": np.copysign(np.floor(np.abs(y) + 0.5), y),
        "toward_zero": np.trunc(y),
    }[rounding.mode]
    return np.clip(rounded + zero - before, element.min, element.max)


@every_scheme
@run
@given(x=anything)
def test_codes_are_rounded_quotients_and_decode_near_their_elements(x, scheme, xp):
    q = qa.quantize(to_backend(x, xp), scheme)
    codes, decoded = to_numpy(q.codes), to_numpy(q.dequantize())
    assert (codes == expected_codes(x, q)).all()
    scale = per_element(q, q.scale).astype(np.float64)
    assert (scale >= TINY).all()
    assert np.isfinite(decoded).all()
    end = (codes == scheme.element.min) | (codes == scheme.element.max)
    whole_step = (scheme.rounding.mode == "toward_zero") | (end & (scheme.zero == "point"))
    off = np.abs(x.astype(np.float64) - decoded)
    assert (off <= scale * np.where(whole_step, 1, 0.5) * (1 + 1e-4) + TINY).all()


@every_scheme
@run
@given(x=anything)
def test_what_was_decoded_has_the_same_codes_and_decodes_to_the_same_bits(x, scheme, xp):
    q = qa.quantize(to_backend(x, xp), scheme)
    frozen = {"scale": q.scale, "zero_point": q.zero_point}
    truncates = scheme.rounding.mode == "toward_zero"
    if truncates:  # a quotient just below its step would lose it
        scheme = qa.scheme(scheme, rounding="half_even")
    again = qa.quantize(q.dequantize(), scheme, **frozen)
    assert_same(again.codes, to_numpy(q.codes), xp)
    assert_same(again.dequantize(), to_numpy(q.dequantize()), xp)
    if scheme.zero == "none" and not truncates:
        assert_same(qa.quantize(q.dequantize(), scheme).codes, to_numpy(q.codes), xp)


@every_scheme
@run
@given(x=anything)
def test_codes_rise_with_the_elements_of_a_block(x, scheme, xp):
    q = qa.quantize(to_backend(x, xp), scheme)
    block = per_element(q, np.arange(np.prod(q.blocks.grid)).reshape(q.blocks.grid)).ravel()
    order = np.lexsort((x.ravel(), block))
    steps = np.diff(to_numpy(q.codes).ravel()[order].astype(int))
    assert (steps[np.diff(block[order]) == 0] >= 0).all()


@every_scheme
@run
@given(x=moderate, power=st.integers(-40, 40))
def test_powers_of_two_pass_through(x, power, scheme, xp):
    factor = np.float32(2.0**power)
    q, scaled = (qa.quantize(to_backend(a, xp), scheme) for a in (x, x * factor))
    assert_same(scaled.codes, to_numpy(q.codes), xp)
    assert_same(scaled.dequantize(), to_numpy(q.dequantize()) * factor, xp)


@symmetric
@run
@given(x=anything)
def test_negation_negates_the_codes(x, name, xp):
    q, negated = (qa.quantize(to_backend(a, xp), SCHEMES[name]) for a in (x, -x))
    assert_same(negated.codes, -to_numpy(q.codes), xp)
    assert_same(negated.scale, to_numpy(q.scale), xp)


@pytest.mark.parametrize("name", sorted(ROWS))
@run
@given(x=anything, order=st.permutations(range(SHAPE[0])))
def test_rows_of_blocks_can_be_permuted_and_concatenated(x, order, name, xp):
    q = qa.quantize(to_backend(x, xp), SCHEMES[name])
    permuted = qa.quantize(to_backend(x[order], xp), SCHEMES[name])
    both = np.concatenate([x, x[order]]) if SESSION != "jax" else x  # another shape to compile
    twice = qa.quantize(to_backend(both, xp), SCHEMES[name])
    for part in q.parts():
        array = to_numpy(q.parts()[part])
        assert_same(permuted.parts()[part], array[order], xp)
        assert_same(twice.parts()[part], np.concatenate([array, array[order]])[: len(both)], xp)


@pytest.mark.backend_independent
@every_scheme
@run
@given(x=anything, piece=st.integers(1, 50), stochastic=st.booleans())
def test_pieces_change_no_bit(x, piece, stochastic, scheme):
    key = 5 if stochastic else None
    if stochastic:
        scheme = qa.scheme(scheme, rounding="stochastic")
    whole = qa.quantize(x, scheme, key=key)
    decoded = whole.dequantize()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "PIECE", piece)
        q = qa.quantize(x, scheme, key=key)
        assert (bits(q.dequantize()) == bits(decoded)).all()
    for part, array in whole.parts().items():
        assert q.parts()[part].tobytes() == array.tobytes(), part


@pytest.mark.backend_independent
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("piece", [8, 1 << 18])
@every_scheme
def test_layout_changes_no_bit(scheme, piece, layout, monkeypatch):
    monkeypatch.setattr(pipeline, "PIECE", piece)
    x = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    expected = qa.quantize(x, scheme)
    laid_out = lay_out(x, layout)
    q = qa.quantize(laid_out, scheme)
    for part, array in expected.parts().items():
        assert q.parts()[part].tobytes() == array.tobytes()
    assert (laid_out == x).all()
    assert q.dequantize().flags.writeable


@every_scheme
def test_the_input_and_the_parameters_are_not_changed(scheme, xp):
    x = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    x[1, 1], x[0, 0] = 1e-40, -0.0
    array = xp.permute_dims(to_backend(x.T, xp), (1, 0))  # not contiguous, where that exists
    q = qa.quantize(array, scheme)
    assert_same(q.codes, qa.quantize(x, scheme).codes, xp)
    before = [to_numpy(part).tobytes() for part in q.parts().values()]
    qa.quantize(array, scheme, scale=q.scale, zero_point=q.zero_point)
    q.dequantize()
    assert [to_numpy(part).tobytes() for part in q.parts().values()] == before
    if _xp.backend(xp) != "jax":  # which flushes subnormals when it copies
        assert_same(array, x, xp)


@every_scheme
@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty_in_empty_out(shape, scheme, xp):
    x = to_backend(np.zeros(shape, np.float32), xp)
    q = qa.quantize(x, scheme)
    assert (q.shape, q.size) == (shape, 0)
    assert_same(q.dequantize(), np.zeros(shape, np.float32), xp)
    assert tuple(q.codes.shape) == shape
    assert np.isnan(q.bits_per_element)


@every_scheme
def test_finite_never_decodes_to_inf(scheme, xp):
    large = np.float32([3.4028235e38, -3.4028235e38, 1e38, 0, 7e4, -6.55e4, 6e4, 1, 1e-30])
    q = qa.quantize(to_backend(np.resize(large, SHAPE), xp), scheme)
    for dtype in dtypes_of(xp):
        assert np.isfinite(to_numpy(q.dequantize(dtype)).astype(np.float64)).all()


@every_scheme
def test_decoding_to_another_dtype_rounds_the_same_values(scheme, xp):
    x = np.random.default_rng(4).standard_normal(SHAPE).astype(np.float32)
    q = qa.quantize(to_backend(x, xp), scheme)
    zero = 0 if q.zero_point is None else per_element(q, q.zero_point).astype(np.float32)
    values = (to_numpy(q.codes).astype(np.float32) - zero) * per_element(q, q.scale)
    for dtype in dtypes_of(xp):
        numpys = to_numpy(q.dequantize(dtype)).dtype
        assert_same(q.dequantize(dtype), values.astype(numpys), xp)
        assert_same(qa.dequantize(q, _xp.dtype(xp, dtype)), values.astype(numpys), xp)
        small = xp.astype(to_backend(x, xp), _xp.dtype(xp, dtype))
        assert _xp.dtype_name(qa.fake_quantize(small, scheme).dtype) == dtype
