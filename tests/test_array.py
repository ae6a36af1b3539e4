"""The container: what it says of itself, its parts, and what its indices choose."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from helpers import (
    ANY_SHAPE,
    SESSION,
    assert_same,
    assert_same_quantized,
    device_of,
    moved,
    to_backend,
    to_numpy,
)

import quantarray as qa
from quantarray import QuantArrayError, _xp
from quantarray.parts import part_specs
from quantarray.scheme import Packing

# The container is the same Python everywhere; JAX compiles anew for every shape.
some = slice(None, None, 2 if SESSION == "jax" else 1)
BLOCKS = [
    {},
    {"channel_axis": 0},
    {"channel_axis": -1},
    {"group_size": 4},
    {"group_size": 2, "group_axis": 0},
    {"flat": 5},
    {"block": (2, -1)},
]


def numbered(*shape):
    """Give values whose codes all differ from block to block."""
    x = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    return x + np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 7


def assert_same_parts(q, reference, xp):
    assert (q.shape, q.scheme) == (reference.shape, reference.scheme)
    for name, part in reference.parts().items():
        assert_same(q.parts()[name], part, xp)


@pytest.mark.parametrize(
    ("name", "options", "shape", "nbytes"),
    [
        ("int8", {}, (6, 10), 60 + 4),
        ("int8", {"channel_axis": 0}, (6, 10), 60 + 6 * 4),
        ("int8", {"group_size": 4}, (6, 10), 60 + 18 * 4),
        ("int4", {"group_size": 4}, (6, 10), 6 * 5 + 18 * 4),
        ("int3", {}, (6, 10), 6 * 4 + 4),
        ("uint8", {"channel_axis": 1}, (6, 10), 60 + 10 * (4 + 1)),
        ("uint4", {"group_size": 32}, (2, 64), 2 * 32 + 4 * (4 + 1)),
        ("uint2", {"flat": 8}, (3, 5), 4 + 2 * (4 + 1)),
        ("int7", {}, (), 1 + 4),
        ("int4", {}, (0, 4), 0),
    ][some],
)
def test_sizes_in_bytes_and_bits(name, options, shape, nbytes, xp):
    q = moved(qa.quantize(numbered(*shape), qa.scheme(name, **options)), xp)
    assert (q.shape, q.ndim, q.size) == (shape, len(shape), int(np.prod(shape)))
    assert q.nbytes == nbytes == sum(to_numpy(part).nbytes for part in q.parts().values())
    if q.size:
        assert q.bits_per_element == 8 * nbytes / q.size
    assert q.dtype == _xp.dtype(xp, "float32")
    assert q.device == device_of(xp)
    text = repr(q)
    assert text.startswith(f"QuantizedArray({name} (")
    assert f"shape={shape}, dtype=float32, " in text
    assert "bits per element, " + _xp.backend(xp) in text


def test_repr():
    q = qa.quantize(np.ones((2, 64), np.float32), "int4", group_size=32)
    assert repr(q) == (
        "QuantizedArray(int4 (blocks of 32 along axis -1), shape=(2, 64), dtype=float32, "
        "5 bits per element, numpy, cpu)"
    )


@pytest.mark.parametrize("shape", [(), (7,), (3, 10), (2, 3, 5), (0, 4), (4, 0)])
@pytest.mark.parametrize("options", BLOCKS[some], ids=str)
def test_parts_are_those_that_were_announced(options, shape, xp):
    names = ANY_SHAPE if _xp.backend(xp) == "numpy" else ("uint4",)
    for name in names:
        if "flat" in options and qa.scheme(name).packing.transpose != "no":
            with pytest.raises(QuantArrayError, match="flat blocks have no axes to transpose"):
                qa.scheme(name, **options)
            continue
        scheme = qa.scheme(name, **options)
        axes = [axis for axis, _ in scheme.block.axes]
        if any(not -len(shape) <= axis < len(shape) for axis in axes):
            with pytest.raises(QuantArrayError, match=r"axis .*shape \("):
                part_specs(scheme, shape, "float32")
            continue
        if scheme.packing.transpose != "no" and len(shape) < 2:
            with pytest.raises(QuantArrayError, match="at least 2 axes"):
                part_specs(scheme, shape, "float32")
            continue
        if _xp.backend(xp) == "jax" and shape != (3, 10):
            continue  # every shape compiles anew
        q = qa.quantize(to_backend(numbered(*shape), xp), scheme)
        found = {n: (tuple(p.shape), _xp.dtype_name(p.dtype)) for n, p in q.parts().items()}
        assert found == part_specs(scheme, shape, "float32")
        again = qa.QuantizedArray.from_parts(q.parts(), q.scheme, q.shape, "float32")
        assert (again.shape, again.scheme) == (q.shape, q.scheme)
        assert tuple(again.codes.shape) == shape
        assert all(again.parts()[n] is part for n, part in q.parts().items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_scales_are_announced_in_the_arithmetics_dtype(dtype):
    expected = "float64" if dtype == "float64" else "float32"
    assert part_specs(qa.scheme("int8"), (3, 4), dtype)["scale"] == ((1, 1), expected)


def test_parts_that_do_not_fit_are_refused(xp):
    q = moved(qa.quantize(numbered(4, 6), "uint4", group_size=3), xp)
    parts, rest = q.parts(), (q.scheme, q.shape, "float32")
    for change, message in [
        ({"scale": None}, "part 'scale': None: expected .*4, 2.*float32"),
        ({"data": parts["data"][1:, :]}, r"part 'data': .*\(3, 3\).*expected .*\(4, 3\).*uint8"),
        ({"extra": parts["scale"]}, "part 'extra': .*: expected None"),
        ({"zero_point": parts["scale"]}, "part 'zero_point': .*float32.*: expected .*uint8"),
    ]:
        wrong = {name: part for name, part in {**parts, **change}.items() if part is not None}
        with pytest.raises(QuantArrayError, match=f"QuantizedArray: {message}"):
            qa.QuantizedArray.from_parts(wrong, *rest)
    with pytest.raises(QuantArrayError, match="dtype 'int8': expected float16"):
        qa.QuantizedArray.from_parts(parts, q.scheme, q.shape, "int8")


def test_nothing_can_be_assigned(xp):
    q = moved(qa.quantize(numbered(3, 4)), xp)
    for field in ("data", "scale", "shape", "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(q, field, None)
    with pytest.raises(TypeError):
        q[0] = 1


I = np.s_  # noqa: E741
INDEXED = [
    (qa.scheme("int8"), (5, 7), [2, -1, I[1:4], I[::2], ..., I[:2, 3], (-1, -1), ()]),
    (qa.scheme("int4", channel_axis=0), (5, 7), [0, -5, I[4:1], I[1::3], I[2, ...], np.int64(3)]),
    (qa.scheme("uint8", channel_axis=1), (5, 7), [1, I[1:3, 4], I[:, 2:5], (...,)]),
    (qa.scheme("uint4", group_size=3), (2, 3, 7), [1, (1, 2), I[:, 1], I[0:1], I[0, 1:3]]),
    (qa.scheme("int8", group_size=3), (4, 8), [I[:, 3:6], I[1, 3:], (1, 7), I[1, 6:8]]),
    (qa.scheme("int6", group_size=2, group_axis=0), (5, 4), [3, 4, I[2:4], I[4:5], I[2:100]]),
    (qa.scheme("uint3", block=(2, 2, -1)), (5, 4, 3), [1, (4, 3), I[2:4, 2:], I[:0, 0]]),
]


@pytest.mark.parametrize(("scheme", "shape", "keys"), INDEXED[some])
def test_indices_choose_what_they_choose_of_the_decoded_array(scheme, shape, keys, xp):
    q = qa.quantize(numbered(*shape), scheme)
    decoded, codes = q.dequantize(), q.codes
    elsewhere = moved(q, xp)
    for key in keys[some]:
        chosen = q[key]
        assert isinstance(chosen, qa.QuantizedArray)
        assert chosen.shape == decoded[key].shape
        assert (chosen.dequantize() == decoded[key]).all()
        assert (chosen.codes == codes[key]).all()
        assert chosen.blocks.grid == tuple(chosen.scale.shape) or not chosen.shape
        found = {n: (p.shape, p.dtype.name) for n, p in chosen.parts().items()}
        assert found == part_specs(chosen.scheme, chosen.shape, "float32")
        assert_same_parts(elsewhere[key], chosen, xp)


def test_indices_of_indices(xp):
    q = qa.quantize(numbered(4, 6, 9), "int4", block=(2, 3, 4))
    decoded, elsewhere = q.dequantize(), moved(q, xp)
    assert (q[2:][1][3:].dequantize() == decoded[2:][1][3:]).all()
    assert (q[3][5].dequantize() == decoded[3, 5]).all()
    assert_same_parts(elsewhere[2:][1][3:], q[2:][1][3:], xp)
    assert_same_parts(elsewhere[3][5], q[3][5], xp)


WHOLE, PACKED = qa.scheme("int8"), qa.scheme("int4")
GROUPS, TILES = qa.scheme("int8", group_size=3), qa.scheme("int8", block=(2, 7))
REFUSED = [
    (WHOLE, (5, 7), 5, "index: 5 of axis 0: the axis has 5 elements"),
    (WHOLE, (5, 7), (0, -8), "index: -8 of axis 1: the axis has 7 elements"),
    (WHOLE, (5, 7), (0, 0, 0), r"index: 3 indices for shape \(5, 7\)"),
    (WHOLE, (5, 7), I[::-1], "slice.*-1.* of axis 0: expected a positive step"),
    (WHOLE, (5, 7), True, "index: True: expected integers and slices of leading axes"),
    (WHOLE, (5, 7), None, "index: None: expected integers and slices of leading axes"),
    (WHOLE, (5, 7), "a", "index: 'a': expected integers and slices"),
    (WHOLE, (5, 7), 1.0, r"index: 1\.0: expected integers and slices"),
    (WHOLE, (5, 7), [0, 1], r"index: \[0, 1\]: expected integers and slices"),
    (WHOLE, (5, 7), (..., 0), "index: Ellipsis: expected integers and slices of leading axes"),
    (WHOLE, (), 0, r"index: 1 indices for shape \(\)"),
    (GROUPS, (5, 7), I[0, 1:4], "axis 1 cuts blocks of 3: expected multiples of 3"),
    (TILES, (5, 7), I[1:3], "axis 0 cuts blocks of 2: expected multiples of 2"),
    (TILES, (5, 7), I[0:4:2], "axis 0 cuts blocks of 2"),
    (PACKED, (5, 7), (0, 0), r"the last axis of shape \(5, 7\) is packed: index the axes before"),
    (PACKED, (7,), 0, r"the last axis of shape \(7,\) is packed"),
    (qa.scheme("int8", flat=4), (5, 7), 0, "index: flat blocks do not follow the axes"),
]


@pytest.mark.parametrize(("scheme", "shape", "key", "message"), REFUSED[some])
def test_indices_that_cut_blocks_are_refused(scheme, shape, key, message, xp):
    q = moved(qa.quantize(numbered(*shape), scheme), xp)
    with pytest.raises(QuantArrayError, match=message):
        q[key]


def test_iteration_and_length(xp):
    reference = qa.quantize(numbered(3, 8), "int4", group_size=4)
    q = moved(reference, xp)
    assert len(q) == 3
    rows = list(q)
    assert len(rows) == 3
    for row, expected in zip(rows, reference, strict=True):
        assert_same_parts(row, expected, xp)
    scalar = moved(qa.quantize(np.float32(1)), xp)
    for call in (len, list):
        with pytest.raises((TypeError, QuantArrayError), match="0-d"):
            call(scalar)
    with pytest.raises(QuantArrayError, match="index: 3 of axis 0"):
        q[3]


@pytest.mark.parametrize("name", ["int8", "uint3"])
@pytest.mark.parametrize("options", BLOCKS[::2], ids=str)
def test_from_codes_rebuilds_the_same_array(name, options, xp):
    scheme = qa.scheme(name, **options)
    reference = qa.quantize(numbered(3, 10), scheme)
    given = {"scale": to_backend(reference.scale, xp)}
    if reference.zero_point is not None:
        given["zero_point"] = to_backend(reference.zero_point, xp)
    q = qa.from_codes(to_backend(reference.codes, xp), scheme, **given)
    assert_same_quantized(q, reference, xp, dtypes=["float32"])
    flat = to_backend(reference.codes.reshape(-1).astype(np.int32), xp)
    assert_same_quantized(
        qa.from_codes(flat, scheme, shape=(3, 10), **given), reference, xp, dtypes=[]
    )


def test_from_codes_is_dequantize_linear(xp):
    codes = np.uint8([[0, 3, 255], [128, 127, 1]])
    scale, zero = np.float32([0.5, 0.25]), np.uint8([128, 3])
    scheme = qa.scheme("uint8", channel_axis=0)
    q = qa.from_codes(
        to_backend(codes, xp), scheme, scale=to_backend(scale, xp), zero_point=to_backend(zero, xp)
    )
    expected = (codes.astype(np.float32) - zero[:, None]) * scale[:, None]
    assert_same(q.dequantize(), expected, xp)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.int8([8, 0])}, r"codes lie in 0\.\.8: expected -7\.\.7"),
        ({"codes": np.float32([1, 0])}, "codes has dtype float32: expected integers"),
        ({"codes": [1, 0]}, "codes is a list: expected an array"),
        ({"shape": (3,)}, r"shape=\(3,\): codes has shape \(2,\)"),
        ({"shape": (-1, -2)}, "shape=-1: expected"),
        ({"shape": "ab"}, "shape='ab': expected"),
        ({"scale": None}, "from_codes: .*scale"),
        ({"scale": -1.0}, r"scale lies in -1\.0\.\.-1\.0"),
        ({"scheme": "uint4"}, "uint4 needs its zero_point: give zero_point"),
        ({"zero_point": 9}, r"zero_point lies in 9\.\.9: expected -7 to 7"),
        ({"dtype": "int8"}, "from_codes: dtype='int8': expected float16"),
    ],
)
def test_from_codes_checks(change, message, xp):
    given = {"codes": np.int8([1, 0]), "scheme": "int4", "scale": 0.5} | change
    if isinstance(given["codes"], np.ndarray):
        given["codes"] = to_backend(given["codes"], xp)
        if "codes lie" in message and not _xp.is_concrete(given["codes"], xp):
            pytest.skip("lazy codes cannot be looked at")
    with pytest.raises(QuantArrayError, match=message):
        qa.from_codes(given.pop("codes"), given.pop("scheme"), **given)


def test_to_device_and_back(xp):
    reference = qa.quantize(numbered(3, 10), "uint4", group_size=4)
    q = moved(reference, xp)
    assert_same_quantized(q.to_device(device_of(xp)), reference, xp, dtypes=[])
    if _xp.backend(xp) == "array_api_strict":
        place = xp.Device("CPU_DEVICE")
        assert_same_quantized(q.to_device(place), reference, xp, device=place, dtypes=["float32"])
        assert q.to_device(place).device == place


@pytest.mark.parametrize("packing", [Packing("lsb"), Packing("msb")])
def test_pickles_and_copies(packing, xp):
    x = numbered(3, 10)
    scheme = qa.scheme("uint3", group_size=4, packing=packing)
    reference = qa.quantize(x, scheme)
    q = moved(reference, xp)
    for copied in (copy.copy(q), copy.deepcopy(q)):
        assert_same_quantized(copied, reference, xp, dtypes=[])
    if _xp.backend(xp) == "numpy":
        assert_same_quantized(pickle.loads(pickle.dumps(q)), reference, xp)
