"""Time quantarray against what bounds it and against its peers, side by side in one process.

    python benchmarks/run.py [--size 4096] [--repeat 15] [--only SUBSTRING] [--threads N]
                             [--generic] [--markdown] [--json FILE]

A case is one operation: its base (`np.copyto` of the same float32 matrix, the float32 product, or
the lines of the notebook that quantarray grew from), quantarray in each array library, and every
installed package that does the same. All rows of a case are measured in turn, again and again, and
the medians are compared, so that a slow moment of the machine meets all of them.

A peer marked "near" does another or less work, and never counts as the best. A peer that fails is
printed with its error. At the end: a table of all cases, the first call in a fresh process, and the
peak memory of each operation.
"""

import argparse
import itertools
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import first_call
import machine
import memory
import products
import summary
from timing import interleave

# A row is left out of further rounds when it has used so many seconds.
BUDGET = 4.0


def record(case: cases.Case) -> summary.Record:
    """Give what is written of a case."""
    rows = [
        {key: getattr(row, key) for key in ("who", "kind", "note", "error", "seconds")}
        | {"runs": len(row.runs)}
        for row in case.rows
    ]
    result = {"section": case.section, "name": case.name, "limit": case.limit, "rows": rows}
    best, base = summary.best_peer(result), rows[0]
    for row in rows:
        row["to_base"] = summary.ratio(row, base)
        row["to_best_peer"] = summary.ratio(row, best)
    return result


def measure(arguments: argparse.Namespace) -> Iterator[summary.Record]:
    """Measure case after case, and print each."""
    size, only, with_generic = arguments.size, arguments.only, arguments.generic
    found = itertools.chain(
        cases.whole_arrays(size, only, with_generic),
        products.products(size, only, with_generic),
        cases.small_arrays(only),
    )
    for case in found:
        interleave(case.rows, arguments.repeat, BUDGET)
        result = record(case)
        print(summary.rows_table(result), end="\n\n", flush=True)
        yield result


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    parser.add_argument("--repeat", type=int, default=15, help="interleaved runs")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="cases whose name has it")
    parser.add_argument("--threads", type=int, help="cores for all; each library's own by default")
    parser.add_argument("--generic", action="store_true", help="our code without kernels too")
    parser.add_argument("--markdown", action="store_true", help="the last tables as Markdown")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    if arguments.size % 128:
        parser.error(f"--size {arguments.size}: peers take multiples of 128")
    return arguments


def main() -> None:
    """Run the benchmarks and print their tables."""
    arguments = parse()
    if arguments.threads:
        machine.limit_threads(arguments.threads)
    warnings.simplefilter("ignore")  # peers use what their dependencies deprecate
    logging.disable(logging.WARNING)
    results: dict[str, Any] = machine.describe()
    results |= {"size": arguments.size, "repeat": arguments.repeat, "threads": arguments.threads}
    results |= {"cases": [], "first_call": [], "memory": []}
    try:
        for case in measure(arguments):
            results["cases"].append(case)
        results["first_call"] = first_call.measure_all(arguments.size, arguments.only)
        results["memory"] = memory.measure_all(arguments.size, arguments.only)
    finally:  # what was measured is not lost with what was not
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if not any(results[part] for part in ("cases", "first_call", "memory")):
        raise SystemExit(f"--only {arguments.only!r}: no name has it")
    print(summary.summary(results, arguments.markdown))


if __name__ == "__main__":
    main()
