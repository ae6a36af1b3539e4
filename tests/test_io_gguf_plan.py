"""Which tensors of a model become which type of ggml: the rules of llama.cpp, and those given."""

import os

import ml_dtypes
import numpy as np
import pytest
from helpers import bits

import quantarray as qa
from quantarray import QuantArrayError, gguf, io
from quantarray.gguf.encoders import ENCODERS
from quantarray.io.convert import quantize_file
from quantarray.io.plan import Plan, target
from quantarray.records import RECORDS

pytestmark = pytest.mark.backend_independent

RNG = np.random.default_rng(11)
X = RNG.standard_normal((4, 256), dtype=np.float32)
ROWS = X[:2, :32]
# Types that need importances, and those that do without.
NEEDY = [name for name, (plain, _) in ENCODERS.items() if plain is None]
FREE = [name for name in ENCODERS if name not in NEEDY]


@pytest.fixture
def converted(tmp_path):
    """Quantize tensors from one GGUF file to another; give the types of the result, and itself."""

    def convert(tensors, scheme, metadata=None, **choices):
        qa.save(tmp_path / "in.gguf", tensors, metadata)
        schemes = tuple((glob, target(name)) for glob, name in choices.pop("schemes", ()))
        plan = Plan(target(scheme), schemes=schemes, **choices)
        quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", plan)
        found = qa.load(tmp_path / "out.gguf")
        assert list(found) == list(tensors)
        return {name: spec.dtype for name, spec in found.container.specs.items()}, found

    return convert


def encoded(x, name, importance=None):
    """What a file holds of a tensor."""
    return gguf.encode(np.asarray(x), name, importance).tobytes()


# `tensor_allows_quantization` of llama.cpp.

QUANTIZED = [
    "token_embd.weight",
    "per_layer_token_embd.weight",
    "output.weight",
    "blk.0.attn_q.weight",
    "blk.0.attn_norm_weight",
    "blk.0.ffn_down.weight",
    "blk.0.ffn_gate.weight",
    "blk.0.ffn_gate_exps.weight",
    "blk.0.ffn_up_shexp.weight",
    "blk.0.ssm_in.weight",
    "blk.0.ssm_x.weight",
    "blk.0.time_mix_key.weight",
    "blk.0.time_mix_w3.weight",
    "blk.0.time_mix_decay.weight",
    "blk.0.indexer.attn_q_b.weight",
    "blk.0.shortconv.in_proj.weight",
    "its_position_embd.weight",
    "its.token_types.weight",
    "v.blk.0.attn_out.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "weight",
]
KEPT = [
    "blk.0.attn_q.bias",
    "blk.0.attn_q.weights",
    "blk.0.attn_q.weight_scale",
    "blk.0.attn_q.WEIGHT",
    "blk.0.ssm_a",
    "blk.0.attn_norm.weight",
    "output_norm.weight",
    "blk.0.attn_q_norm.weight",
    "token_embd_norm.weight",
    "blk.0.ffn_gate_inp.weight",
    "blk.0.ffn_gate_tid2eid.weight",
    "altup_proj.weight",
    "altup_unembd_proj.weight",
    "blk.0.altup_router.weight",
    "blk.0.laurel_l.weight",
    "blk.0.laurel_r.weight",
    "per_layer_model_proj.weight",
    "position_embd.weight",
    "token_types.weight",
    "blk.0.ssm_conv1d.weight",
    "blk.0.ssm_conv1d_q.weight",
    "blk.0.shortconv.conv.weight",
    "blk.0.indexer.k_proj.weight",
    "blk.0.indexer.q_proj.weight",
    *(f"blk.0.time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2")),
    *(f"blk.0.time_mix_{part}.weight" for part in ("a0", "a1", "a2", "g1", "g2")),
    "blk.0.time_mix_decay_w1.weight",
    "blk.0.time_mix_decay_w2.weight",
    "blk.0.time_mix_lerp_fused.weight",
    "enc.blk.0.attn_rel_b.weight",
    "v.position_embd.weight",
    "v.sam.pos_embd.weight",
    "v.sam.neck.0.weight",
    "v.sam.net_2.weight",
    "v.sam.blk.0.attn.rel_pos_h.weight",
    "v.patch_embd.weight",
    "v.patch_embd.weight.1.weight",
    "mm.patch_merger.weight",
    "a.rvq.codebook.0.weight",
    "mm.a.code_embd.weight",
]


def test_the_names_that_llama_keeps(converted):
    types, found = converted(dict.fromkeys([*QUANTIZED, *KEPT], ROWS), "gguf:q8_0")
    assert types == {**dict.fromkeys(QUANTIZED, "Q8_0"), **dict.fromkeys(KEPT, "F32")}
    for name, array in found.items():
        wanted = ROWS.tobytes() if name in KEPT else encoded(ROWS, "Q8_0")
        assert (array if name in KEPT else array.data).tobytes() == wanted


OF_GLM5 = [
    "blk.0.hc_attn_fn.weight",
    "blk.0.indexer.attn_q_b.weight",
    "blk.0.indexer.attn_k.weight",
    "blk.0.indexer.proj.weight",
    "blk.0.indexer_compressor_gate.weight",
    "blk.0.indexer_compressor_ape.weight",
    *(f"blk.0.ssm_{part}.weight" for part in ("f_a", "f_b", "g_a", "g_b", "beta")),
    "blk.0.attn_kv_a_mqa.weight",
    "blk.0.attn_k_b.weight",
    "blk.0.attn_v_b.weight",
]


@pytest.mark.parametrize(
    ("architecture", "type_"),
    [("glm5-next", "F32"), ("llama", "Q8_0"), (np.zeros(2, np.uint8), "Q8_0"), (None, "Q8_0")],
    ids=str,
)
def test_one_architecture_keeps_more(converted, architecture, type_):
    metadata = {} if architecture is None else {"general.architecture": architecture}
    types, _ = converted(dict.fromkeys([*OF_GLM5, "w.weight"], ROWS), "gguf:q8_0", metadata)
    assert types == {**dict.fromkeys(OF_GLM5, type_), "w.weight": "Q8_0"}


@pytest.mark.parametrize(
    ("shape", "type_"),
    [
        ((), "F32"),
        ((64,), "F32"),
        ((1, 64), "F32"),
        ((1, 1, 64), "F32"),
        ((1, 1, 1, 64), "F32"),
        ((2, 64), "Q8_0"),
        ((1, 2, 64), "Q8_0"),
        ((2, 1, 64), "Q8_0"),
        ((2, 1, 1, 64), "Q8_0"),
        ((2, 3, 2, 64), "Q8_0"),
        ((64, 1), "F16"),
        ((64, 2), "F16"),
        ((2, 0), "Q8_0"),
    ],
    ids=str,
)
def test_tensors_of_one_row_are_kept(converted, shape, type_):
    x = RNG.standard_normal(shape).astype(np.float32)
    types, found = converted({"w.weight": x}, "gguf:q8_0")
    assert types == {"w.weight": type_}
    assert found["w.weight"].shape == shape
    raw = found.container.raw("w.weight")
    assert bytes(raw) == (x.tobytes() if type_ == "F32" else encoded(x, type_))


def test_only_floats_are_quantized(converted):
    tensors = {
        f"{np.dtype(dtype).name}.weight": (ROWS * 9).astype(dtype)
        for dtype in (np.int8, np.int32, np.int64, np.float16, ml_dtypes.bfloat16, np.float64)
    }
    types, found = converted(tensors, "gguf:q4_0", schemes=[("int*", "gguf:q8_0")])
    assert list(types.values()) == ["I8", "I32", "I64", "Q4_0", "Q4_0", "Q4_0"]
    for name in list(tensors)[3:]:
        assert found[name].data.tobytes() == encoded(tensors[name], "Q4_0")


# `tensor_type_fallback` of llama.cpp.

FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q2_0": "Q4_0",
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL",
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_rows_that_are_not_whole_blocks(converted, name):
    expected = {96: FALLBACK.get(name, name), 80: "F16", 48: "F16"}
    if name in FREE:
        expected[256] = name
        expected[160] = expected[96]
        expected[128] = name if RECORDS[name].elements <= 128 else FALLBACK[name]
    if name in ("NVFP4", "Q1_0"):  # llama.cpp refuses these
        expected[96] = expected[160] = "F16"
    tensors = {f"{row}.weight": RNG.standard_normal((2, row), np.float32) for row in expected}
    types, found = converted(tensors, f"gguf:{name.lower()}")
    assert types == {f"{row}.weight": type_ for row, type_ in expected.items()}
    for key, x in tensors.items():
        assert bytes(found.container.raw(key)) == encoded(x, types[key])


# What the caller says.

NAMES = ["blk.0.attn_q.weight", "blk.0.ffn_up.weight", "blk.1.attn_q.weight", "output_norm.weight"]
Q4, Q8, F16, F32 = "Q4_0", "Q8_0", "F16", "F32"


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({}, [Q4, Q4, Q4, F32]),
        ({"include": ("*attn*",)}, [Q4, F32, Q4, F32]),
        ({"include": ("*ffn*", "blk.1.*")}, [F32, Q4, Q4, F32]),
        ({"include": ("*norm*",)}, [F32, F32, F32, F32]),
        ({"include": ("*ATTN*", "attn_q")}, [F32, F32, F32, F32]),
        ({"exclude": ("*attn*",)}, [F32, Q4, F32, F32]),
        ({"exclude": ("*.0.*", "*norm*")}, [F32, F32, Q4, F32]),
        ({"exclude": ("*",)}, [F32, F32, F32, F32]),
        ({"include": ("*attn*",), "exclude": ("blk.0*",)}, [F32, F32, Q4, F32]),
        ({"schemes": [("*attn*", "gguf:q8_0")]}, [Q8, Q4, Q8, F32]),
        ({"schemes": [("blk.0.*", "gguf:f16"), ("*attn*", "gguf:q8_0")]}, [F16, F16, Q8, F32]),
        ({"schemes": [("*attn*", "gguf:q8_0"), ("blk.0.*", "gguf:f16")]}, [Q8, F16, Q8, F32]),
        ({"schemes": [("*norm*", "gguf:q8_0")]}, [Q4, Q4, Q4, Q8]),
        ({"schemes": [("*attn*", "gguf:q8_0")], "exclude": ("*",)}, [Q8, F32, Q8, F32]),
        ({"schemes": [("blk.0.*", "gguf:q8_0")], "include": ("*ffn*",)}, [Q8, Q8, F32, F32]),
        ({"schemes": [("*attn*", "gguf:f32")]}, [F32, Q4, F32, F32]),
        ({"schemes": [("blk.[1-9].attn_?.weight", "gguf:q8_0")]}, [Q4, Q4, Q8, F32]),
    ],
    ids=str,
)
def test_include_exclude_and_schemes_by_name(converted, choices, expected):
    types, _ = converted(dict.fromkeys(NAMES, ROWS), "gguf:q4_0", **choices)
    assert list(types.values()) == expected


def test_a_scheme_that_is_not_for_gguf_is_refused_by_name(converted):
    for scheme in ("int8", "mxfp4", qa.scheme("int4", group_size=32).name):
        with pytest.raises(QuantArrayError, match=r"tensor 'w\\x1bweight': a GGUF file holds ggml"):
            converted({"w\x1bweight": ROWS}, scheme)
    with pytest.raises(QuantArrayError, match=r"tensor 'b': .* not 'int8'"):
        converted({"b": ROWS, "w.weight": ROWS}, "gguf:q8_0", schemes=[("b", "int8")])


@pytest.mark.parametrize("name", [name for name in RECORDS if name not in FREE])
def test_types_that_cannot_be_encoded_so_are_refused_by_name(converted, tmp_path, name):
    message = rf"tensor 'w\\x1b.weight': .*{name}.* with importances only"
    with pytest.raises(QuantArrayError, match=message):
        converted({"w\x1b.weight": X}, f"gguf:{name}".lower())
    assert os.listdir(tmp_path) == ["in.gguf"]


# Tensors that are quantized already.


@pytest.mark.parametrize("scheme", ["gguf:q4_0", "gguf:f16", "gguf:f32"])
def test_nothing_is_quantized_twice(converted, tmp_path, scheme):
    tensors = {"a.weight": ROWS, "b\n.weight": qa.quantize(ROWS, "gguf:q8_0")}
    with pytest.raises(QuantArrayError, match=r"'b\\n.weight': it is quantized already, as gguf:q"):
        converted(tensors, scheme)
    assert os.listdir(tmp_path) == ["in.gguf"]
    types, found = converted(tensors, scheme, exclude=("b*",))
    assert types["b\n.weight"] == "Q8_0"
    assert found["b\n.weight"].data.tobytes() == encoded(ROWS, "Q8_0")


@pytest.mark.parametrize("name", RECORDS)
def test_what_has_the_type_already_is_copied(converted, name):
    record = RECORDS[name]
    data = RNG.integers(0, 256, (2, record.size), np.uint8)
    scheme = qa.scheme(f"gguf:{name.lower()}")
    q = qa.QuantizedArray.from_parts({"data": data}, scheme, (2, record.elements), "float32")
    types, found = converted({"w.weight": q}, scheme.name)
    assert types == {"w.weight": name}
    assert found["w.weight"].data.tobytes() == data.tobytes()


def test_the_type_that_stands_in_counts_as_the_type(converted):
    q = qa.quantize(X[:, :96], "gguf:q5_0")
    types, found = converted({"w.weight": q}, "gguf:q4_k")
    assert types == {"w.weight": "Q5_0"}
    assert found["w.weight"].data.tobytes() == q.data.tobytes()


# Importances.

WEIGHTS = RNG.random(256, np.float32) * 10
EXPERTS = RNG.standard_normal((3, 4, 256)).astype(np.float32)
EXPERT_WEIGHTS = RNG.random((3, 256), np.float32) * np.float32([[1], [100], [0]])


@pytest.mark.parametrize("name", ENCODERS)
def test_importances_of_a_vector_are_for_every_row(converted, name):
    given = {"w.weight": WEIGHTS, "absent": WEIGHTS[:3]}
    if name in NEEDY:
        given["v.weight"] = WEIGHTS[::-1]
    tensors = {"w.weight": X, "v.weight": X}
    _, found = converted(tensors, f"gguf:{name}".lower(), importance=given)
    for key, q in found.items():
        assert q.data.tobytes() == encoded(X, name, given.get(key))
    differs = found["w.weight"].data.tobytes() != found["v.weight"].data.tobytes()
    assert differs == (RECORDS[name].importance != "ignored")


@pytest.mark.parametrize("name", ["Q4_0", "Q2_K", "Q6_K", "IQ4_XS", "Q8_0"])
@pytest.mark.parametrize("shape", [(3, 256), (768,), (3, 1, 256)], ids=str)
def test_each_expert_has_importances_of_its_own(converted, name, shape):
    tensor = "blk.0.ffn_up_exps.weight"
    _, found = converted(
        {tensor: EXPERTS},
        f"gguf:{name}".lower(),
        importance={tensor: EXPERT_WEIGHTS.reshape(shape)},
    )
    apart = [encoded(x, name, w) for x, w in zip(EXPERTS, EXPERT_WEIGHTS, strict=True)]
    assert found[tensor].data.tobytes() == b"".join(apart)
    assert found[tensor].shape == EXPERTS.shape


def test_importances_are_for_what_stands_in_too(converted):
    x = EXPERTS[..., :96]
    weights = EXPERT_WEIGHTS[:, :96]
    types, found = converted({"w.weight": x}, "gguf:q4_k", importance={"w.weight": weights})
    assert types == {"w.weight": "Q5_0"}
    apart = [encoded(*one) for one in zip(x, ["Q5_0"] * 3, weights, strict=True)]
    assert found["w.weight"].data.tobytes() == b"".join(apart)


@pytest.mark.parametrize(
    ("x", "count"),
    [(X, 255), (X, 4 * 256), (EXPERTS, 2 * 256), (EXPERTS, 4 * 256), (EXPERTS, 12 * 256)],
)
def test_importances_of_another_size_are_refused(converted, tmp_path, x, count):
    weights = np.ones(count, np.float32)
    message = rf"tensor 'w\\x07.weight': .* it has {count} importances: expected"
    for name in ("gguf:q4_0", "gguf:q8_0"):
        with pytest.raises(QuantArrayError, match=message):
            converted({"w\x07.weight": x}, name, importance={"w\x07.weight": weights})
    assert os.listdir(tmp_path) == ["in.gguf"]


@pytest.mark.parametrize("name", ["token_embd.weight", "per_layer_token_embd.weight"])
def test_those_of_embeddings_may_be_of_another_size(converted, name):
    _, found = converted({name: X}, "gguf:q4_0", importance={name: WEIGHTS[:255]})
    assert found[name].data.tobytes() == encoded(X, "Q4_0")
    _, found = converted({name: X}, "gguf:q4_0", importance={name: WEIGHTS})
    assert found[name].data.tobytes() == encoded(X, "Q4_0", WEIGHTS)


def test_importances_of_tensors_that_are_kept_do_not_matter(converted):
    types, _ = converted(
        {"w_norm.weight": X, "b.weight": X[0], "c.weight": X}, "gguf:q4_0", exclude=("c*",),
        importance=dict.fromkeys(["w_norm.weight", "b.weight", "c.weight"], WEIGHTS[:3]),
    )  # fmt: skip
    assert set(types.values()) == {"F32"}


# Casts.

DTYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}
SPECIAL = np.array(
    [[0, -0.0, np.nan, np.inf, -np.inf, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 6e-8,
      2.0**-25, 3 * 2.0**-25, 65504, 65519, 1e-39, 1e-45]],
    np.float32,
).repeat(2, 0)  # fmt: skip


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("of", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_casts(converted, to, of):
    x = X.astype(of)
    tensors = {"w.weight": x, "odd.weight": x[:, :33], "kept_norm.weight": x, "row": x[0]}
    types, found = converted(tensors, f"gguf:{to}".lower())
    held = {np.dtype(dtype): name for name, dtype in DTYPES.items()}.get(np.dtype(of), "F64")
    assert list(types.values()) == [to, to, held, held]
    for name, y in found.items():
        assert y.tobytes() == tensors[name].astype(y.dtype).tobytes()
    assert found["w.weight"].tobytes() == encoded(x, to)


@pytest.mark.parametrize("to", DTYPES)
def test_a_cast_rounds_to_even_and_keeps_what_is_not_finite(converted, to):
    finite = np.nan_to_num(SPECIAL, posinf=0, neginf=0)
    tensors = {"w.weight": SPECIAL, "v.weight": finite}
    _, found = converted(tensors, f"gguf:{to}".lower())
    for name, x in tensors.items():
        np.testing.assert_array_equal(bits(found[name]), bits(x.astype(DTYPES[to])))
    assert found["v.weight"].tobytes() == encoded(finite, to)


@pytest.mark.parametrize(
    ("x", "to", "dtype"),
    [
        (np.float32([65520]), "f16", "float16"),
        (np.float32([-1e38]), "f16", "float16"),
        (np.float64([3.41e38]), "bf16", "bfloat16"),
        (np.float64([-1e300]), "f32", "float32"),
        (np.float32([3.4e38]), "bf16", "bfloat16"),
        (np.float32([65520]), "q8_0", "float16"),  # which stands in
    ],
)
def test_a_cast_that_overflows_is_refused(converted, tmp_path, x, to, dtype):
    tensors = {"w\x1b.weight": np.resize(np.append(x, x * 0), (2, 33))}
    with pytest.raises(QuantArrayError) as caught:
        converted(tensors, f"gguf:{to}")
    assert str(caught.value) == (
        rf"tensor 'w\x1b.weight': it has elements that {dtype} does not hold"
    )
    assert os.listdir(tmp_path) == ["in.gguf"]


# Safetensors: no model of llama.cpp, whose rules are then not asked.


def test_in_safetensors_no_name_is_kept_and_nothing_stands_in(tmp_path):
    io.save(tmp_path / "in", {"a_norm.weight": X, "b": X[:1], "c": X[0], "d": X.astype("f8")})
    quantize_file(tmp_path / "in", tmp_path / "out", qa.scheme("gguf:q4_k"))
    found = qa.load(tmp_path / "out")
    for name, x in (("a_norm.weight", X), ("b", X[:1]), ("d", X.astype("f8"))):
        assert found[name].data.tobytes() == encoded(x, "Q4_K")
        assert found[name].dtype == x.dtype
    np.testing.assert_array_equal(found["c"], X[0])
    quantize_file(tmp_path / "in", tmp_path / "out", Plan("BF16", exclude=("d",)))
    assert [x.dtype.name for x in qa.load(tmp_path / "out").values()] == [
        "bfloat16", "bfloat16", "float32", "float64"
    ]  # fmt: skip
    io.save(tmp_path / "in", {"w": X[:, :96]})
    with pytest.raises(QuantArrayError, match=r"tensor 'w': .*96.*multiple of 256"):
        quantize_file(tmp_path / "in", tmp_path / "out", qa.scheme("gguf:q4_k"))


def test_in_safetensors_importances_are_for_types_of_ggml(tmp_path):
    io.save(tmp_path / "in", {"w": X, "v": X})
    plan = Plan(
        target("gguf:q4_k"),
        schemes=(("v", target("int8")),),
        importance={"w": WEIGHTS, "v": WEIGHTS},
    )
    quantize_file(tmp_path / "in", tmp_path / "out", plan)
    found = qa.load(tmp_path / "out")
    assert found["w"].data.tobytes() == encoded(X, "Q4_K", WEIGHTS)
    assert found["v"].data.tobytes() == qa.quantize(X, "int8").data.tobytes()


def test_an_array_without_axes_has_no_rows(tmp_path):
    x = np.array(1.5, np.float32)
    io.save(tmp_path / "in", {"s": x})
    plan = Plan(target("gguf:q4_k"), schemes=(("s", target("gguf:q8_0")),))
    conversion = quantize_file(tmp_path / "in", tmp_path / "out.gguf", plan)
    assert qa.load(tmp_path / "out.gguf")["s"].dtype == np.float16
    assert conversion.tensors[0].noise is None
    plan = Plan(target("int8"), schemes=(("s", target("int8")),))
    conversion = quantize_file(tmp_path / "in", tmp_path / "out", plan)
    assert (conversion.tensors[0].signal, conversion.tensors[0].noise) == (2.25, 0)
