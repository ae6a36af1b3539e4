"""From one scheme to another that can hold the same codes: nothing is quantized again.

For any whole `d` and `n`, ``s * (c - z)`` is ``s * ((c + d) - (z + d))``, and
``-s * ((n - c) - (n - z))``, and ``s * c + m`` with ``m = -(s * z)``. What these make of codes,
scales and zeros is stored where the other scheme holds every number of it, and refused where not.
They are equations of real numbers: where an offset comes or goes, decoding rounds in other places.
"""

from dataclasses import replace

from quantarray import _xp, codec, overrides, scales, storage, translate
from quantarray._xp import Array, Namespace
from quantarray.blocks import Blocks, resolve
from quantarray.formats import Integer
from quantarray.levels import outer_blocks
from quantarray.parameters import Outer
from quantarray.scheme import Block, Scheme
from quantarray.task import Result, Task
from quantarray.translate import Move, same_values


def repack(
    stored: Result, task: Task, scheme: str | Scheme, shape: tuple[int, ...]
) -> tuple[Result, Scheme]:
    """Store what one scheme stores as another does.

    Parameters
    ----------
    stored : Result
        The stored arrays, as the container has them.
    task : Task
        Their blocks and scheme.
    scheme : str or Scheme
        The other scheme. Of its block only whether it is flat counts.
    shape : tuple of int
        The logical shape.

    Returns
    -------
    tuple of Result, Scheme
        The arrays, and the scheme with the blocks that they have.

    Raises
    ------
    QuantArrayError
        If the scheme does not hold the codes, scales or zeros; or if only their values can tell,
        and they are traced or lazy.
    """
    xp, move = task.xp, Move(task, overrides.scheme(scheme))
    if move.target.packing.transpose != "no" and len(shape) < 2:
        raise move.refusal(f"it exchanges axes, and the shape is {shape}: expected 2 axes or more")
    shift = _shift(move)
    blocks, target = _blocks(move, shape)
    data = xp.reshape(stored.data, task.data_shape(task.blocks.shape))
    codes = given = storage.unpack(data, task.blocks.shape, task)
    flip = _flip(stored, move)
    if flip is not None:
        codes = _flipped(codes, flip, move)
        stored = replace(stored, scale=_xp.where(flip, -stored.scale, stored.scale, xp))
    codes = _codes(codes, move)
    values = scales.as_values(stored.scale, task.scheme, task.arithmetic.dtype, xp, stored.outer)
    zero_point, offset = translate.zeros(stored, values, flip, shift, move)
    scale, outer = translate.scale(stored, values, move)
    data = stored.data
    if codes is not given or (move.source.packing, task.blocks) != (target.packing, blocks):
        to = replace(task, blocks=blocks, scheme=target)
        data = storage.from_rows(storage.to_rows(xp.reshape(codes, blocks.shape), to), to)
        data = data if target.packed else xp.reshape(data, shape)
    result = Result(data, scale, zero_point, offset, outer)
    return (result if blocks is task.blocks else _regrouped(result, blocks, target, move)), target


def _shift(move: Move) -> int:
    """Give what is added to zero points, refusing elements of other values."""
    a, b = move.source.element, move.target.element
    if isinstance(a, Integer) and isinstance(b, Integer):
        shift = _added(a, b) + a.origin - b.origin
        # Values of fixed point are computed as quotients are.
        ways = {s.rounding.quotient == "reciprocal" for s in (move.source, move.target)}
        same = (a.bits, a.steps, a.middle) == (b.bits, b.steps, b.middle)
        if same and shift == int(shift) and (a.steps == 1 or (shift == 0 and len(ways) == 1)):
            return int(shift)
    elif same_values(a, b):
        return 0
    raise move.refusal("its codes mean other values")


def _added(a: Integer, b: Integer) -> int:
    """Give what is added to codes: half their number where a sign comes or goes."""
    return (a.signed - b.signed) << (a.bits - 1)


def _blocks(move: Move, shape: tuple[int, ...]) -> tuple[Blocks, Scheme]:
    """Give the blocks, counted as the target counts them: raveled or not."""
    found, block, wanted = move.task.blocks, move.source.block, move.target.block
    if wanted != Block() and (wanted.flat is None) != (block.flat is None):
        size = found.extents[-1] if block.flat is None else block.flat
        rows = shape[-1] if shape else 1
        if rows % size or (block.flat is None and any(e > 1 for e in found.extents[:-1])):
            raise move.refusal(
                f"blocks ({block}) of the shape {shape} cannot be counted as {wanted} are: "
                "expected rows of whole blocks, or a scheme with a block of the same kind"
            )
        block = Block.group(size) if wanted.flat is None else Block(flat=size)
        found = resolve("repack", block, shape)
    return found, replace(move.target, block=block)


def _regrouped(result: Result, blocks: Blocks, target: Scheme, move: Move) -> Result:
    """Give the shape of other blocks to what has an entry for each."""
    xp, outer = move.task.xp, result.outer
    if outer is not None:
        grid, offset = outer_blocks(target, blocks.grid).grid, outer.offset
        if offset is not None:
            offset = xp.reshape(offset, (1,) * len(blocks.grid))
        outer = Outer(xp.reshape(outer.scale, grid), offset)
    return replace(result.with_grid(blocks.grid, xp), outer=outer)


def _flip(stored: Result, move: Move) -> Array | None:
    """Tell which blocks have a negative scale that the target does not hold; None if none has."""
    if move.source.scale.rule != "edge" or move.target.scale.rule == "edge":
        return None
    (scale,) = move.look("scales", stored.scale)
    if move.target.zero_kind == "offset":
        move.refuse(scale < 0, "scales are negative")
    return stored.scale < 0 if (scale < 0).any() else None


def _flipped(codes: Array, flip: Array, move: Move) -> Array:
    """Count the codes of some blocks from the other end."""
    xp, blocks, element = move.task.xp, move.task.blocks, move.source.element
    assert isinstance(element, Integer)
    view = blocks.split(_wide(codes, element, xp), xp)
    where = blocks.spread(xp.reshape(flip, blocks.grid), xp)
    view = _xp.where(where, sum(element.codes) - view, view, xp)
    return xp.astype(blocks.merge(view, xp), codes.dtype)


def _codes(codes: Array, move: Move) -> Array:
    """Give the target's codes."""
    xp, a, b = move.task.xp, move.source.element, move.target.element
    if not isinstance(a, Integer) or not isinstance(b, Integer):
        return codes
    added = _added(a, b)
    (least, most), (low, high) = b.codes, (end + added for end in a.codes)
    if low < least or high > most:
        move.know("codes", codes)
        wide = _wide(codes, a, xp) + added
        bad = (wide < least) | (wide > most)
        if bool(xp.any(bad)):  # else nothing leaves the device
            reason = f"codes are beyond {least - added}..{most - added}"
            move.refuse(_xp.to_numpy(bad), reason)
    if added == 0:
        return codes
    return xp.astype(_wide(codes, a, xp) + added, _xp.dtype(xp, codec.code_dtype(b)))


def _wide(codes: Array, element: Integer, xp: Namespace) -> Array:
    """Give codes as integers with room for twice as many."""
    return xp.astype(codes, xp.int16 if element.bits <= 8 else xp.int32)
