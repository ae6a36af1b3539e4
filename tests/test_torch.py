"""PyTorch: compiled, differentiable, unusual tensors give the bits of NumPy, or a clear error."""

import functools

import ml_dtypes
import numpy as np
import pytest
from corpus import corpus, poisoned
from helpers import assert_same, assert_same_quantized, session_of, to_backend

import quantarray as qa

xp = session_of("torch")
import torch  # noqa: E402

FEW = ("int8", "int3", "uint4", "fp8_e4m3", "mxfp4", "nf4")
X = to_backend(corpus(), xp)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forget compiled functions: they share one limit of recompilations."""
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("scheme", "options"), [("int8", {"channel_axis": 0}), ("uint4", {"group_size": 20})]
)
def test_compile_in_one_graph(scheme, options):
    quantize = functools.partial(qa.quantize, scheme=scheme, **options)
    q = torch.compile(quantize, fullgraph=True)(X)
    reference = quantize(corpus())
    assert_same_quantized(q, reference, xp, dtypes=["float32"])
    assert_same(torch.compile(qa.dequantize, fullgraph=True)(q), reference.dequantize(), xp)


def test_compile_both_ways_at_once():
    fake = torch.compile(lambda x: qa.fake_quantize(x, "int3", group_size=32), fullgraph=True)
    assert_same(fake(X), qa.fake_quantize(corpus(), "int3", group_size=32), xp)


def test_blocks_of_ggml_compile_in_one_graph():
    """Encoders without a search; those with one compile too, in a minute or two."""
    x = corpus().reshape(-1)[: 32 * 24].reshape(4, -1)
    quantize = functools.partial(qa.quantize, scheme="gguf:q4_0")
    q = torch.compile(quantize, fullgraph=True)(to_backend(x, xp))
    reference = quantize(x)
    assert_same(q.data, reference.data, xp)
    assert_same(torch.compile(qa.dequantize, fullgraph=True)(q), reference.dequantize(), xp)


@pytest.mark.parametrize("scheme", FEW)
def test_traced_graph(scheme):
    """Nothing of the pipeline looks at values; the eager backend compiles nothing."""
    quantize = functools.partial(qa.quantize, scheme=scheme, group_size=20)
    q = torch.compile(quantize, fullgraph=True, backend="eager")(X)
    assert_same_quantized(q, quantize(corpus()), xp, dtypes=["float32"])


def test_compiled_code_cannot_raise():
    """Values cannot be looked at while they are traced: "raise" does as "propagate"."""
    quantize = torch.compile(lambda x: qa.quantize(x, "int8", group_size=32), backend="eager")
    reference = qa.quantize(poisoned(), "int8", group_size=32, nonfinite="propagate")
    assert_same_quantized(quantize(to_backend(poisoned(), xp)), reference, xp, dtypes=["float32"])


def test_stochastic_rounding_is_not_compiled():
    scheme = qa.scheme("int8", rounding="stochastic")

    def quantize(x):
        return qa.quantize(x, scheme, key=1)

    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"torch\.compile cannot compile it"):
        torch.compile(quantize, backend="eager", fullgraph=True)(X)


@pytest.mark.parametrize("scheme", FEW)
def test_input_that_requires_gradients(scheme):
    x = X.clone().requires_grad_()
    q = qa.quantize(x, scheme, group_size=20)
    assert_same_quantized(q, qa.quantize(corpus(), scheme, group_size=20), xp, dtypes=["float32"])
    assert x.grad is None
    assert x.requires_grad
    assert torch.equal(x, X)
    assert not any(part.requires_grad for part in q.parts().values())
    assert not qa.fake_quantize(x, scheme, group_size=20).requires_grad


def test_inference_mode():
    with torch.inference_mode():
        q = qa.quantize(X, "uint4", group_size=20)
        reference = qa.quantize(corpus(), "uint4", group_size=20)
        assert_same_quantized(q, reference, xp, dtypes=["float32"])


def test_every_bit_of_bfloat16():
    """All finite bfloat16 values but subnormals, in and out."""
    x = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    x = x[np.isfinite(x.astype(np.float32))].reshape(-1, 255)
    assert_same(to_backend(x, xp), x, xp)
    q = qa.quantize(to_backend(x, xp), "int8", group_size=17)
    assert q.dtype is torch.bfloat16
    assert_same_quantized(q, qa.quantize(x, "int8", group_size=17), xp)


@pytest.mark.parametrize(
    "lay_out",
    [
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.stack([x, x], dim=-1)[..., 1],
        lambda x: x[0].expand(4, 8, 96),
        lambda x: x[:, 1:, 3:50],
        lambda x: x[None].contiguous(memory_format=torch.channels_last),
        torch.nn.Parameter,
    ],
    ids=["transposed", "strided", "expanded", "sliced", "channels last", "parameter"],
)
def test_layouts(lay_out):
    x = lay_out(X)
    for scheme in FEW:
        q = qa.quantize(x, scheme, group_size=20)
        reference = qa.quantize(x.detach().numpy(), scheme, group_size=20)
        assert_same_quantized(q, reference, xp, dtypes=["float32"])


def test_meta_tensors_give_shapes():
    q = qa.quantize(X.to("meta"), "uint4", group_size=20)
    reference = qa.quantize(corpus(), "uint4", group_size=20)
    assert q.device.type == "meta"
    assert {name: tuple(part.shape) for name, part in q.parts().items()} == {
        name: part.shape for name, part in reference.parts().items()
    }
    assert (q.dequantize().shape, q.dequantize().dtype) == (X.shape, X.dtype)
    assert q.nbytes == reference.nbytes


def test_functional_transforms():
    q = torch.func.vmap(lambda x: qa.quantize(x, "int8", group_size=20).codes)(X)
    assert_same(q, qa.quantize(corpus(), "int8", group_size=20).codes, xp)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (X[0].to_sparse, "layout torch.sparse_coo: expected a dense tensor"),
        (X[0].to_sparse_csr, "layout torch.sparse_csr: expected a dense tensor"),
        (lambda: X[0].to(torch.float8_e4m3fn), "x has dtype float8_e4m3fn: expected float16"),
        (lambda: torch.quantize_per_tensor(X[0], 0.1, 0, torch.qint8), "x has dtype qint8"),
        (lambda: X[0].to(torch.complex64), "x has dtype complex64"),
        (lambda: X[0] > 0, "x has dtype bool"),
    ],
    ids=["sparse", "csr", "float8", "quantized", "complex", "bool"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*")
def test_other_tensors_are_refused(make, message):
    with pytest.raises(qa.QuantArrayError, match=message):
        qa.quantize(make(), "int8")


def test_to_device():
    q = qa.quantize(X, "uint4", group_size=20).to_device("meta")
    assert {part.device.type for part in q.parts().values()} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing ran on a GPU")
@pytest.mark.parametrize("scheme", FEW)
def test_cuda(scheme):
    q = qa.quantize(X.cuda(), scheme, group_size=20)
    reference = qa.quantize(corpus(), scheme, group_size=20)
    assert_same_quantized(q, reference, xp, device=torch.device("cuda", 0), dtypes=["float32"])


def test_one_compiled_function_takes_scheme_after_scheme():
    """The fields of a second scheme must not become symbols that the kernel computes with."""
    decode = torch.compile(qa.dequantize, fullgraph=True)
    x = np.random.default_rng(8).standard_normal((5, 64)).astype(np.float32)
    for name in ("fp8_e4m3", "mxfp4", "nf4", "uint4"):
        reference = qa.quantize(x, name)
        q = qa.quantize(torch.from_numpy(x.copy()), name)
        assert_same(decode(q), reference.dequantize(), xp)
