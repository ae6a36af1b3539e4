"""The searches of ggml's encoders, on many groups at once and with the bits of its C code.

Arrays have an entry for each element of a group along their first axis, and groups along the
others. All is float32, codes too; sums run over the first axis, one element after the other.
What C decides group by group is selected here. `ggml-quants.c` of llama.cpp defines them, under
the names that the functions state.
"""

from typing import Any, NamedTuple

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic

Floats = np.ndarray[tuple[int], np.dtype[np.float32]]

# Below this magnitude a group counts as zeros.
LEAST = 1e-15


class Affine(NamedTuple):
    """How `affine` looks for a scale and a minimum."""

    most: int  # the largest code
    start: float  # what is added to it, to find scales to try
    step: float
    steps: int
    by_magnitude: bool = False  # whether errors count by magnitude, not squared


def total(x: Array, xp: Namespace) -> Array:
    """Sum over the first axis in order, from +0 on: no sum is -0."""
    return _xp.ordered_sum(x, xp) + 0.0


def nearest(x: Array, xp: Namespace) -> Array:
    """Round to integers as `nearest_int` does, which is half to even up to 2**22.

    Beyond, it is what is left of the number in the lower bits of a sum.
    """
    inside = xp.abs(x) <= 4194303.0
    rounded = xp.round(_xp.where(inside, x, 0.0, xp))
    bits = _xp.float_bits(x + 12582912.0, xp)
    wild = xp.astype((bits & 0x7FFFFF) - 0x400000, xp.float32)
    return _xp.where(inside, rounded, wild, xp)


def first_largest(x: Array, xp: Namespace) -> tuple[Array, Array]:
    """Give the first element of the largest magnitude, 0 if all are, and that magnitude."""
    magnitude = xp.abs(x)
    largest = xp.max(magnitude, axis=0)
    first = _at(x, xp.argmax(magnitude, axis=0), xp)
    # One is left of each group, so that the order of this sum does not matter.
    found = xp.sum(_xp.where(first, x, 0.0, xp), axis=0)
    return _xp.where(largest > 0, found, 0.0, xp), largest


def first_smallest(x: Array, xp: Namespace) -> Array:
    """Give the smallest element, the first of two zeros with different signs."""
    first = _at(x, xp.argmin(x, axis=0), xp)
    negative = xp.any(first & xp.signbit(x), axis=0)
    found = xp.abs(xp.min(x, axis=0))
    return _xp.where(negative, -found, found, xp)


def _at(x: Array, place: Array, xp: Namespace) -> Array:
    """Tell which element of each group is the one at a place."""
    index = xp.arange(x.shape[0], dtype=place.dtype, device=_xp.beside(x))
    return xp.reshape(index, (-1,) + (1,) * place.ndim) == xp.expand_dims(place, 0)


def signed(x: Array, most: int, weights: Array, math_: Arithmetic) -> tuple[Array, Array]:
    """Find scales of codes from ``-most`` to ``most - 1``: `make_qx_quants`.

    Parameters
    ----------
    x : array of float32, shape (n, ...)
        Elements.
    most : int
        Half the number of codes.
    weights : array of float32, shape of x
        What the squared error of each element counts.
    math_ : Arithmetic
        On float32.

    Returns
    -------
    tuple of array of float32
        Scales, shape (...), and codes plus `most`, shape of x.
    """
    xp = math_.xp
    extreme, largest = first_largest(x, xp)
    empty = largest < LEAST
    extreme = _xp.where(empty, 1.0, extreme, xp)
    weighted = math_.multiply(weights, x)

    def round_(inverse: Array) -> Array:
        return _xp.clip(nearest(math_.multiply(inverse, x), xp), -most, most - 1, xp)

    def fit(inverse: Array) -> tuple[Array, Array]:
        codes = round_(inverse)
        squares = math_.multiply(math_.multiply(weights, codes), codes)
        return total(math_.multiply(weighted, codes), xp), total(squares, xp)

    inverse = math_.divide(xp.full_like(extreme, -float(most)), extreme)

    def attempt(state: tuple[Array, ...], entries: tuple[Array, ...]) -> tuple[Any, None]:
        _scale, best, _inverse = state
        here = math_.divide(xp.broadcast_to(entries[0], extreme.shape), extreme)
        product, square = fit(here)
        better = (square > 0) & (math_.multiply(product, product) > math_.multiply(best, square))
        ratio = _ratio(product, square, better, math_)
        found = ratio, math_.multiply(ratio, product), here
        return _chosen(better, found, state, xp), None

    product, square = fit(inverse)
    scale = _ratio(product, square, square != 0, math_)
    tried = xp.asarray(-_around(most, 9), device=_xp.beside(x))
    start = scale, math_.multiply(scale, product), inverse
    (scale, _, inverse), _ = _xp.scan(attempt, start, (tried,), xp)
    codes = round_(inverse) + most
    return _xp.where(empty, 0.0, scale, xp), _xp.where(empty, 0.0, codes, xp)


def _chosen(
    where: Array, found: tuple[Array, ...], state: tuple[Array, ...], xp: Namespace
) -> tuple[Array, ...]:
    """Select what was found where that is better."""
    return tuple(_xp.where(where, a, b, xp) for a, b in zip(found, state, strict=True))


@_xp.constant
def _around(most: int, steps: int) -> Floats:
    """Give the tenths around a number, some on either side of it."""
    each = np.asarray([*range(-steps, 0), *range(1, steps + 1)], np.float32)
    return np.float32(0.1) * each + np.float32(most)


@_xp.constant
def _dividends(how: Affine) -> Floats:
    """Give what a group's range is divided into, by each try."""
    f = np.float32
    return f(how.start) + f(how.step) * np.arange(how.steps + 1, dtype=f) + f(how.most)


def _ratio(a: Array, b: Array, where: Array, math_: Arithmetic) -> Array:
    """Divide where that is asked for; 0 elsewhere."""
    xp = math_.xp
    return _xp.where(where, math_.divide(a, _xp.where(where, b, 1.0, xp)), 0.0, xp)


def _settle(
    x: Array,
    codes: Array,
    sums: tuple[Array, Array],
    weights: Array,
    least: int | None,
    most: int,
    math_: Arithmetic,
) -> tuple[Array, Array]:
    """Change one code after the other, five times over, where that lowers the error.

    `sums` are those of weight times element times code, and of weight times code squared. Codes
    without a `least` are stored in bytes, and what they would divide by is looked at first.
    """
    xp = math_.xp
    products, squares = sums

    def step(sums: tuple[Array, Array], entries: tuple[Array, ...]) -> tuple[Any, Array]:
        (products, squares), (element, weight, code) = sums, entries
        weighted = math_.multiply(weight, element)
        product = products - math_.multiply(weighted, code)
        square = squares - math_.multiply(math_.multiply(weight, code), code)
        fits = product > 0 if least is not None else (product > 0) & (square > 0)
        quotient = _ratio(math_.multiply(element, square), product, fits, math_)
        new = xp.minimum(nearest(quotient, xp), xp.full_like(code, most))
        if least is not None:
            new = xp.maximum(new, xp.full_like(code, least))
        product = product + math_.multiply(weighted, new)
        square = square + math_.multiply(math_.multiply(weight, new), new)
        change = (
            fits
            & (new != code)
            & (
                math_.multiply(math_.multiply(product, product), squares)
                > math_.multiply(math_.multiply(products, products), square)
            )
        )
        if least is not None:
            change = change & (square > 0)
        else:
            new = in_byte(new, xp)
        return _chosen(change, (product, square), sums, xp), _xp.where(change, new, code, xp)

    for _ in range(5):
        (products, squares), codes = _xp.scan(step, (products, squares), (x, weights, codes), xp)
    return _ratio(products, squares, squares > 0, math_), codes


def in_byte(codes: Array, xp: Namespace) -> Array:
    """Give whole numbers as a byte keeps them."""
    return codes - 256 * xp.floor(codes / 256)


def signed_stepwise(x: Array, most: int, math_: Arithmetic) -> tuple[Array, Array]:
    """Find scales of codes from ``-most`` to ``most - 1`` code by code: `make_q3_quants`.

    Parameters and results are those of `signed`, the square of each element its weight.
    """
    xp = math_.xp
    extreme, largest = first_largest(x, xp)
    empty = largest < LEAST
    extreme = _xp.where(empty, 1.0, extreme, xp)
    inverse = math_.divide(xp.full_like(extreme, -float(most)), extreme)
    codes = _xp.clip(nearest(math_.multiply(inverse, x), xp), -most, most - 1, xp)
    weights = math_.multiply(x, x)
    sums = _sums(x, codes, weights, math_)
    scale, codes = _settle(x, codes, sums, weights, -most, most - 1, math_)
    return _xp.where(empty, 0.0, scale, xp), _xp.where(empty, 0.0, codes + most, xp)


def _sums(x: Array, codes: Array, weights: Array, math_: Arithmetic) -> tuple[Array, Array]:
    products = math_.multiply(math_.multiply(weights, x), codes)
    squares = math_.multiply(math_.multiply(weights, codes), codes)
    return total(products, math_.xp), total(squares, math_.xp)


def affine(x: Array, weights: Array, how: Affine, math_: Arithmetic) -> tuple[Array, Array, Array]:
    """Find scales and minima: `make_qkx2_quants` and `make_qkx3_quants`.

    Parameters
    ----------
    x : array of float32, shape (n, ...)
        Elements.
    weights : array of float32, shape of x
        What the error of each element counts.
    how : Affine
        What to try.
    math_ : Arithmetic
        On float32.

    Returns
    -------
    tuple of array of float32
        Scales and minus minima, shape (...), and codes, shape of x.
    """
    xp = math_.xp
    low, high = first_smallest(x, xp), xp.max(x, axis=0)
    low = _xp.where(low > 0, 0.0, low, xp)
    weight_sum, x_sum = total(weights, xp), total(math_.multiply(weights, x), xp)
    empty = high <= low

    def round_(dividend: Array, least: Array) -> tuple[Array, Array]:
        span = _xp.where(empty, 1.0, high - least, xp)
        inverse = math_.divide(xp.broadcast_to(dividend, span.shape), span)
        codes = nearest(math_.multiply(inverse, x - least), xp)
        return inverse, _xp.clip(codes, 0, how.most, xp)

    def error(scale: Array, least: Array, codes: Array) -> Array:
        difference = (math_.multiply(scale, codes) + least) - x
        if how.by_magnitude:
            difference = xp.abs(difference)
        else:
            difference = math_.multiply(difference, difference)
        return total(math_.multiply(weights, difference), xp)

    inverse, codes = round_(xp.full_like(low, float(how.most)), low)
    scale, least = math_.reciprocal(inverse), low
    best = error(scale, least, codes)

    def attempt(state: tuple[Array, ...], entries: tuple[Array, ...]) -> tuple[Any, None]:
        best, _scale, least, _codes = state
        _, tried = round_(entries[0], least)  # from the best minimum so far
        product = math_.multiply(weights, tried)
        code_sum, square_sum = total(product, xp), total(math_.multiply(product, tried), xp)
        x_code_sum = total(math_.multiply(product, x), xp)
        determinant = math_.multiply(weight_sum, square_sum) - math_.multiply(code_sum, code_sum)
        fits = determinant > 0
        here, lowest = (
            _ratio(math_.multiply(a, b) - math_.multiply(c, d), determinant, fits, math_)
            for a, b, c, d in (
                (weight_sum, x_code_sum, x_sum, code_sum),
                (square_sum, x_sum, code_sum, x_code_sum),
            )
        )
        above = fits & (lowest > 0)
        here = _xp.where(above, _ratio(x_code_sum, square_sum, above, math_), here, xp)
        lowest = _xp.where(above, 0.0, lowest, xp)
        found = error(here, lowest, tried)
        better = fits & (found < best)
        return _chosen(better, (found, here, lowest, tried), state, xp), None

    start = best, scale, least, codes
    (_, scale, least, codes), _ = _xp.scan(
        attempt, start, (xp.asarray(_dividends(how), device=_xp.beside(x)),), xp
    )
    return (
        _xp.where(empty, 0.0, scale, xp),
        -_xp.where(empty, low, least, xp),
        _xp.where(xp.expand_dims(empty, 0), 0.0, codes, xp),
    )


def positive(x: Array, most: int, weights: Array, math_: Arithmetic) -> tuple[Array, Array]:
    """Find scales of codes from 0 to `most` of numbers that are scales: `make_qp_quants`.

    Parameters and results are those of `signed`. Codes are stored in bytes, so that what is below 0
    becomes large.
    """
    xp = math_.xp

    high = xp.max(x, axis=0)
    high = _xp.where(high > 0, high, 0.0, xp)
    empty = high < LEAST
    high = _xp.where(empty, 1.0, high, xp)

    def error(scale: Array, codes: Array) -> Array:
        difference = x - math_.multiply(scale, codes)
        return total(math_.multiply(math_.multiply(weights, difference), difference), xp)

    inverse = math_.divide(xp.full_like(high, float(most)), high)
    best = error(math_.reciprocal(inverse), in_byte(nearest(math_.multiply(inverse, x), xp), xp))

    def attempt(state: tuple[Array, ...], entries: tuple[Array, ...]) -> tuple[Any, None]:
        here = math_.divide(xp.broadcast_to(entries[0], high.shape), high)
        codes = xp.minimum(nearest(math_.multiply(here, x), xp), xp.full_like(x, most))
        found = error(math_.reciprocal(here), codes)
        return _chosen(found < state[0], (found, here), state, xp), None

    tried = xp.asarray(_around(most, 4), device=_xp.beside(x))
    (_, inverse), _ = _xp.scan(attempt, (best, inverse), (tried,), xp)
    codes = xp.minimum(nearest(math_.multiply(inverse, x), xp), xp.full_like(x, most))
    sums = _sums(x, codes, weights, math_)
    scale, codes = _settle(x, in_byte(codes, xp), sums, weights, None, most, math_)
    return _xp.where(empty, 0.0, scale, xp), _xp.where(empty, 0.0, codes, xp)


def codebook(x: Array, values: tuple[float, ...], weights: Array, math_: Arithmetic) -> Array:
    """Find scales of codes of a codebook: the first part of `quantize_row_iq4_nl_impl`.

    Parameters
    ----------
    x : array of float32, shape (n, ...)
        Elements.
    values : tuple of float
        The codebook, ascending; its first value is the one of the largest magnitude.
    weights : array of float32, shape of x
        What the squared error of each element counts.
    math_ : Arithmetic
        On float32.

    Returns
    -------
    array of float32, shape (...)
    """
    xp = math_.xp
    extreme, largest = first_largest(x, xp)
    empty = largest < LEAST
    extreme = _xp.where(empty, 1.0, extreme, xp)
    table = xp.asarray(values, dtype=xp.float32, device=_xp.beside(x))

    def fit(inverse: Array) -> tuple[Array, Array]:
        found = _xp.lookup(table, place(math_.multiply(inverse, x), values, xp), xp)
        product = math_.multiply(weights, found)
        squares = math_.multiply(product, found)
        return total(math_.multiply(product, x), xp), total(squares, xp)

    first = values[0]
    product, square = fit(math_.reciprocal(math_.divide(-extreme, first)))
    scale = _ratio(product, square, square > 0, math_)
    best = math_.multiply(scale, product)

    def attempt(state: tuple[Array, ...], entries: tuple[Array, ...]) -> tuple[Any, None]:
        here = math_.divide(xp.broadcast_to(entries[0], extreme.shape), extreme)
        product, square = fit(here)
        better = (square > 0) & (
            math_.multiply(product, product) > math_.multiply(state[1], square)
        )
        ratio = _ratio(product, square, better, math_)
        return _chosen(better, (ratio, math_.multiply(ratio, product)), state, xp), None

    tried = xp.asarray(np.arange(-7, 8, dtype=np.float32), device=_xp.beside(x)) + first
    (scale, _), _ = _xp.scan(attempt, (scale, best), (tried,), xp)
    return _xp.where(empty, 0.0, scale, xp)


def place(x: Array, values: tuple[float, ...], xp: Namespace) -> Array:
    """Give the index of the nearest value, of two as near the larger: `best_index_int8`."""
    return _xp.count_below(xp.asarray(_below_middles(values), device=_xp.beside(x)), x, xp)


@_xp.constant
def _below_middles(values: tuple[float, ...]) -> Floats:
    """Give the largest float32 below the middle of each two neighbours."""
    table = np.asarray(values, np.float32)
    return np.nextafter((table[1:] + table[:-1]) / 2, np.float32(-np.inf))
