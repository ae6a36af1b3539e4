"""Blocks cover every element once: in views, in grids, and in pieces."""

import math

import numpy as np
import pytest
from helpers import assert_same, to_backend
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarray import QuantArrayError
from quantarray.blocks import Blocks, from_end, pieces, resolve, whole
from quantarray.scheme import Block

CASES = [
    ((6, 10), (1, 4)),
    ((6, 10), (1, 10)),
    ((6, 10), (6, 10)),
    ((6, 10), (1, 1)),
    ((6, 10), (4, 3)),
    ((5, 7), (5, 2)),
    ((5, 7), (2, 7)),
    ((2, 3, 5), (1, 3, 2)),
    ((2, 3, 5), (2, 1, 5)),
    ((1, 1), (1, 1)),
    ((7,), (3,)),
    ((4, 1, 9), (3, 1, 4)),
]


def numbered(shape):
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(("shape", "extents"), CASES)
def test_split_gives_each_block_its_own_elements_and_merge_undoes_it(shape, extents, xp):
    x, blocks = numbered(shape), Blocks(shape, extents)
    assert blocks.grid == tuple(math.ceil(n / e) for n, e in zip(shape, extents, strict=True))
    view = blocks.split(to_backend(x, xp), xp)
    assert_same(blocks.merge(view, xp), x, xp)
    low = xp.reshape(xp.min(view, axis=blocks.axes) if blocks.axes else view, blocks.grid)
    high = xp.reshape(xp.max(view, axis=blocks.axes) if blocks.axes else view, blocks.grid)
    expected = np.empty((2, *blocks.grid), np.float32)
    for at in np.ndindex(blocks.grid):
        block = x[tuple(slice(i * e, (i + 1) * e) for i, e in zip(at, extents, strict=True))]
        expected[(slice(None), *at)] = block.min(), block.max()  # padding adds no value of its own
    assert_same(low, expected[0], xp)
    assert_same(high, expected[1], xp)


@pytest.mark.parametrize(("shape", "extents"), CASES)
def test_spread_gives_each_element_the_entry_of_its_block(shape, extents, xp):
    blocks = Blocks(shape, extents)
    per_block = numbered(blocks.grid)
    view = blocks.split(to_backend(np.zeros(shape, np.float32), xp), xp)
    found = blocks.merge(view + blocks.spread(to_backend(per_block, xp), xp), xp)
    expected = per_block
    for axis, extent in enumerate(extents):
        expected = np.repeat(expected, extent, axis=axis)
    assert_same(found, expected[tuple(map(slice, shape))], xp)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("block", "shape", "extents"),
    [
        (Block(), (6, 10), (6, 10)),
        (Block(), (), (1,)),
        (Block(), (0, 4), (1, 4)),
        (Block.channel(0), (6, 10), (1, 10)),
        (Block.channel(-1), (6, 10), (6, 1)),
        (Block.group(4), (6, 10), (1, 4)),
        (Block.group(64), (6, 10), (1, 10)),
        (Block.group(4, 0), (2, 3), (2, 1)),
        (Block.tile((4, -1)), (6, 10), (4, 10)),
        (Block.tile((3,)), (6, 10), (1, 3)),
        (Block(flat=4), (6, 10), (4,)),
        (Block(flat=1000), (6, 10), (60,)),
        (Block(flat=4), (), (1,)),
        (Block(flat=4), (0, 3), (1,)),
    ],
    ids=str,
)
def test_resolve(block, shape, extents):
    blocks = resolve("quantize", block, shape)
    assert blocks.extents == extents
    assert blocks.shape == ((math.prod(shape),) if block.flat or not shape else shape)


@pytest.mark.backend_independent
def test_axes_count_from_the_end():
    assert from_end("quantize", Block.channel(0), (2, 3, 4)) == Block.channel(-3)
    assert from_end("quantize", Block.group(8, 1), (2, 3)) == Block.group(8)
    for block in (Block(), Block.group(8), Block(flat=8), Block.tile((1, 2))):
        assert from_end("quantize", block, (2, 3)) is block


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    ("block", "shape", "message"),
    [
        (Block.channel(2), (6, 10), r"axis 2 .*shape \(6, 10\).*expected -2 to 1"),
        (Block.channel(-3), (6, 10), r"axis -3 .*shape \(6, 10\).*expected -2 to 1"),
        (Block.tile((1, 1, 1)), (6, 10), r"axis -3 .*shape \(6, 10\)"),
        (Block.group(8), (), r"axis -1 .*shape \(\).*expected one scale"),
        (Block(((0, 2), (-2, 2))), (6, 10), r"axes=\(\(-2, 2\), \(-2, 2\)\).*once"),
    ],
)
def test_axes_the_array_lacks_are_refused(block, shape, message):
    with pytest.raises(QuantArrayError, match=message):
        resolve("quantize", from_end("quantize", block, shape), shape)


SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=3)


@pytest.mark.backend_independent
@settings(deadline=None, max_examples=200)
@given(SHAPES, st.data(), st.integers(1, 200), st.sampled_from([1, 8]))
def test_pieces_cover_each_element_once_and_cut_no_block_and_no_byte(shape, data, limit, multiple):
    extents = [data.draw(st.one_of(st.integers(1, n), st.just(n))) for n in shape]
    blocks = Blocks(tuple(shape), tuple(extents))
    seen, scales = np.zeros(shape, int), np.zeros(blocks.grid, int)
    for grid_at, parts in pieces(blocks, limit, multiple):
        scales[grid_at] += 1
        piece = np.zeros(shape, int)
        for at, part in parts:
            piece[at] += 1
            assert part.shape == tuple(s.stop - s.start for s in at)
            assert at[-1].start % multiple == 0
            assert at[-1].stop % multiple == 0 or at[-1].stop == shape[-1]
        seen += piece
        inside = tuple(
            slice(g.start * e, min(g.stop * e, n))
            for g, e, n in zip(grid_at, extents, shape, strict=True)
        )
        assert (piece[inside] == 1).all()  # exactly the blocks of its part of the grid
        assert piece.sum() == piece[inside].size
        grid = tuple(s.stop - s.start for s in grid_at)
        if len(parts) == 1:
            assert parts[0][1].grid == grid
        else:  # a block beyond the limit is cut into parts that are one block each
            assert math.prod(grid) == 1
            assert all(part.grid == (1,) * len(shape) for _, part in parts)
            rows = limit + multiple * math.prod(shape[:-1])
            assert all(math.prod(part.shape) <= max(rows, multiple) for _, part in parts)
    assert (seen == 1).all()
    assert (scales == 1).all()


@pytest.mark.backend_independent
def test_pieces_keep_to_their_limit():
    for shape, extents in [((1000, 64), (1, 32)), ((64, 1000), (64, 1)), ((10**5,), (10**5,))]:
        sizes = [
            math.prod(part.shape)
            for _, parts in pieces(Blocks(shape, extents), 4096, 8)
            for _, part in parts
        ]
        assert max(sizes) <= 4096
        assert len(sizes) <= 2 * math.prod(shape) / 4096 + 1


@pytest.mark.backend_independent
def test_whole():
    assert whole((2, 3)) == (slice(0, 2), slice(0, 3))
    assert whole(()) == ()


@pytest.mark.backend_independent
def test_no_axes_are_one_piece():
    assert list(pieces(Blocks((), ()), 10)) == [((), [((), Blocks((), ()))])]
