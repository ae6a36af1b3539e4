"""What a quantized array consists of: its stored arrays, and what they say."""

import math
from dataclasses import dataclass
from typing import Any

from quantarray import _xp, scales, storage
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import working_dtype
from quantarray.blocks import Blocks, of_grid
from quantarray.gguf import values
from quantarray.parameters import Outer
from quantarray.parts import PARTS, packed_axes
from quantarray.scheme import Scheme
from quantarray.task import Result, Task, decoding


@dataclass(frozen=True, eq=False, repr=False)
class StoredArrays:
    """The fields of a `QuantizedArray`, and what follows from them."""

    data: Array
    scale_data: Array
    zero_point: Array | None
    offset_data: Array | None
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
        xp, record = self._namespace, self.scheme.record
        if record is not None:
            found = values.scales(values.blocks_of(self.data, record, xp), record, xp)
            return xp.reshape(found, self._grid)
        dtype = working_dtype(self.dtype_name)
        return scales.as_values(self.scale_data, self.scheme, dtype, xp, self._outer)

    @property
    def offset(self) -> Array | None:
        """What is added to values, or None: floating, with one entry per block."""
        xp, record = self._namespace, self.scheme.record
        if record is None:
            return self.offset_data
        found = values.offsets(values.blocks_of(self.data, record, xp), record, xp)
        return None if found is None else xp.reshape(found, self._grid)

    @property
    def _grid(self) -> tuple[int, ...]:
        """The shape of what has one entry per block."""
        record = self.scheme.record
        if record is not None:
            return (*self.shape[:-1], self.shape[-1] // record.group)
        return tuple(self.scale_data.shape)

    @property
    def _outer(self) -> Outer | None:
        return None if self.global_scale is None else Outer(self.global_scale, self.global_offset)

    @property
    def blocks(self) -> Blocks:
        """Which elements share a scale: of the raveled array where the scheme's blocks are flat."""
        return of_grid(self.scheme.block, self.shape, self._grid)

    @property
    def codes(self) -> Array:
        """The unpacked codes, in the logical shape: int8 for signed integers, otherwise uint8."""
        xp, record = self._namespace, self.scheme.record
        if record is not None:
            found = values.codes(values.blocks_of(self.data, record, xp), record, xp)
            return xp.reshape(found, self.shape)
        task = self._task(xp)
        return xp.reshape(storage.unpack(self.data, task.blocks.shape, task), self.shape)

    def _task(self, xp: Namespace) -> Task:
        concrete = _xp.is_concrete(self.data, xp)
        return decoding(self.scheme, self.shape, self._grid, self.dtype_name, xp, concrete)

    def _result(self, data: Array) -> Result:
        """Give the parts as the pipeline does, with the codes in this shape."""
        return Result(data, self.scale_data, self.zero_point, self.offset_data, self._outer)

    def parts(self) -> dict[str, Array]:
        """Give the stored arrays by name, without those that the scheme has not."""
        parts = {name: getattr(self, field) for name, field in PARTS.items()}
        return {name: part for name, part in parts.items() if part is not None}
