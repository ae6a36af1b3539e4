"""The container of codes and their parameters."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from quantarray import _xp, arguments, codec, decoder, indexing, packing, scales, storage
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import working_dtype
from quantarray.blocks import Blocks, resolve, work_shape
from quantarray.errors import QuantArrayError, short
from quantarray.formats import DTYPES
from quantarray.levels import outer_blocks
from quantarray.parameters import Outer, float_dtype, stored_dtype
from quantarray.scheme import Block, Scheme
from quantarray.task import Result, Task

# The stored arrays by the names files give them, in that order, and the fields that hold them.
PARTS = {
    "data": "data",
    "scale": "scale_data",
    "zero_point": "zero_point",
    "offset": "offset",
    "global_scale": "global_scale",
    "global_offset": "global_offset",
}
# Those with an entry per block of elements, and those with one per block of scales.
PER_BLOCK = ("scale_data", "zero_point", "offset")
GLOBAL = ("global_scale", "global_offset")


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedArray:
    """Codes, and what they mean: ``x = scale * (v(codes) - zero_point) + offset``, block by block.

    `v` gives the values of the element format's codes. A scheme has a zero point, an offset, or
    neither.

    `quantize` and `from_codes` make it. Its arrays live in one namespace, on one device. Nothing is
    checked when it is built from its fields, because JAX and torch rebuild it while they trace.

    Attributes
    ----------
    data : array
        The stored codes: packed rows of uint8 where a code takes less than a byte, otherwise the
        codes themselves.
    scale_data : array
        One entry per block, ``ceil(shape[i] / extent[i])`` along each axis: the codes of the scales
        where the scheme stores them in a format of 8 bits, otherwise the scales.
    zero_point : array of the code dtype, or None
        One entry per block.
    offset : floating array, or None
        One entry per block.
    global_scale : array of float32 or float64, or None
        Of schemes with two levels of scales: what `scale_data` is to be multiplied with, or divided
        by where the scheme stores reciprocals. One entry per block of scales.
    global_offset : array of float32 or float64, or None
        What is added to the scales then.
    scheme : Scheme
        What the codes mean. Its block counts axes from the end.
    tail : tuple of int
        The last axes of the logical shape, which packing changed; () if not packed. The axes before
        them are those of `data`, so that vmap and scan may add and drop some.
    dtype_name : str
        The dtype of the array that was quantized.
    """

    data: Array
    scale_data: Array
    zero_point: Array | None
    offset: Array | None
    global_scale: Array | None
    global_offset: Array | None
    scheme: Scheme
    tail: tuple[int, ...]
    dtype_name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""
        shape = tuple(self.data.shape)
        return (*shape[: len(shape) - packed_axes(self.scheme)], *self.tail)

    @property
    def _namespace(self) -> Namespace:
        return _xp.namespace(self.data)

    @property
    def dtype(self) -> Any:
        """The dtype of the array that was quantized."""
        return _xp.dtype(self._namespace, self.dtype_name)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def device(self) -> Any:
        """The device of the stored arrays."""
        return _xp.device(self.data)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored arrays."""
        return sum(
            math.prod(part.shape) * _xp.itemsize(_xp.dtype_name(part.dtype))
            for part in self.parts().values()
        )

    @property
    def bits_per_element(self) -> float:
        """All stored bits over the number of elements; NaN if there are none."""
        return 8 * self.nbytes / self.size if self.size else math.nan

    @property
    def scale(self) -> Array:
        """The scales: float32, or float64 for float64 input, with one entry per block."""
        dtype = working_dtype(self.dtype_name)
        return scales.as_values(self.scale_data, self.scheme, dtype, self._namespace, self._outer)

    @property
    def _outer(self) -> Outer | None:
        return None if self.global_scale is None else Outer(self.global_scale, self.global_offset)

    @property
    def blocks(self) -> Blocks:
        """Which elements share a scale: of the raveled array where the scheme's blocks are flat."""
        return _blocks_of(self.scheme.block, self.shape, tuple(self.scale_data.shape))

    @property
    def codes(self) -> Array:
        """The unpacked codes, in the logical shape: int8 for signed integers, otherwise uint8."""
        xp = self._namespace
        task = self._task(xp)
        return xp.reshape(storage.unpack(self.data, task.blocks.shape, task), self.shape)

    def dequantize(self, dtype: Any = None) -> Array:
        """Decode.

        Parameters
        ----------
        dtype : dtype or str, optional
            A floating dtype; that of the array that was quantized by default.

        Returns
        -------
        array of dtype, shape of self
            In the namespace and on the device of the codes. Blocks with a NaN scale decode to NaN.

        Raises
        ------
        QuantArrayError
            If `dtype` is not floating.
        """
        xp = self._namespace
        name = self.dtype_name
        if dtype is not None:
            name = _xp.dtype_name(arguments.float_dtype("dequantize", dtype, xp))
        task = self._task(xp)
        data = xp.reshape(self.data, task.data_shape(task.blocks.shape))
        stored = Result(data, self.scale_data, self.zero_point, self.offset, self._outer)
        stored = stored.with_grid(task.blocks.grid, xp)
        return xp.reshape(decoder.dequantize(stored, task, name), self.shape)

    def _task(self, xp: Namespace) -> Task:
        return Task(
            blocks=self.blocks,
            scheme=self.scheme,
            xp=xp,
            dtype=self.dtype_name,
            concrete=_xp.is_concrete(self.data, xp),
        )

    def to_device(self, device: Any) -> Self:
        """Copy to a device of the same array library."""

        def move(part: Array) -> Array:
            return _xp.to_device(part, device)

        return self._map(move, move, move)

    def _map(
        self,
        data: Callable[[Array], Array],
        per_block: Callable[[Array], Array],
        outer: Callable[[Array], Array],
    ) -> Self:
        """Apply functions to the stored codes, to what blocks have, to what their scales have."""
        functions = {"data": data}
        functions |= dict.fromkeys(PER_BLOCK, per_block) | dict.fromkeys(GLOBAL, outer)
        fields = [field for field in functions if getattr(self, field) is not None]
        return replace(self, **{f: functions[f](getattr(self, f)) for f in fields})

    def parts(self) -> dict[str, Array]:
        """Give the stored arrays by name, without those that the scheme has not."""
        parts = {name: getattr(self, field) for name, field in PARTS.items()}
        return {name: part for name, part in parts.items() if part is not None}

    @staticmethod
    def from_parts(
        parts: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...], dtype_name: str
    ) -> "QuantizedArray":
        """Build from stored arrays, as `parts` gives them.

        Parameters
        ----------
        parts : mapping of str to array
            Of one namespace, with the shapes and dtypes of `part_specs`.
        scheme : Scheme
            What the codes mean.
        shape : tuple of int
            The logical shape.
        dtype_name : str
            The dtype that was quantized.

        Returns
        -------
        QuantizedArray

        Raises
        ------
        QuantArrayError
            If a part is missing, not expected, or not of its shape and dtype.
        """
        specs = part_specs(scheme, shape, dtype_name)
        found = {k: (tuple(part.shape), _xp.dtype_name(part.dtype)) for k, part in parts.items()}
        for k in {**specs, **found}:
            if found.get(k) != specs.get(k):
                raise QuantArrayError(
                    f"QuantizedArray: part {k!r}: {found.get(k)}: expected {specs.get(k)}"
                )
        outer = None
        if "global_scale" in parts:
            outer = Outer(parts["global_scale"], parts.get("global_offset"))
        found_parts = (parts["data"], parts["scale"], parts.get("zero_point"), parts.get("offset"))
        return make(Result(*found_parts, outer), scheme, shape, dtype_name)

    def __getitem__(self, key: Any) -> "QuantizedArray":
        """Index along leading axes with integers and slices, where blocks allow.

        Parameters
        ----------
        key : int, slice, Ellipsis, or tuple of them
            A slice that cuts blocks is refused, as is any index into packed rows.

        Returns
        -------
        QuantizedArray
            Its codes and scales are those of the elements chosen.

        Raises
        ------
        QuantArrayError
            If the index is out of bounds or not of these.
        """
        shape, flat = self.shape, self.scheme.block.flat is not None
        where = indexing.resolve(
            key, shape, self.blocks.extents, packed=packed_axes(self.scheme), flat=flat
        )
        chosen = self._map(where.take, where.take_blocks, where.take_whole)
        return replace(
            chosen,
            scheme=replace(self.scheme, block=where.rename(self.scheme.block, len(shape))),
        )

    def __len__(self) -> int:
        if not self.shape:
            raise QuantArrayError("len: a 0-d QuantizedArray has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator["QuantizedArray"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        try:
            where = f"{_xp.backend(self._namespace)}, {self.device}"
        except TypeError:  # JAX puts what it likes in the place of arrays
            return f"QuantizedArray({self.scheme}, {self.parts()})"
        return (
            f"QuantizedArray({self.scheme}, shape={self.shape}, dtype={self.dtype_name}, "
            f"{self.bits_per_element:.4g} bits per element, {where})"
        )


def _blocks_of(block: Block, shape: tuple[int, ...], grid: tuple[int, ...]) -> Blocks:
    """Find the blocks from the shapes that are there, which vmap or scan may have changed."""
    if block.flat is not None or not shape:
        return resolve("dequantize", block, shape)
    named = {axis + len(shape): extent for axis, extent in block.axes}
    extents = [
        1 if count == size else size if count == 1 else named.get(axis, size)
        for axis, (size, count) in enumerate(zip(shape, grid, strict=True))
    ]
    return Blocks(shape, tuple(max(1, extent) for extent in extents))


def packed_axes(scheme: Scheme) -> int:
    """Tell how many of the last axes of stored codes are not those of the array."""
    if not scheme.packed:
        return 0
    return 1 if scheme.packing.transpose == "no" else 2


def make(
    stored: Result,
    scheme: Scheme,
    shape: tuple[int, ...],
    dtype_name: str,
) -> QuantizedArray:
    """Build the container from what the pipeline gives; the scheme's axes count from the end."""
    tail: tuple[int, ...] = ()
    if scheme.packed:
        tail = shape if scheme.block.flat is not None else shape[-packed_axes(scheme) :]
    outer = stored.outer or Outer(None)
    _xp.register_pytree(QuantizedArray, tuple(PARTS.values()), ("scheme", "tail", "dtype_name"))
    return QuantizedArray(
        stored.data,
        stored.scale,
        stored.zero_point,
        stored.offset,
        outer.scale,
        outer.offset,
        scheme,
        tail,
        dtype_name,
    )


def part_specs(
    scheme: Scheme, shape: tuple[int, ...], dtype_name: str
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Give the shape and dtype name of every stored array, before anything is quantized.

    Parameters
    ----------
    scheme : Scheme
        The scheme.
    shape : tuple of int
        The logical shape.
    dtype_name : str
        The dtype to be quantized.

    Returns
    -------
    dict
        Part name to (shape, dtype name).

    Raises
    ------
    QuantArrayError
        If the scheme does not fit the shape, or the dtype is not floating.
    """
    if dtype_name not in DTYPES:
        raise QuantArrayError(
            f"QuantizedArray: dtype {short(dtype_name)}: expected {', '.join(DTYPES)}"
        )
    element = scheme.element
    work = work_shape(scheme.block, shape)
    grid = resolve("QuantizedArray", scheme.block, shape).grid
    grid = grid if shape or scheme.block.flat is not None else ()
    data, dtype = shape, codec.code_dtype(element)
    if scheme.packed:
        data = packing.packed_shape(work, element.bits, scheme.packing)
        dtype = packing.word_dtype(scheme.packing)
    specs = {
        "data": (data, dtype),
        "scale": (grid, stored_dtype(scheme, dtype_name)),
    }
    if scheme.scale.outer is not None:
        working = working_dtype(dtype_name)
        outer_grid = outer_blocks(scheme, grid).grid
        specs["global_scale"] = (outer_grid, working)
        if scheme.scale.outer.zero == "mean":
            specs["global_offset"] = ((1,) * max(1, len(grid)), working)
    if scheme.zero_kind == "point":
        specs["zero_point"] = (grid, codec.code_dtype(element))
    if scheme.zero_kind == "offset":
        specs["offset"] = (grid, float_dtype(scheme, dtype_name))
    return specs
