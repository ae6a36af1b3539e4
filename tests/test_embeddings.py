"""Embeddings, as sentence-transformers' `quantize_embeddings` makes them small.

Ranges come from calibration data once and are frozen. The formulas here are NumPy's, written after
that function: of its releases before 6.0 (`st:int8`) and since (`st6:int8`), which differ for
codes between -128 and 0 and in nothing else but that the old one did not saturate.
"""

import numpy as np
import pytest
from helpers import assert_same, to_backend, to_numpy

import quantarray as qa
from quantarray import QuantArrayError, _xp

RNG = np.random.default_rng(11)
DIMS = 44  # no multiple of 8
CONSTANT, ZERO = 5, 6
CALIBRATION = RNG.standard_normal((300, DIMS)).astype(np.float32) * np.float32(0.05)
CALIBRATION[:, CONSTANT], CALIBRATION[:, ZERO] = 0.125, 0.0
# Some lie outside of the ranges, by little and by much.
EMBEDDINGS = RNG.standard_normal((70, DIMS)).astype(np.float32) * np.float32(0.08)
EMBEDDINGS[3], EMBEDDINGS[4], EMBEDDINGS[5] = 1e6, -1e6, 0.0
EMBEDDINGS[6:8] = CALIBRATION.min(axis=0), CALIBRATION.max(axis=0)
SCHEMES = ("st:int8", "st6:int8", "st:uint8")
DTYPES = {"st:int8": "int8", "st6:int8": "int8", "st:uint8": "uint8"}


def ranges_of(x):
    """The smallest element of each dimension, and the step between codes."""
    low, high = x.min(axis=0), x.max(axis=0)
    step = (high - low) / np.float32(255)
    return low, np.where(step == 0, np.float32(1), step)


def expected_codes(scheme, x, low, step):
    quotient = (x - low) / step
    if scheme == "st:int8":
        return np.clip(np.trunc(quotient - np.float32(128)), -128, 127).astype(np.int8)
    codes = np.clip(np.floor(quotient), 0, 255)
    return codes.astype(np.uint8) if scheme == "st:uint8" else (codes - 128).astype(np.int8)


def calibrate(scheme, xp):
    return qa.quantize(to_backend(CALIBRATION, xp), scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ranges_of_the_calibration_data(scheme, xp):
    q = calibrate(scheme, xp)
    low, step = ranges_of(CALIBRATION)
    assert_same(q.offset, low[None], xp)
    assert_same(q.scale, step[None], xp)
    assert_same(q.codes, expected_codes(scheme, CALIBRATION, low, step), xp)
    assert _xp.dtype_name(q.codes.dtype) == DTYPES[scheme]
    assert q.nbytes == q.size + 2 * 4 * DIMS


@pytest.mark.parametrize("scheme", SCHEMES)
def test_frozen_ranges(scheme, xp):
    ranges = calibrate(scheme, xp)
    low, step = ranges_of(CALIBRATION)
    frozen = {"scale": ranges.scale, "offset": ranges.offset}
    expected = expected_codes(scheme, EMBEDDINGS, low, step)
    assert len(np.unique(expected)) > 200
    for count in (len(EMBEDDINGS), 1):
        q = qa.quantize(to_backend(EMBEDDINGS[:count], xp), scheme, **frozen)
        assert_same(q.codes, expected[:count], xp)
        assert_same(q.scale, step[None], xp)
        assert_same(q.offset, low[None], xp)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_embedding_without_a_batch(scheme, xp):
    ranges = calibrate(scheme, xp)
    low, step = ranges_of(CALIBRATION)
    row = to_backend(EMBEDDINGS[9], xp)
    q = qa.quantize(row, scheme, scale=ranges.scale[0, :], offset=ranges.offset[0, :])
    assert_same(q.codes, expected_codes(scheme, EMBEDDINGS[9], low, step), xp)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tokens_of_several_texts(scheme, xp):
    """One vector per token, as late-interaction models give: texts by tokens by dimensions."""
    ranges = calibrate(scheme, xp)
    low, step = ranges_of(CALIBRATION)
    tokens = EMBEDDINGS.reshape(7, 10, DIMS)
    frozen = {"scale": ranges.scale[0, :], "offset": ranges.offset[0, :]}
    q = qa.quantize(to_backend(tokens, xp), scheme, **frozen)
    assert_same(q.codes, expected_codes(scheme, tokens, low, step), xp)
    # Without given ranges all tokens share them.
    own = qa.quantize(to_backend(tokens, xp), scheme)
    low, step = ranges_of(EMBEDDINGS)
    assert_same(own.codes, expected_codes(scheme, tokens, low, step), xp)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_out_of_range_saturates(scheme, xp):
    ranges = calibrate(scheme, xp)
    x = to_backend(EMBEDDINGS[3:5], xp)
    high, low = to_numpy(qa.quantize(x, scheme, scale=ranges.scale, offset=ranges.offset).codes)
    limits = np.iinfo(DTYPES[scheme])
    assert set(high.tolist()) == {limits.max}
    assert set(low.tolist()) == {limits.min}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ends_of_the_ranges(scheme, xp):
    ranges = calibrate(scheme, xp)
    x = to_backend(EMBEDDINGS[6:8], xp)
    low, high = to_numpy(qa.quantize(x, scheme, scale=ranges.scale, offset=ranges.offset).codes)
    limits = np.iinfo(DTYPES[scheme])
    varied = np.arange(DIMS) != CONSTANT
    varied[ZERO] = False
    assert (low == limits.min).all()
    # (max - min) / ((max - min) / 255) can be an ulp below 255, and codes are truncated.
    assert (high[varied] >= limits.max - 1).all()
    assert (high[~varied] == limits.min).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dimensions_that_never_vary_decode_exactly(scheme, xp):
    decoded = to_numpy(calibrate(scheme, xp).dequantize())
    assert (decoded[:, CONSTANT] == 0.125).all()
    assert (decoded[:, ZERO] == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_decoded_values_are_a_step_away_at_most(scheme, xp):
    _, step = ranges_of(CALIBRATION)
    below = CALIBRATION - to_numpy(calibrate(scheme, xp).dequantize())
    # Codes are truncated: downwards, but in old releases' int8, whose negative codes go up.
    assert (np.abs(below) <= step * np.float32(1.001)).all()
    if scheme != "st:int8":
        assert (below >= -step * np.float32(0.001)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_saved_ranges_give_the_same_codes(scheme, xp, tmp_path):
    calibrated = calibrate(scheme, xp)
    qa.save(tmp_path / "calibrated.safetensors", {"ranges": calibrated})
    qa.save(
        tmp_path / "ranges.safetensors", {"scale": calibrated.scale, "offset": calibrated.offset}
    )
    loaded = qa.load(tmp_path / "calibrated.safetensors")["ranges"]
    assert loaded.scheme == calibrated.scheme
    arrays = qa.load(tmp_path / "ranges.safetensors")
    expected = expected_codes(scheme, EMBEDDINGS, *ranges_of(CALIBRATION))
    x = to_backend(EMBEDDINGS, xp)
    for scale, offset in ((loaded.scale, loaded.offset), (arrays["scale"], arrays["offset"])):
        frozen = {"scale": to_backend(scale, xp), "offset": to_backend(offset, xp)}
        assert_same(qa.quantize(x, scheme, **frozen).codes, expected, xp)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ranges_that_sentence_transformers_made(scheme, xp):
    """A (2, dimensions) array of smallest and largest elements."""
    ranges = np.vstack((CALIBRATION.min(axis=0), CALIBRATION.max(axis=0)))
    steps = (ranges[1] - ranges[0]) / np.float32(255)
    steps = np.where(steps == 0, np.float32(1), steps)
    frozen = {"scale": to_backend(steps, xp), "offset": to_backend(ranges[0], xp)}
    q = qa.quantize(to_backend(EMBEDDINGS, xp), scheme, **frozen)
    assert_same(q.codes, expected_codes(scheme, EMBEDDINGS, *ranges_of(CALIBRATION)), xp)


def test_int8_of_old_and_new_releases_differ_below_zero_alone(xp):
    frozen = calibrate("st:int8", xp)
    old, new = (
        to_numpy(
            qa.quantize(
                to_backend(EMBEDDINGS, xp), name, scale=frozen.scale, offset=frozen.offset
            ).codes
        ).astype(int)
        for name in ("st:int8", "st6:int8")
    )
    assert set((old - new)[old > 0].tolist()) == {0}
    assert set((old - new)[(old <= 0) & (old > -128)].tolist()) <= {0, 1}
    assert (old != new).any()


@pytest.mark.parametrize("scheme", ["st:binary", "st:ubinary"])
@pytest.mark.parametrize("dims", [DIMS, 40, 1])
def test_bits(scheme, dims, xp):
    x = EMBEDDINGS[:, :dims].copy()
    x[0, 0], x[1, 0] = -0.0, 1e-20  # 0 is not above 0, what is tiny is
    packed = np.packbits(x > 0, axis=-1)
    expected = packed if scheme == "st:ubinary" else (packed.astype(int) - 128).astype(np.int8)
    q = qa.quantize(to_backend(x, xp), scheme)
    assert_same(q.data, expected, xp)
    assert_same(q.codes, (x > 0).astype(np.uint8), xp)
    assert_same(q.dequantize(), np.where(x > 0, np.float32(1), np.float32(-1)), xp)
    one = qa.quantize(to_backend(x[2], xp), scheme)
    assert_same(one.data, expected[2], xp)


@pytest.mark.parametrize("scheme", ["st:int8", "st:uint8", "st:ubinary"])
def test_embeddings_that_are_not_finite_are_refused(scheme, xp):
    x = EMBEDDINGS.copy()
    x[2, 7] = np.nan
    array = to_backend(x, xp)
    if not _xp.is_concrete(array, xp):
        pytest.skip("lazy values cannot be refused")
    with pytest.raises(QuantArrayError, match=r"x has 1 NaN or Inf of .* the first at \(2, 7\)"):
        qa.quantize(array, scheme)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.1}, "st:int8 needs its offset"),
        ({"offset": 0.1}, "offset needs the scale it belongs to"),
        ({"scale": 0.1, "zero_point": 3}, "st:int8 needs its offset"),
        ({"scale": np.ones(7, np.float32), "offset": 0.1}, r"scale has shape \(7,\): expected one"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(options, message, xp):
    given = {
        name: to_backend(value, xp) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    with pytest.raises(QuantArrayError, match=message):
        qa.quantize(to_backend(EMBEDDINGS, xp), "st:int8", **given)


def test_neighbours_stay_neighbours(xp):
    """Search by decoded embeddings, and by the bits alone, finds what it was asked for."""
    rng = np.random.default_rng(3)
    documents = rng.standard_normal((200, 128)).astype(np.float32)
    queries = documents[:20] + rng.standard_normal((20, 128)).astype(np.float32) * np.float32(0.3)
    for scheme in (*SCHEMES, "st:binary"):
        ranges = qa.quantize(to_backend(documents, xp), scheme)
        frozen = {} if scheme == "st:binary" else {"scale": ranges.scale, "offset": ranges.offset}
        asked = to_numpy(qa.quantize(to_backend(queries, xp), scheme, **frozen).dequantize())
        scores = asked @ to_numpy(ranges.dequantize()).T
        assert scores.argmax(axis=1).tolist() == list(range(20)), scheme
