"""The command line: ``quantarray quantize | dequantize | inspect | compare | backends | demo``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantarray.errors import QuantArrayError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.progress import Progress

    from quantarray.io.plan import Plan
    from quantarray.report import Report

# Handlers import what they need, so that `quantarray --help` loads no array library.

EXAMPLES = """\
  quantarray quantize model.safetensors small.safetensors --scheme int4 --group-size 128
  quantarray quantize model.safetensors model.safetensors --scheme int8 --channel-axis 0
  quantarray quantize model.gguf small.gguf --scheme gguf:q4_k --map '*.ffn_down.*=gguf:q6_k'
  quantarray quantize model.gguf small.gguf --scheme gguf:q2_k --imatrix imatrix.gguf
  quantarray inspect small.safetensors
  quantarray dequantize small.safetensors plain.safetensors
  quantarray dequantize small.gguf plain.gguf
  quantarray compare model.gguf --schemes gguf:q4_k,gguf:q6_k,gguf:q8_0
  quantarray backends
  quantarray demo --backend torch
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        The exit code: 0 when done, 2 for bad input (after one line on standard error), 130 when
        interrupted.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a name the terminal cannot spell is no error
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough; nothing is left to tell it at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (QuantArrayError, OSError, MemoryError) as error:
        _complain(error)
        return 2
    return 0


def _complain(error: Exception) -> None:
    from quantarray.io.escape import escape

    message = str(error) or "out of memory"
    if isinstance(error, OSError) and error.strerror:
        message = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    print(f"quantarray: error: {escape(message, None)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quantarray",
        description="Quantize the tensors of safetensors and GGUF files, and say what it cost.",
        epilog="examples:\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        name = run.__name__.removeprefix("_")
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text.capitalize()}.",
            epilog="examples:\n"
            + "".join(line for line in EXAMPLES.splitlines(True) if f" {name}" in line),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    quantize = command(_quantize, "quantize floating tensors of two axes or more, copy the others")
    _files(quantize)
    _selection(quantize)
    quantize.add_argument("--scheme", default="int8", help="name of the scheme (default: int8)")
    block = quantize.add_mutually_exclusive_group()
    block.add_argument("--group-size", type=int, metavar="N", help="a scale per N of the last axis")
    block.add_argument("--channel-axis", type=int, metavar="AXIS", help="a scale per index of AXIS")
    quantize.add_argument(
        "--map",
        action="append",
        default=[],
        type=_mapped,
        metavar="GLOB=SCHEME",
        help="another scheme for tensors whose name matches; the first that does counts",
    )
    _files(command(_dequantize, "turn quantized tensors back into their original dtypes"))
    inspect = command(_inspect, "list the tensors of a file")
    inspect.add_argument("file", metavar="FILE")
    _json(inspect)
    compare = command(_compare, "say what schemes would cost on the tensors of a file")
    compare.add_argument("file", metavar="FILE", help="a safetensors or GGUF file")
    compare.add_argument(
        "--schemes", required=True, type=_names, metavar="A,B,...", help="names of schemes"
    )
    _selection(compare)
    _json(compare)
    command(_backends, "list the array libraries that can be used")
    demo = command(_demo, "quantize one random matrix on every backend and compare the results")
    demo.add_argument("--backend", metavar="NAME", help="only this one (default: all installed)")
    return parser


def _selection(parser: argparse.ArgumentParser) -> None:
    for name, what in (("include", "only"), ("exclude", "no")):
        parser.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="GLOB",
            help=f"quantize {what} tensors whose name matches; may be given again",
        )
    parser.add_argument(
        "--imatrix", metavar="FILE", help="importances for types of GGUF, from llama-imatrix"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _mapped(text: str) -> tuple[str, str]:
    glob, equals, name = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected GLOB=SCHEME")
    return glob, name


def _files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="a safetensors or GGUF file")
    parser.add_argument(
        "target", metavar="OUT", help="the file to write, GGUF if it ends in .gguf; it may be IN"
    )
    _json(parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _quantize(arguments: argparse.Namespace) -> None:
    from quantarray import report
    from quantarray.io.convert import quantize_file

    sizes = {"group_size": arguments.group_size, "channel_axis": arguments.channel_axis}
    given = {name: value for name, value in sizes.items() if value is not None}
    plan = _plan(arguments, arguments.scheme, arguments.map, **given)
    with _progress() as progress:
        conversion = quantize_file(arguments.source, arguments.target, plan, progress)
    _print(report.converted(conversion), report.converted_text, arguments.json)


def _plan(
    arguments: argparse.Namespace, scheme: str, mapped: Sequence[tuple[str, str]], **sizes: int
) -> Plan:
    from quantarray.io.imatrix import read_imatrix
    from quantarray.io.plan import Plan, target

    return Plan(
        target(scheme, **sizes),
        tuple(arguments.include),
        tuple(arguments.exclude),
        tuple((glob, target(name)) for glob, name in mapped),
        read_imatrix(arguments.imatrix) if arguments.imatrix else {},
    )


def _dequantize(arguments: argparse.Namespace) -> None:
    from quantarray import report
    from quantarray.io.convert import dequantize_file

    with _progress() as progress:
        conversion = dequantize_file(arguments.source, arguments.target, progress)
    _print(report.converted(conversion), report.converted_text, arguments.json)


def _inspect(arguments: argparse.Namespace) -> None:
    from quantarray import io, report

    _print(report.inspected(io.load(arguments.file)), report.inspected_text, arguments.json)


def _compare(arguments: argparse.Namespace) -> None:
    from quantarray import report
    from quantarray.io.compare import compare_file

    plans = [_plan(arguments, name, ()) for name in arguments.schemes]
    with _progress() as progress:
        costs = compare_file(arguments.file, plans, progress)
    _print(report.compared(costs), report.compared_text, arguments.json)


def _backends(arguments: argparse.Namespace) -> None:
    from quantarray import _xp
    from quantarray.tables import table

    installed = _xp.installed()
    rows = [
        [name, _xp.version(name), ", ".join(_xp.devices(name)) or "none", "generic"]
        if name in installed
        else [name, "not installed", "-", "-"]
        for name in _xp.BACKENDS
    ]
    print(table(rows, ["backend", "version", "devices", "kernels"]))


def _demo(arguments: argparse.Namespace) -> None:
    import numpy as np

    from quantarray import _xp, notebook
    from quantarray.tables import table

    usable = [name for name in _xp.installed() if _xp.devices(name)]
    names = usable if arguments.backend is None else [arguments.backend]
    np.random.seed(42)  # noqa: NPY002  the notebook's matrix comes from the global generator
    matrix = notebook.generate_random_matrix(100, 100)
    reference = _demo_run("numpy", matrix)
    runs = {name: _demo_run(name, matrix) for name in names}
    print("A 100×100 matrix of float64, uniform in -1..1 (seed 42), to int8 and int4 and back.")
    for bits in reference:
        print()
        rows = [
            [name, repr(error), _ends(codes), _ends(reference[bits][0])]
            for name, run in runs.items()
            for codes, error in [run[bits]]
        ]
        print(table(rows, ["backend", f"{bits} MSE", "codes, first row", "by NumPy"]))
    print()
    for name, run in runs.items():
        same = all(np.array_equal(run[bits][0], reference[bits][0]) for bits in reference)
        label = f"{name} {_xp.version(name)}"
        print(f"{label}: codes bit-identical to NumPy: {'yes' if same else 'NO'}")


def _demo_run(name: str, matrix: NDArray[Any]) -> dict[str, tuple[NDArray[Any], float]]:
    """Run the notebook on one backend: by format, the codes and the mean squared error."""
    from quantarray import _xp, notebook

    steps = {
        "int8": (notebook.quantize_to_int8, notebook.dequantize_from_int8),
        "int4": (notebook.quantize_to_int4, notebook.dequantize_from_int4),
    }
    results = {}
    xp = _xp.load(name)
    if not _xp.devices(name):
        raise QuantArrayError(f"backend: {name} finds no device to compute on")
    with _xp.float64_context(name):
        x = _xp.from_numpy(matrix, xp)
        for bits, (quantize, dequantize) in steps.items():
            codes, scale = quantize(x)
            error = notebook.calculate_mean_squared_error(x, dequantize(codes, scale))
            results[bits] = _xp.to_numpy(codes), float(error)
    return results


def _ends(codes: NDArray[Any]) -> str:
    row = [str(code) for code in codes[0]]
    return " ".join([*row[:3], "...", *row[-3:]])


def _print(report: Report, text: Callable[[Report], str], as_json: bool) -> None:
    from quantarray.report import as_json as dump

    print(dump(report) if as_json else text(report))


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Give what shows how much is done, on a bar where there is a terminal and rich."""
    bar = _bar() if sys.stderr.isatty() else None
    if bar is None:
        yield lambda done, total: None
        return
    with bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bar() -> Progress | None:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return None
    return Progress(console=Console(stderr=True), transient=True)
