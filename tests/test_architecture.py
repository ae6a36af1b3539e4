"""The rooms of the package: imports point to lower levels, and quirks of backends live in one."""

import ast
from pathlib import Path

import pytest

import quantarray
from quantarray import _xp

pytestmark = pytest.mark.backend_independent

# A room imports rooms of lower levels, and of its own level only those before it.
LEVELS = (
    ("errors", "tables", "codebooks", "lattices", "formats", "runs", "records"),
    ("schema", "choices", "scheme", "presets", "overrides", "_xp", "lattice_tables"),
    ("arguments", "arithmetic", "blocks", "sums", "counter", "codec"),
    ("parameters", "levels", "scales", "packing", "indexing", "parts", "task", "storage"),
    ("kernels", "gguf", "cast", "pipeline", "decoder", "translate", "repack", "native"),
    ("stored", "array", "zero_points", "quantize", "products", "metrics", "notebook"),
    ("io",),
    ("report", "cli"),
    ("__init__", "__main__"),
)
RANK = {room: rank for rank, room in enumerate(room for level in LEVELS for room in level)}
PACKAGE = Path(quantarray.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LIBRARIES = {"array_api_compat", "array_api_extra", *_xp.BACKENDS} - {"numpy"}


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports(tree):
    """Give the dotted names that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(tree):
    """Give the rooms that a module imports from; a name of the package itself is in __init__."""
    for name in imports(tree):
        first, _, rest = name.partition(".")
        if first == "quantarray":
            room = rest.split(".")[0]
            yield room if room in RANK else "__init__"


def upward(room, tree):
    """Give the rooms imported that are not below."""
    return [other for other in rooms_imported(tree) if RANK[other] > RANK[room]]


def strangers(name, tree):
    """Give the array libraries a module imports, or looks for in sys.modules, outside `_xp`."""
    if name.startswith(("_xp/", "kernels/")):
        return []
    return [library for library in imports(tree) if library.split(".")[0] in LIBRARIES]


def backends_named(name, tree):
    """Give the names of backends that a module compares with anything, outside `_xp`."""
    if name.startswith(("_xp/", "kernels/")):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [c for s in (node.left, *node.comparators) for c in ast.walk(s)]
            found += [
                c.value for c in sides if isinstance(c, ast.Constant) and c.value in _xp.BACKENDS
            ]
        if isinstance(node, ast.Attribute | ast.Name):
            word = node.attr if isinstance(node, ast.Attribute) else node.id
            if word.startswith("is_") and word.split("_")[1] in {*_xp.BACKENDS, "pydata", "ndonnx"}:
                found.append(word)
    return found


@pytest.fixture(params=FILES, ids=name_of)
def module(request):
    return request.param, ast.parse(request.param.read_text())


def test_every_room_has_a_level():
    assert {room_of(path) for path in FILES} <= set(RANK)


def test_imports_point_down(module):
    path, tree = module
    assert upward(room_of(path), tree) == []


def test_array_libraries_are_imported_in_one_room(module):
    path, tree = module
    assert strangers(name_of(path), tree) == []


# NumPy is not a quirk but the reference: its arrays alone are worked on in pieces.
PIECES = {"task.py": ["numpy"]}


def test_backends_are_told_apart_in_one_room(module):
    path, tree = module
    name = name_of(path)
    assert set(backends_named(name, tree)) <= set(PIECES.get(name, []))


def test_pure_rooms_import_no_array_library(module):
    path, tree = module
    if room_of(path) in ("errors", "formats", "tables", "scheme", "presets"):
        assert not [name for name in imports(tree) if name.startswith("numpy")]


def test_files_are_short(module):
    path, _ = module
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (lambda t: upward("codec", t), "from quantarray.pipeline import Task"),
        (lambda t: upward("blocks", t), "def f():\n    from quantarray import array"),
        (lambda t: upward("codec", t), "import quantarray.scales"),
        (lambda t: upward("array", t), "from quantarray import quantize"),
        (lambda t: upward("metrics", t), "from quantarray import QuantizedArray"),
        (lambda t: strangers("codec.py", t), "import array_api_compat.torch"),
        (lambda t: strangers("io/convert.py", t), "def f():\n    import torch"),
        (lambda t: backends_named("codec.py", t), "if _xp.backend(xp) == 'torch': pass"),
        (lambda t: backends_named("codec.py", t), "_xp.backend(xp) in ('jax', 'dask')"),
        (lambda t: backends_named("codec.py", t), "y = compat.is_torch_array(x)"),
    ],
)
def test_the_checks_can_fail(check, source):
    assert check(ast.parse(source)) != []


def test_the_checks_can_pass():
    tree = ast.parse(
        "import numpy as np\nfrom quantarray import _xp\nfrom quantarray.blocks import Blocks"
    )
    assert (
        upward("codec", tree)
        == strangers("codec.py", tree)
        == backends_named("codec.py", tree)
        == []
    )
