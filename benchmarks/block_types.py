"""Time every block type of ggml: encoding and decoding, against a copy, ggml's C and gguf-py.

    python benchmarks/block_types.py [--only SUBSTRING] [--repeat 9] [--json FILE]

All of a type's rows are measured in turn, in one process. ggml's own C (of whichever package has
it: llama-cpp-python or pywhispercpp) runs on one thread, as one call does; ours on one and on all.
The closed forms take a 4096x4096 matrix of float32, the searches 1024x4096, and those through
lattices 64x4096; the base is `np.copyto` of the same matrix.
"""

import argparse
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np
from timing import Row, interleave, timer

import quantarray as qa
from quantarray.records import RECORDS, Record
from quantarray.tables import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import ggml_library

Array = Any
BUDGET = 6.0
CLOSED, SEARCH, LATTICE = 4096, 1024, 64


def matrix(record: Record) -> Array:
    """Give what is encoded."""
    closed = record.importance == "ignored" or record.name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
    rows = LATTICE if record.lattice is not None else CLOSED if closed else SEARCH
    return np.random.default_rng(0).standard_normal((rows, 4096), dtype=np.float32)


def on(threads: int | None, function: Callable[[], Any]) -> Callable[[], Any]:
    """Give a call that uses so many threads."""

    def call() -> Any:
        if threads is None:
            os.environ.pop("QUANTARRAY_THREADS", None)
        else:
            os.environ["QUANTARRAY_THREADS"] = str(threads)
        return function()

    return call


def ours(function: Callable[[], Any]) -> Iterator[Row]:
    """Give our rows: all threads, and one."""
    yield Row("quantarray", "ours", timer(on(None, function)))
    yield Row("quantarray, 1 thread", "ours", timer(on(1, function)))


def gguf_py(record: Record) -> Any:
    """Give gguf-py's functions and number for a type, if it has them."""
    if importlib.util.find_spec("gguf") is None:
        return None
    from gguf import GGMLQuantizationType, quants

    found = next((kind for kind in GGMLQuantizationType if kind.name == record.name), None)
    return None if found is None or found not in quants._type_traits else (quants, found)


def encoding(record: Record) -> list[Row]:
    """Give the rows for encoding."""
    x = matrix(record)
    copy = np.empty_like(x)
    rows = [
        Row("np.copyto", "base", timer(lambda: np.copyto(copy, x))),
        *ours(lambda: qa.gguf.encode(x, record.name)),
    ]
    if ggml_library.has(record):
        rows.append(
            Row("ggml C, 1 thread", "peer", timer(lambda: ggml_library.quantize(x, record)))
        )
    found = gguf_py(record)
    if found is not None:
        quants, kind = found
        rows.append(Row("gguf-py", "peer", timer(lambda: quants.quantize(x, kind))))
    return rows


def decoding(record: Record) -> list[Row]:
    """Give the rows for decoding, of random blocks with scales of about 1."""
    size = 4096 // record.elements * record.size
    data = np.random.default_rng(0).integers(0, 256, (4096, size), dtype=np.uint8)
    values = np.empty((4096, 4096), np.float32)
    q = qa.QuantizedArray.from_parts(
        {"data": data}, qa.scheme(f"gguf:{record.name.lower()}"), values.shape, "float32"
    )
    copy = np.empty_like(values)
    rows = [
        Row("np.copyto", "base", timer(lambda: np.copyto(copy, values))),
        *ours(q.dequantize),
        Row("quantarray, out=", "ours", timer(on(None, lambda: q.dequantize(out=values)))),
    ]
    if ggml_library.has(record):
        rows.append(
            Row("ggml C, 1 thread", "peer", timer(lambda: ggml_library.dequantize(data, record)))
        )
    found = gguf_py(record)
    if found is not None:
        quants, kind = found
        rows.append(Row("gguf-py", "peer", timer(lambda: quants.dequantize(data, kind))))
    return rows


def result(operation: str, record: Record, rows: list[Row]) -> dict[str, Any]:
    """Give what is written of a type."""
    base, elements = rows[0].seconds, matrix(record).size if operation == "encode" else 4096**2
    return {
        "operation": operation,
        "type": record.name,
        "elements": elements,
        "rows": [
            {
                "who": row.who,
                "seconds": row.seconds,
                "error": row.error,
                "to_copyto": row.seconds / base if row.seconds and base else None,
                "gelem_per_s": elements / row.seconds / 1e9 if row.seconds else None,
            }
            for row in rows
        ],
    }


def line(found: dict[str, Any]) -> list[str]:
    """Give a row of the table."""
    rows = {row["who"]: row for row in found["rows"]}

    def cell(who: str, what: str, places: int) -> str:
        value = rows.get(who, {}).get(what)
        return "-" if value is None else f"{value:.{places}f}"

    one, c = (
        rows.get(who, {}).get("seconds") for who in ("quantarray, 1 thread", "ggml C, 1 thread")
    )
    all_, python = (rows.get(who, {}).get("seconds") for who in ("quantarray", "gguf-py"))
    return [
        f"{found['operation']} {found['type']}",
        cell("quantarray", "to_copyto", 2),
        cell("quantarray, out=", "to_copyto", 2),
        cell("quantarray, 1 thread", "gelem_per_s", 3),
        cell("ggml C, 1 thread", "gelem_per_s", 4),
        f"{c / one:.1f}" if c and one else "-",
        f"{python / all_:.1f}" if python and all_ else "-",
    ]


HEADS = [
    "float32",
    "/ np.copyto",
    "out= / np.copyto",
    "Gelem/s, 1 thread",
    "ggml C's",
    "times as fast",
    "gguf-py / ours",
]


def main() -> None:
    """Run the benchmarks and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name has it: 'encode Q4_K'")
    parser.add_argument("--repeat", type=int, default=9, help="interleaved runs")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    np.seterr(all="ignore")  # random blocks have scales that are no numbers
    found = []
    for record in RECORDS.values():
        for operation, rows_of in (("encode", encoding), ("decode", decoding)):
            name = f"{operation} {record.name}"
            encodable = operation == "decode" or f"gguf:{record.name.lower()}" in qa.schemes()
            if arguments.only in name and encodable:
                rows = rows_of(record)
                interleave(rows, arguments.repeat, BUDGET)
                found.append(result(operation, record, rows))
                print(*line(found[-1]), sep="  ", flush=True)
    print()
    print(table([line(item) for item in found], HEADS))
    if arguments.json:
        written = machine.describe() | {"ggml": ggml_library.version(), "cases": found}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
