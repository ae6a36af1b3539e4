"""Tables of the figures that run.py writes.

python benchmarks/summary.py FILE.json [--markdown]
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import first_call
import memory

from quantarray.tables import table

Record = dict[str, Any]
SECTIONS = {
    "arrays": "float32 {size}x{size}",
    "products": "float32 {size}x{size}",
    "small": "float64 100x100",
}
# Our own rows beside the first, by the titles of their columns.
COLUMNS = {
    "torch": "quantarray, torch",
    "JAX": "quantarray, JAX",
    "jit": "jax.jit of quantarray",
    "generic": "quantarray, generic",
}


def find(case: Record, who: str) -> Record | None:
    """Give the row of a case that ran under this name."""
    return next((r for r in case["rows"] if r["who"] == who and r["seconds"] is not None), None)


def best_peer(case: Record) -> Record | None:
    """Give the fastest of those who do the same."""
    ran = [row for row in case["rows"] if row["kind"] == "peer" and row["seconds"] is not None]
    return min(ran, key=lambda row: row["seconds"], default=None)


def ratio(a: Record | None, b: Record | None) -> float | None:
    """Give how many times as long a row took as another."""
    return a["seconds"] / b["seconds"] if a and b and a["seconds"] and b["seconds"] else None


def number(value: float | None, digits: int = 2) -> str:
    """Print a number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def unit(case: Record) -> tuple[str, float]:
    """Give the unit that suits a case."""
    return ("us", 1e6) if case["section"] == "small" else ("ms", 1e3)


def rows_table(case: Record) -> str:
    """Lay out every row of a case."""
    base, best = case["rows"][0], best_peer(case)
    name, factor = unit(case)
    rows = []
    for row in case["rows"]:
        seconds = row["seconds"]
        note = row["error"] or ("near: " if row["kind"] == "near" else "") + row["note"]
        mine = ratio(row, best) if row["kind"] == "ours" else None
        time = number(seconds and factor * seconds)
        rows.append([row["who"], time, number(ratio(row, base)), number(mine), note])
    title = case["name"]
    if case["limit"] is not None:
        title += f": reads and writes {case['limit']:.2f} of the bytes of {base['who']}"
    header = ["", name, f"/ {base['who']}", "/ best peer", ""]
    return f"{title}\n{table(rows, header)}"


def section_rows(cases: list[Record]) -> tuple[list[list[str]], list[str]]:
    """Give a row for each case, and the titles; a column that nothing has is left out."""
    base = cases[0]["rows"][0]["who"]
    name, factor = unit(cases[0])
    columns: dict[str, Callable[[Record], str]] = {
        name: lambda case: number(_times(find(case, "quantarray"), factor)),
        f"/ {base}": lambda case: number(ratio(find(case, "quantarray"), case["rows"][0])),
        "limit": lambda case: number(case["limit"]),
        "/ best peer": lambda case: number(ratio(find(case, "quantarray"), best_peer(case))),
        "the best peer": lambda case: (best_peer(case) or {"who": "-"})["who"],
        "its ratio": lambda case: number(ratio(best_peer(case), case["rows"][0])),
    }
    for title, who in COLUMNS.items():
        columns[title] = lambda case, who=who: number(ratio(find(case, who), case["rows"][0]))
    cells = {title: [column(case) for case in cases] for title, column in columns.items()}
    kept = {title: column for title, column in cells.items() if set(column) != {"-"}}
    rows = [
        [case["name"], *(column[at] for column in kept.values())] for at, case in enumerate(cases)
    ]
    blank = ["-"] * (len(kept) - 2)
    return [[*line, *blank] for line in _bases(cases, factor)] + rows, ["", *kept]


def _bases(cases: list[Record], factor: float) -> list[list[str]]:
    """Give the rows that are in every case, where cases share their base: medians over them."""
    if cases[0]["section"] != "arrays":
        return []
    lines = []
    for who in ("np.copyto", "x.copy()"):
        found = [find(case, who) for case in cases]
        seconds = statistics.median(row["seconds"] for row in found if row)
        to_base = statistics.median(row["to_base"] for row in found if row)
        lines.append([who, number(factor * seconds), number(to_base)])
    return lines


def _times(row: Record | None, factor: float) -> float | None:
    return row["seconds"] * factor if row else None


def markdown_table(rows: list[list[str]], header: list[str]) -> str:
    """Lay rows out as a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(results: Record, markdown: bool = False) -> str:
    """Lay out a table for each section."""
    show = markdown_table if markdown else table
    size, texts = results["size"], [machine_line(results)]
    for section, title in SECTIONS.items():
        cases = [case for case in results["cases"] if case["section"] == section]
        if not cases:
            continue
        rows, header = section_rows(cases)
        header[0] = title.format(size=size)
        texts.append(show(rows, header))
    if results["first_call"]:
        text = first_call.report(results["first_call"], size)
        texts.append(_fenced(text) if markdown else text)
    if results["memory"]:
        text = memory.report(results["memory"], size)
        texts.append(_fenced(text) if markdown else text)
    return "\n\n".join(texts)


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def machine_line(results: Record) -> str:
    """Name the machine and what was compared."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"{results['cores']} cores of {results['processor']}; {versions}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="what run.py --json wrote")
    parser.add_argument("--markdown", action="store_true", help="print tables of Markdown")
    parser.add_argument("--rows", action="store_true", help="print every row of every case")
    arguments = parser.parse_args()
    results = json.loads(arguments.file.read_text())
    if arguments.rows:
        print("\n\n".join(map(rows_table, results["cases"])), end="\n\n")
    print(summary(results, arguments.markdown))


if __name__ == "__main__":
    main()
