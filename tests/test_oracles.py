"""Every preset against its owner: no byte of any part may differ."""

import os
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

if not os.environ.get("QUANTARRAY_ORACLES"):
    pytest.skip("owners' packages: run by `nox -s oracles`", allow_module_level=True)

from helpers import ANY_SHAPE
from oracle_inputs import INPUTS
from oracles import ORACLES, Case, cases, compare, missing

import quantarray as qa
from quantarray.scheme import Packing

pytestmark = pytest.mark.backend_independent
BY_SCHEME = {oracle.scheme: oracle for oracle in ORACLES}


def test_every_owner_is_installed():
    assert not missing(), f"not installed: {', '.join(missing())}"


def test_every_preset_has_one_oracle():
    # Those of ggml are compared with ggml in C, in test_oracles_ggml.py.
    assert tuple(oracle.scheme for oracle in ORACLES) == ANY_SHAPE


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.scheme)
def test_no_byte_differs_from_the_owner(oracle, name):
    wrong = [message for case in cases(oracle, name) for message in case.failures()]
    assert not wrong, "\n".join([f"{len(wrong)} parts", *wrong])


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (np.zeros(3, np.uint8), np.asarray([0, 7, 7], np.int32), "2 of 3 differ; at 1 the owner"),
        (np.zeros(1, np.float32), -np.zeros(1, np.float32), "1 of 1 differ; at 0 the owner"),
        (np.ones(2, np.float32), np.ones(2, np.float64), "2 of 2 differ: the owner's are float32"),
        (np.ones(2, np.uint8), np.ones(2, np.float32), "2 of 2 differ: the owner's are uint8"),
        (np.ones(2, ml_dtypes.bfloat16), np.ones(2, np.float16), "the owner's are bfloat16"),
        (np.ones(2), np.ones((3, 1)), "3 of 3 differ: the owner has 2"),
    ],
)
def test_the_comparison_can_fail(theirs, ours, message):
    assert message in str(compare(theirs, ours))
    assert not compare(theirs, theirs.reshape(-1, 1)).count


def test_the_comparison_sees_bytes_where_words_are_stored():
    words = np.asarray([[0x04030201]], np.uint32)
    assert not compare(words, np.asarray([1, 2, 3, 4], np.uint8), as_bytes=True).count
    assert compare(words, np.asarray([1, 2, 4, 3], np.uint8), as_bytes=True).count == 2


def test_one_wrong_choice_of_a_scheme_is_found():
    """Each part of a result can fail: a result is compared with that of another scheme."""
    case = Case(BY_SCHEME["uint4"], "ties", {"group_size": 32}, "float32", (64, 512))

    def other(**choices):
        oracle = replace(
            case.oracle,
            quantize=lambda x, **options: {
                "codes": (q := qa.quantize(x, qa.scheme(case.scheme, **choices))).codes,
                "data": q.data,
                "scale": q.scale_data,
                "zero_point": q.zero_point,
                "decoded": q.dequantize(),
            },
        )
        differences = replace(case, oracle=oracle).differences()
        return {part for part, found in differences.items() if found.count}

    assert other() == set()
    assert other(rounding="half_away") == {"codes", "data", "decoded"}
    assert other(packing=Packing("msb")) == {"data"}


def test_a_mean_may_differ_in_its_last_bits_only():
    oracle = BY_SCHEME["ternary"]
    case = Case(oracle, "gaussian", {}, "float32", (64, 512))

    def off_by(error):
        def quantize(x, mean=None):
            parts = oracle.quantize(x, mean=mean)
            return parts | ({} if mean is not None else {"scale": parts["scale"] * (1 + error)})

        wrong = replace(case, oracle=replace(oracle, quantize=quantize)).differences()
        return [part for part, found in wrong.items() if found.count]

    assert off_by(np.float32(2e-7)) == []
    assert "scale" in off_by(np.float32(1e-5))
