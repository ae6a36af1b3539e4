"""Random bits by counter: Threefry's published answers, and the same bits everywhere."""

import numpy as np
import pytest
from helpers import BACKENDS, assert_same, dtypes_of, to_backend, to_numpy

import quantarray as qa
from quantarray import QuantArrayError, _xp, counter
from quantarray.blocks import whole

KNOWN = [  # counter, key and answer, from the Random123 distribution's kat_vectors
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]
KEYS = (0, 1, 2**32, 2**64 - 1, 0x0370734413198A2E)


def words(values):
    return np.array(values, dtype=np.uint32).astype(np.int32)


def rotated(x, left):
    return (x << left | x >> (32 - left)) & 0xFFFFFFFF


def reference(c0, c1, key):
    """Encrypt one counter as the paper writes it, in Python integers."""
    keys = [key & 0xFFFFFFFF, key >> 32]
    keys.append(0x1BD11BDA ^ keys[0] ^ keys[1])
    x, y = (c0 + keys[0]) & 0xFFFFFFFF, (c1 + keys[1]) & 0xFFFFFFFF
    for i in range(20):
        x = (x + y) & 0xFFFFFFFF
        y = rotated(y, (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]) ^ x
        if i % 4 == 3:
            s = i // 4 + 1
            x = (x + keys[s % 3]) & 0xFFFFFFFF
            y = (y + keys[(s + 1) % 3] + s) & 0xFFFFFFFF
    return x, y


def noise(key, shape):
    """Give every element's number in [0, 1) by the reference."""
    size = int(np.prod(shape))
    numbers = [(reference(i & 0xFFFFFFFF, i >> 32, key)[0] >> 8) / 2**24 for i in range(size)]
    return np.array(numbers, np.float32).reshape(shape)


@pytest.mark.backend_independent
@pytest.mark.parametrize(("count", "key", "answer"), KNOWN)
def test_the_reference_gives_the_known_answers(count, key, answer):
    assert reference(*count, key[0] | key[1] << 32) == answer


@pytest.mark.parametrize(("count", "key", "answer"), KNOWN)
def test_threefry_gives_the_known_answers(count, key, answer, xp):
    low, high = (to_backend(words([word]), xp) for word in count)
    for found, expected in zip(
        counter.threefry(key[0] | key[1] << 32, low, high), answer, strict=True
    ):
        assert_same(found, words([expected]), xp)


@pytest.mark.parametrize("key", KEYS)
def test_threefry_is_the_reference(key, xp):
    counts = np.random.default_rng(5).integers(0, 2**32, (2, 50), dtype=np.uint32)
    expected = np.array([reference(int(a), int(b), key) for a, b in counts.T], np.uint32).T
    found = counter.threefry(key, *(to_backend(words(count), xp) for count in counts))
    for part, answer in zip(found, expected, strict=True):
        assert_same(part, words(answer), xp)


@pytest.mark.skipif("jax" not in BACKENDS, reason="compares with JAX's own generator")
@pytest.mark.parametrize("key", KEYS)
def test_threefry_is_jaxs(key):
    from jax import numpy as jnp
    from jax.extend.random import threefry_2x32

    low = np.arange(20, dtype=np.uint32)
    pair = jnp.asarray([key & 0xFFFFFFFF, key >> 32], dtype=jnp.uint32)
    theirs = threefry_2x32(pair, jnp.asarray(np.concatenate([low, low + 7])))
    ours = counter.threefry(key, jnp.asarray(words(low)), jnp.asarray(words(low + 7)))
    assert np.asarray(theirs).tolist() == np.concatenate(ours).astype(np.uint32).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_numbers_are_24_bits_of_the_first_word(dtype, xp):
    if dtype not in dtypes_of(xp):
        pytest.skip("JAX has no float64 while jax_enable_x64 is off")
    x = np.zeros((2, 12), dtype)
    found = counter.uniform(77, x.shape, whole(x.shape), to_backend(x, xp), xp)
    assert_same(found, noise(77, x.shape).astype(dtype), xp)


@pytest.mark.parametrize("shape", [(24,), (2, 3, 4)])
def test_an_elements_number_is_that_of_its_index(shape, xp):
    x = to_backend(np.zeros(shape, np.float32), xp)
    assert_same(counter.uniform(5, shape, whole(shape), x, xp), noise(5, (24,)).reshape(shape), xp)


def test_a_piece_has_the_numbers_of_its_place(xp):
    everything = noise(9, (6, 8))
    for where in [
        (slice(2, 5), slice(0, 8)),
        (slice(3, 6), slice(0, 8)),
        (slice(1, 3), slice(3, 5)),
    ]:
        part = everything[where]
        x = to_backend(np.zeros(part.shape, np.float32), xp)
        assert_same(counter.uniform(9, (6, 8), where, x, xp), part, xp)


HUGE = [
    ((2**31 + 8,), (slice(2**31 - 4, 2**31 + 4),)),
    ((3, 2**31), (slice(1, 3), slice(2**31 - 3, 2**31))),
    ((2**32 + 5, 1), (slice(2**32 - 2, 2**32 + 2), slice(0, 1))),
    ((2**31,), (slice(2**31 - 4, 2**31),)),
]


@pytest.mark.parametrize(("shape", "where"), HUGE, ids=[str(shape) for shape, _ in HUGE])
def test_counters_beyond_2_to_the_31(shape, where, xp):
    axes = [range(s.start, s.stop) for s in where]
    size = tuple(map(len, axes))
    index = [0]
    for axis, length in zip(axes, shape, strict=True):
        index = [i * length + j for i in index for j in axis]
    x = to_backend(np.zeros(size, np.float32), xp)
    if _xp.backend(xp) == "jax" and "float64" not in dtypes_of(xp):
        with pytest.raises(QuantArrayError, match=r"elements: from 2\*\*31 on, .*jax_enable_x64"):
            counter.uniform(3, shape, where, x, xp)
        return
    low, high = counter._counters(shape, where, x, xp)
    assert to_numpy(low).astype(np.uint32).ravel().tolist() == [i & 0xFFFFFFFF for i in index]
    assert to_numpy(high).astype(np.uint32).ravel().tolist() == [i >> 32 for i in index]
    numbers = [(reference(i & 0xFFFFFFFF, i >> 32, 3)[0] >> 8) / 2**24 for i in index]
    expected = np.array(numbers, np.float32).reshape(size)
    assert_same(counter.uniform(3, shape, where, x, xp), expected, xp)


@pytest.mark.parametrize("name", ["int3", "uint4"])
def test_stochastic_codes_go_up_where_noise_lies_below_the_fraction(name, xp):
    x = np.random.default_rng(3).standard_normal((4, 10)).astype(np.float32)
    scheme = qa.scheme(name, rounding="stochastic", group_size=5)
    q = qa.quantize(to_backend(x, xp), scheme, key=1234)
    scale = np.repeat(to_numpy(q.scale), 5, axis=1)
    quotient = x / scale
    zero = 0 if q.zero_point is None else np.repeat(to_numpy(q.zero_point), 5, axis=1).astype(float)
    floor = np.floor(quotient)
    codes = floor + (noise(1234, x.shape) < quotient - floor) + zero
    expected = np.clip(codes, scheme.element.min, scheme.element.max)
    assert_same(q.codes, expected.astype(np.uint8 if name == "uint4" else np.int8), xp)


@pytest.mark.parametrize("value", [0.25, -1.7, -0.001])
def test_stochastic_rounding_is_unbiased(value, xp):
    count = 100_000
    x = to_backend(np.full(count, value, np.float32), xp)
    codes = to_numpy(qa.encode(x, "int4", rounding="stochastic", key=42)).astype(float)
    assert set(codes) == {np.floor(value), np.floor(value) + 1}
    fraction = np.float32(value) - np.floor(np.float32(value))
    sigma = np.sqrt(fraction * (1 - fraction) / count)
    assert abs(codes.mean() - np.float32(value)) < 5 * sigma


def test_integers_stay_and_keys_differ(xp):
    whole_numbers = to_backend(np.arange(-8, 8, dtype=np.float32), xp)
    codes = qa.encode(whole_numbers, "int4", rounding="stochastic", key=1)
    assert_same(codes, np.arange(-8, 8, dtype=np.int8), xp)
    halves = to_backend(np.full(16, 0.5, np.float32), xp)
    keyed = [qa.encode(halves, "int4", rounding="stochastic", key=key) for key in KEYS]
    assert len({to_numpy(codes).tobytes() for codes in keyed}) == len(KEYS)


def test_bits_do_not_depend_on_the_shape_or_what_follows(xp):
    x = np.random.default_rng(1).uniform(-7, 7, 48).astype(np.float32)
    expected = to_numpy(qa.encode(to_backend(x, xp), "int4", rounding="stochastic", key=8))
    for shape in [(2, 24), (2, 3, 8)][: 1 if _xp.backend(xp) == "jax" else None]:
        codes = qa.encode(to_backend(x.reshape(shape), xp), "int4", rounding="stochastic", key=8)
        assert_same(codes, expected.reshape(shape), xp)
    first = qa.encode(to_backend(x[:24], xp), "int4", rounding="stochastic", key=8)
    assert_same(first, expected[:24], xp)
