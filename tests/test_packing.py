"""Packed bytes against strings of bits, for every width, order and length."""

import numpy as np
import pytest
from helpers import assert_same, to_backend

from quantarray import _xp, packing

WIDTHS = range(1, 8)
ORDERS = ("lsb", "msb")
LENGTHS = range(41)


def expected_bytes(codes, bits, order):
    """Write the codes of a row as one string of bits, and read bytes from it."""
    if order == "lsb":
        number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
        return number.to_bytes(-(-len(codes) * bits // 8), "little")
    text = "".join(f"{code:0{bits}b}" for code in codes)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def rows(bits, length, seed=0):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (2, length), dtype=np.uint8)
    codes[0] = (1 << bits) - 1
    return codes


def lengths(xp):
    """Give every length, or few where each new shape is compiled or becomes a graph."""
    return (0, 5, 17) if _xp.backend(xp) in ("dask", "jax") else LENGTHS


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_rows_pack_to_the_bytes_of_their_bits_and_back(bits, order, xp):
    for length in lengths(xp):
        codes = rows(bits, length)
        stored = [expected_bytes(row, bits, order) for row in codes]
        size = packing.packed_length(length, bits)
        expected = np.frombuffer(b"".join(stored), np.uint8).reshape(2, size)
        data = packing.pack(to_backend(codes, xp), bits, order, xp)
        assert_same(data, expected, xp)
        assert_same(packing.unpack(data, bits, order, length, xp), codes, xp)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_byte_value_unpacks_and_packs_again(bits, order, xp):
    data = np.arange(256, dtype=np.uint8)
    data = np.stack([data] * bits, axis=-1)  # whole units: no bit is padding
    codes = packing.unpack(to_backend(data, xp), bits, order, 8, xp)
    assert_same(packing.pack(codes, bits, order, xp), data, xp)


@pytest.mark.backend_independent
@pytest.mark.parametrize("order", ORDERS)
def test_one_bit_is_numpys_packbits(order, xp):
    bits = rows(1, 37)
    numpys = {"lsb": "little", "msb": "big"}[order]
    packed = packing.pack(bits, 1, order, np)
    assert packed.tobytes() == np.packbits(bits, axis=-1, bitorder=numpys).tobytes()
    assert packing.unpack(packed, 1, order, 37, np).tobytes() == bits.tobytes()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (2, 0, 3), (2, 3, 5)])
def test_leading_axes_are_rows(shape, xp):
    codes = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) % 8
    data = packing.pack(to_backend(codes, xp), 3, "lsb", xp)
    flat = (
        [expected_bytes(row, 3, "lsb") for row in codes.reshape(-1, shape[-1])]
        if codes.size
        else []
    )
    size = packing.packed_length(shape[-1], 3)
    assert_same(data, np.frombuffer(b"".join(flat), np.uint8).reshape(*shape[:-1], size), xp)
    assert_same(packing.unpack(data, 3, "lsb", shape[-1], xp), codes, xp)


@pytest.mark.backend_independent
@pytest.mark.parametrize("bits", WIDTHS)
def test_packed_length_is_the_bits_in_whole_bytes(bits):
    for count in LENGTHS:
        assert packing.packed_length(count, bits) == (bits * count + 7) // 8


@pytest.mark.backend_independent
@pytest.mark.parametrize("order", ORDERS)
def test_the_input_is_not_changed(order):
    codes = rows(3, 8)
    before = codes.copy()
    packing.pack(codes, 3, order, np)
    data = np.arange(3, dtype=np.uint8)
    packing.unpack(data, 3, order, 8, np)
    assert (codes == before).all()
    assert data.tolist() == [0, 1, 2]
