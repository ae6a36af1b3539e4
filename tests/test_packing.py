"""Packed words against Python integers, and against what their owners publish, for every layout."""

import itertools

import numpy as np
import pytest
from array_api_extra.testing import lazy_xp_function, patch_lazy_xp_functions
from helpers import SESSION, assert_same, to_backend
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarray import QuantArrayError, _xp, packing
from quantarray.packing import pack, unpack
from quantarray.scheme import Packing

lazy_xp_function(pack)
lazy_xp_function(unpack)

WIDTHS = range(1, 9)
ORDERS = ("lsb", "msb")
AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
PLAIN = [
    (bits, Packing(order, word, dense))
    for bits, order, word, dense in itertools.product(WIDTHS, ORDERS, (8, 32), (True, False))
    if dense or word % bits  # otherwise dense or not is the same
]
MIXED = [
    (4, Packing("lsb", 32, interleave=AWQ)),
    (4, Packing("msb", 32, dense=False, interleave=AWQ)),
    (3, Packing("lsb", 32, dense=False, interleave=(9, 0, 8, 1, 7, 2, 6, 3, 5, 4))),
    (7, Packing("msb", 32, dense=False, interleave=(2, 3, 1, 0))),
    (2, Packing("lsb", 8, interleave=(3, 1, 0, 2))),
    (1, Packing("msb", 8, centred=True)),
    (5, Packing("lsb", 8, centred=True)),
]
TRANSPOSED = [
    (3, Packing("lsb", 32, transpose="words")),
    (4, Packing("lsb", 32, interleave=AWQ, transpose="codes")),
    (5, Packing("msb", 32, dense=False, transpose="codes")),
    (6, Packing("msb", 8, transpose="words")),
    (1, Packing("lsb", 8, centred=True, transpose="codes")),
]


def name_of(value):
    if not isinstance(value, Packing):
        return str(value)
    dense = "dense" if value.dense else "gaps"
    extra = [word for word in ("interleave", "centred") if getattr(value, word)]
    extra += [value.transpose] * (value.transpose != "no")
    return "-".join([value.order, str(value.word), dense, *extra])


every_layout = pytest.mark.parametrize(("bits", "layout"), PLAIN + MIXED, ids=name_of)


def words_of(row, bits, layout):
    """Write the codes of a row as strings of bits, and read words from them."""
    size, each = layout.word, layout.word // bits
    texts = [f"{code:0{bits}b}" for code in row]
    if layout.interleave or not layout.dense:
        texts += ["0" * bits] * (-len(texts) % each)
        runs = [texts[i : i + each] for i in range(0, len(texts), each)]
        runs = [[run[i] for i in layout.interleave or range(each)] for run in runs]
        # The highest bits of a word are not used.
        words = ["".join(run if layout.order == "msb" else run[::-1]).zfill(size) for run in runs]
    elif layout.order == "msb":
        text = "".join(texts)
        text += "0" * (-len(text) % size)
        words = [text[i : i + size] for i in range(0, len(text), size)]
    else:
        text = "".join(texts[::-1])
        text = "0" * (-len(text) % size) + text
        words = [text[i : i + size] for i in range(0, len(text), size)][::-1]
    numbers = [int(word, 2) for word in words]
    if layout.centred:
        return [number - 128 for number in numbers]
    return numbers if size == 8 else [n - (n >> 31 << 32) for n in numbers]


def expected_words(codes, bits, layout):
    if layout.transpose == "codes":
        codes = codes.swapaxes(-1, -2)
    rows = codes.reshape(-1, codes.shape[-1]) if codes.size else []
    length = len(words_of([0] * codes.shape[-1], bits, layout))
    dtype = {"uint8": np.uint8, "int8": np.int8, "int32": np.int32}[packing.word_dtype(layout)]
    data = np.array([words_of(row, bits, layout) for row in rows], dtype)
    data = data.reshape(*codes.shape[:-1], length)
    return data.swapaxes(-1, -2) if layout.transpose == "words" else data


def random_codes(bits, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << bits, shape, dtype=np.uint8)


def assert_packs(codes, bits, layout, xp):
    """Assert that codes pack to the expected words, and that these unpack to the codes."""
    expected = expected_words(codes, bits, layout)
    assert packing.packed_shape(codes.shape, bits, layout) == expected.shape
    data = pack(to_backend(codes, xp), bits, layout, xp)
    assert_same(data, expected, xp)
    count = codes.shape[-2 if layout.transpose == "codes" else -1]
    assert_same(unpack(to_backend(expected, xp), bits, layout, count, xp), codes, xp)


@every_layout
def test_every_bit_of_every_code_of_a_unit(bits, layout, xp):
    size = packing.unit(bits, layout)
    codes = np.zeros((size * bits + 2, size), np.uint8)
    for row in range(size * bits):
        codes[row, row // bits] = 1 << row % bits
    codes[-2] = (1 << bits) - 1
    codes[-1] = random_codes(bits, size)
    assert_packs(codes, bits, layout, xp)


@every_layout
def test_rows_of_any_length_pack_and_unpack(bits, layout, xp):
    # Few, where each new shape is compiled or becomes a graph.
    for length in (0, 17, 35) if _xp.backend(xp) in ("dask", "jax") else range(70):
        codes = random_codes(bits, (2, length))
        codes[0] = (1 << bits) - 1
        assert_packs(codes, bits, layout, xp)


@pytest.mark.parametrize(("bits", "layout"), TRANSPOSED, ids=name_of)
@pytest.mark.parametrize("shape", [(33, 11), (2, 9, 35), (0, 5), (5, 0), (2, 0, 3), (1, 1)])
def test_the_last_two_axes_are_exchanged(bits, layout, shape, xp):
    assert_packs(random_codes(bits, shape), bits, layout, xp)


@pytest.mark.parametrize("shape", [(5,), (0,), (0, 5), (5, 0), (2, 0, 3), (2, 3, 5)])
@pytest.mark.parametrize("word", [8, 32])
def test_leading_axes_are_rows(word, shape, xp):
    assert_packs(random_codes(3, shape), 3, Packing("lsb", word), xp)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_byte_value_unpacks_and_packs_again(bits, order, xp):
    data = np.arange(256, dtype=np.uint8)
    data = np.stack([data] * bits, axis=-1)  # whole units: no bit is padding
    layout = Packing(order)
    codes = unpack(to_backend(data, xp), bits, layout, 8, xp)
    assert_same(pack(codes, bits, layout, xp), data, xp)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_byte_value_in_every_place_of_a_word(bits, order, xp):
    """All but one byte are set: shifts of negative words carry the sign along."""
    data = np.full((4, 256, 4 * bits), 0xFF, np.uint8)
    for place in range(4):
        data[place, :, place::4] = np.arange(256, dtype=np.uint8)[:, None]
    data, layout = data.view("<i4").astype(np.int32), Packing(order, 32)
    codes = unpack(to_backend(data, xp), bits, layout, 32, xp)
    assert_same(pack(codes, bits, layout, xp), data, xp)


@pytest.mark.parametrize("options", [{}, {"centred": True}, {"word": 32}], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_unused_bits_are_not_read(order, options, xp):
    layout = Packing(order, dense=False, **options)
    codes = random_codes(3, (8, 20))
    data = expected_words(codes, 3, layout)
    data ^= np.asarray(-1 << packing.unit(3, layout) * 3).astype(data.dtype)
    assert_same(unpack(to_backend(data, xp), 3, layout, 20, xp), codes, xp)


@pytest.mark.parametrize(("bits", "layout"), [*MIXED, *TRANSPOSED], ids=name_of)
def test_nothing_looks_at_values(bits, layout, xp, request):
    """Under jit on JAX, and on Dask with computation forbidden."""
    codes = random_codes(bits, (6, 37))
    with patch_lazy_xp_functions(request, xp=xp):
        assert_packs(codes, bits, layout, xp)


# What the owners of formats publish, written as they do.


@pytest.mark.backend_independent
@pytest.mark.parametrize("bits", WIDTHS)
def test_compressed_tensors(bits):
    codes = random_codes(bits, (3, 45))
    expected = np.zeros((3, -(-45 * bits // 32) + 1), np.uint64)
    for i in range(45):
        word, offset = i * bits // 32, i * bits % 32
        shifted = codes[:, i].astype(np.uint64) << np.uint64(offset)
        expected[:, word] |= shifted & np.uint64(0xFFFFFFFF)
        expected[:, word + 1] |= shifted >> np.uint64(32)
    assert not expected[:, -1].any()
    expected = expected[:, :-1].astype(np.uint32).view(np.int32)
    assert_same(pack(codes, bits, Packing(word=32), np), expected, _xp.namespace(codes))
    # The row's little-endian bytes are one stream of bits, as MLX has it.
    assert expected.astype("<i4")[0].tobytes().startswith(pack(codes[0], bits, Packing(), np))


@pytest.mark.backend_independent
@pytest.mark.parametrize("bits", WIDTHS)
def test_older_compressed_tensors(bits):
    codes, each = random_codes(bits, (3, 45)), 32 // bits
    padded = np.pad(codes, ((0, 0), (0, -45 % each))).astype(np.uint32)
    expected = np.zeros((3, padded.shape[1] // each), np.uint32)
    for i in range(each):
        expected |= padded[:, i::each] << np.uint32(bits * i)
    found = pack(codes, bits, Packing(word=32, dense=False), np)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.backend_independent
def test_gptq_of_3_bits():
    codes = random_codes(3, (5, 64))  # [out, in]
    values = codes.T.astype(np.uint32)
    expected = np.zeros((6, 5), np.uint32)
    i = row = 0
    while row < 6:
        for j in range(i, i + 10):
            expected[row] |= values[j] << np.uint32(3 * (j - i))
        i += 10
        expected[row] |= values[i] << np.uint32(30)
        row += 1
        expected[row] |= (values[i] >> np.uint32(2)) & np.uint32(1)
        i += 1
        for j in range(i, i + 10):
            expected[row] |= values[j] << np.uint32(3 * (j - i) + 1)
        i += 10
        expected[row] |= values[i] << np.uint32(31)
        row += 1
        expected[row] |= (values[i] >> np.uint32(1)) & np.uint32(3)
        i += 1
        for j in range(i, i + 10):
            expected[row] |= values[j] << np.uint32(3 * (j - i) + 2)
        i += 10
        row += 1
    found = pack(codes, 3, Packing(word=32, transpose="words"), np)
    assert (found == expected.view(np.int32)).all()


@pytest.mark.backend_independent
def test_awq():
    codes = random_codes(4, (24, 6))  # [out, in]
    weights = codes.T.astype(np.uint32)
    expected = np.zeros((6, 3), np.uint32)
    for column in range(3):
        for i in range(8):
            expected[:, column] |= weights[:, column * 8 + AWQ[i]] << np.uint32(i * 4)
    found = pack(codes, 4, Packing(word=32, interleave=AWQ, transpose="codes"), np)
    assert (found == expected.view(np.int32)).all()


@pytest.mark.backend_independent
def test_bitsandbytes_has_the_high_nibble_first():
    codes = random_codes(4, (3, 10))
    assert (pack(codes, 4, Packing("msb"), np) == codes[:, ::2] << 4 | codes[:, 1::2]).all()


@pytest.mark.backend_independent
@pytest.mark.parametrize("order", ORDERS)
def test_one_bit_is_numpys_packbits(order):
    bits = random_codes(1, (2, 37))
    expected = np.packbits(bits, axis=-1, bitorder={"lsb": "little", "msb": "big"}[order])
    assert (pack(bits, 1, Packing(order), np) == expected).all()
    # sentence_transformers.util.quantize_embeddings, precision="binary"
    centred = (expected.astype(np.int16) - 128).astype(np.int8)
    found = pack(bits, 1, Packing(order, centred=True), np)
    assert found.dtype == np.int8
    assert (found == centred).all()


# What sizes and messages say.


@pytest.mark.backend_independent
@every_layout
def test_sizes(bits, layout):
    for count in range(70):
        size = len(words_of([0] * count, bits, layout))
        assert packing.words(count, bits, layout) == size
        assert packing.packed_shape((2, count), bits, layout) == (2, size)


@pytest.mark.backend_independent
@every_layout
def test_a_row_may_be_cut_after_a_unit_and_not_before(bits, layout):
    size = packing.unit(bits, layout)
    codes = np.full((1, 3 * size), (1 << bits) - 1, np.uint8)
    whole = pack(codes, bits, layout, np)
    for cut in range(1, 3 * size):
        pieces = [pack(piece, bits, layout, np) for piece in (codes[:, :cut], codes[:, cut:])]
        joined = np.concatenate(pieces, axis=-1)
        assert (joined.shape == whole.shape and (joined == whole).all()) == (cut % size == 0)


@pytest.mark.backend_independent
def test_units():
    layouts = {
        (3, Packing()): 8,
        (4, Packing()): 2,
        (8, Packing()): 1,
        (3, Packing(dense=False)): 2,
        (3, Packing(word=32)): 32,
        (6, Packing(word=32)): 16,
        (8, Packing(word=32)): 4,
        (3, Packing(word=32, dense=False)): 10,
        (4, Packing(word=32, interleave=AWQ)): 8,
    }
    assert {key: packing.unit(*key) for key in layouts} == layouts


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("bits", "layout", "message"),
    [
        (3, Packing(word=32, dense=False, interleave=AWQ), "expected 10 indices, for words of 32"),
        (4, Packing(word=8, interleave=AWQ), "expected 2 indices, for words of 8"),
        (3, Packing(word=32, interleave=tuple(range(10))), "expected 10 indices and dense=False"),
    ],
)
def test_what_cannot_be_interleaved(bits, layout, message):
    calls = [
        lambda: pack(random_codes(bits, (2, 16)), bits, layout, np),
        lambda: pack(random_codes(bits, (2, 0)), bits, layout, np),
        lambda: unpack(np.zeros((2, 16), np.int32), bits, layout, 16, np),
        lambda: packing.words(16, bits, layout),
        lambda: packing.packed_shape((2, 16), bits, layout),
        lambda: packing.unit(bits, layout),
    ]
    for call in calls:
        with pytest.raises(QuantArrayError, match=f"^Packing: interleave=.*{bits} bits.*{message}"):
            call()


@pytest.mark.backend_independent
@pytest.mark.parametrize("transpose", ["words", "codes"])
@pytest.mark.parametrize("size", [0, 8])
def test_one_axis_cannot_be_transposed(transpose, size):
    layout = Packing(word=32, transpose=transpose)
    calls = [
        lambda: pack(np.zeros(size, np.uint8), 4, layout, np),
        lambda: unpack(np.zeros(size, np.int32), 4, layout, 8 * size, np),
        lambda: packing.packed_shape((size,), 4, layout),
    ]
    for call in calls:
        with pytest.raises(QuantArrayError, match=rf"'{transpose}'.*\({size},\).*at least 2 axes"):
            call()


@pytest.mark.backend_independent
@every_layout
def test_the_input_is_not_changed(bits, layout):
    codes = random_codes(bits, (2, 35))
    before = codes.copy()
    data = pack(codes, bits, layout, np)
    stored = data.copy()
    unpack(data, bits, layout, 35, np)
    assert (codes == before).all()
    assert (data == stored).all()


@st.composite
def layouts(draw):
    """Draw the bits of a code, and any packing that fits them."""
    bits = draw(st.integers(1, 8))
    word, dense = draw(st.sampled_from([8, 32])), draw(st.booleans())
    interleave = ()
    if (not dense or word % bits == 0) and draw(st.booleans()):
        interleave = tuple(draw(st.permutations(range(word // bits))))
    transpose = draw(st.sampled_from(["no", "words", "codes"]))
    centred = word == 8 and draw(st.booleans())
    order = draw(st.sampled_from(ORDERS))
    shape = {"interleave": interleave, "transpose": transpose, "centred": centred}
    return bits, Packing(order, word, dense, **shape)


@pytest.mark.backend_independent
@settings(deadline=None, max_examples=200 if SESSION == "numpy" else 50)
@given(
    layouts(),
    st.lists(st.integers(0, 40), min_size=2, max_size=2),
    st.lists(st.integers(0, 3), max_size=2),
    st.integers(0, 99),
)
def test_any_layout_of_any_shape(layout, rows, leading, seed):
    codes = random_codes(layout[0], (*leading, *rows), seed)
    assert_packs(codes, *layout, _xp.namespace(codes))


@pytest.mark.parametrize("rows", [1, 7, 8, 13, 40])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("order", ["lsb", "msb"])
def test_strided_codes_come_from_parts_of_the_first_axis(xp, order, bits, rows):
    """As quanto (low bits first) and HQQ (high bits first; 3 bits in words of 32) pack weights."""
    word = 32 if bits == 3 else 8
    how = Packing(order, word=word, dense=False, strided=True, transpose="both")
    codes = np.random.default_rng(rows).integers(0, 1 << bits, (rows, 5)).astype(np.uint8)
    per_word = word // bits
    size = -(-rows // per_word)
    expected = np.zeros((size, 5), np.int64)
    for i in range(per_word):
        part = codes[i * size : (i + 1) * size]
        place = i if order == "lsb" else per_word - 1 - i
        expected[: len(part)] |= part.astype(np.int64) << (bits * place)
    dtype = np.int32 if word == 32 else np.uint8
    packed = pack(to_backend(codes, xp), bits, how, xp)
    assert_same(packed, expected.astype(dtype), xp)
    assert packing.packed_shape(codes.shape, bits, how) == expected.shape
    assert_same(unpack(packed, bits, how, rows, xp), codes, xp)
