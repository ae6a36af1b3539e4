"""The layouts against their owners: what they write we read, and what we write they decode alike.

bitsandbytes and compressed-tensors are run; AutoGPTQ and AutoAWQ run on no CPU, and their formulas
are written out.
"""

import json
import os
import warnings

import numpy as np
import pytest

if not os.environ.get("QUANTARRAY_ORACLES"):
    pytest.skip("owners' packages: run by `nox -s oracles`", allow_module_level=True)

from layout_cases import CASES, make, make_plain
from owner_packages import _array, _eager, _tensor

import quantarray as qa
from quantarray import io
from quantarray.io.layouts import LAYOUTS

pytestmark = pytest.mark.backend_independent
NAME = "model.layers.0.q_proj.weight"
MODULE = NAME.removesuffix("weight")


def cases(*layouts):
    return pytest.mark.parametrize(
        "case", [c for c in CASES if c.layout in layouts], ids=lambda c: c.id
    )


def local(arrays):
    """Give the tensors of a layer as torch's state dictionary has them."""
    return {name.removeprefix(MODULE): _tensor8(array) for name, array in arrays.items()}


def _tensor8(array):
    """Give an array as a tensor, of float8 too."""
    import torch

    if array.dtype.name == "float8_e4m3fn":
        return torch.from_numpy(array.view(np.uint8).copy()).view(torch.float8_e4m3fn)
    return _tensor(array)


def _array8(tensor, like):
    """Give a tensor as an array of the dtype of another."""
    found = _array(tensor)
    return found.view(like.dtype) if like.dtype.name == "float8_e4m3fn" else found


def equal(theirs, ours):
    """Compare dtypes, shapes and bits."""
    assert theirs.keys() == ours.keys()
    for name, array in ours.items():
        found = _array8(theirs[name], array)
        assert (name, found.dtype, found.shape) == (name, array.dtype, array.shape)
        assert (name, found.tobytes()) == (name, array.tobytes())


def both(case):
    q = make(case)
    layout = LAYOUTS[case.layout]
    return q, layout, layout.stored(NAME, q)


@cases("bitsandbytes")
def test_bitsandbytes_decodes_what_we_write(case):
    import torch
    from bitsandbytes import functional

    q, _, arrays = both(case)
    tensors = local(arrays)
    if "SCB" in tensors:
        found = functional.int8_vectorwise_dequant(tensors["weight"], tensors["SCB"])
        assert _array(found).tobytes() == q.dequantize("float32").tobytes()
        return
    data = tensors.pop("weight")
    state = functional.QuantState.from_dict(tensors, torch.device("cpu"))
    with _eager():
        found = functional.dequantize_4bit(data, state)
    assert _array(found).dtype == q.dtype
    assert _array(found).tobytes() == q.dequantize().tobytes()


@pytest.mark.parametrize("shape", [(64, 256), (3, 33)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_we_read_what_bitsandbytes_writes(kind, nested, dtype, shape):
    from bitsandbytes import functional

    x = make_plain(shape, dtype)
    data, state = functional.quantize_4bit(_tensor(x), quant_type=kind, compress_statistics=nested)
    packed = {"weight": data}
    packed |= {f"weight.{name}": t for name, t in state.as_dict(packed=True).items()}
    theirs = {MODULE + name: _array(tensor) for name, tensor in packed.items()}
    layout = LAYOUTS["bitsandbytes"]
    q = layout.restored(NAME, theirs, {})
    with _eager():
        decoded = functional.dequantize_4bit(data, state)
    assert q.dequantize().tobytes() == _array(decoded).tobytes()
    assert q.dtype_name == dtype
    equal(packed, {n.removeprefix(MODULE): a for n, a in layout.stored(NAME, q).items()})


def test_bitsandbytes_rows_are_those_of_its_module():
    from bitsandbytes import functional

    x = make_plain((32, 64), "float16")
    codes, absmax, _ = functional.int8_vectorwise_quant(_tensor(x))
    arrays = LAYOUTS["bitsandbytes"].stored(NAME, qa.quantize(x, "bnb:int8_rows"))
    assert (arrays[NAME] == _array(codes)).all()
    assert arrays[MODULE + "SCB"].tobytes() == _array(absmax).tobytes()


@cases("bitsandbytes")
def test_transformers_takes_the_configuration_of_bitsandbytes(case):
    from transformers import BitsAndBytesConfig

    q = make(case)
    config = LAYOUTS["bitsandbytes"].config({NAME: q}, ["lm_head"])
    assert BitsAndBytesConfig.from_dict(json.loads(json.dumps(config))).to_dict() == config


def scheme_of(config):
    """Give the owner's scheme, format and configuration."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    found = QuantizationConfig.model_validate(json.loads(json.dumps(config)))
    (scheme,) = found.config_groups.values()
    return scheme, BaseCompressor.get_value_from_registry(found.format), found


CT = ("compressed-tensors", "compressed-tensors:int-quantized")


@cases(*CT)
def test_compressed_tensors_decodes_what_we_write(case):
    q, layout, arrays = both(case)
    scheme, owner, _ = scheme_of(layout.config({NAME: q}, []))
    found = _array(owner.decompress(local(arrays), scheme)["weight"])
    assert found.tobytes() == q.dequantize(found.dtype.name).tobytes()


@cases(*CT)
def test_compressed_tensors_writes_what_we_write(case):
    """Its compressor quantizes what we decode, with our scales, to the same tensors."""
    import torch

    q, layout, arrays = both(case)
    scheme, owner, _ = scheme_of(layout.config({NAME: q}, []))
    tensors = local(arrays)
    wide = {"weight_scale": tensors["weight_scale"].to(torch.float32)}
    # With scales of 8 bits the owner decodes to bfloat16, which holds its values.
    state = owner.decompress(tensors | ({} if "fp4" in scheme.format else wide), scheme)
    state = {k: v.data if isinstance(v, torch.nn.Parameter) else v for k, v in state.items()}
    state.pop("weight_shape", None)
    if "fp4" in scheme.format:
        state["weight"] = _tensor(q.dequantize("float32"))
    else:
        state["weight_scale"] = tensors["weight_scale"]
    ours = {n.removeprefix(MODULE): a for n, a in arrays.items()}
    equal(owner.compress(state, scheme), ours)


@cases(*CT)
def test_compressed_tensors_infers_the_format(case):
    """What it writes for such a scheme by itself is the same format, or one with the same parts."""
    import torch
    from compressed_tensors.compressors.format import infer_module_format

    scheme, _, config = scheme_of(LAYOUTS[case.layout].config({NAME: make(case)}, ["lm_head"]))
    found = infer_module_format(torch.nn.Linear, scheme).value
    assert found == {"float-quantized": "naive-quantized"}.get(scheme.format, scheme.format)
    assert config.ignore == ["lm_head"]


@cases(*CT)
def test_transformers_takes_the_configuration_of_compressed_tensors(case):
    from transformers import CompressedTensorsConfig

    config = LAYOUTS[case.layout].config({NAME: make(case)}, ["lm_head"])
    found = CompressedTensorsConfig.from_dict(json.loads(json.dumps(config))).to_dict()
    for key in ("config_groups", "format", "ignore", "quant_method", "quantization_status"):
        theirs = json.loads(json.dumps(found[key]))
        assert _without_none(theirs) == _without_none(config[key])


def _without_none(value):
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_fp8_is_that_of_compressed_tensors(dtype):
    import torch
    from compressed_tensors.quantization import QuantizationArgs, utils
    from compressed_tensors.quantization.lifecycle import forward

    x = make_plain((32, 128), dtype)
    x[3] = 0
    args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="channel")
    t = _tensor(x)
    low, high = t.amin(-1, keepdim=True), t.amax(-1, keepdim=True)
    scale, zero = utils.calculate_qparams(low, high, args)
    codes = forward.quantize(t, scale, zero, args, dtype=torch.float8_e4m3fn)
    scheme = qa.scheme(LAYOUTS[CT[0]].schemes["fp8_e4m3"], channel_axis=0)
    arrays = LAYOUTS[CT[0]].stored(NAME, qa.quantize(x, scheme))
    equal(
        {"weight": codes, "weight_scale": scale},
        {n.removeprefix(MODULE): a for n, a in arrays.items()},
    )


@pytest.fixture(scope="module")
def bert():
    """Give a small model of random weights in bfloat16, and the names of its linear layers'."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 100}
    config = BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)
    model = BertModel(config).to(torch.bfloat16).eval()
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    return model, {f"{name}.weight" for name in linear}


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("int3", {"group_size": 32}),
        ("int4", {"group_size": 32}),
        ("int8", {"channel_axis": 0}),
        ("fp8_e4m3", {"channel_axis": 0}),
        ("fp8_e4m3", {"block": (32, 32)}),
        ("mxfp4", {}),
        ("nvfp4", {}),
    ],
)
def test_transformers_runs_a_folder_of_compressed_tensors(scheme, options, bert, tmp_path):
    """A model that it loads gives the same bits as one with the weights that we decode.

    Not with zero points: compressed-tensors 0.20 prepares modules for some that are not packed,
    against its own writer.
    """
    import torch
    from transformers import AutoModel, BertModel

    model, linear = bert
    known = qa.scheme(LAYOUTS[CT[0]].schemes[scheme], **options)
    tensors = {}
    for name, tensor in model.state_dict().items():
        x = _array(tensor)
        tensors[name] = qa.quantize(x, known) if name in linear else x
    config = json.loads(model.config.to_json_string(use_diff=False))
    io.save_layout(tmp_path, tensors, CT[0], {**config, "architectures": ["BertModel"]})
    ours = BertModel(model.config).to(torch.bfloat16).eval()
    decoded = {n: v.dequantize() if n in linear else v for n, v in io.load_layout(tmp_path).items()}
    ours.load_state_dict({name: _tensor(np.asarray(array)) for name, array in decoded.items()})
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        ids = torch.arange(20)[None]
        found, expected = (m(ids).last_hidden_state for m in (theirs, ours))
    assert torch.equal(found, expected)
