"""The container of codes and their parameters."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from quantarray import _xp, arguments, decoder, indexing, native, overrides, repack
from quantarray._xp import Array
from quantarray.blocks import from_end
from quantarray.errors import QuantArrayError, choice
from quantarray.parameters import Outer
from quantarray.parts import LEVEL, PARTS, check, from_bytes, packed_axes, part_specs, to_bytes
from quantarray.scheme import Scheme
from quantarray.stored import StoredArrays
from quantarray.task import Result


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedArray(StoredArrays):
    """Codes, and what they mean: ``x = scale * (v(codes) - zero_point) + offset``, block by block.

    `v` gives the values of the element format's codes. A scheme has a zero point, an offset, or
    neither.

    `quantize` and `from_codes` make it. Its arrays live in one namespace, on one device. Nothing is
    checked when it is built from its fields, because JAX and torch rebuild it while they trace.

    Attributes
    ----------
    data : array
        The stored codes: packed rows of uint8 where a code takes less than a byte, otherwise the
        codes themselves; the bytes of ggml's blocks for its schemes.
    scale_data : array, or None
        One entry per block, ``ceil(shape[i] / extent[i])`` along each axis: the codes of the scales
        where the scheme stores them in a format of 8 bits, otherwise the scales. None where the
        scheme packs records: then `data` holds scales and offsets too.
    zero_point : array of the code dtype, or None
        One entry per block.
    offset_data : floating array, or None
        One entry per block: what `offset` gives, but for records.
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

    def view_native(self, part: str = "data") -> Array:
        """Give codes in the array library's own dtype for their format.

        Parameters
        ----------
        part : {"data", "scale_data"}
            The codes of the elements, or those of the scales; scales that are stored as numbers are
            given as they are.

        Returns
        -------
        array
            In the logical shape: of float8, float6, float4 or int4, say. NumPy and Dask have
            those of ml_dtypes, one code in a byte; torch's ``float4_e2m1fn_x2`` has two in an
            element, in the shape of the stored bytes. Codes of 8 or 16 bit integers are `codes`.
            Where the library can, it is a view: no copy.

        Raises
        ------
        QuantArrayError
            If the library has no dtype for the format, or none for how its codes are packed.
        """
        choice("view_native", "part", part, ("data", "scale_data"))
        xp, scheme, stored = self._namespace, self.scheme, self.scale_data
        if part == "scale_data":
            coded = scheme.scale.coded
            if stored is None:
                raise QuantArrayError(
                    f"view_native: scale_data is None: the scales of {scheme.name} lie in its data"
                )
            return (
                stored
                if coded is None
                else native.view(part, stored, coded, None, 0, lambda: stored)
            )
        how, work = scheme.packing if scheme.packed else None, self.blocks.shape
        found = native.view(part, self.data, scheme.element, how, work[-1], lambda: self.codes)
        return xp.reshape(found, self.shape) if tuple(found.shape) == work else found

    def dequantize(self, dtype: Any = None, *, out: Array | None = None) -> Array:
        """Decode.

        Parameters
        ----------
        dtype : dtype or str, optional
            A floating dtype; that of `out`, or else of the array that was quantized, by default.
        out : array of dtype, shape of self, optional
            Where to write the values, in libraries whose arrays can be written to.

        Returns
        -------
        array of dtype, shape of self
            In the namespace and on the device of the codes; `out` if that is given. Blocks with a
            NaN scale decode to NaN.

        Raises
        ------
        QuantArrayError
            If `dtype` is not floating, or `out` is not of these.
        """
        xp = self._namespace
        name = self.dtype_name
        if out is not None:
            arguments.check_out("dequantize", out, self.shape, xp)
            name = _xp.dtype_name(out.dtype)
        if dtype is not None:
            wanted = _xp.dtype_name(arguments.float_dtype("dequantize", dtype, xp))
            if out is not None and name != wanted:
                raise QuantArrayError(f"dequantize: out has dtype {name}: expected {wanted}")
            name = wanted
        task = self._task(xp)
        shape = task.blocks.shape
        data = xp.reshape(self.data, task.data_shape(shape))
        stored = self._result(data).with_grid(task.blocks.grid, xp)
        values = decoder.dequantize(stored, task, name, out if shape == self.shape else None)
        if out is None:
            return xp.reshape(values, self.shape)
        if values is not out:
            out[...] = xp.reshape(values, self.shape)
        return out

    def to_device(self, device: Any) -> Self:
        """Copy to a device of the same array library."""
        return self._map(*[lambda part: _xp.to_device(part, device)] * 3)

    def _map(self, *functions: Callable[[Array], Array]) -> Self:
        """Apply functions to the stored codes, to what blocks have, to what their scales have."""
        fields = {field: getattr(self, field) for field in LEVEL}
        return replace(
            self,
            **{f: functions[LEVEL[f]](part) for f, part in fields.items() if part is not None},
        )

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
        check(parts, part_specs(scheme, shape, dtype_name))
        outer = None
        if "global_scale" in parts:
            outer = Outer(parts["global_scale"], parts.get("global_offset"))
        scale, zero_point, offset = map(parts.get, ("scale", "zero_point", "offset"))
        found = Result(parts["data"], scale, zero_point, offset, outer)
        return make(found, scheme, shape, dtype_name)

    def to_bytes(self) -> bytes:
        """Give the bytes of all parts, in the order of `parts`: C order, little-endian."""
        return to_bytes(self.parts())

    @staticmethod
    def from_bytes(
        data: Any, scheme: str | Scheme, shape: tuple[int, ...], dtype: Any = "float32"
    ) -> "QuantizedArray":
        """Build from the bytes that `to_bytes` gives.

        Parameters
        ----------
        data : bytes-like
            The bytes of all parts; they are copied.
        scheme : str or Scheme
            What the codes mean.
        shape : tuple of int
            The logical shape.
        dtype : dtype or str
            The dtype that was quantized.

        Returns
        -------
        QuantizedArray
            Of NumPy arrays.

        Raises
        ------
        QuantArrayError
            If the number of bytes is not that of such an array, or an argument is not of these.
        """
        chosen, sizes = overrides.scheme(scheme), arguments.shape("from_bytes", shape)
        chosen = replace(chosen, block=from_end("from_bytes", chosen.block, sizes))
        name = _xp.dtype_name(arguments.float_dtype("from_bytes", dtype, _xp.load("numpy")))
        parts = from_bytes(data, part_specs(chosen, sizes, name))
        return QuantizedArray.from_parts(parts, chosen, sizes, name)

    def repack(self, scheme: str | Scheme) -> "QuantizedArray":
        """Store the same codes as another scheme does, without quantizing again.

        The blocks stay as they are; flat blocks and groups along the last axis are the same blocks
        where rows hold whole ones. Codes gain or lose the half range that makes them unsigned, and
        zero points with them; a zero point becomes a float offset, or the reverse, where their
        product with the scale is exact. Every scale and zero must be one that the scheme can store.

        Parameters
        ----------
        scheme : str or Scheme
            A name that `schemes()` lists, or what `scheme()` made of one. How it would round
            elements, derive scales, and choose blocks does not matter.

        Returns
        -------
        QuantizedArray
            It decodes to the same bits; where an offset came or went, to the same real numbers
            before rounding.

        Raises
        ------
        QuantArrayError
            If the scheme cannot hold the same numbers, saying what and how many; or if that depends
            on values, and they are traced or lazy.
        """
        task, target = self._task(self._namespace), overrides.scheme(scheme)
        if self.scheme.record is not None or target.record is not None:
            raise QuantArrayError(
                f"repack: {self.scheme.name} to {target.name}: blocks of ggml hold the scales that "
                "their encoder finds: expected schemes that store scales beside codes"
            )
        result, chosen = repack.repack(self._result(self.data), task, target, self.shape)
        return make(result, chosen, self.shape, self.dtype_name)

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
