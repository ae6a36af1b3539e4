"""What quantization cost, against a computation that knows nothing of blocks or pieces."""

import math

import numpy as np
import pytest
from helpers import SESSION, to_backend

import quantarray as qa
from quantarray import QuantArrayError, metrics

X = np.random.default_rng(21).standard_normal((6, 40)).astype(np.float32)
X[4, 33] = 25.0  # a coarse scale for its block alone
SCHEMES = [
    qa.scheme("int8"),
    qa.scheme("int4", group_size=16),
    qa.scheme("uint3", block=(2, 7)),
    qa.scheme("int2", flat=50),
    qa.scheme("uint8", channel_axis=1),
][: 2 if SESSION == "jax" else None]


def expected_report(x, q):
    """Compute every figure from whole arrays in float64."""
    x, y = x.astype(np.float64), np.asarray(q.dequantize()).astype(np.float64)
    noise, off = np.sum((x - y) ** 2), np.abs(x - y)
    extents, shape = q.blocks.extents, q.blocks.shape
    worst = np.unravel_index(np.argmax(off.reshape(shape)), shape)
    return {
        "mse": noise / x.size,
        "rmse": math.sqrt(noise / x.size),
        "max_abs": off.max(),
        "sqnr_db": 10 * math.log10(np.sum(x**2) / noise),
        "cosine": np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y),
        "bits_per_element": 8 * q.nbytes / x.size,
        "worst_block": tuple(int(i) // e for i, e in zip(worst, extents, strict=True)),
    }


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_figures(scheme, dtype, xp):
    if dtype == np.float16 and xp.__name__ == "array_api_strict":
        pytest.skip("array-api-strict has no float16")
    x = X.astype(dtype)
    report = qa.error(to_backend(x, xp), qa.quantize(to_backend(x, xp), scheme))
    reference = qa.quantize(x, scheme)
    assert report.scheme == str(reference.scheme)
    for figure, value in expected_report(x, reference).items():
        assert getattr(report, figure) == pytest.approx(value, rel=1e-12), figure
    assert report == qa.error(x, reference)  # the same figures, to the last bit


@pytest.mark.backend_independent
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("piece", [8, 50])
def test_pieces_give_the_same_figures(scheme, piece, monkeypatch):
    q = qa.quantize(X, scheme)
    expected = expected_report(X, q)
    monkeypatch.setattr(metrics, "PIECE", piece)
    report = qa.error(X, q)
    assert report.worst_block == expected["worst_block"]
    assert report.max_abs == expected["max_abs"]
    assert report.mse == pytest.approx(expected["mse"], rel=1e-12)


@pytest.mark.backend_independent
@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("column", [0, 17, 39])
def test_the_worst_block_is_where_the_worst_element_is(row, column):
    x = np.zeros((4, 40), np.float32)
    q = qa.quantize(x, "int8", group_size=16)
    x[row, column] = -3
    report = qa.error(x, q)
    assert (report.worst_block, report.max_abs) == ((row, column // 16), 3)


@pytest.mark.backend_independent
def test_without_noise_or_signal():
    whole = np.arange(-127, 128, dtype=np.float32)
    report = qa.error(whole, qa.quantize(whole, "int8"))
    assert (report.mse, report.rmse, report.max_abs, report.sqnr_db) == (0, 0, 0, math.inf)
    assert report.cosine == pytest.approx(1, abs=1e-15)
    zeros = np.zeros((2, 3), np.float32)
    report = qa.error(zeros, qa.quantize(zeros, "int8"))
    assert (report.mse, report.sqnr_db) == (0, math.inf)
    assert math.isnan(report.cosine)
    report = qa.error(zeros, qa.quantize(zeros + 1, "int8"))
    assert (report.mse, report.sqnr_db) == (1, -math.inf)


@pytest.mark.backend_independent
@pytest.mark.parametrize("piece", [8, 1 << 16])
def test_a_block_that_decodes_to_nan_is_the_worst(piece, monkeypatch):
    monkeypatch.setattr(metrics, "PIECE", piece)
    x = X.copy()
    x[2, 20] = np.nan
    q = qa.quantize(x, "int8", group_size=8, nonfinite="propagate")
    report = qa.error(np.nan_to_num(x), q)
    for figure in (report.mse, report.rmse, report.max_abs, report.sqnr_db, report.cosine):
        assert math.isnan(figure)
    assert report.worst_block == (2, 2)


@pytest.mark.backend_independent
def test_huge_values_do_not_warn():
    x = X.astype(np.float64) * 1e200
    report = qa.error(x, qa.quantize(x, "int8"))
    assert report.max_abs == pytest.approx(
        qa.error(X, qa.quantize(X, "int8")).max_abs * 1e200, rel=1e-5
    )


@pytest.mark.backend_independent
def test_a_report_is_a_table():
    lines = str(qa.error(X, qa.quantize(X, "int4", group_size=16))).split("\n")
    assert lines[0].split("  ")[0] == "scheme"
    for title in ("bits/element", "SQNR dB", "MSE", "RMSE", "max error", "cosine", "worst block"):
        assert title in lines[0]
    assert len(lines) == 3
    assert lines[2].startswith("int4 (blocks of 16 along axis -1)")
    assert lines[2].endswith("(4, 2)")
    assert "8.000" not in lines[2]


def test_compare_measures_each_scheme(xp):
    x = to_backend(X, xp)
    names = ["int8", qa.scheme("int4", group_size=16)]
    comparison = qa.compare(x, names)
    assert isinstance(comparison, list)
    assert list(comparison) == [qa.error(X, qa.quantize(X, name)) for name in names]
    lines = str(comparison).split("\n")
    assert len(lines) == 4
    assert len({line.index(cell) for line, cell in zip(lines[2:], ("8.", "6."), strict=True)}) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, q: qa.error(x[:2, :], q),
            r"error: x has shape \(2, 40\), q \(6, 40\): expected the same",
        ),
        (lambda x, q: qa.error(x, x), "error: q is a .*: expected a QuantizedArray"),
        (lambda x, q: qa.error([1.0], q), "error: x is a list: expected an array"),
        (lambda x, q: qa.compare(x, ["int9"]), "scheme: 'int9' is not known"),
        (lambda x, q: qa.compare(x, 3), "compare: schemes=3: expected"),
        (lambda x, q: qa.compare(x, "int8"), "compare: schemes='int8': expected"),
    ],
)
def test_bad_arguments_are_refused(call, message, xp):
    x = to_backend(X, xp)
    with pytest.raises(QuantArrayError, match=message):
        call(x, qa.quantize(x))


def test_nothing_cannot_be_measured(xp):
    x = to_backend(X[:0], xp)
    with pytest.raises(QuantArrayError, match=r"error: x has shape \(0, 40\).* not empty"):
        qa.error(x, qa.quantize(x))
