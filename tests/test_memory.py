"""NumPy arrays go through the pipeline in pieces: no temporary reaches the array's size."""

import tracemalloc

import numpy as np
import pytest

import quantarray as qa

pytestmark = pytest.mark.backend_independent

X = np.random.default_rng(0).standard_normal((2048, 2048), dtype=np.float32)  # 16 MiB
CASES = [
    ("int8", {}),
    ("int8", {"channel_axis": 0}),
    ("int8", {"channel_axis": 1}),
    ("int8", {"group_size": 64, "group_axis": 0}),
    ("int4", {"group_size": 128}),
    ("uint4", {"group_size": 100}),
    ("int4", {"block": (2048, 64)}),
    (qa.scheme("uint3", flat=64), {}),
    ("fp8_e4m3", {"channel_axis": 0}),
    ("mxfp4", {}),
]
LIMIT = 8 << 20


def peak(function):
    """Bytes allocated at once while a function runs, beyond what it gives."""
    tracemalloc.start()
    try:
        result = function()
        return tracemalloc.get_traced_memory()[1] - result.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("scheme", "blocks"), CASES, ids=str)
def test_extra_memory_is_a_few_pieces(scheme, blocks):
    assert peak(lambda: qa.quantize(X, scheme, **blocks)) < LIMIT
    assert peak(qa.quantize(X, scheme, **blocks).dequantize) < LIMIT


def test_extra_memory_would_show():
    assert peak(lambda: qa.quantize(X.astype(np.float64), "int8")) > LIMIT
    assert peak(lambda: np.abs(X).max()) > LIMIT
