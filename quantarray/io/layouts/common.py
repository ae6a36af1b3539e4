"""What the layouts share: names of parts, checks of hostile ones, and exact changes of scheme.

A layout holds the weight of a module, a matrix (out, in), as a few tensors whose names begin with
that of the module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantarray import _xp
from quantarray.array import QuantizedArray
from quantarray.errors import QuantArrayError, short
from quantarray.formats import DTYPES as FLOATS
from quantarray.formats import Float, Integer
from quantarray.io.dtypes import Spec, numpy_dtype
from quantarray.io.escape import escape
from quantarray.scheme import Block, Scheme

Host = NDArray[Any]
Arrays = Mapping[str, Host]
Config = Mapping[str, Any]

WEIGHT = "weight"
QUANTIZATION = "quantization_config"
SCALES = ("float16", "bfloat16", "float32")
"""The dtypes of models that layouts hold, and of the scales in most of them."""


class Layout(Protocol):
    """How the files of one ecosystem hold quantized weights."""

    @property
    def name(self) -> str:
        """The layout's own name, a key of the table of layouts."""

    @property
    def method(self) -> str:
        """What ``quant_method`` says in ``quantization_config``."""

    @property
    def schemes(self) -> Mapping[str, Scheme]:
        """Schemes whose arrays always fit, by the name of what is asked for: "int4", say.

        Their scales are in the dtype that the files have. Arrays of other schemes fit where their
        codes, zeros and scales are exact in the layout too.
        """

    def stored(self, name: str, q: QuantizedArray) -> dict[str, Host]:
        """Give the tensors that a file holds for one weight.

        Parameters
        ----------
        name : str
            The weight's name, which ends in "weight".
        q : QuantizedArray
            A matrix, quantized from float16, bfloat16 or float32.

        Returns
        -------
        dict of str to numpy.ndarray
            By the names in the file, with the dtypes and shapes that the owner's own writer gives.

        Raises
        ------
        QuantArrayError
            The layout does not hold the array; the message says what it holds.
        """

    def restored(self, name: str, arrays: Arrays, config: Config) -> QuantizedArray:
        """Undo `stored`.

        Parameters
        ----------
        name : str
            The weight's name.
        arrays : mapping of str to numpy.ndarray
            What a hostile file holds for it, by the names that `groups` gives.
        config : mapping
            The model's whole configuration.

        Returns
        -------
        QuantizedArray

        Raises
        ------
        QuantArrayError
            A part is missing, not expected, or not of the shape, dtype or values that it must have.
        """

    def config(self, tensors: Mapping[str, QuantizedArray], plain: Sequence[str]) -> dict[str, Any]:
        """Give the ``quantization_config`` that clients need.

        Parameters
        ----------
        tensors : mapping of str to QuantizedArray
            The quantized weights.
        plain : sequence of str
            Names of the modules whose weights, of 2 axes or more, are not quantized.

        Returns
        -------
        dict
            Ready for JSON.

        Raises
        ------
        QuantArrayError
            One configuration does not describe them all.
        """

    def groups(self, specs: Mapping[str, Spec]) -> dict[str, tuple[str, ...]]:
        """Find the quantized weights among the tensors of a file.

        Parameters
        ----------
        specs : mapping of str to Spec
            What the file holds.

        Returns
        -------
        dict of str to tuple of str
            Names of weights, and of the tensors that belong to each.
        """


@contextmanager
def naming(name: str, layout: str) -> Iterator[None]:
    """Say which tensor of which layout an error is about."""
    try:
        yield
    except QuantArrayError as error:
        raise QuantArrayError(f"tensor '{escape(name)}': {layout}: {error}") from None


def prefix_of(name: str) -> str:
    """Give what the names of a weight's parts begin with."""
    if name != WEIGHT and not name.endswith("." + WEIGHT):
        raise QuantArrayError("expected the weight of a module, with a name that ends in '.weight'")
    return name.removesuffix(WEIGHT)


def module_of(name: str) -> str:
    """Give the name of the module whose weight it is."""
    return prefix_of(name).removesuffix(".")


def check_matrix(q: QuantizedArray) -> None:
    """Refuse what is no weight of a linear module."""
    if q.ndim != 2 or q.dtype_name not in SCALES or not q.size:
        raise QuantArrayError(
            f"shape {q.shape}, {q.dtype_name}: expected a matrix (out, in) that is not empty, "
            f"quantized from {', '.join(SCALES)}"
        )


def repacked(q: QuantizedArray, target: Scheme, schemes: Mapping[str, Scheme]) -> QuantizedArray:
    """Store what an array stores as a layout's scheme does: exactly, or not at all."""
    # No scale is too small for a file.
    target = replace(target, scale=replace(target.scale, least=0.0))
    try:
        return q.repack(target)
    except QuantArrayError as error:
        raise QuantArrayError(f"{error}{instead(schemes)}") from None


def instead(schemes: Mapping[str, Scheme]) -> str:
    """Say what a layout takes."""
    names = ", ".join(scheme.name for scheme in schemes.values())
    return f"; it holds {names}, as `schemes` of the layout gives them, or what is equal to one"


def host(array: Any, code: str = "") -> Host:
    """Give an array in C order in host memory; its bytes as another dtype of the container's."""
    found: Host = np.ascontiguousarray(_xp.to_numpy(array))
    return found.view(numpy_dtype(code)) if code else found


def codes_of(array: Host) -> Host:
    """Give stored codes of 8 bits, of any dtype, as the bytes they are."""
    return array.view(np.uint8)


def is_symmetric(q: QuantizedArray) -> bool:
    """Tell whether all zero points, if there are any, are in the middle of the codes."""
    element = q.scheme.element
    if q.zero_point is None:
        return q.scheme.zero_kind is None
    assert isinstance(element, Integer)
    middle = 0 if element.signed else 1 << (element.bits - 1)
    return bool((_xp.to_numpy(q.zero_point) == middle).all())


def extents_of(q: QuantizedArray) -> tuple[int, int]:
    """Give the extents of the blocks of a matrix, those of flat blocks along its rows."""
    flat, (rows, row) = q.scheme.block.flat, q.shape
    out, along = (1, flat) if flat is not None else q.blocks.extents
    return min(out, rows), min(along, row)


def scale_format(q: QuantizedArray) -> Float:
    """Give the 16-bit format of scales: what they are stored in, or else the array's dtype.

    float16 for float32.
    """
    for name in (_xp.dtype_name(q.scale_data.dtype), q.dtype_name):
        if name in ("float16", "bfloat16"):
            return FLOATS[name]
    return FLOATS["float16"]


def common_group(tensors: Mapping[str, QuantizedArray], layout: str) -> int:
    """Give the one group size of all weights, -1 for whole rows.

    A row that is one group fits any group size that is not less.
    """
    sizes = {}
    for name, q in tensors.items():
        with naming(name, layout):
            check_matrix(q)
        sizes[name] = extents_of(q)[1], q.shape[1]
    found = sorted({size for size, row in sizes.values() if size < row}) or [-1]
    for name, (size, row) in sizes.items():
        if len(found) > 1 or (size == row > found[0] > 0):
            others = ", ".join(map(str, found))
            raise QuantArrayError(
                f"tensor '{escape(name)}': {layout}: groups of {size}, and of {others} elsewhere: "
                "expected one group size for all weights"
            )
    return found[0]


def grouped(
    specs: Mapping[str, Spec], parts: Sequence[str], marks: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Collect tensors by module, where there is one whose name marks a quantized weight.

    Parameters
    ----------
    specs : mapping of str to Spec
        What a file holds.
    parts : sequence of str
        Names of parts after the module's.
    marks : sequence of str
        Some of them.

    Returns
    -------
    dict of str to tuple of str
        Names of weights to those of their tensors, in the order of the file.
    """
    found: dict[str, list[str]] = {}
    marked = set()
    for stored in specs:
        for part in parts:
            prefix = stored.removesuffix(part)
            if len(prefix) < len(stored) and (not prefix or prefix.endswith(".")):
                found.setdefault(prefix, []).append(stored)
                if part in marks:
                    marked.add(prefix)
    return {p + WEIGHT: tuple(names) for p, names in found.items() if p in marked}


def relative(name: str, arrays: Arrays) -> dict[str, Host]:
    """Give arrays by their names after the module's."""
    prefix = prefix_of(name)
    for stored in arrays:
        if not stored.startswith(prefix):
            raise QuantArrayError(f"'{escape(stored)}' is no part of it")
    return {stored.removeprefix(prefix): array for stored, array in arrays.items()}


def described(array: Host) -> str:
    """Name the dtype of an array from a file and its shape."""
    return f"{_xp.dtype_name(array.dtype)}{list(array.shape)}"


def check_parts(parts: Arrays, wanted: Mapping[str, tuple[Sequence[str], tuple[int, ...]]]) -> None:
    """Refuse parts of a hostile file unless they are these.

    Parameters
    ----------
    parts : mapping of str to numpy.ndarray
        What there is.
    wanted : mapping of str to (sequence of str, tuple of int)
        The dtypes that each may have, and its shape.
    """
    for part in parts:
        if part not in wanted:
            raise QuantArrayError(f"its part '{escape(part)}' is not expected")
    for part, (dtypes, shape) in wanted.items():
        found = part_of(parts, part)
        if found.shape != tuple(shape) or _xp.dtype_name(found.dtype) not in dtypes:
            raise QuantArrayError(
                f"its part '{part}' is {described(found)}: "
                f"expected {' or '.join(dtypes)}{list(shape)}"
            )


def part_of(parts: Arrays, part: str, ndim: int | None = None) -> Host:
    """Give a part of a hostile file, refusing where there is none, or one of other axes."""
    found = parts.get(part)
    if found is None:
        raise QuantArrayError(f"its part '{part}' is missing")
    if ndim is not None and found.ndim != ndim:
        raise QuantArrayError(f"its part '{part}' is {described(found)}: expected {ndim} axes")
    return found


def quantization_config(config: Config) -> dict[str, Any]:
    """Give the ``quantization_config`` of a hostile configuration; an empty one if there is none.

    Raises
    ------
    QuantArrayError
        It is no object.
    """
    found = config.get(QUANTIZATION, {})
    if not isinstance(found, dict):
        raise QuantArrayError(f"quantization_config: {short(found)}: expected an object")
    return found


def model_dtype(config: Config, otherwise: str) -> str:
    """Give the dtype of a model by its hostile configuration."""
    found = config.get("dtype") or config.get("torch_dtype")
    name = found.removeprefix("torch.") if isinstance(found, str) else ""
    return name if name in SCALES else otherwise


def group_block(size: int, row: int) -> Block:
    """Give the block of groups along rows."""
    return Block(axes=((-1, -1),), others=1) if size >= row else Block.group(size)


def group_of(groups: int, row: int, stated: object) -> int:
    """Give the size of groups by how many there are in a row, with what a hostile file states.

    Raises
    ------
    QuantArrayError
        There are no groups of one size.
    """
    if groups and row and row % groups == 0:
        return row // groups
    if type(stated) is int and 0 < stated < row and math.ceil(row / stated) == groups:
        return stated
    raise QuantArrayError(
        f"{groups} groups in rows of {row}, group size {short(stated)}: "
        "expected as many groups as the group size gives"
    )
