"""Print the table of schemes and backends, as Markdown: which give NumPy's very bytes.

    python benchmarks/matrix.py

Every scheme that `quantarray.schemes()` lists is run on every backend installed here, eagerly and,
for JAX, compiled, over inputs that can tell backends apart. A cell is "=" where all stored arrays
and all decoded values have the bits of the NumPy reference, or the number of arrays that differ.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import quantarray as qa
from quantarray import _xp

BLOCKS: tuple[dict[str, Any], ...] = (
    {},
    {"channel_axis": 0},
    {"group_size": 32},
    {"block": (8, 12)},
)


def inputs() -> Iterator[np.ndarray[Any, Any]]:
    """Give float32 matrices: Gaussian, bfloat16-valued, ties, zeros and subnormals, extremes."""
    rng = np.random.default_rng(0)
    gauss = rng.standard_normal((24, 70), dtype=np.float32)
    yield gauss
    yield (gauss.view(np.uint32) & 0xFFFF0000).view(np.float32)
    yield np.where(gauss > 2, np.float32(127), np.round(gauss * 40) / 2).astype(np.float32)
    odd = gauss.copy()
    odd[0], odd[1], odd[2], odd[3, :8] = 0.0, -0.0, 1e-40, -1e-40
    odd[4:8] *= np.float32(1e-37)
    odd[8:12] *= np.float32(1e-30)
    odd[12:16] *= np.float32(1e30)
    odd[16, :2] = 3.4e38, -3.4e38
    yield odd


def stored(q: Any, decoded: Any) -> list[tuple[str, bytes]]:
    """Give the dtype and bytes of all that a backend gave."""
    arrays = [_xp.to_numpy(array) for array in (*q.parts().values(), decoded)]
    return [(str(array.dtype), array.tobytes()) for array in arrays]


def run(x: Any, scheme: str, block: dict[str, Any], wrap: Callable[[Any], Any]) -> Any:
    """Quantize and decode."""
    q = wrap(lambda a: qa.quantize(a, scheme, **block))(x)
    return stored(q, wrap(qa.dequantize)(q))


def differing(scheme: str, backend: str, wrap: Callable[[Any], Any]) -> int:
    """Count the arrays whose bits differ from NumPy's."""
    xp = _xp.load(backend)
    count = 0
    for x, block in itertools.product(inputs(), BLOCKS):
        expected = run(x, scheme, block, lambda function: function)
        found = run(_xp.from_numpy(x, xp), scheme, block, wrap)
        count += sum(a != b for a, b in zip(expected, found, strict=True))
    return count


def columns() -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """Give the ways to run a scheme here, by the title of their column."""
    ways = {name: (name, lambda function: function) for name in _xp.installed()}
    if "jax" in ways:
        import jax

        ways["jax.jit"] = ("jax", jax.jit)
    return ways


def main() -> None:
    """Print the table."""
    ways = columns()
    print("| scheme |", " | ".join(f"{title}" for title in ways), "|")
    print("|---|" + "---|" * len(ways))
    for scheme in qa.schemes():
        counts = [differing(scheme, *way) for way in ways.values()]
        print(f"| `{scheme}` |", " | ".join(str(count) if count else "=" for count in counts), "|")


if __name__ == "__main__":
    main()
