"""Files for llama.cpp: the bytes that it quantizes to itself, and files that it loads and runs."""

import ctypes
import os
import subprocess
import sys
import zlib
from dataclasses import dataclass

import numpy as np
import pytest

if not os.environ.get("QUANTARRAY_LLAMA"):
    pytest.skip("llama.cpp: run by `nox -s llama`", allow_module_level=True)

import ggml_library as ggml
import gguf
import llama_cpp
import ml_dtypes
from llama_cpp import llama_cpp as low

import quantarray as qa
import quantarray.gguf as gguf_bytes
from quantarray.io.convert import quantize_file
from quantarray.io.imatrix import read_imatrix
from quantarray.io.plan import Plan
from quantarray.records import RECORDS

pytestmark = pytest.mark.backend_independent

# Of enum llama_ftype, which `llama-quantize --pure` takes by names such as Q4_0 and Q4_K_S. It has
# none for NVFP4, and those of the types that are only decoded here are left out.
FILE_TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q8_0": 7,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4": 38,
    "Q1_0": 40,
    "Q2_0": 41,
}
NAMES = {record.number: name for name, record in RECORDS.items()} | {0: "F32", 1: "F16", 30: "BF16"}
# The bytes of a value in the metadata.
WIDTHS = {"UINT8": 1, "INT8": 1, "BOOL": 1, "UINT16": 2, "INT16": 2}
WIDTHS |= {"UINT32": 4, "INT32": 4, "FLOAT32": 4, "UINT64": 8, "INT64": 8, "FLOAT64": 8}
PROMPT = [1, 300, 17, 511, 259, 42, 300, 301, 302]


# Models.


@dataclass(frozen=True)
class Model:
    """A small model of the architecture of Llama, with random weights."""

    columns: int = 256
    hidden: int = 512
    vocabulary: int = 512
    layers: int = 2
    experts: int = 0
    tied: bool = False
    dtype: str = "float32"

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Give the shape of every tensor."""
        columns, hidden, many = self.columns, self.hidden, (self.experts,) * bool(self.experts)
        shapes = {"token_embd.weight": (self.vocabulary, columns)}
        if not self.tied:
            shapes["output.weight"] = (self.vocabulary, columns)
        shapes["output_norm.weight"] = (columns,)
        for layer in range(self.layers):
            block, kind = f"blk.{layer}.", "_exps" if self.experts else ""
            shapes |= {
                f"{block}attn_norm.weight": (columns,),
                f"{block}attn_q.weight": (columns, columns),
                f"{block}attn_k.weight": (columns // 2, columns),
                f"{block}attn_v.weight": (columns // 2, columns),
                f"{block}attn_output.weight": (columns, columns),
                f"{block}ffn_norm.weight": (columns,),
                f"{block}ffn_gate{kind}.weight": (*many, hidden, columns),
                f"{block}ffn_up{kind}.weight": (*many, hidden, columns),
                f"{block}ffn_down{kind}.weight": (*many, columns, hidden),
            }
            if self.experts:
                shapes[f"{block}ffn_gate_inp.weight"] = (self.experts, columns)
        return shapes

    def weights(self, name: str) -> np.ndarray:
        """Give the values of a tensor."""
        shape, random = self.tensors[name], seeded(name)
        if len(shape) == 1:
            return random.uniform(0.5, 1.5, shape).astype(np.float32)
        x = random.standard_normal(shape) / shape[-1] ** 0.5
        return x.astype(np.float32 if "_inp" in name else self.dtype)

    def write(self, path) -> None:
        """Write it as GGUF."""
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name("tiny")
        writer.add_context_length(64)
        writer.add_embedding_length(self.columns)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.hidden)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_rope_dimension_count(self.columns // 4)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(self.vocabulary)
        if self.experts:
            writer.add_expert_count(self.experts)
            writer.add_expert_used_count(2)
        writer.add_file_type({"float32": 0, "float16": 1, "bfloat16": 32}[self.dtype])
        bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
        words = [f"▁w{word}" for word in range(self.vocabulary - 259)]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *bytes_of, *words])
        writer.add_token_scores([0.0] * 259 + [-float(word) for word in range(len(words))])
        kinds = gguf.TokenType
        kinds = [kinds.UNKNOWN, *[kinds.CONTROL] * 2, *[kinds.BYTE] * 256]
        writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * len(words)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        for name in self.tensors:
            x = self.weights(name)
            if x.dtype == ml_dtypes.bfloat16:
                kind = gguf.GGMLQuantizationType.BF16
                writer.add_tensor(name, x.view(np.uint8), raw_dtype=kind)
            else:
                writer.add_tensor(name, x)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def seeded(*names):
    """Give a generator for these names, the same on every machine."""
    return np.random.default_rng(zlib.crc32(" ".join(map(str, names)).encode()))


MODELS = {
    "plain": Model(),
    "float16": Model(dtype="float16", tied=True),
    # Rows of 288 are no blocks of 256, and those of 304 not even of 32.
    "ragged": Model(columns=288, hidden=304, layers=1, dtype="bfloat16"),
    "experts": Model(hidden=256, layers=1, experts=4),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Give the path of each model's file."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in MODELS.items():
        model.write(folder / f"{name}.gguf")
    return {name: folder / f"{name}.gguf" for name in MODELS}


# What llama.cpp does.


@pytest.fixture(autouse=True, scope="session")
def quiet():
    """Keep what llama.cpp has to say for a failure."""
    said = []

    @low.llama_log_callback
    def log(level, text, _):
        said.append(text.decode(errors="replace"))

    low.llama_log_set(log, ctypes.c_void_p(0))
    yield said
    low.llama_log_set(low.llama_log_callback(), ctypes.c_void_p(0))


def llama_quantize(source, target, file_type, importances=None, overrides=None):
    """Have llama.cpp quantize a file, every tensor to one type; tell whether it did."""
    params = low.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = file_type, True, 2
    if importances is not None:
        pointer = ctypes.POINTER(ctypes.c_float)
        entries = [
            (name.encode(), values.ctypes.data_as(pointer), values.size)
            for name, values in importances.items()
        ]
        params.imatrix = (low.llama_model_imatrix_data * (len(entries) + 1))(*entries)
    if overrides is not None:
        entries = [(pattern.encode(), number) for pattern, number in overrides.items()]
        params.tt_overrides = (low.llama_model_tensor_override * (len(entries) + 1))(*entries)
    return low.llama_model_quantize(os.fsencode(source), os.fsencode(target), params) == 0


def run(path):
    """Load a file in llama.cpp: give the logits of a prompt, and the tokens that follow it."""
    model = llama_cpp.Llama(
        str(path), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False
    )
    try:
        model.eval(PROMPT)
        logits = np.array(model.scores[: len(PROMPT)])
        tokens = []
        for token in model.generate(PROMPT, temp=0.0):
            tokens.append(token)
            if len(tokens) == 12:
                break
        return logits, tokens
    finally:
        model.close()


class Options(ctypes.Structure):
    """How ggml opens a file: without its tensors' data."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def contents(path):
    """Give a file's metadata and tensors, as ggml reads them: type, shape and bytes of each."""
    here, (_, lib) = ctypes.c_void_p, ggml.library()

    def function(name, result, *arguments):
        found = getattr(lib, f"gguf_{name}")
        found.restype, found.argtypes = result, arguments
        return found

    file = function("init_from_file", here, ctypes.c_char_p, Options)(
        os.fsencode(path), Options(no_alloc=True)
    )
    assert file, f"{path}: ggml does not read it"

    def get(name, result, *arguments):
        types = (here, *(ctypes.c_int64 for _ in arguments))
        return function(f"get_{name}", result, *types)(file, *arguments)

    def text(name, *arguments):
        return get(name, ctypes.c_char_p, *arguments).decode()

    def value(key):
        kind = gguf.GGUFValueType(get("kv_type", ctypes.c_int, key))
        if kind == gguf.GGUFValueType.STRING:
            return kind.name, text("val_str", key)
        if kind != gguf.GGUFValueType.ARRAY:
            return kind.name, ctypes.string_at(get("val_data", here, key), WIDTHS[kind.name])
        kind = gguf.GGUFValueType(get("arr_type", ctypes.c_int, key))
        count = get("arr_n", ctypes.c_size_t, key)
        if kind == gguf.GGUFValueType.STRING:
            return kind.name, [text("arr_str", key, i) for i in range(count)]
        return kind.name, ctypes.string_at(get("arr_data", here, key), WIDTHS[kind.name] * count)

    data = path.read_bytes()
    start, tensors = get("data_offset", ctypes.c_size_t), {}
    for i in range(get("n_tensors", ctypes.c_int64)):
        at = start + get("tensor_offset", ctypes.c_size_t, i)
        shape = get("tensor_ne", ctypes.POINTER(ctypes.c_int64 * 4), i).contents
        kind = NAMES[get("tensor_type", ctypes.c_int, i)]
        stored = data[at : at + get("tensor_size", ctypes.c_size_t, i)]
        tensors[text("tensor_name", i)] = kind, tuple(shape), stored
    metadata = {text("key", i): value(i) for i in range(get("n_kv", ctypes.c_int64))}
    function("free", None, here)(file)
    return metadata, tensors


# The rules of llama-quant.cpp.

FALLBACKS = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}


def expected_type(name, shape, dtype, kind):
    """Name the type of a tensor in a file of one type."""
    if len(shape) < 2 or name.endswith(("_norm.weight", "ffn_gate_inp.weight")):
        return {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    if shape[-1] % RECORDS[kind].elements:
        kind = FALLBACKS.get(kind, kind)
    return "F16" if shape[-1] % RECORDS[kind].elements else kind


def importances_of(model):
    """Give a vector for each matrix, for those of experts one each."""
    return {
        name: seeded("importance", name)
        .exponential(1.0, (shape[0] if len(shape) == 3 else 1, shape[-1]))
        .astype(np.float32)
        for name, shape in model.tensors.items()
        if len(shape) > 1
    }


def expected_bytes(encode, model, name, kind, importances=None):
    """Give the bytes of a tensor, by a function that encodes rows."""
    x = model.weights(name)
    if kind in ("F32", "F16"):
        return x.astype({"F32": np.float32, "F16": np.float16}[kind]).tobytes()
    vectors = None if importances is None else importances[name]
    experts = x if x.ndim == 3 else x[None]
    parts = [
        encode(rows, RECORDS[kind], None if vectors is None else vectors[index])
        for index, rows in enumerate(experts.astype(np.float32))
    ]
    return b"".join(np.asarray(part).tobytes() for part in parts)


def ours(rows, record, importance):
    return gguf_bytes.encode(rows, record.name, importance=importance)


def metadata_of(source, kind):
    """Give the metadata of a quantized file, in order: the source's, then what has changed."""
    changed = {"general.quantization_version": 2, "general.file_type": FILE_TYPES[kind]}
    kept = {key: value for key, value in contents(source)[0].items() if key not in changed}
    return kept | {key: ("UINT32", value.to_bytes(4, "little")) for key, value in changed.items()}


def wrong_tensors(model, tensors, kind, encode, importances=None):
    """Name the tensors of a file whose type or bytes are not the expected ones."""
    assert set(tensors) == set(model.tensors)
    wrong = []
    for name, (found, shape, data) in tensors.items():
        x = model.weights(name)
        if shape != (*x.shape[::-1], 1, 1, 1)[:4]:
            wrong.append(f"{name}: {shape}, expected {x.shape[::-1]}")
        wanted = expected_type(name, x.shape, x.dtype.name, kind)
        if found != wanted:
            wrong.append(f"{name}: {found}, expected {wanted}")
        elif data != expected_bytes(encode, model, name, found, importances):
            wrong.append(f"{name}: bytes of {found}")
    return wrong


CASES = [
    (model, kind)
    for model in MODELS
    for kind in FILE_TYPES
    if not (model == "ragged" and kind == "Q1_0")  # it has no fallback: llama.cpp gives up
]
each_case = pytest.mark.parametrize(("name", "kind"), CASES)


@pytest.mark.parametrize("encode", [ggml.quantize, ours], ids=["ggml", "ours"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
@each_case
def test_the_rules_give_the_file_of_llama(files, tmp_path, name, kind, weighted, encode):
    """The types and bytes of its own file are what these rules and encoders say."""
    model, path = MODELS[name], tmp_path / "theirs.gguf"
    importances = importances_of(model) if weighted else None
    assert llama_quantize(files[name], path, FILE_TYPES[kind], importances)
    metadata, tensors = contents(path)
    assert not wrong_tensors(model, tensors, kind, encode, importances)
    assert list(metadata.items()) == list(metadata_of(files[name], kind).items())


def test_llama_has_no_fallback_for_q1_0(files, tmp_path):
    assert not llama_quantize(files["ragged"], tmp_path / "theirs.gguf", FILE_TYPES["Q1_0"])


def test_the_rules_can_fail(files, tmp_path):
    model, path = MODELS["plain"], tmp_path / "theirs.gguf"
    assert llama_quantize(files["plain"], path, FILE_TYPES["Q4_0"])
    _, tensors = contents(path)
    kind, shape, data = tensors["output.weight"]
    assert not wrong_tensors(model, tensors, "Q4_0", ggml.quantize)
    tensors["output.weight"] = (kind, shape, data[:-1] + bytes([data[-1] ^ 1]))
    assert wrong_tensors(model, tensors, "Q4_0", ggml.quantize) == ["output.weight: bytes of Q4_0"]
    assert wrong_tensors(model, tensors, "Q8_0", ggml.quantize)[0].endswith("expected Q8_0")


def test_nvfp4_is_an_override_in_llama(files, tmp_path):
    path, number = tmp_path / "theirs.gguf", RECORDS["NVFP4"].number
    assert llama_quantize(files["plain"], path, FILE_TYPES["Q8_0"], overrides={".": number})
    _, tensors = contents(path)
    assert not wrong_tensors(MODELS["plain"], tensors, "NVFP4", ggml.quantize)
    assert not wrong_tensors(MODELS["plain"], tensors, "NVFP4", ours)


# Our files.


@each_case
def test_our_file_has_the_tensors_of_theirs(files, tmp_path, name, kind):
    """Types, shapes and bytes of every tensor, every key of the metadata, and what it computes."""
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    assert llama_quantize(files[name], theirs, FILE_TYPES[kind])
    quantize_file(files[name], ours, qa.scheme(f"gguf:{kind.lower()}"))
    assert not differing(contents(theirs), contents(ours))
    assert not differing_runs(run(theirs), run(ours))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "IQ4_XS", "TQ1_0"])
def test_the_command_writes_the_same_file(files, tmp_path, kind):
    by_call, by_command = tmp_path / "call.gguf", tmp_path / "command.gguf"
    scheme = f"gguf:{kind.lower()}"
    quantize_file(files["plain"], by_call, qa.scheme(scheme))
    command = ["quantize", files["plain"], by_command, "--scheme", scheme]
    subprocess.run([sys.executable, "-m", "quantarray", *command], check=True, capture_output=True)
    assert by_call.read_bytes() == by_command.read_bytes()


def write_imatrix(path, model):
    """Write an importance matrix as llama-imatrix does; give what llama-quantize makes of it.

    It has nothing for the embedding, through which no activations go, and one expert saw no token.
    """
    writer = gguf.GGUFWriter(path, arch="")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["words.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    found = {}
    for name, sums in importances_of(model).items():
        if name == "token_embd.weight":
            continue
        counts = np.float32(seeded("counts", name).integers(1, 2000, (len(sums), 1)))
        counts[1:2] = 0
        sums[1:2] = 0
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts)
        found[name] = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


@pytest.mark.parametrize("name", ["plain", "ragged", "experts"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS"])
def test_our_file_with_an_importance_matrix_is_that_of_llama(files, tmp_path, name, kind):
    theirs, ours, matrix = (tmp_path / f"{file}.gguf" for file in ("theirs", "ours", "matrix"))
    importances = write_imatrix(matrix, MODELS[name])
    assert llama_quantize(files[name], theirs, FILE_TYPES[kind], importances)
    plan = Plan(qa.scheme(f"gguf:{kind.lower()}"), importance=read_imatrix(matrix))
    quantize_file(files[name], ours, plan)
    assert not differing(contents(theirs), contents(ours))
    if name != "ragged":  # in which Q8_0 stands in for Q6_K, and ignores them
        assert llama_quantize(files[name], theirs, FILE_TYPES[kind])
        assert differing(contents(theirs), contents(ours))


def test_the_command_takes_an_importance_matrix(files, tmp_path):
    theirs, ours, matrix = (tmp_path / f"{file}.gguf" for file in ("theirs", "ours", "matrix"))
    importances = write_imatrix(matrix, MODELS["plain"])
    assert llama_quantize(files["plain"], theirs, FILE_TYPES["Q4_K"], importances)
    command = ["quantize", files["plain"], ours, "--scheme", "gguf:q4_k", "--imatrix", matrix]
    subprocess.run([sys.executable, "-m", "quantarray", *command], check=True, capture_output=True)
    assert not differing(contents(theirs), contents(ours))
    assert not differing_runs(run(theirs), run(ours))


def test_an_nvfp4_file_runs(files, tmp_path):
    path = tmp_path / "ours.gguf"
    quantize_file(files["plain"], path, qa.scheme("gguf:nvfp4"))
    assert not wrong_tensors(MODELS["plain"], contents(path)[1], "NVFP4", ggml.quantize)
    logits, _ = run(path)
    assert np.isfinite(logits).all()


def differing(theirs, ours):
    """Name the keys and tensors of a file that ours has not, or has otherwise."""
    (metadata, tensors), (our_metadata, our_tensors) = theirs, ours
    wrong = [key for key in metadata if our_metadata.get(key) != metadata[key]]
    return wrong + [
        name for name in tensors | our_tensors if tensors.get(name) != our_tensors.get(name)
    ]


def differing_runs(theirs, ours):
    """Count the logits that differ, and the tokens."""
    (logits, tokens), (our_logits, our_tokens) = theirs, ours
    assert np.isfinite(logits).all()
    wrong = np.count_nonzero(logits.view(np.uint32) != our_logits.view(np.uint32))
    return wrong + sum(one != other for one, other in zip(tokens, our_tokens, strict=True))


def test_the_comparisons_of_files_can_fail(files, tmp_path):
    """Files of two types, and of the same type with one wrong bit."""
    first, other = tmp_path / "first.gguf", tmp_path / "other.gguf"
    assert llama_quantize(files["plain"], first, FILE_TYPES["Q8_0"])
    assert llama_quantize(files["plain"], other, FILE_TYPES["Q6_K"])
    assert not differing(contents(first), contents(first))
    assert not differing_runs(run(first), run(first))
    found = differing(contents(first), contents(other))
    norms = [name for name, shape in MODELS["plain"].tensors.items() if len(shape) == 1]
    assert set(found) == {"general.file_type", *MODELS["plain"].tensors} - set(norms)
    assert differing_runs(run(first), run(other))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    assert differing(contents(first), contents(other)) == [list(contents(first)[1])[-1]]
    assert differing_runs(run(first), run(other))
