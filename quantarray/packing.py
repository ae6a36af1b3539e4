"""Codes to words and back: where the bits of codes lie in the packed array.

Rows are padded with zero bits to whole words. Bytes are filled from codes first, then words of 32
bits from bytes: eight over gcd(8, bits) codes fill bits over gcd(8, bits) bytes exactly, and where
codes leave gaps or are interleaved, each word has the same places. Every function works on such
units of a row.
"""

from collections.abc import Iterator

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.errors import QuantArrayError
from quantarray.scheme import Packing

Shape = tuple[int, ...]
# (code, byte, left shift of the code in the byte), within a unit.
Overlap = tuple[int, int, int]


def words(count: int, bits: int, packing: Packing) -> int:
    """Give the words of a row of `count` codes of `bits` bits each."""
    if _is_gapless(bits, packing):
        return -(-count * bits // packing.word)
    return -(-count // (packing.word // bits))


def packed_shape(shape: Shape, bits: int, packing: Packing) -> Shape:
    """Give the shape of the packed array of codes of this shape."""
    _check_axes(shape, packing)
    if packing.transpose in ("codes", "both"):
        shape = _exchanged(shape)
    shape = (*shape[:-1], words(shape[-1], bits, packing))
    return _exchanged(shape) if packing.transpose in ("words", "both") else shape


def word_dtype(packing: Packing) -> str:
    """Name the dtype of the packed array."""
    if packing.word == 32:
        return "int32"
    return "int8" if packing.centred else "uint8"


def unit(bits: int, packing: Packing) -> int:
    """Give the codes after which a row may be cut, and after any multiple of which.

    The codes before and after share no word.
    """
    if _is_gapless(bits, packing):
        return packing.word // (bits & -bits)
    return packing.word // bits


def pack(codes: Array, bits: int, packing: Packing, xp: Namespace) -> Array:
    """Pack the codes of each row.

    Parameters
    ----------
    codes : array of uint8, shape (..., n)
        Each below ``2**bits``.
    bits : int
        1 to 8.
    packing : Packing
        Where their bits go; `excess` is the caller's to add.
    xp : namespace
        The array's.

    Returns
    -------
    array of `word_dtype`, shape `packed_shape`

    Raises
    ------
    QuantArrayError
        If the packing does not fit codes of this width or shape.
    """
    if 0 in codes.shape:
        return _zeros(codes, packed_shape(codes.shape, bits, packing), word_dtype(packing), xp)
    _check_axes(codes.shape, packing)
    if packing.transpose in ("codes", "both"):
        codes = xp.matrix_transpose(codes)
    count = words(codes.shape[-1], bits, packing)
    if packing.strided:
        codes = _crossed(codes, packing.word // bits, count, xp)
    data = _fill_bytes(codes, bits, packing, xp)
    if packing.word == 32:
        data = _join(_columns(data, count, 4, xp), packing, xp)
    else:
        data = _cut(data, count)
    if packing.centred:
        data = xp.astype(xp.astype(data, xp.int16) - 128, xp.int8)
    return _transposed(data, xp) if packing.transpose in ("words", "both") else data


def unpack(data: Array, bits: int, packing: Packing, count: int, xp: Namespace) -> Array:
    """Undo `pack`.

    Parameters
    ----------
    data : array of `word_dtype`, shape `packed_shape`
        Packed rows.
    bits, packing
        As in `pack`.
    count : int
        Codes in a row: the size of the codes' last axis, or with ``transpose="codes"`` or "both" of
        the last but one.
    xp : namespace
        The array's.

    Returns
    -------
    array of uint8, shape (..., count)

    Raises
    ------
    QuantArrayError
        If the packing does not fit codes of this width or shape.
    """
    _check_axes(data.shape, packing)
    if 0 in data.shape:
        return _zeros(data, _unpacked_shape(data.shape, count, packing), "uint8", xp)
    if packing.transpose in ("words", "both"):
        data = xp.matrix_transpose(data)
    if packing.centred:
        data = xp.astype(xp.astype(data, xp.int16) + 128, xp.uint8)
    if packing.word == 32:
        data = _split(data, packing, xp)
    if packing.strided:
        size, per_word = words(count, bits, packing), packing.word // bits
        codes = _read_bytes(data, bits, packing, size * per_word, xp)
        codes = _cut(_crossed(codes, size, per_word, xp), count)
    else:
        codes = _cut(_read_bytes(data, bits, packing, count, xp), count)
    return _transposed(codes, xp) if packing.transpose in ("codes", "both") else codes


def _is_gapless(bits: int, packing: Packing) -> bool:
    """Tell whether a row is one sequence of codes with no unused bits before its end."""
    per_word, over = packing.word // bits, packing.word % bits
    if packing.interleave and (len(packing.interleave) != per_word or (packing.dense and over)):
        raise QuantArrayError(
            f"Packing: interleave={packing.interleave} with codes of {bits} bits: expected "
            f"{per_word} indices{' and dense=False' if packing.dense and over else ''}, "
            f"for words of {packing.word}"
        )
    return packing.dense or not over


@_xp.cached
def _layout(bits: int, packing: Packing) -> tuple[int, int, tuple[Overlap, ...]]:
    """Give the codes and the bytes of a unit of bytes, and each pair of them that shares bits."""
    if _is_gapless(bits, packing) and not packing.interleave:
        common = bits & -bits  # gcd(8, bits), as torch.compile can trace it
        size, length, unused = 8 // common, bits // common, 0
    else:
        size, length, unused = packing.word // bits, packing.word // 8, packing.word % bits
    overlaps = _overlaps(packing.interleave or range(size), bits, unused, packing)
    return size, length, tuple(overlaps)


def _overlaps(
    codes: tuple[int, ...] | range, bits: int, unused: int, packing: Packing
) -> Iterator[Overlap]:
    """Lay codes out in a unit; the unused bits are the highest in either order."""
    first = 0 if packing.order == "lsb" else unused
    for code in codes:
        for byte in range(first // 8, (first + bits - 1) // 8 + 1):
            low = first - 8 * byte
            yield code, byte, low if packing.order == "lsb" else 8 - bits - low
        first += bits


def _fill_bytes(codes: Array, bits: int, packing: Packing, xp: Namespace) -> Array:
    """Pack rows into whole units of bytes."""
    size, length, overlaps = _layout(bits, packing)
    columns = _columns(codes, -(-codes.shape[-1] // size), size, xp)
    # Where bytes and codes lie in the unit as one number.
    places = [8 * byte for byte in range(length)]
    places = places if packing.order == "lsb" else places[::-1]
    place_of = {code: places[byte] + shift for code, byte, shift in overlaps}
    lefts = [place_of[code] for code in range(size)]
    if length == 1:
        return _xp.join_bits(columns, lefts, "uint8", xp)
    data = _xp.join_bytes(columns, lefts, places, xp)
    if data is not None:
        return xp.reshape(data, (*data.shape[:-2], data.shape[-2] * length))
    parts: list[Array | None] = [None] * length
    for code, byte, shift in overlaps:
        piece = _shift(columns[..., code], shift)
        part = parts[byte]
        parts[byte] = piece if part is None else part | piece
    return _zip(parts, xp)


def _read_bytes(data: Array, bits: int, packing: Packing, count: int, xp: Namespace) -> Array:
    """Unpack rows of bytes into whole units of codes."""
    size, length, overlaps = _layout(bits, packing)
    units = -(-count // size)
    if length == 1:
        place_of = {code: shift for code, _, shift in overlaps}
        rights = [place_of[code] for code in range(size)]
        codes = _xp.split_bits(_cut(data, units), rights, bits, xp)
        return xp.reshape(codes, (*data.shape[:-1], units * size))
    columns = _columns(data, units, length, xp)
    parts: list[Array | None] = [None] * size
    for code, byte, shift in overlaps:
        piece = _shift(columns[..., byte], -shift)
        if shift + bits < 8:  # higher bits are those of others
            piece = piece & ((1 << bits) - 1)
        part = parts[code]
        parts[code] = piece if part is None else part | piece
    return _zip(parts, xp)


def _join(columns: Array, packing: Packing, xp: Namespace) -> Array:
    """Make int32 words of the bytes of the last axis."""
    lefts = [shift for _, shift in _bytes_of_words(packing)]
    return _xp.join_bits(columns, lefts, "int32", xp)


def _split(data: Array, packing: Packing, xp: Namespace) -> Array:
    """Take int32 words apart into bytes."""
    # Masked after the shift, which copies the sign bit.
    parts = [
        xp.astype(_shift(data, -shift) & 255, xp.uint8) for _, shift in _bytes_of_words(packing)
    ]
    return _zip(parts, xp)


def _bytes_of_words(packing: Packing) -> Iterator[tuple[int, int]]:
    return zip(range(4), (0, 8, 16, 24) if packing.order == "lsb" else (24, 16, 8, 0), strict=True)


def _shift(x: Array, left: int) -> Array:
    if left == 0:
        return x
    return x << left if left > 0 else x >> -left


def _columns(x: Array, units: int, size: int, xp: Namespace) -> Array:
    """Pad or cut rows to whole units and view them as (..., units, size).

    A strided slice of the row would do too, but JAX gathers it, and loses the array's sharding.
    """
    missing = units * size - x.shape[-1]
    if missing > 0:
        padding = xp.zeros((*x.shape[:-1], missing), dtype=x.dtype, device=_xp.beside(x))
        x = xp.concat([x, padding], axis=-1)
    return xp.reshape(_cut(x, units * size), (*x.shape[:-1], units, size))


def _cut(x: Array, count: int) -> Array:
    return x if x.shape[-1] == count else x[..., :count]


def _zip(parts: list[Array], xp: Namespace) -> Array:
    if len(parts) == 1:
        return parts[0]
    *rows, units = parts[0].shape
    return xp.reshape(xp.stack(parts, axis=-1), (*rows, units * len(parts)))


def _zeros(like: Array, shape: Shape, dtype: str, xp: Namespace) -> Array:
    return xp.zeros(shape, dtype=_xp.dtype(xp, dtype), device=_xp.beside(like))


def _unpacked_shape(shape: Shape, count: int, packing: Packing) -> Shape:
    if packing.transpose in ("words", "both"):
        shape = _exchanged(shape)
    shape = (*shape[:-1], count)
    return _exchanged(shape) if packing.transpose in ("codes", "both") else shape


def _check_axes(shape: Shape, packing: Packing) -> None:
    if packing.transpose != "no" and len(shape) < 2:
        raise QuantArrayError(
            f"Packing: transpose={packing.transpose!r}: array of shape {tuple(shape)}: "
            "expected at least 2 axes"
        )


def _crossed(x: Array, parts: int, size: int, xp: Namespace) -> Array:
    """Give the first of each of some equal parts of a row, then the second of each, and so on."""
    columns = xp.matrix_transpose(_columns(x, parts, size, xp))
    return xp.reshape(columns, (*x.shape[:-1], parts * size))


def _transposed(x: Array, xp: Namespace) -> Array:
    """Exchange the last two axes, in memory too."""
    return _xp.contiguous(xp.matrix_transpose(x), xp)


def _exchanged(shape: Shape) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2])
