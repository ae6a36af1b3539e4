"""Layouts of other runtimes: what is written comes back, and nothing hostile is believed."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from layout_cases import CASES, CT, INT, MODULE, NAME, SHAPE, make, make_plain

import quantarray as qa
from quantarray import QuantArrayError, io
from quantarray.io.dtypes import DTYPES, Spec
from quantarray.io.layouts import LAYOUTS
from quantarray.scheme import Packing

pytestmark = pytest.mark.backend_independent
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def config_of(case, q):
    return {"dtype": case.dtype, "quantization_config": LAYOUTS[case.layout].config({NAME: q}, [])}


def specs_of(arrays):
    return {n: Spec(DTYPES[a.dtype.name], a.shape) for n, a in arrays.items()}


def bits(arrays):
    return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in arrays.items()}


@each_case
def test_what_is_stored_comes_back(case):
    q, layout = make(case), LAYOUTS[case.layout]
    arrays = layout.stored(NAME, q)
    assert layout.groups(specs_of(arrays)) == {NAME: tuple(arrays)}
    found = layout.restored(NAME, arrays, config_of(case, q))
    assert (found.shape, found.dtype) == (q.shape, q.dtype)
    assert found.dequantize().tobytes() == q.dequantize().tobytes()
    assert bits(layout.stored(NAME, found)) == bits(arrays)


@each_case
def test_every_missing_extra_and_wrong_part_is_refused(case):
    q, layout = make(case), LAYOUTS[case.layout]
    arrays, config = layout.stored(NAME, q), config_of(case, q)
    # Not all that other readers need.
    spare = {MODULE + "g_idx", MODULE + "weight_format", MODULE + "weight_zero_point"}

    def refused(changed):
        with pytest.raises(QuantArrayError, match=f"^tensor '{NAME}': {layout.name}: "):
            layout.restored(NAME, changed, config)

    for name, array in arrays.items():
        if name not in spare:
            refused({n: a for n, a in arrays.items() if n != name})
        refused({**arrays, name: array.reshape((*array.shape, 1, 1))})
        refused({**arrays, name: np.zeros(array.shape, np.float64)})
        refused({**arrays, name: np.concatenate([array.ravel()] * 3)})
        refused({**arrays, name: np.zeros((0,) * array.ndim, array.dtype)} if array.ndim else {})
    refused({**arrays, MODULE + "weight_g_idx": np.arange(3)})
    refused({**arrays, "elsewhere": np.arange(3)})
    refused({})


LAYERS = {
    (CT, "int4", "group_size=32"): {
        "weight_packed": ("int32", (64, 32)),
        "weight_scale": ("bfloat16", (64, 8)),
        "weight_shape": ("int64", (2,)),
    },
    (CT, "uint3", "group_size=32"): {
        "weight_packed": ("int32", (64, 24)),
        "weight_scale": ("bfloat16", (64, 8)),
        "weight_shape": ("int64", (2,)),
        "weight_zero_point": ("int32", (6, 8)),
    },
    (CT, "fp8_e4m3", "channel_axis=0"): {
        "weight": ("float8_e4m3fn", SHAPE),
        "weight_scale": ("bfloat16", (64, 1)),
    },
    (CT, "mxfp4", ""): {
        "weight_packed": ("uint8", (64, 128)),
        "weight_scale": ("uint8", (64, 8)),
    },
    (CT, "nvfp4", ""): {
        "weight_packed": ("uint8", (64, 128)),
        "weight_scale": ("float8_e4m3fn", (64, 16)),
        "weight_global_scale": ("float32", (1,)),
    },
    (INT, "uint8", "channel_axis=0"): {
        "weight": ("int8", SHAPE),
        "weight_scale": ("bfloat16", (64, 1)),
        "weight_zero_point": ("int8", (64, 1)),
    },
    ("bitsandbytes", "nf4_nested", "flat=64"): {
        "weight": ("uint8", (8192, 1)),
        "weight.absmax": ("uint8", (256,)),
        "weight.quant_map": ("float32", (16,)),
        "weight.nested_absmax": ("float32", (1,)),
        "weight.nested_quant_map": ("float32", (256,)),
        "weight.quant_state.bitsandbytes__nf4": ("uint8", None),
    },
    ("bitsandbytes", "int8", ""): {
        "weight": ("int8", SHAPE),
        "SCB": ("float32", (64,)),
        "weight_format": ("uint8", ()),
    },
    ("gptq", "int4", "group_size=64"): {
        "qweight": ("int32", (32, 64)),
        "qzeros": ("int32", (4, 8)),
        "scales": ("bfloat16", (4, 64)),
        "g_idx": ("int32", (256,)),
    },
    ("awq", "int4", "group_size=64"): {
        "qweight": ("int32", (256, 8)),
        "qzeros": ("int32", (4, 8)),
        "scales": ("bfloat16", (4, 64)),
    },
}


@pytest.mark.parametrize("key", LAYERS, ids=" ".join)
def test_names_dtypes_and_shapes(key):
    layout, scheme, options = key
    size = {k: int(v) for k, v in [options.split("=")]} if options else {}
    known = qa.scheme(LAYOUTS[layout].schemes[scheme], **size)
    if layout in ("gptq", "awq"):  # whose schemes have float16
        scale = LAYOUTS[CT].schemes["int4"].scale
        known = qa.scheme(known, scale=type(scale)("absmax", 7.5, width="input"), zero="midpoint")
    arrays = LAYOUTS[layout].stored(NAME, qa.quantize(make_plain(SHAPE, "bfloat16"), known))
    found = {n.removeprefix(MODULE): (a.dtype.name, a.shape) for n, a in arrays.items()}
    expected = dict(LAYERS[key])
    for name, (dtype, shape) in expected.items():
        expected[name] = (dtype, found[name][1] if shape is None else shape)
    assert found == expected


def test_the_state_of_bitsandbytes_is_its_json():
    q = qa.quantize(make_plain(SHAPE, "float16"), "bnb:nf4_nested")
    arrays = LAYOUTS["bitsandbytes"].stored(NAME, q)
    state = arrays[NAME + ".quant_state.bitsandbytes__nf4"].tobytes().decode()
    assert state == (
        '{"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [64, 256], '
        '"nested_blocksize": 256, "nested_dtype": "float32", '
        f'"nested_offset": {float(q.global_offset[0])}}}'
    )


def test_codes_of_8_bits_in_words():
    """Fused loops know that they are stored plus 128."""
    x = make_plain(SHAPE, "float32")
    plain = qa.quantize(x, qa.scheme("ct:int8", group_size=32))
    words = qa.quantize(x, qa.scheme(plain.scheme, packing=Packing(word=32, excess=True)))
    assert (words.codes == plain.codes).all()
    assert (words.dequantize() == plain.dequantize()).all()


def autogptq(qweight, qzeros, scales, g_idx, width, less):
    """Decode as AutoGPTQ's QuantLinear does: codes one after another, along the first axis."""
    words = {"w": qweight.view(np.uint32), "z": qzeros.view(np.uint32).T}
    codes = {}
    for key, array in words.items():
        fields = [(array >> np.uint32(i)) & 1 for i in range(32)]
        stream = np.stack(fields, 1).reshape(-1, array.shape[1])
        digits = stream.reshape(-1, width, array.shape[1]).astype(np.int64)
        codes[key] = (digits << np.arange(width)[:, None]).sum(1)
    zeros = codes["z"].T + less
    return scales[g_idx] * (codes["w"] - zeros[g_idx]).astype(scales.dtype)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.layout.startswith("gptq")], ids=lambda case: case.id
)
def test_gptq_is_decoded_as_autogptq_does(case):
    q = make(case)
    arrays = LAYOUTS[case.layout].stored(NAME, q)
    parts = {name.removeprefix(MODULE): array for name, array in arrays.items()}
    weight = autogptq(**parts, width=q.scheme.element.bits, less=case.layout == "gptq")
    found = LAYOUTS[case.layout].restored(NAME, arrays, {**config_of(case, q), "dtype": None})
    assert weight.dtype == found.dtype == parts["scales"].dtype
    assert weight.T.tobytes() == found.dequantize().tobytes()
    assert (q.dequantize(weight.dtype.name) == weight.T).all()


def autoawq(qweight, qzeros, scales):
    """Decode as AutoAWQ's `dequantize_gemm` does: unpack, undo the order, multiply."""
    order = np.asarray([0, 4, 1, 5, 2, 6, 3, 7])
    codes = []
    for words in (qweight, qzeros):
        shifts = np.arange(0, 32, 4, dtype=np.int32)
        nibbles = ((words[:, :, None] >> shifts) & 15)[:, :, order]
        codes.append(nibbles.reshape(words.shape[0], -1))
    group = qweight.shape[0] // scales.shape[0]
    scales, zeros = scales.repeat(group, 0), codes[1].repeat(group, 0)
    return (codes[0] - zeros).astype(scales.dtype) * scales


@pytest.mark.parametrize("case", [c for c in CASES if c.layout == "awq"], ids=lambda case: case.id)
def test_awq_is_decoded_as_autoawq_does(case):
    q = make(case)
    arrays = LAYOUTS["awq"].stored(NAME, q)
    weight = autoawq(**{name.removeprefix(MODULE): array for name, array in arrays.items()})
    assert (q.dequantize(weight.dtype.name) == weight.T).all()


def test_gptq_and_awq_hold_the_same_codes():
    """From one layout to another, nothing is quantized again."""
    q = make(next(c for c in CASES if c.id.startswith("gptq int4 float16")))
    others = {"gptq_v2": {}, "awq": {}, CT: {}}
    for name in others:
        layout = LAYOUTS[name]
        config = {"quantization_config": layout.config({NAME: q}, [])}
        found = layout.restored(NAME, layout.stored(NAME, q), config)
        assert found.dequantize().tobytes() == q.dequantize().tobytes()
    assert layout.config({NAME: q}, [])["config_groups"]["group_0"]["weights"]["symmetric"]


def sparse(codes, width):
    """Pack as compressed-tensors did until May 2026: no code straddles words."""
    per_word = 32 // width
    rows, columns = codes.shape
    words = np.zeros((rows, -(-columns // per_word)), np.uint32)
    for i in range(columns):
        field = (codes[:, i].astype(np.int64) + (1 << (width - 1))).astype(np.uint32)
        words[:, i // per_word] |= field << np.uint32(i % per_word * width)
    return words.view(np.int32)


@pytest.mark.parametrize("width", [3, 5, 6, 7])
def test_older_compressed_tensors_are_read(width):
    q = qa.quantize(
        make_plain(SHAPE, "float16"), qa.scheme(LAYOUTS[CT].schemes[f"uint{width}"], group_size=64)
    )
    config = {"quantization_config": LAYOUTS[CT].config({NAME: q}, [])}
    arrays = LAYOUTS[CT].stored(NAME, q)
    arrays[MODULE + "weight_packed"] = sparse(np.asarray(q.codes), width)
    zero = sparse(np.asarray(q.zero_point).T, width).T
    arrays[MODULE + "weight_zero_point"] = np.ascontiguousarray(zero)
    found = LAYOUTS[CT].restored(NAME, arrays, config)
    assert found.dequantize().tobytes() == q.dequantize().tobytes()


X = make_plain(SHAPE, "float16")


@pytest.mark.parametrize(
    ("layout", "q", "message"),
    [
        (CT, qa.quantize(X, "nf4"), "nf4 has nf4 .* it holds ct:int2, .* ct:fp8_e4m3, mxfp4"),
        (CT, qa.quantize(X, "ct:int4"), None),
        (CT, qa.quantize(X, "int4", group_size=32), "scales are none of float16; it holds ct:int2"),
        (CT, qa.quantize(X, "ct:int4", group_size=100), "pack-quantized holds channel, group"),
        (CT, qa.quantize(X, "int4"), "int4 .per tensor. .* pack-quantized holds channel, group"),
        (CT, qa.quantize(X, "mxfp4", group_size=16), "holds group scales"),
        (CT, qa.quantize(X[0], "ct:int4"), r"shape \(256,\), float16: expected a matrix"),
        (CT, qa.quantize(X.astype(np.float64), "int4"), "float64: expected a matrix"),
        (INT, qa.quantize(X, "ct:int4"), "ct:int4 has int4 .* it holds ct:int8"),
        ("bitsandbytes", qa.quantize(X, "int8", channel_axis=0), "int8; it holds bnb:nf4, bnb:fp4"),
        ("bitsandbytes", qa.quantize(X, "bnb:int8"), "bnb:int8; it holds"),
        ("bitsandbytes", qa.quantize(X, qa.scheme("bnb:nf4", flat=48)), "blocks of 48"),
        ("bitsandbytes", qa.quantize(X, "nf4", block=(2, 64)), "cannot be counted as flat 64"),
        ("gptq", qa.quantize(X, "int5", group_size=64), "expected integers of 2, 3, 4, 8 bits"),
        ("gptq", qa.quantize(X, "int4", block=(2, 64)), "expected groups along rows"),
        ("gptq", qa.quantize(X[:, :100], "gptq:int4"), "expected sizes of whole words of 32 bits"),
        ("gptq", qa.quantize(abs(X), "awq:int4"), "float16"),
        ("awq", qa.quantize(X, "gptq:int8"), "expected integers of 4 bits"),
        ("awq", qa.quantize(X, "awq:int4", group_size=100), "which they fill"),
    ],
)
def test_what_a_layout_does_not_hold(layout, q, message):
    if message is None:
        LAYOUTS[layout].stored(NAME, q)
        return
    with pytest.raises(QuantArrayError, match=message):
        LAYOUTS[layout].stored(NAME, q)


def test_gptq_has_no_zero_point_of_0():
    q = qa.quantize(abs(X), qa.scheme(LAYOUTS["gptq_v2"].schemes["uint4"], group_size=64))
    with pytest.raises(QuantArrayError, match="zero points are 0, which the first"):
        LAYOUTS["gptq"].stored(NAME, q)
    LAYOUTS["gptq_v2"].stored(NAME, q)


def test_only_weights_have_layouts():
    with pytest.raises(QuantArrayError, match="tensor 'a': awq: expected the weight of a module"):
        LAYOUTS["awq"].stored("a", qa.quantize(X, LAYOUTS["awq"].schemes["int4"]))


def test_one_configuration_for_all():
    four, eight = (qa.quantize(X, f"gptq:int{n}") for n in (4, 8))
    other = qa.quantize(X, "gptq:int4", group_size=64)
    row = qa.quantize(X[:, :64], "gptq:int4")
    gptq, bnb = LAYOUTS["gptq"], LAYOUTS["bitsandbytes"]
    with pytest.raises(QuantArrayError, match="expected one width for all weights"):
        gptq.config({"a.weight": four, "b.weight": eight}, [])
    with pytest.raises(QuantArrayError, match="expected one group size for all weights"):
        gptq.config({"a.weight": four, "b.weight": other}, [])
    found = gptq.config({"a.weight": four, "b.weight": row}, ["lm.head"])
    assert (found["bits"], found["group_size"], found["sym"]) == (4, 128, True)
    assert found["dynamic"] == {r"-:^lm\.head$": {}}
    both = {"a.weight": qa.quantize(X, "bnb:nf4"), "b.weight": qa.quantize(X, "bnb:fp4")}
    with pytest.raises(QuantArrayError, match="weights of fp4, nf4: expected one kind for all"):
        bnb.config(both, [])


def test_several_formats_in_one_configuration():
    schemes = LAYOUTS[CT].schemes
    tensors = {f"{n}.weight": qa.quantize(X, schemes[n]) for n in ("int4", "mxfp4", "int3")}
    tensors["again.weight"] = tensors["int4.weight"]
    found = LAYOUTS[CT].config(tensors, ["lm_head"])
    assert (found["format"], found["ignore"]) == ("mixed-precision", ["lm_head"])
    groups = {tuple(g["targets"]): g["format"] for g in found["config_groups"].values()}
    assert groups == {
        ("int4", "again"): "pack-quantized",
        ("mxfp4",): "mxfp4-pack-quantized",
        ("int3",): "pack-quantized",
    }


def hostile(case, **changed):
    """Give the arguments of `restored`, with some parts changed."""
    q = make(case)
    arrays = LAYOUTS[case.layout].stored(NAME, q)
    for part, change in changed.items():
        arrays[MODULE + part] = change(arrays[MODULE + part].copy())
    return LAYOUTS[case.layout], arrays, config_of(case, q)


def first(prefix):
    return next(case for case in CASES if case.id.startswith(prefix))


def put(value):
    def change(array):
        array.flat[-1] = value
        return array

    return change


def state(**changed):
    def change(array):
        found = {**json.loads(array.tobytes()), **changed}
        return np.frombuffer(json.dumps(found).encode(), np.uint8)

    return change


STATE = "weight.quant_state.bitsandbytes__nf4"
NF4, NESTED = first("bitsandbytes nf4 "), first("bitsandbytes nf4_nested")
INT4, GPTQ = first(f"{CT} int4 bfloat16 group"), first("gptq int4")


@pytest.mark.parametrize(
    ("case", "changed", "message"),
    [
        (INT4, {"weight_shape": put(-1)}, r"weight_shape \[64, -1\].*expected one of those"),
        (INT4, {"weight_shape": put(1 << 62)}, "expected one of those to fit"),
        (INT4, {"weight_scale": lambda a: a[:, :7]}, "holds channel, group scales"),
        (INT4, {"weight_packed": lambda a: a.view(np.float32)}, "no format has"),
        (NF4, {"weight.quant_map": put(0.5)}, "'weight.quant_map' holds other values than those"),
        (NF4, {STATE: lambda a: a[:-1]}, "its quant_state: "),
        (NF4, {STATE: lambda a: np.frombuffer(b"[" * 9000, np.uint8)}, "its quant_state: "),
        (NF4, {STATE: lambda a: np.zeros(1 << 20, np.uint8)}, "its quant_state is uint8"),
        (NF4, {STATE: state(shape=[1 << 40, 1 << 40])}, "shape="),
        (NF4, {STATE: state(shape=[1 << 20, 1 << 20])}, "'weight' is uint8"),
        (NF4, {STATE: state(shape="x")}, "shape="),
        (NF4, {STATE: state(shape=[64, 255])}, "'weight' is uint8.*8160, 1"),
        (NF4, {STATE: state(blocksize=True)}, "blocksize=True"),
        (NF4, {STATE: state(blocksize=0)}, "blocksize=0"),
        (NF4, {STATE: state(dtype="float64")}, "dtype='float64'"),
        (NF4, {STATE: state(quant_type="fp4")}, "quant_type='fp4'"),
        (NF4, {STATE: state(more=1)}, "holds .*'more'"),
        (NESTED, {STATE: state(nested_offset="x")}, "nested_offset='x'"),
        (NESTED, {STATE: state(nested_offset=1e300)}, "nested_offset=1e"),
        (NESTED, {STATE: state(nested_blocksize=3)}, "nested_blocksize=3"),
        (NESTED, {STATE: state(nested_dtype="float16")}, "nested_dtype='float16'"),
        (NESTED, {"weight.nested_quant_map": put(0.5)}, "holds other values"),
        (first("bitsandbytes int8"), {"weight_format": lambda a: a + np.uint8(1)}, "expected 0"),
        (GPTQ, {"g_idx": put(0)}, "desc_act"),
        (GPTQ, {"g_idx": lambda a: a[:-1]}, "expected 2, 3, 4, 8 bits in a code"),
    ],
)
def test_hostile_values(case, changed, message):
    layout, arrays, config = hostile(case, **changed)
    with pytest.raises(QuantArrayError, match=message):
        layout.restored(NAME, arrays, config)


@pytest.mark.parametrize(
    "wrong",
    [None, 3, [], {}, {"config_groups": 3}, {"config_groups": {"a": {"weights": {"num_bits": {}}}}}]
    + [{"bits": bits, "group_size": {}} for bits in (True, -4, 0, 1 << 70, "4")],
)
def test_hostile_configurations(wrong):
    for case in (INT4, GPTQ):
        layout, arrays, _ = hostile(case)
        arrays.pop(MODULE + "g_idx", None)
        with pytest.raises(QuantArrayError):
            layout.restored(NAME, arrays, {"quantization_config": wrong})


def tensors_of(layout):
    q = make(next(case for case in CASES if case.layout == layout))
    return {
        "embed.weight": X.astype(ml_dtypes.bfloat16),
        NAME: q,
        MODULE + "bias": np.arange(64, dtype=np.float16),
        "norm.weight": np.ones(256, np.float32),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_comes_back(layout, tmp_path):
    folder = tmp_path / "new"
    tensors = tensors_of(layout)
    model = {"model_type": "x", "limit": [0.0, float("inf")], "ünï": "cödé"}
    io.save_layout(folder, tensors, layout, model)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    found = io.load_layout(folder)
    assert found.layout.method == LAYOUTS[layout].method
    assert set(found) == set(tensors)
    assert len(found) == len(tensors)
    assert {k: found.config[k] for k in model} == model
    assert found.config["torch_dtype"] == tensors[NAME].dtype_name
    for name, expected in tensors.items():
        got = found[name]
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        pair = [a.dequantize() if name == NAME else a for a in (got, expected)]
        assert pair[0].tobytes() == pair[1].tobytes()
    with safetensors.safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata()["format"] == "pt"
        names = set(file.keys())
    stored = LAYOUTS[layout].stored(NAME, tensors[NAME])
    assert names == {*stored, *tensors.keys() - {NAME}}
    before = (folder / "model.safetensors").read_bytes()
    io.save_layout(folder, found, layout)  # over itself
    assert (folder / "model.safetensors").read_bytes() == before
    assert io.load_layout(folder).config == found.config


def test_the_layout_of_a_folder(tmp_path):
    for layout in ("gptq", "gptq_v2", CT):
        io.save_layout(tmp_path / layout, tensors_of(layout), layout)
        assert io.load_layout(tmp_path / layout).layout is LAYOUTS[layout]


def test_modules_that_are_not_quantized_are_listed(tmp_path):
    io.save_layout(tmp_path, tensors_of(CT), CT)
    found = io.load_layout(tmp_path).config["quantization_config"]
    assert found["ignore"] == ["embed"]
    assert found["config_groups"]["group_0"]["targets"] == [MODULE.removesuffix(".")]


@pytest.mark.parametrize(
    ("tensors", "layout", "config", "message"),
    [
        ({"a.weight": X}, CT, None, "no tensor is quantized"),
        ({NAME: qa.quantize(X, "ct:int4")}, "x", None, "layout='x': expected one of"),
        ({NAME: qa.quantize(X, "nf4")}, CT, None, f"tensor '{NAME}': {CT}: nf4"),
        ({NAME: qa.quantize(X, "ct:int4")}, CT, {"a": {1, 2}}, "config: not ready for JSON"),
        ({NAME: qa.quantize(X, "ct:int4"), "b": "x"}, CT, None, "tensor 'b' is 'x': expected an"),
        (
            {NAME: qa.quantize(X, "ct:int4"), MODULE + "weight_scale": X},
            CT,
            None,
            "two tensors would be stored as",
        ),
    ],
)
def test_nothing_is_left_of_a_folder_that_cannot_be_written(
    tensors, layout, config, message, tmp_path
):
    with pytest.raises(QuantArrayError, match=message):
        io.save_layout(tmp_path / "new", tensors, layout, config)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_folder(tmp_path, monkeypatch):
    io.save_layout(tmp_path, tensors_of(CT), CT)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real = io.files.call
    for nth in range(60):
        count = iter(range(1000))

        def failing(function, *args, count=count, nth=nth, **kwargs):
            if next(count) == nth and function in (os.write, os.fsync, os.lseek):
                raise OSError(28, "No space left on device")
            return real(function, *args, **kwargs)

        monkeypatch.setattr(io.files, "call", failing)
        try:
            io.save_layout(tmp_path, tensors_of(CT), CT)
        except OSError:
            after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
            assert after == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected an object"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "quant_method=None: expected one of awq, bitsandbytes"),
        ('{"quantization_config": 3}', "quantization_config: 3: expected an object"),
        ('{"quantization_config": {"quant_method": {}}}', r"quant_method=\{\}"),
    ],
)
def test_hostile_config_files(text, message, tmp_path):
    io.save_layout(tmp_path, tensors_of(CT), CT)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(QuantArrayError, match=message):
        io.load_layout(tmp_path)


def test_a_weight_that_is_plain_and_quantized(tmp_path):
    tensors = tensors_of("gptq")
    io.save_layout(tmp_path, tensors, "gptq")
    arrays = LAYOUTS["gptq"].stored(NAME, tensors[NAME])
    safetensors.numpy.save_file({**arrays, NAME: X}, tmp_path / "model.safetensors")
    with pytest.raises(QuantArrayError, match="it is stored both plain and quantized"):
        io.load_layout(tmp_path)


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantArrayError, match="not a folder"):
        io.save_layout(tmp_path / "file", tensors_of(CT), CT, {})
    with pytest.raises(QuantArrayError, match="its parent folder does not exist"):
        io.save_layout(tmp_path / "a" / "b", tensors_of(CT), CT)
    with pytest.raises(FileNotFoundError):
        io.load_layout(tmp_path)


def test_a_layout_holds_what_its_schemes_give():
    for layout in LAYOUTS.values():
        for name, scheme in layout.schemes.items():
            x = X * (np.arange(1, 65, dtype=np.float16) / 64)[:, None]
            q = qa.quantize(abs(x) + x / 2, scheme)
            assert layout.stored(NAME, q), name
