"""Stored bytes of every preset, which were its owner's when they were written: they stay so."""

from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same

import quantarray as qa
from quantarray import _xp
from quantarray.presets import DECODABLE

pytestmark = pytest.mark.backend_independent
NUMPY = _xp.load("numpy")


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "owners.npz", allow_pickle=False) as stored:
        return dict(stored)


def parts_of(golden, name):
    """Give the stored arrays of a preset, by their names."""
    whose = f"{name}/"
    return {key.removeprefix(whose): golden[key] for key in golden if key.startswith(whose)}


def test_every_preset_is_stored(golden):
    assert {key.partition("/")[0] for key in golden} == {*qa.schemes(), *DECODABLE}


@pytest.mark.parametrize("name", qa.schemes())
def test_bytes_stay(golden, name):
    parts = parts_of(golden, name)
    x, decoded = parts.pop("x"), parts.pop("decoded")
    q = qa.quantize(x, name)
    assert list(q.parts()) == list(parts)
    for part, array in q.parts().items():
        assert_same(array, parts[part], NUMPY)
    stored = qa.QuantizedArray.from_parts(parts, q.scheme, x.shape, "float32")
    assert_same(stored.dequantize(), decoded, NUMPY)


@pytest.mark.parametrize("name", DECODABLE)
def test_bytes_of_types_that_need_importances_stay(golden, name):
    x, weights, data, decoded = parts_of(golden, name).values()
    assert_same(qa.gguf.encode(x, qa.scheme(name).packing.record, weights), data, NUMPY)
    stored = qa.QuantizedArray.from_parts({"data": data}, qa.scheme(name), x.shape, "float32")
    assert_same(stored.dequantize(), decoded, NUMPY)
