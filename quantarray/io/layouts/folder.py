"""Folders as clients load them: ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarray import _xp
from quantarray.array import QuantizedArray
from quantarray.errors import QuantArrayError, choice, short
from quantarray.io import files, safetensors
from quantarray.io.dtypes import DTYPES, Spec
from quantarray.io.escape import escape
from quantarray.io.files import Path
from quantarray.io.layouts import LAYOUTS, Layout, common

MODEL, CONFIG = "model.safetensors", "config.json"
CONFIG_CAP = 1 << 26  # bytes; names of the modules of the largest models take a few megabytes
_METADATA = {"format": "pt"}


@dataclass(frozen=True, eq=False)
class LayoutFolder(Mapping[str, "NDArray[Any] | QuantizedArray"]):
    """The tensors of a folder by name; each is read and checked when asked for.

    Plain tensors are read-only NumPy arrays over the mapped file, quantized ones are
    `QuantizedArray`. `config` is what config.json holds.
    """

    path: str
    config: Mapping[str, Any]
    layout: Layout
    container: safetensors.Container
    stored: Mapping[str, tuple[str, ...]]

    def __getitem__(self, name: str) -> NDArray[Any] | QuantizedArray:
        """Read one tensor.

        Raises
        ------
        KeyError
            The folder has no such tensor.
        QuantArrayError
            Its parts are not what the layout has.
        """
        names = self.stored[name]
        if not self._is_quantized(name):
            return self.container.array(name)
        arrays = {stored: self.container.array(stored) for stored in names}
        try:
            return self.layout.restored(name, arrays, self.config)
        except QuantArrayError as error:
            raise QuantArrayError(f"{escape(self.container.file.path, None)}: {error}") from None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order in which the file has their first parts."""
        return iter(self.stored)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.stored)

    def _is_quantized(self, name: str) -> bool:
        return self.stored[name] != (name,)


def load_layout(folder: Path) -> LayoutFolder:
    """Open a folder whose config.json has a ``quantization_config`` of a known layout.

    Parameters
    ----------
    folder : str or os.PathLike
        With ``model.safetensors`` and ``config.json``.

    Returns
    -------
    LayoutFolder
        A mapping from names to NumPy arrays and `QuantizedArray`, with ``.config``. Only headers
        are read now; each tensor is read when asked for. The dtype that was quantized is that of
        the scales in layouts that store them in the model's, otherwise what config.json says.

    Raises
    ------
    QuantArrayError
        A file breaks its format, the layout is not known, or a tensor is stored twice.
    OSError
        A file cannot be opened.
    """
    path = files.checked(folder)
    config = read_config(os.path.join(path, CONFIG))
    layout = layout_of(config)
    container = safetensors.read(os.path.join(path, MODEL))
    container.check_header()
    groups = layout.groups(container.specs)
    owners = {stored: name for name, names in groups.items() for stored in names}
    found: dict[str, tuple[str, ...]] = {}
    for stored in container.specs:
        name = owners.get(stored, stored)
        names = groups[name] if stored in owners else (stored,)
        if found.setdefault(name, names) is not names:
            raise container.error(stored, "it is stored both plain and quantized")
    return LayoutFolder(path, config, layout, container, found)


def save_layout(
    folder: Path,
    tensors: Mapping[str, Any],
    layout: str,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that the clients of a layout load.

    Parameters
    ----------
    folder : str or os.PathLike
        Made if it is not there. ``model.safetensors`` and ``config.json`` in it appear whole, or
        not at all, and the second last; all else in it stays.
    tensors : Mapping
        Names to arrays of any array library, or `QuantizedArray`, as the model's own checkpoint
        names them. They are brought to host memory one at a time, and asked for twice.
    layout : str
        A key of ``quantarray.io.layouts.LAYOUTS``.
    config : Mapping, optional
        The model's own configuration, which is kept; by default what config.json in the folder
        holds. ``quantization_config`` is set in it, and ``torch_dtype`` if it states no dtype.

    Raises
    ------
    QuantArrayError
        An array is none that the layout holds exactly, nothing is quantized, two tensors would be
        stored under one name, or the configuration is not ready for JSON.
    OSError
        As the operating system says, for example when the disk is full.
    """
    choice("save_layout", "layout", layout, tuple(LAYOUTS))
    path, how = files.checked(folder), LAYOUTS[layout]
    if config is None:
        config = read_config(os.path.join(path, CONFIG), missing={})
    specs: dict[str, Spec] = {}
    quantized: dict[str, QuantizedArray] = {}
    plain = []
    for name in tensors:
        value = tensors[name]
        if isinstance(value, QuantizedArray):
            quantized[name] = value
        elif name.endswith(f".{common.WEIGHT}") and len(value.shape) > 1:
            plain.append(common.module_of(name))
        for stored, array in _stored(name, value, how):
            if stored in specs:
                raise QuantArrayError(f"two tensors would be stored as '{escape(stored)}'")
            specs[stored] = Spec(DTYPES[_xp.dtype_name(array.dtype)], array.shape)
    if not quantized:
        raise QuantArrayError(f"save_layout: no tensor is quantized: {layout} needs one")
    text = _text(
        {**_with_dtype(config, quantized), common.QUANTIZATION: how.config(quantized, plain)}
    )
    del quantized

    def produce() -> Iterator[tuple[str, NDArray[Any]]]:
        for name in tensors:
            yield from _stored(name, tensors[name], how)

    with files.folder(path), files.atomic_writer(os.path.join(path, CONFIG)) as output:
        output.write_at(0, text)
        safetensors.write(os.path.join(path, MODEL), specs, produce(), lambda sums: _METADATA)


def read_config(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a config.json, which may come from anywhere.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    missing : dict, optional
        What to give if there is no such file.

    Returns
    -------
    dict

    Raises
    ------
    QuantArrayError
        It is no JSON object, or too large.
    OSError
        The file cannot be opened.
    """
    try:
        file = files.open_mapped(path)
    except FileNotFoundError:
        if missing is None:
            raise
        return missing
    try:
        if file.size > CONFIG_CAP:
            raise ValueError(f"{file.size} bytes are above the limit of {CONFIG_CAP}")
        # Not strict: configurations of models may hold Infinity.
        config = json.loads(bytes(file.view))
    except (ValueError, RecursionError) as error:
        text = escape(str(error), 400)
        raise QuantArrayError(f"{escape(file.path, None)}: not JSON: {text}") from None
    if not isinstance(config, dict):
        raise QuantArrayError(f"{escape(file.path, None)}: expected an object, not {short(config)}")
    return config


def layout_of(config: Mapping[str, Any]) -> Layout:
    """Give the layout that a configuration states.

    Raises
    ------
    QuantArrayError
        It states none, or one that is not known.
    """
    stated = common.quantization_config(config)
    named = (stated.get("checkpoint_format"), stated.get("quant_method"))
    found = [layout for layout in LAYOUTS.values() if layout.method == named[1]]
    if not found:
        methods = ", ".join(sorted({layout.method for layout in LAYOUTS.values()}))
        raise QuantArrayError(
            f"quantization_config: quant_method={short(named[1])}: expected one of {methods}"
        )
    return next((layout for layout in found if layout.name == named[0]), found[0])


def _stored(name: object, value: Any, layout: Layout) -> Iterable[tuple[str, NDArray[Any]]]:
    """Give the tensors of a file for one of those given to `save_layout`."""
    if not isinstance(name, str):
        raise QuantArrayError(f"tensor name {escape(repr(name))} must be str")
    if isinstance(value, QuantizedArray):
        return layout.stored(name, value).items()
    try:
        array = _xp.to_numpy(value)
        if _xp.dtype_name(array.dtype) in DTYPES and not isinstance(value, np.ma.MaskedArray):
            return [(name, array)]
    except (AttributeError, TypeError, ValueError):
        pass
    raise QuantArrayError(
        f"tensor '{escape(name)}' is {short(value)}: expected an array that safetensors holds"
    )


def _with_dtype(
    config: Mapping[str, Any], quantized: Mapping[str, QuantizedArray]
) -> dict[str, Any]:
    """Add the dtype of the model, if a configuration has none, and all weights have one."""
    dtypes = {q.dtype_name for q in quantized.values()}
    if len(dtypes) > 1 or config.get("dtype") or config.get("torch_dtype"):
        return dict(config)
    return {**config, "torch_dtype": dtypes.pop()}


def _text(config: Mapping[str, Any]) -> bytes:
    try:
        return f"{json.dumps(config, indent=2, ensure_ascii=False)}\n".encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise QuantArrayError(f"config: not ready for JSON: {escape(str(error), 400)}") from None
