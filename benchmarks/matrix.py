"""Print the exactness matrix, as Markdown: scheme x backend, and scheme x owner.

    python benchmarks/matrix.py [--json FILE]

"=" where no byte differs. On a backend: from the NumPy reference, in all stored arrays and decoded
values, over inputs that can tell backends apart; JAX eager and compiled. From the owner of a
format: in every part that it has, over the inputs and records of `tests/oracles.py`; what is known
to deviate is counted, and explained below the table. `nox -s matrix` installs all of it.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import quantarray as qa
from quantarray import _xp, scales
from quantarray.records import Record

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import ggml_library
from oracle_inputs import INPUTS
from oracles import ORACLES, Oracle, cases, missing

BLOCKS: tuple[dict[str, Any], ...] = ({}, {"channel_axis": 0}, {"group_size": 32})
# Beyond this, the scales of some schemes overflow; of a few they do before.
REACH = 1e38


def inputs(scheme: str) -> Iterator[np.ndarray[Any, Any]]:
    """Give float32 matrices: Gaussian, bfloat16-valued, ties, zeros and subnormals, extremes."""
    reach = np.float32(min(REACH, scales.largest(qa.scheme(scheme), "float32")))
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
    odd[16, :2] = reach, -reach
    yield np.clip(odd, -reach, reach)


def whole_blocks(record: Record) -> Iterator[np.ndarray[Any, Any]]:
    """Give float32 matrices for a block type of ggml: the same kinds, and 1000 with tiny noise.

    Nothing is smaller than 1e-15, below which products of three elements are what JAX takes for 0.
    """
    rng = np.random.default_rng(0)
    gauss = rng.standard_normal((12, 2 * max(256, record.elements)), dtype=np.float32)
    yield gauss
    yield (gauss.view(np.uint32) & 0xFFFF0000).view(np.float32)
    odd = np.round(gauss * 40) / 2
    odd[0], odd[1], odd[2, :9] = 0.0, -0.0, 0.0
    odd[3] *= np.float32(1e-6)
    odd[4] *= np.float32(1e-11)
    odd[5:7] = 1000 + gauss[5:7] * np.float32(1e-4)
    yield odd.astype(np.float32)


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
    count, record = 0, qa.scheme(scheme).record
    if record is None:
        data = itertools.product(inputs(scheme), BLOCKS)
    else:
        data = itertools.product(whole_blocks(record), ({},))
    for x, block in data:
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


def against_owner(oracle: Oracle) -> dict[str, Any]:
    """Count the elements compared with the owner of a format, those that differ, and why."""
    compared, unexplained, explained = 0, 0, dict.fromkeys((d.why for d in oracle.deviations), 0)
    held = (name for name in INPUTS if name not in oracle.refused)
    for case in itertools.chain.from_iterable(cases(oracle, name) for name in held):
        for part, found in case.differences().items():
            compared += found.size
            known = [d for d in oracle.deviations if d.covers(case, part)]
            if known:
                explained[known[0].why] += found.count
            else:
                unexplained += found.count
    return {"compared": compared, "differ": unexplained, "explained": explained}


def against_ggml(record: Record) -> dict[str, Any]:
    """Count the bytes compared with ggml's C, and those that differ."""
    compared = differ = 0
    for x in whole_blocks(record):
        expected, found = ggml_library.quantize(x, record), qa.gguf.encode(x, record.name)
        compared += expected.size
        differ += int((expected != found).sum())
        back = ggml_library.dequantize(expected, record).view(np.uint32)
        differ += int((back != qa.gguf.decode(found, record.name).view(np.uint32)).sum())
        compared += back.size
    return {"compared": compared, "differ": differ, "explained": {}}


def measure() -> Iterator[dict[str, Any]]:
    """Give a record for each scheme."""
    ways, absent = columns(), missing()
    for oracle in ORACLES:
        record: dict[str, Any] = {"scheme": oracle.scheme, "owner": oracle.owner}
        if oracle.owner not in absent:
            record |= against_owner(oracle)
        record["backends"] = {title: differing(oracle.scheme, *way) for title, way in ways.items()}
        print(f"\r{oracle.scheme:24}", end="", file=sys.stderr, flush=True)
        yield record
    for name in qa.schemes():
        type_ = qa.scheme(name).record
        if type_ is None:
            continue
        record = {"scheme": name, "owner": "ggml"}
        if ggml_library.library() is not None and ggml_library.has(type_):
            record |= against_ggml(type_)
        record["backends"] = {title: differing(name, *way) for title, way in ways.items()}
        print(f"\r{name:24}", end="", file=sys.stderr, flush=True)
        yield record
    print(file=sys.stderr)


def markdown(records: list[dict[str, Any]]) -> str:
    """Lay the records out as a table, with notes."""
    titles = list(records[0]["backends"])
    lines = ["| scheme | owner | owner's bytes | " + " | ".join(titles) + " |"]
    lines.append("|---" * (3 + len(titles)) + "|")
    notes: dict[str, list[str]] = {}
    for record in records:
        owner = "not installed"
        if "compared" in record:
            owner = str(record["differ"] or "=")
            for why, count in record["explained"].items():
                if not count:
                    continue
                notes.setdefault(why, []).append(f"`{record['scheme']}` {count:,}")
                owner += f" [{list(notes).index(why) + 1}]"
        whose = "formula" if record["owner"] == "numpy" else record["owner"]
        cells = [str(count or "=") for count in record["backends"].values()]
        lines.append("| " + " | ".join([f"`{record['scheme']}`", whose, owner, *cells]) + " |")
    total = sum(record.get("compared", 0) for record in records)
    lines.append(
        f"\n{total:,} elements were compared with owners. Elements that differ, and why:\n"
    )
    for number, (why, where) in enumerate(notes.items(), 1):
        lines.append(f"{number}. {why}: {', '.join(where)}.")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Print the exactness matrix, as Markdown.")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the records there too")
    arguments = parser.parse_args()
    records = list(measure())
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n")
    print(markdown(records))


if __name__ == "__main__":
    main()
