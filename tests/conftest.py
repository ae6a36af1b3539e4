"""Fixtures: `xp` is each array library of the session; the names of others are in helpers.py."""

import pytest
from helpers import BACKENDS, DTYPES, SESSION, lacks

from quantarray import QuantArrayError, _xp


def pytest_configure(config):
    """Load the backends, so that a session without its backend fails before any test."""
    for name in BACKENDS:
        try:
            xp = _xp.load(name)
        except QuantArrayError as missing:
            raise pytest.UsageError(f"QUANTARRAY_BACKEND: {missing}") from None
        if name == "array_api_strict":  # its default version of the standard is the latest
            xp.set_array_api_strict_flags(
                boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
            )


def pytest_report_header(config):
    """Say what is tested."""
    versions = ", ".join(f"{name} {_xp.version(name)}" for name in BACKENDS)
    return f"backends: {versions} ({'the session' if SESSION else 'all that are installed'})"


def pytest_generate_tests(metafunc):
    """Parametrize `xp`, and `float_dtype` by what each backend has."""
    if "float_dtype" in metafunc.fixturenames:
        cases = [(name, dtype, lacks(name, dtype)) for name in BACKENDS for dtype in DTYPES]
        skip = pytest.mark.skip
        params = [
            pytest.param(
                name, dtype, id=f"{name}-{dtype}", marks=[skip(reason=reason)] if reason else []
            )
            for name, dtype, reason in cases
        ]
        metafunc.parametrize(("xp", "float_dtype"), params, indirect=["xp"])
    elif "xp" in metafunc.fixturenames:
        metafunc.parametrize("xp", BACKENDS, indirect=True)


@pytest.fixture(scope="session")
def xp(request):
    """Give the array-API namespace of a backend."""
    return _xp.load(request.param)
