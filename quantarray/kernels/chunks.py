"""Dask arrays chunk by chunk: one task runs the whole pipeline on a chunk of whole blocks.

A chunk goes through whatever its own library gets. Where chunks share blocks, their ranges come
first, then their scales, and then each chunk with those. What else has to be known of the whole
array (scales of scales, sums, an element's random number, packing across rows) stays in the graph
of array operations that the pipeline builds of a lazy array.
"""

import math
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from quantarray import _xp, codec, scales, storage
from quantarray._xp import Array, Namespace
from quantarray.blocks import Blocks
from quantarray.parameters import Parameters, Range, float_dtype, stored_dtype
from quantarray.records import Record
from quantarray.scheme import Scheme
from quantarray.task import Result, Task, result

Pipeline = Callable[[Array, Task], Result]
Decode = Callable[[Result, Task, str], Array]
Chunks = tuple[tuple[int, ...], ...]

# The fields of a result that hold an entry for each block.
_PER_BLOCK = ("scale", "zero_point", "offset")
# The fields of parameters that can be given.
_GIVEN = ("scale", "stored", "zero", "offset")


@dataclass(frozen=True)
class _Lean:
    """What the task of a chunk has from that of the whole array: all of it can be pickled."""

    scheme: Scheme
    extents: tuple[int, ...]
    dtype: str
    nonfinite: str

    def task(self, x: Array, shape: tuple[int, ...], given: Parameters | None = None) -> Task:
        """Give the task of a chunk, which `x` is of."""
        xp = _xp.namespace(x)
        return Task(
            blocks=Blocks(shape, tuple(map(min, self.extents, shape))),
            scheme=self.scheme,
            xp=xp,
            dtype=self.dtype,
            nonfinite=self.nonfinite,
            given=given,
            concrete=_xp.is_concrete(x, xp),
        )


def quantize(x: Array, task: Task, pipeline: Pipeline) -> Result | None:
    """Quantize a Dask array with one task for each chunk.

    Parameters
    ----------
    x : array, shape ``task.blocks.shape``
        Its chunks are moved to the borders of blocks, as long as they stay within the size that
        Dask aims at.
    task : Task
        What to do.
    pipeline : callable
        Quantizes one chunk: called with it and its own task.

    Returns
    -------
    Result or None
        Of Dask arrays; None if the work needs more than one chunk at a time.
    """
    if not _by_chunks(task):
        return None
    chunks = _chunks_of_blocks(x, task)
    if chunks is None:
        return _by_ranges(x, task, pipeline)
    grid = _grid(chunks, task.blocks)
    given = {} if task.given is None else {n: getattr(task.given, n) for n in _GIVEN}
    given = {name: _rechunked(array, grid) for name, array in given.items() if array is not None}
    run = partial(_quantize_chunk, _lean(task), pipeline, tuple(given))
    x = _rechunked(x, chunks)
    every = _blockwise(run, (x, *given.values()), chunks, "object", x, "quantize")
    data = _part(every, "data", _packed(chunks, task), storage.row_dtype(task), x)
    return Result(
        data, **{part: _part(every, part, grid, k, x) for part, k in _kinds(task).items()}
    )


def _by_ranges(x: Array, task: Task, pipeline: Pipeline) -> Result | None:
    """Quantize chunks that share blocks: the range of each chunk first, then with their scales."""
    whole = task.scheme.scale.rule == "absmean" or task.scheme.rounding.quotient == "but_tail"
    chunks = None if whole or task.given is not None else _chunks_of_parts(x, task)
    if chunks is None:
        return None
    lean, working, blocks = _lean(task), task.arithmetic.dtype, task.blocks
    x = _rechunked(x, chunks)
    per_chunk = tuple(
        sizes if count > 1 else (1,) * len(parts)
        for sizes, count, parts in zip(_grid(chunks, blocks), blocks.grid, chunks, strict=True)
    )
    grid = _grid(chunks, blocks)
    ranges = _blockwise(partial(_range_chunk, lean), (x,), chunks, "object", x, "range")
    ends = [
        _rechunked(_part(ranges, end, per_chunk, working, x), _joined(per_chunk, blocks))
        for end in ("low", "high")
    ]
    settled = _blockwise(
        partial(_derive_blocks, lean, _shared_axes(blocks)), ends, grid, "object", x, "derive"
    )
    run = partial(_encode_chunk, lean, pipeline)
    kind = storage.row_dtype(task)
    data = _blockwise(run, (x, settled), _packed(chunks, task), kind, x, "quantize")
    return Result(
        data, **{part: _part(settled, part, grid, k, x) for part, k in _kinds(task).items()}
    )


def _lean(task: Task) -> _Lean:
    # Lazy values cannot be looked at to raise.
    nonfinite = "propagate" if task.nonfinite == "raise" else task.nonfinite
    return _Lean(task.scheme, task.blocks.extents, task.dtype, nonfinite)


def _packed(chunks: Chunks, task: Task) -> Chunks:
    """Give the chunks of the stored codes of chunks."""
    return (*chunks[:-1], tuple(task.data_shape((size,))[0] for size in chunks[-1]))


def _part(every: Array, name: str, chunks: Chunks, dtype: str, like: Array) -> Array:
    """Take one array out of the mappings that the chunks of another are."""
    return _blockwise(operator.itemgetter(name), (every,), chunks, dtype, like, name)


def _kinds(task: Task) -> dict[str, str]:
    """Name the dtypes of what a result has for each block."""
    scheme, given = task.scheme, task.given
    if given is None:
        kinds = {"scale": stored_dtype(scheme, task.dtype)}
    else:
        kinds = {"scale": _xp.dtype_name(given.stored.dtype)}
    if scheme.zero_kind == "point" if given is None else given.zero is not None:
        kinds["zero_point"] = codec.code_dtype(task.element)
    if scheme.zero_kind == "offset" if given is None else given.offset is not None:
        kinds["offset"] = float_dtype(scheme, task.dtype)
    return kinds


def dequantize(
    stored: Result, task: Task, dtype: str, out: Array | None, decode: Decode
) -> Array | None:
    """Decode Dask arrays with one task for each chunk of the codes.

    Parameters
    ----------
    stored : Result
        Codes of ``task.data_shape``, the others of ``task.blocks.grid``.
    task : Task
        Its blocks and scheme.
    dtype : str
        The floating dtype of the values.
    out : array or None
        Dask writes into no array.
    decode : callable
        Decodes one chunk: called with it, its own task and `dtype`.

    Returns
    -------
    array of dtype, or None
        A Dask array; None if the work needs more than one chunk at a time.
    """
    if not _by_chunks(task):
        return None
    from dask.layers import ArrayChunkShapeDep

    data, blocks = stored.data, task.blocks
    chunks = _chunks_of_codes(data, task)
    if chunks is None:
        return None
    grid = _grid(chunks, blocks)
    given = {name: getattr(stored, name) for name in _PER_BLOCK}
    given = {name: _rechunked(x, grid) for name, x in given.items() if x is not None}
    lean = _Lean(task.scheme, blocks.extents, task.dtype, "propagate")
    run = partial(_decode_chunk, lean, decode, dtype, tuple(given))
    shapes = ArrayChunkShapeDep(chunks)
    return _blockwise(run, (shapes, data, *given.values()), chunks, dtype, data, "dequantize")


def encode_rows(
    x: Array, importance: Array | None, record: Record, nonfinite: str, encode: Any, xp: Namespace
) -> Array:
    """Encode rows of blocks with one task for each chunk: see `kernels.encode_rows`.

    Where a chunk ends inside a block, or the mean of a row is needed, chunks are of whole rows.
    """
    whole = importance is not None or any(size % record.elements for size in x.chunks[-1])
    x = x.rechunk({1: -1}) if whole else x
    arrays = [x]
    if importance is not None:
        arrays.append(xp.broadcast_to(importance, x.shape).rechunk(x.chunks))
    row = tuple(size // record.elements * record.size for size in x.chunks[-1])
    # Lazy values cannot be looked at to raise.
    run = partial(_encode_rows, record, "propagate" if nonfinite == "raise" else nonfinite, encode)
    return _blockwise(run, arrays, (x.chunks[0], row), "uint8", x, "encode")


def decode_rows(
    data: Array, record: Record, dtype: str, out: Array | None, decode: Any, xp: Namespace
) -> Array:
    """Decode rows of blocks with one task for each chunk: see `kernels.decode_rows`."""
    if any(size % record.size for size in data.chunks[-1]):
        data = data.rechunk({1: -1})
    row = tuple(size // record.size * record.elements for size in data.chunks[-1])
    run = partial(_decode_rows, record, dtype, decode)
    return _blockwise(run, (data,), (data.chunks[0], row), dtype, data, "decode")


def _encode_rows(
    record: Record, nonfinite: str, encode: Any, x: Array, importance: Array | None = None
) -> Array:
    x, xp = _xp.as_array("encode", x)
    return encode(x, importance, record, nonfinite, xp)


def _decode_rows(record: Record, dtype: str, decode: Any, data: Array) -> Array:
    return decode(data, record, dtype, None, _xp.namespace(data))


def _quantize_chunk(
    lean: _Lean, pipeline: Pipeline, given: tuple[str, ...], x: Array, *arrays: Array
) -> dict[str, Array]:
    x, _ = _xp.as_array("quantize", x)
    parameters = Parameters(**dict(zip(given, arrays, strict=True))) if given else None
    return vars(pipeline(x, lean.task(x, tuple(x.shape), parameters)))


def _range_chunk(lean: _Lean, x: Array) -> dict[str, Array]:
    x, xp = _xp.as_array("quantize", x)
    task = lean.task(x, tuple(x.shape))
    values = task.working(x)
    if lean.nonfinite == "saturate":
        values = _xp.where(xp.isfinite(values), values, 0.0, xp)
    return vars(scales.measure(values, task.blocks, lean.scheme, xp))


def _derive_blocks(lean: _Lean, axes: tuple[int, ...], low: Array, high: Array) -> dict[str, Any]:
    xp, task = _xp.namespace(low), lean.task(low, tuple(low.shape))
    found = Range(xp.min(low, axis=axes, keepdims=True), xp.max(high, axis=axes, keepdims=True))
    finite = found.within(scales.largest(lean.scheme, task.arithmetic.dtype), xp)
    parameters = scales.derive(found, finite, lean.scheme, task.arithmetic, lean.dtype)
    return {**vars(result(low, parameters, task)), "parameters": parameters}


def _encode_chunk(lean: _Lean, pipeline: Pipeline, x: Array, settled: dict[str, Any]) -> Array:
    x, xp = _xp.as_array("quantize", x)
    given = settled["parameters"]
    lost = xp.isnan(given.scale)
    if bool(xp.any(lost)):
        # What is not finite lies in another chunk of the block, maybe: NaN here does as much.
        blocks = lean.task(x, tuple(x.shape)).blocks
        nan = xp.asarray(math.nan, dtype=x.dtype, device=_xp.beside(x))
        x = blocks.merge(xp.where(blocks.spread(lost, xp), nan, blocks.split(x, xp)), xp)
        given = replace(given, scale=xp.where(lost, xp.ones_like(given.scale), given.scale))
    return pipeline(x, lean.task(x, tuple(x.shape), given)).data


def _decode_chunk(
    lean: _Lean,
    decode: Decode,
    dtype: str,
    names: tuple[str, ...],
    shape: tuple[int, ...],
    data: Array,
    *arrays: Array,
) -> Array:
    stored = Result(data, **dict(zip(names, arrays, strict=True)))
    return decode(stored, lean.task(data, shape), dtype)


def _by_chunks(task: Task) -> bool:
    """Tell whether a chunk of whole blocks needs no other one."""
    if _xp.backend(task.xp) != "dask" or 0 in task.blocks.shape:
        return False
    in_order = task.in_rows or not task.scheme.packed
    return in_order and task.key is None and task.scheme.scale.outer is None


def _chunks_of_blocks(x: Array, task: Task) -> Chunks | None:
    """Give the chunks of an array, moved to borders of blocks; None if that is not cheap.

    A last block that is cut short by the array's end is never alone in a chunk: its extent would be
    taken for that of whole blocks.
    """
    extents = task.blocks.extents
    steps = (*extents[:-1], math.lcm(extents[-1], task.multiple))
    return _if_cheap(x, tuple(map(_moved, x.chunks, steps, extents)))


def _chunks_of_parts(x: Array, task: Task) -> Chunks | None:
    """Give the same where a chunk may also lie in a block that spans the whole axis."""
    grid = task.blocks.grid
    extents = [e if count > 1 else 1 for e, count in zip(task.blocks.extents, grid, strict=True)]
    steps = (*extents[:-1], math.lcm(extents[-1], task.multiple))
    return _if_cheap(x, tuple(map(_moved, x.chunks, steps, extents)))


def _if_cheap(x: Array, chunks: Chunks) -> Chunks | None:
    from dask import config, utils

    if chunks == x.chunks:
        return chunks
    largest, limit = (math.prod(map(max, c)) * x.dtype.itemsize for c in (chunks, x.chunks))
    limit = max(limit, utils.parse_bytes(config.get("array.chunk-size")))
    # One chunk of all would leave nothing to do at the same time.
    return chunks if largest <= limit and math.prod(map(len, chunks)) > 1 else None


def _moved(sizes: Sequence[int], step: int, extent: int) -> tuple[int, ...]:
    """Move each border between chunks to the nearest multiple of a step."""
    size = sum(sizes)
    borders = {round(border / step) * step for border in accumulate(sizes[:-1])}
    kept = sorted(border for border in borders if 0 < border <= size - extent)
    return tuple(stop - start for start, stop in pairwise((0, *kept, size)))


def _chunks_of_codes(data: Array, task: Task) -> Chunks | None:
    """Give the chunks of the codes that chunks of stored data hold, if those are of whole blocks.

    Chunks may also lie in one block that spans the whole axis.
    """
    *chunks, row = data.chunks
    unit, size = task.multiple, task.blocks.shape[-1]
    if task.in_rows:
        words = task.data_shape((unit,))[0]
        starts = [start * unit / words for start in accumulate(row[:-1], initial=0)]
        if not all(map(float.is_integer, map(float, starts))):
            return None
        row = tuple(int(stop - start) for start, stop in pairwise((*starts, size)))
    found = (*chunks, row)
    for sizes, extent, count in zip(found, task.blocks.extents, task.blocks.grid, strict=True):
        if count > 1 and any(border % extent for border in accumulate(sizes[:-1])):
            return None
    return found


def _grid(chunks: Chunks, blocks: Blocks) -> Chunks:
    """Give the chunks of what has an entry for each block."""
    return tuple(
        tuple(-(-size // extent) for size in sizes) if count > 1 else (1,)
        for sizes, extent, count in zip(chunks, blocks.extents, blocks.grid, strict=True)
    )


def _shared_axes(blocks: Blocks) -> tuple[int, ...]:
    """Give the axes along which all chunks share blocks."""
    return tuple(axis for axis, count in enumerate(blocks.grid) if count == 1)


def _joined(chunks: Chunks, blocks: Blocks) -> Chunks:
    """Give chunks joined along the axes along which they share blocks."""
    shared = _shared_axes(blocks)
    return tuple((sum(c),) if axis in shared else c for axis, c in enumerate(chunks))


def _rechunked(x: Array, chunks: Chunks) -> Array:
    return x if x.chunks == chunks else x.rechunk(chunks)


def _blockwise(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    chunks: Chunks,
    dtype: str,
    like: Array,
    name: str,
) -> Array:
    """Make an array each chunk of which is computed from the same chunk of each argument."""
    dask_array = sys.modules["dask.array"]
    kind = np.dtype(object) if dtype == "object" else _xp.dtype(_xp.namespace(like), dtype)
    # No library but NumPy has arrays of objects.
    meta = dask_array.utils.meta_from_array(
        None if dtype == "object" else like._meta, len(chunks), dtype=kind
    )
    axes = tuple(range(len(chunks)))
    made: Array = dask_array.blockwise(
        function,
        axes,
        *(item for argument in arguments for item in (argument, axes)),
        token=f"quantarray-{name}",
        adjust_chunks=dict(enumerate(chunks)),
        align_arrays=False,
        meta=meta,
    )
    return made
