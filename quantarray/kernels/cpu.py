"""Fused kernels for arrays in host memory: what is done in one pass, and what each thread does."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from quantarray import _xp, levels, packing, scales, storage
from quantarray.blocks import Blocks
from quantarray.codec import code_dtype
from quantarray.kernels import decode, decoders, encode, encoders, memory, plans, threads
from quantarray.kernels.loops import DERIVE, ENCODE, MEASURE, SPAN
from quantarray.kernels.memory import Bands, Numbers, Rows
from quantarray.parameters import Outer, Parameters, Range
from quantarray.task import Result, Task, result

# Elements for which a second thread is not worth its start, and of a block that many should share.
ALONE = 1 << 18
LARGE = 1 << 20
# Elements of a band that fit a cache, and columns that are too few to read at a time.
WIDE = 1 << 16
NARROW = 256


class Share(NamedTuple):
    """What a thread works on: bands, from row `band` of the grid on, and columns."""

    order: Numbers
    starts: Numbers
    band: int
    start: int
    stop: int
    # Columns at a time.
    stretch: int


class Found(NamedTuple):
    """Where the results of blocks and rows go; empty arrays where there are none."""

    low: Numbers
    high: Numbers
    scale: Numbers
    code: Numbers
    zero: Numbers
    point: Numbers
    out: Numbers


class Work(NamedTuple):
    """An array, and how it is worked on."""

    record: Any
    window: Numbers
    rows: Rows
    bands: Bands
    dtype: Any
    workers: int


def quantize(x: Numbers, task: Task) -> Result | None:
    """Quantize an array of NumPy's, or give None where the generic path must.

    Parameters
    ----------
    x : numpy.ndarray of a floating dtype, shape ``task.blocks.shape``
        Any strides.
    task : Task
        What to do.

    Returns
    -------
    Result or None
        None too where an element is not finite, or needs more care than the loops take.
    """
    scheme, given = task.scheme, task.given is not None
    found = None if task.key is not None else encoders.encoder(scheme, task.dtype, given)
    if found is None or (found[0].tail_divides and not _are_tails_of_rows(task)):
        return None
    plan, record = found
    x = memory.aligned(x)
    derives = encoders.derives(scheme, given)
    work, level, outer = _work(x, task.blocks, task, plan, record), None, plan.one
    if plan.has_outer and derives:
        whole = _ranges(_work(x, Blocks(x.shape, x.shape), task, plan, record), outer)
        if whole is None:
            return None
        level = _outer(whole, task)
        outer = level.scale.reshape(-1)[0]
    out = memory.room((math.prod(_data_shape(task)),), np.uint8)
    stretch = _stretch(work, task.multiple)
    if stretch and (derives or given):
        results = _wanted(out, task) if task.given is None else _given(task.given, out, task)
        phases = MEASURE | ENCODE | (0 if given else DERIVE)
        shares = _shares_of_blocks(work, stretch)
        if not _run(phases, work, outer, shares, [results] * len(shares)):
            return None
        return _result(out, task.given or _parameters(results, level, task), task)
    ranges = None if plan.inverse else _ranges(work, outer)
    if ranges is None:
        return None
    parameters = task.given or _derive(ranges, task)
    shares, results = _shares_of_rows(work), _given(parameters, out, task)
    if not _run(ENCODE, work, outer, shares, [results] * len(shares)):
        return None
    return _result(out, parameters, task)


def dequantize(stored: Result, task: Task, dtype: str, out: Numbers | None) -> Numbers | None:
    """Decode arrays of NumPy's, or give None where the generic path must.

    Parameters
    ----------
    stored : Result
        What `quantize` gave.
    task : Task
        Its blocks and scheme.
    dtype : str
        The floating dtype of the values.
    out : numpy.ndarray of dtype, shape ``task.blocks.shape``, or None
        Where they go, if that lies in C order.

    Returns
    -------
    numpy.ndarray of dtype, or None
    """
    blocks = task.blocks
    found = decoders.decoder(task.scheme, task.dtype, dtype)
    if found is None or 0 in blocks.shape:
        return None
    plan, record = found
    codes = stored.data
    if not plans.packs(task.scheme):
        codes = storage.unpack(codes, blocks.shape, task)
    codes = memory.flat(codes).view(np.uint8)
    if out is None or not (out.flags.c_contiguous and out.flags.aligned and out.dtype.isnative):
        out = memory.room(blocks.shape, _xp.dtype(task.xp, dtype))
    work, parameters = _work(out, blocks, task, plan, record, dtype), _stored(stored, task)
    done = []

    def one(share: Share) -> None:
        values = np.empty(SPAN, work.dtype)
        arguments = record, codes, work.rows, share, parameters, work.window, values
        done.append(decode.dequantize(*arguments))

    threads.run(one, [(share,) for share in _shares_of_rows(work)])
    return out if all(done) else None


def _work(
    x: Numbers,
    blocks: Blocks,
    task: Task,
    plan: encoders.Encoder | decoders.Decoder,
    record: Numbers,
    dtype: str | None = None,
) -> Work:
    seen, first = memory.window(x, dtype or task.dtype)
    strides = tuple([stride // x.itemsize for stride in x.strides])
    word = task.scheme.packing.word if plans.packs(task.scheme) else 8
    layout = strides, blocks.shape, blocks.extents, task.multiple, plan.width, word
    rows, bands = memory.rows_of(*layout)
    workers = threads.count() if x.size > ALONE else 1
    return Work(record, seen, rows._replace(first=first), bands, task.arithmetic.dtype, workers)


def _are_tails_of_rows(task: Task) -> bool:
    """Tell whether no blocks are cut short but by the ends of rows."""
    blocks = task.blocks
    ragged = [n % extent for n, extent in zip(blocks.shape, blocks.extents, strict=True)]
    return not any(ragged[:-1]) and (task.scheme.block.flat or 0) <= blocks.shape[-1]


def _data_shape(task: Task) -> tuple[int, ...]:
    """Give the shape of the bytes that the loops write."""
    shape = task.blocks.shape
    if not plans.packs(task.scheme):
        return shape
    *rows, count = task.data_shape(shape)
    return (*rows, count * task.scheme.packing.word // 8)


def _run(phases: int, work: Work, outer: Any, shares: list[Share], found: list[Found]) -> bool:
    """Run phases on each share in a thread of its own; tell whether all went through."""
    done = []

    def one(share: Share, results: Found) -> None:
        bits = np.empty(SPAN, np.int64 if work.dtype == "float64" else np.int32)
        arguments = phases, work.record, outer, work.window, work.rows, share, results, bits
        done.append(encode.quantize(*arguments))

    threads.run(one, zip(shares, found, strict=True))
    return all(done)


def _stretch(work: Work, multiple: int) -> int:
    """Give the columns of whole blocks and words that fit a cache; 0 if blocks are too large."""
    rows, height = work.rows, work.bands.height
    unit = math.lcm(rows.size, multiple)
    room = SPAN if height == 1 else WIDE // height
    stretch = min(unit * max(1, room // unit), rows.columns)
    narrow = height > 1 and stretch < min(NARROW, rows.columns)
    large = rows.size * height > LARGE and work.workers > 1
    return 0 if narrow or large else stretch


def _shares_of_blocks(work: Work, stretch: int) -> list[Share]:
    """Cut an array between blocks."""
    order, starts, _ = work.bands
    columns, many = work.rows.columns, len(starts) - 1
    if work.workers == 1:
        return [Share(order, starts, 0, 0, columns, stretch)]
    if many >= work.workers or columns <= stretch:
        cuts = _cuts(many, min(work.workers, many))
        return [Share(order, starts[a : b + 1], a, 0, columns, stretch) for a, b in cuts]
    pieces = -(-columns // stretch)
    cuts = _cuts(pieces, min(work.workers, pieces))
    return [
        Share(order, starts, 0, a * stretch, min(b * stretch, columns), stretch) for a, b in cuts
    ]


def _shares_of_rows(work: Work) -> list[Share]:
    """Cut an array between rows or, where there are few, between columns."""
    (order, starts, _), columns = work.bands, work.rows.columns
    if work.workers == 1:
        return [Share(order, starts, 0, 0, columns, SPAN)]
    if len(order) < work.workers:
        pieces = -(-columns // SPAN)
        cuts = _cuts(pieces, min(work.workers, pieces))
        return [Share(order, starts, 0, a * SPAN, min(b * SPAN, columns), SPAN) for a, b in cuts]
    shares = []
    for a, b in _cuts(len(order), work.workers):
        first = int(np.searchsorted(starts, a, side="right")) - 1
        last = int(np.searchsorted(starts, b, side="left"))
        inside = np.clip(starts[first : last + 1], a, b)
        shares.append(Share(order, inside, first, 0, columns, SPAN))
    return shares


def _cuts(count: int, parts: int) -> list[tuple[int, int]]:
    ends = [count * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(ends))


def _ranges(work: Work, outer: Any) -> Range | None:
    """Find the range of every block; None if one is beyond what the scheme can hold."""
    rows, many = work.rows, len(work.bands.starts) - 1
    grid = many * -(-rows.columns // rows.size)
    # Threads that meet in a block have results of their own.
    apart = grid <= SPAN
    shares = (
        _shares_of_rows(work)
        if apart
        else _shares_of_blocks(work, rows.size * max(1, SPAN // rows.size))
    )
    copies = len(shares) if apart else 1
    low, high = (
        np.full((copies, grid), np.inf, work.dtype),
        np.full((copies, grid), -np.inf, work.dtype),
    )
    nothing, no_bytes = np.empty(0, work.dtype), np.empty(0, np.uint8)
    found = [
        Found(low[i % copies], high[i % copies], nothing, no_bytes, nothing, no_bytes, no_bytes)
        for i in range(len(shares))
    ]
    if not _run(MEASURE, work, outer, shares, found):
        return None
    return Range(low.min(axis=0), high.max(axis=0))


def _outer(whole: Range, task: Task) -> Outer:
    """Derive the one scale of all scales from the range of the array."""
    one = (1,) * len(task.blocks.shape)
    absmax = np.maximum(whole.high, -whole.low).reshape(one)
    found = levels.derive(absmax, None, task.scheme, task.arithmetic).outer
    assert found is not None
    return found


def _derive(ranges: Range, task: Task) -> Parameters:
    low, high = (array.reshape(task.blocks.grid) for array in (ranges.low, ranges.high))
    return scales.derive(Range(low, high), None, task.scheme, task.arithmetic, task.dtype)


def _wanted(out: Numbers, task: Task) -> Found:
    """Make room for the parameters that the loops derive."""
    scheme, dtype = task.scheme, task.arithmetic.dtype
    blocks, nothing = math.prod(task.blocks.grid), np.empty(0, dtype)
    coded = scheme.scale.coded is not None
    return Found(
        nothing,
        nothing,
        np.empty(0 if coded else blocks, dtype),
        np.empty(blocks if coded else 0, np.uint8),
        np.empty(blocks if scheme.zero_kind == "offset" else 0, dtype),
        np.empty(blocks if scheme.zero_kind == "point" else 0, np.uint8),
        out,
    )


def _given(parameters: Parameters, out: Numbers, task: Task) -> Found:
    """Hand the loops parameters that exist."""
    nothing, no_bytes = np.empty(0, task.arithmetic.dtype), np.empty(0, np.uint8)
    zero = parameters.zero if parameters.offset is None else parameters.offset
    flat = nothing if zero is None else memory.flat(zero)
    scale = memory.flat(parameters.scale)
    return Found(nothing, nothing, scale, no_bytes, flat, no_bytes, out)


def _stored(stored: Result, task: Task) -> Found:
    """Hand the loops what is stored for each block: codes of scales with the value of each code."""
    scheme, dtype, outer = task.scheme, task.arithmetic.dtype, stored.outer
    no_bytes, nothing = np.empty(0, np.uint8), np.empty(0, dtype)
    code, point, offset = no_bytes, no_bytes, nothing
    single = outer is None or (outer.scale.size == 1 and outer.offset is None)
    if scheme.scale.coded is not None and single:
        code = memory.flat(stored.scale)
        scale = scales.as_values(np.arange(256, dtype=np.uint8), scheme, dtype, task.xp, outer)
    else:
        scale = memory.flat(scales.as_values(stored.scale, scheme, dtype, task.xp, outer))
    if stored.zero_point is not None:
        point = memory.flat(stored.zero_point).view(np.uint8)
    if stored.offset is not None:
        offset = memory.flat(stored.offset)
    return Found(nothing, nothing, scale, code, offset, point, no_bytes)


def _parameters(found: Found, level: Outer | None, task: Task) -> Parameters:
    """Shape the parameters that the loops derived."""
    grid, kind = task.blocks.grid, task.scheme.zero_kind
    stored = (found.code if task.scheme.scale.coded else found.scale).reshape(grid)
    point = found.point.view(code_dtype(task.element)).reshape(grid) if kind == "point" else None
    offset = found.zero.reshape(grid) if kind == "offset" else None
    return Parameters(stored, stored, point, offset, outer=level)


def _result(out: Numbers, parameters: Parameters, task: Task) -> Result:
    """Give the bytes the dtype and shape in which they are stored."""
    scheme, how = task.scheme, task.scheme.packing
    data = out.reshape(_data_shape(task))
    if plans.packs(scheme):
        data = data.view(packing.word_dtype(how))
    elif scheme.packed:
        data = packing.pack(data, task.element.bits, how, task.xp)
    else:
        data = data.view(code_dtype(task.element))
    return result(data, parameters, task)
