"""A small model as a GGUF file and as safetensors, and commands run on it."""

import json

import numpy as np

import quantarray as qa
from quantarray import cli
from quantarray.io import gguf as container

RNG = np.random.default_rng(17)
X = RNG.standard_normal((4, 256), dtype=np.float32)
Y = (RNG.standard_normal((3, 2, 256)) * 100).astype(np.float16)
METADATA = {
    "general.architecture": "llama",
    "n": np.uint32(7),
    "few": np.arange(3, dtype=np.int8),
    "many": np.arange(99),
    "texts": ["a", "\udcff"],
    "odd\x1b": np.float32(np.inf),
}
TENSORS = {
    "blk.0.attn_q.weight": X,
    "blk.0.ffn_up_exps.weight": Y,
    "blk.0.ffn_down.weight": X[:, :96],
    "blk.0.attn_norm.weight": X[0],
    "ids": np.arange(6, dtype=np.int32),
}
Q, EXPERTS, DOWN, NORM, IDS = TENSORS
SUMS, EXPERT_SUMS = RNG.random(256, np.float32) * 50, RNG.random((3, 256), np.float32)


def save():
    """Write the model."""
    qa.save("model.gguf", TENSORS, METADATA)
    qa.save("model.safetensors", TENSORS, {"format": "pt"})


def ran(capsys, *arguments):
    """Run a command that must succeed; give what it prints."""
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def reported(capsys, *arguments):
    """Run a command and give its report."""
    out = ran(capsys, *arguments, "--json")
    assert out.isascii()

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(out, parse_constant=refuse)


def importances(path="imatrix", **changes):
    """Write an importance matrix for the model."""
    tensors = {
        f"{Q}.in_sum2": SUMS,
        f"{Q}.counts": np.float32([50]),
        f"{EXPERTS}.in_sum2": EXPERT_SUMS,
        f"{EXPERTS}.counts": np.float32([[2], [0], [4]]),
    } | changes
    specs = {name: container.Spec("F32", x.shape) for name, x in tensors.items()}
    container.write(path, {"general.type": "imatrix"}, specs, tensors.items())
    return path


def sqnr(x, back):
    """Signal over noise in decibels: float64, plain NumPy."""
    x, back = x.astype(np.float64), back.astype(np.float64)
    return 10 * np.log10(np.sum(x**2) / np.sum((x - back) ** 2))
