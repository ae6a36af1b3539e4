"""Array libraries: their namespaces, dtypes and devices, and what can be asked of their arrays."""

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import array_api_compat
import numpy as np

from quantarray.errors import QuantArrayError, short
from quantarray.formats import DTYPES

Array = Any
Namespace = Any
P = ParamSpec("P")
R = TypeVar("R")

# Backends by the name of the module a user imports: (compat namespace, distribution).
BACKENDS = {
    "numpy": ("array_api_compat.numpy", "numpy"),
    "array_api_strict": ("array_api_strict", "array-api-strict"),
    "jax": ("jax.numpy", "jax"),
    "torch": ("array_api_compat.torch", "torch"),
    "dask": ("array_api_compat.dask.array", "dask"),
    "cupy": ("array_api_compat.cupy", "cupy"),
}
NUMPY, TORCH, JAX, DASK = (BACKENDS[n][0] for n in ("numpy", "torch", "jax", "dask"))
# By NumPy's letters for floats of 2 to 8 and integers of 1 to 8 bytes: .name is slow to compute.
_DTYPE_NAMES = {np.dtype(letter): np.dtype(letter).name for letter in "efdbBhHil"}
_NAMES = {namespace: name for name, (namespace, _) in BACKENDS.items()}


def backend(xp: Namespace) -> str:
    """Name the backend of a namespace; another library's is its own module name."""
    name: str = xp.__name__
    return _NAMES.get(name, name)


def namespace(x: Array) -> Namespace:
    """Find the array-API namespace of one array; a TypeError means `x` is no array."""
    if type(x) is np.ndarray:  # the shortest way for the commonest array
        import array_api_compat.numpy as numpy_namespace

        return numpy_namespace
    # By hand: array_namespace caches with lru_cache, of which torch.compile warns.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        import array_api_compat.torch as torch_namespace

        return torch_namespace
    return array_api_compat.array_namespace(x)


def as_array(operation: str, x: Array) -> tuple[Array, Namespace]:
    """Check that `x` is a floating array that holds plain values, and give its namespace."""
    try:
        xp = namespace(x)
    except TypeError:
        raise QuantArrayError(
            f"{operation}: x is a {type(x).__name__}: "
            "expected an array (NumPy, JAX, CuPy, torch, Dask, ...)"
        ) from None
    if isinstance(x, np.generic):
        x = np.asarray(x)
    if type(x) is not np.ndarray and isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise QuantArrayError(
                f"{operation}: x is a masked array, and masks have no codes: fill it first"
            )
        x = np.asarray(x)
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    name = dtype_name(x.dtype)
    if name not in DTYPES:
        raise QuantArrayError(f"{operation}: x has dtype {name}: expected {', '.join(DTYPES)}")
    special = _PLAIN.get(xp.__name__)
    return (x if special is None else special(operation, x)), xp


# Gradients are kept out: those that flow through the scales alone would be wrong ones.


def _plain_torch(operation: str, x: Array) -> Array:
    if str(x.layout) != "torch.strided":
        raise QuantArrayError(f"{operation}: x has layout {x.layout}: expected a dense tensor")
    return x.detach() if x.requires_grad else x


def _plain_jax(operation: str, x: Array) -> Array:
    jax = sys.modules["jax"]
    return jax.lax.stop_gradient(x) if isinstance(x, jax.core.Tracer) else x


def _plain_dask(operation: str, x: Array) -> Array:
    if any(size != size for size in x.shape):
        raise QuantArrayError(
            f"{operation}: x has shape {x.shape}: expected known sizes (compute_chunk_sizes())"
        )
    if any(0 in sizes for sizes in x.chunks):
        # Dask's own reductions fail on empty chunks, which boolean indexing leaves.
        return x.rechunk(tuple(tuple(filter(None, sizes)) or (0,) for sizes in x.chunks))
    return x


_PLAIN = {TORCH: _plain_torch, JAX: _plain_jax, DASK: _plain_dask}


def is_concrete(x: Array, xp: Namespace) -> bool:
    """Tell whether the values of `x` can be looked at: not while traced, compiled, or lazy."""
    name = backend(xp)
    if name == "jax":
        return not isinstance(x, sys.modules["jax"].core.Tracer)
    if name == "torch":
        if is_compiling():
            return False
        torch = sys.modules["torch"]
        return x.device.type != "meta" and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    return name != "dask"


def residence(x: Array, xp: Namespace) -> str | None:
    """Name where the values of an array live, if they are there: in "host" memory, in "chunks"."""
    name = backend(xp)
    if name == "numpy":
        return "host"
    if name == "torch":
        plain = type(x) is sys.modules["torch"].Tensor and not x.requires_grad
        return "host" if plain and x.device.type == "cpu" and is_concrete(x, xp) else None
    if name == "jax":
        # An array over several devices keeps its sharding on the generic path.
        devices = x.devices() if is_concrete(x, xp) else ()
        return "host" if [device.platform for device in devices] == ["cpu"] else None
    return "chunks" if name == "dask" else None


def is_writable(x: Array, xp: Namespace) -> bool:
    """Tell whether the elements of an array can be overwritten."""
    if backend(xp) == "numpy":
        return bool(x.flags.writeable)
    return backend(xp) not in ("jax", "dask")


def is_compiling() -> bool:
    """Tell whether torch.compile is tracing this call."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def has_64_bits(xp: Namespace) -> bool:
    """Tell whether there are dtypes of 64 bits, which JAX has only when asked."""
    return xp.__name__ != JAX or bool(sys.modules["jax"].config.jax_enable_x64)


def dtype_name(dtype: Any) -> str:
    """Name a dtype the way every library spells it ("float32", "bfloat16", "uint8")."""
    if isinstance(dtype, np.dtype) and dtype in _DTYPE_NAMES:
        return _DTYPE_NAMES[dtype]
    # NumPy's str() would show byte order; torch and array-api-strict have no .name.
    name: str = getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]
    return name


def dtype(xp: Namespace, name: str) -> Any:
    """Give a namespace's dtype by name."""
    if backend(xp) in ("numpy", "jax", "dask", "cupy"):
        if name == "bfloat16":
            return np.dtype(ml_dtypes("bfloat16").bfloat16)
        if name == "float64" and not has_64_bits(xp):
            raise QuantArrayError("dtype float64: JAX has it only with jax_enable_x64")
        return np.dtype(name)
    found = getattr(xp, name, None)
    if found is None:
        raise QuantArrayError(f"dtype {name}: {backend(xp)} has none")
    return found


def ml_dtypes(wanted: str) -> Any:
    """Import the package that has the dtypes NumPy lacks."""
    try:
        return importlib.import_module("ml_dtypes")
    except ImportError:
        raise QuantArrayError(
            f"dtype {wanted}: NumPy has none without ml_dtypes: install quantarray[io]"
        ) from None


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """Copy an array to host memory as a NumPy array, computing it if it is lazy."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    xp = namespace(x)
    name = backend(xp)
    if name == "torch":
        host = x.detach().cpu()
        if dtype_name(x.dtype) == "bfloat16":  # torch refuses to hand it to NumPy
            torch = sys.modules["torch"]
            return host.contiguous().view(torch.int16).numpy().view(ml_dtypes("bfloat16").bfloat16)  # type: ignore[no-any-return]
        return host.numpy()  # type: ignore[no-any-return]
    if name == "dask":
        return to_numpy(x.compute())
    if name == "array_api_strict":  # it refuses to hand over arrays of its other devices
        return np.asarray(x.to_device(xp.Device("CPU_DEVICE")))
    if name == "cupy":
        return x.get()  # type: ignore[no-any-return]
    return np.asarray(x)


def from_numpy(x: np.ndarray[Any, Any], xp: Namespace) -> Array:
    """Copy a NumPy array into a namespace, on its default device."""
    if backend(xp) == "torch" and dtype_name(x.dtype) == "bfloat16":
        torch = sys.modules["torch"]
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return xp.asarray(x, copy=True)


def device(x: Array) -> Any:
    """Give an array's device."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):  # for the same reason as in namespace
        return x.device
    return array_api_compat.device(x)


def beside(x: Array) -> Any:
    """Give the device on which to create what is combined with an array."""
    # That of a sharded JAX array is its sharding, which other shapes cannot have; and JAX moves
    # what was put on no device in particular.
    jax = sys.modules.get("jax")
    return None if jax is not None and isinstance(x, jax.Array) else device(x)


def to_device(x: Array, target: Any) -> Array:
    """Move an array to a device of its own library."""
    return array_api_compat.to_device(x, target)


def itemsize(name: str) -> int:
    """Give the bytes of one element of the dtypes that quantized arrays are made of."""
    return 2 if name == "bfloat16" else np.dtype(name).itemsize


def cached(function: Callable[P, R]) -> Callable[P, R]:
    """Cache a pure function, except from torch.compile, which warns of that."""
    remembering = functools.lru_cache(maxsize=1024, typed=True)(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        chosen: Any = function if is_compiling() else remembering
        result: R
        try:
            result = chosen(*args, **kwargs)
        except TypeError:  # an argument cannot be hashed
            result = function(*args, **kwargs)
        return result

    return call


def constant(function: Callable[P, R]) -> Callable[P, R]:
    """Cache a function of constants that torch.compile must run, not trace."""
    remembering = functools.lru_cache(maxsize=1024)(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        chosen: Any = remembering
        result: R = chosen(*args, **kwargs)
        return result

    # What torch.compiler.assume_constant_result sets; torch may not even be installed.
    call._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return call


def register_pytree(cls: type, data_fields: tuple[str, ...], meta_fields: tuple[str, ...]) -> None:
    """Make a dataclass a JAX pytree, once, if JAX is imported at all."""
    jax = sys.modules.get("jax")
    if is_compiling():
        return
    if jax is not None and hasattr(jax, "tree_util"):
        _register_pytree(cls, data_fields, meta_fields)


@functools.cache
def _register_pytree(cls: type, data_fields: tuple[str, ...], meta_fields: tuple[str, ...]) -> None:
    sys.modules["jax"].tree_util.register_dataclass(cls, list(data_fields), list(meta_fields))


def installed() -> tuple[str, ...]:
    """Name the backends that can be imported here, without importing them."""
    return tuple(filter(is_installed, BACKENDS))


@functools.cache
def is_installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def load(name: str) -> Namespace:
    """Import a backend's namespace."""
    if name not in BACKENDS:
        raise QuantArrayError(f"backend: {short(name)} is not known; known: {', '.join(BACKENDS)}")
    if name not in installed():
        raise QuantArrayError(
            f"backend: {name} is not installed; installed: {', '.join(installed())}"
        )
    return importlib.import_module(BACKENDS[name][0])


def version(name: str) -> str:
    """Give the version of an installed backend."""
    from importlib import metadata  # slow to import, and seldom needed

    distribution = BACKENDS[name][1]
    for suffix in ("", "-cuda13x", "-cuda12x"):  # CuPy has a distribution for each CUDA
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution + suffix)
    return "unknown"


def devices(name: str) -> tuple[str, ...]:
    """Name the devices a backend can put arrays on."""
    xp = load(name)
    if name == "jax":
        return tuple(map(str, sys.modules["jax"].devices()))
    if name == "torch":
        return ("cpu", *(f"cuda:{i}" for i in range(sys.modules["torch"].cuda.device_count())))
    if name == "cupy":
        try:
            return tuple(f"cuda:{i}" for i in range(xp.cuda.runtime.getDeviceCount()))
        except xp.cuda.runtime.CUDARuntimeError:  # installed where there is no driver
            return ()
    return ("cpu",)


@contextlib.contextmanager
def float64_context(name: str) -> Iterator[None]:
    """Let a backend hold float64, which JAX does only when asked."""
    if name != "jax":
        yield
        return
    load(name)
    with sys.modules["jax"].enable_x64(True):
        yield
