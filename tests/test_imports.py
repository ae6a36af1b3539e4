"""`import quantarray` is light, and its public names are the ones it documents."""

import inspect
import json
import subprocess
import sys

import pytest
from helpers import CPU

import quantarray as qa
from quantarray import _xp

pytestmark = pytest.mark.backend_independent

HEAVY = {
    "array_api_extra",
    "array_api_strict",
    "cupy",
    "dask",
    "jax",
    "matplotlib",
    "ml_dtypes",
    "numba",
    "pandas",
    "rich",
    "safetensors",
    "scipy",
    "torch",
}


def imported_by(program):
    """Run a program in a fresh interpreter, and give the top-level modules it imported."""
    report = "import json, sys; print(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{program}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light():
    assert HEAVY.isdisjoint(imported_by("import quantarray"))


def test_only_numpy_and_array_api_compat_are_imported():
    """Beyond the standard library; NumPy's own dependencies are its own."""
    new = imported_by("import quantarray") - imported_by("import numpy") - sys.stdlib_module_names
    assert new == {"quantarray", "array_api_compat"}


@pytest.mark.parametrize("name", ["array_api_strict", "dask", "ml_dtypes", "rich"])
def test_the_check_can_fail(name):
    pytest.importorskip(name)
    program = f"import quantarray, {name}"
    assert HEAVY & imported_by(program) >= {name}


def test_generic_work_on_numpy_arrays_stays_light():
    program = """
import os; os.environ["QUANTARRAY_KERNELS"] = "generic"
import numpy as np, quantarray as qa
x = np.linspace(-1, 1, 64)
for scheme in ("int8", "uint3"):
    q = qa.quantize(x, scheme, group_size=32)
    qa.error(x, q), repr(q), qa.fake_quantize(x, scheme, nonfinite="saturate")
print(qa.compare(x, ["int8", "int4"]))
"""
    assert HEAVY.isdisjoint(imported_by(program))


def test_looking_for_backends_imports_none():
    program = (
        "from quantarray import _xp; _xp.installed(); [_xp.version(n) for n in _xp.installed()]"
    )
    assert HEAVY.isdisjoint(imported_by(program))


@pytest.mark.parametrize("name", CPU)
def test_only_the_backend_that_is_loaded_is_imported(name):
    if name not in _xp.installed():
        pytest.skip(f"{name} is not installed")
    found = imported_by(f"from quantarray import _xp; _xp.load({name!r})")
    assert found & {"array_api_strict", "cupy", "dask", "jax", "torch"} == {name} - {"numpy"}


def test_all_is_sorted_and_complete():
    assert list(qa.__all__) == sorted(qa.__all__)
    public = {
        name
        for name, value in vars(qa).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(qa.__all__) == public


def test_contract_is_there():
    names = """
        QuantArrayError QuantizedArray Scheme compare decode dequantize encode error fake_quantize
        from_codes load quantize save scheme schemes calculate_mean_squared_error
        dequantize_from_int4 dequantize_from_int8 generate_random_matrix quantize_to_int4
        quantize_to_int8
    """
    assert set(names.split()) <= set(qa.__all__)


FUNCTIONS = [name for name in qa.__all__ if inspect.isfunction(getattr(qa, name))]
FUNCTIONS += ["gguf.encode", "gguf.decode", "gguf.parts"]
METHODS = [
    f"{owner}.{name}"
    for owner in ("QuantizedArray", "Scheme", "Comparison", "ErrorReport")
    for name, value in vars(getattr(qa, owner)).items()
    if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, classmethod))
]


def find(path):
    found = qa
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("name", qa.__all__)
def test_every_public_name_has_a_docstring(name):
    value = getattr(qa, name)
    summary = value.__doc__.strip().splitlines()[0]
    assert summary.endswith(".")
    assert not value.__doc__.startswith(f"{name}(")  # what dataclass writes where there is none


@pytest.mark.parametrize("name", FUNCTIONS + METHODS)
def test_docstring_names_every_parameter(name):
    """Sections of numpydoc, and each parameter by name; short methods may have one sentence."""
    function = find(name)
    text = inspect.getdoc(function)
    parameters = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.name not in ("self", "cls")
    ]
    if name in METHODS and "\n" not in text:
        return
    if parameters:
        section = text.split("Parameters\n----------\n")[1].split("\n\n")[0]
        entries = {
            word.strip(" *")
            for line in section.splitlines()
            if not line.startswith(" ")
            for word in line.split(" : ")[0].split(",")
        }
        assert set(parameters) == entries
    if inspect.signature(function).return_annotation not in (None, "None"):
        assert "Returns\n-------\n" in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_annotated(name):
    signature = inspect.signature(find(name))
    assert signature.return_annotation is not inspect.Signature.empty
    unannotated = [p for p in signature.parameters.values() if p.annotation is p.empty]
    assert unannotated == []
