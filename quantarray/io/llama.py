"""What llama.cpp's `llama-quantize --pure` does to a model: which tensors it leaves, and as what.

`llama-quant.cpp` of llama.cpp defines it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantarray.records import RECORDS

# The metadata key that a model has.
ARCHITECTURE = "general.architecture"
# Tensors with one of these in their name stay as they are: norms, routers of experts, positions,
# small matrices of state-space and RWKV models, of Gemma's altup and laurel, and of encoders.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")

# Whose importances may be of another size.
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

# What is kept besides in models of one architecture.
_KEPT_OF = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight",
        "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}  # fmt: skip

# What a row that is not whole blocks is encoded as; F16 where that does not fit either.
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    "Q2_0": "Q4_0",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

# `enum llama_ftype`, of the file that is mostly of a type.
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23,
    "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ2_S": 29, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32,
    "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38, "NVFP4": 39, "Q1_0": 40, "Q2_0": 41,
}  # fmt: skip
_VERSION = 2  # of the quantized types
_SPLIT = ("split.no", "split.count", "split.tensors.count")


def is_kept(name: str, shape: tuple[int, ...], architecture: object) -> bool:
    """Tell whether a tensor is not to be quantized: of one axis, no weight, or a delicate one."""
    axes = next((len(shape) - i for i, extent in enumerate(shape) if extent != 1), 1)
    return (
        axes < 2
        or not name.endswith("weight")
        or name in _KEPT_NAMES
        or any(part in name for part in (*_KEPT, *_KEPT_OF.get(str(architecture), ())))
    )


def fitting(type_: str, shape: tuple[int, ...]) -> str:
    """Give a type, or what stands in for it where rows of a shape are not whole blocks of it."""
    row = shape[-1] if shape else 1
    for candidate in (type_, _FALLBACK.get(type_)):
        if candidate in RECORDS and row % RECORDS[candidate].elements == 0:
            return candidate
    return type_ if type_ not in RECORDS else "F16"


def described(metadata: Mapping[str, Any], type_: str) -> dict[str, Any]:
    """Give a model's metadata once it is mostly of a type."""
    own = {
        "general.quantization_version": np.uint32(_VERSION),
        "general.file_type": np.uint32(_FILE_TYPES[type_]),
    }
    kept = {k: value for k, value in metadata.items() if k not in _SPLIT and k not in own}
    return {**kept, **own}
