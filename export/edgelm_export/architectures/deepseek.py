"""DeepSeek V2 and V3, and those that are built like them: latent attention, and experts beside a shared one.

GLM-4.7-Flash, Sarvam's 105B, MiniCPM 3 and Youtu-LLM have the attention; the last two have one feed-forward a layer.
Sources: arXiv:2405.04434, arXiv:2412.19437.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, gguf_header, hf_values, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import NO_KEYS, GGUFKeys, float32_number, whole_number
from edgelm_export.checkpoints.tensor_map import TensorLayout

_V2_DEFAULTS: dict[str, Any] = {
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 64, "n_shared_experts": 2, "moe_intermediate_size": 1407, "first_k_dense_replace": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_V3_DEFAULTS: dict[str, Any] = _V2_DEFAULTS | {
    "n_routed_experts": 256, "n_shared_experts": 1, "moe_intermediate_size": 2048, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4, "norm_topk_prob": True,
    "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_GLM_DEFAULTS: dict[str, Any] = _V3_DEFAULTS | {
    "kv_lora_rank": 512, "q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256, "n_routed_experts": 64,
    "moe_intermediate_size": 1536, "num_experts_per_tok": 4, "routed_scaling_factor": 1.8, "n_group": 1,
    "topk_group": 1, "max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "first_k_dense_replace": 1,
}  # fmt: skip
_SARVAM_DEFAULTS: dict[str, Any] = _V3_DEFAULTS | {
    "q_lora_rank": None, "n_routed_experts": 128, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_YOUTU_DEFAULTS: dict[str, Any] = _V2_DEFAULTS | {
    "max_position_embeddings": 131072, "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
_MINICPM3_DEFAULTS: dict[str, Any] = {
    "kv_lora_rank": 256, "q_lora_rank": 768, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "scale_emb": 12,
    "scale_depth": 1.4, "dim_model_base": 256, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

_ATTENTION = "model.layers.{i}.self_attn"
_HEADS = [f"{_ATTENTION}.heads.{{e}}.{part}_b_proj" for part in "kv"]
_OWN = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm")
_NAMES = dict.fromkeys(_HEADS, f"{_ATTENTION}.kv_b_proj")
# mlx-lm has the experts of a layer in one tensor a projection, and in its newer models the matrices of heads too.
_MLX_NAMES = _NAMES | experts.mlx_names("model.layers.{i}.mlp.switch_mlp")
_MLX_APART = {name: f"{_ATTENTION}.{own}" for name, own in zip(_HEADS, ("embed_q", "unembed_out"), strict=True)}
_GGUF_OWN = ("q_a", "q_a_norm", "q_b", "kv_a_mqa", "kv_a_norm")
_GGUF_NAMES = {
    **experts.GGUF_NAMES,
    **{f"{_ATTENTION}.{name}": f"blk.{{i}}.attn_{own}" for name, own in zip(_OWN, _GGUF_OWN, strict=True)},
}
# In older files they are one tensor, as in safetensors (gguf_header.py).
_GGUF_APART = {name: f"blk.{{i}}.attn_{part}_b" for name, part in zip(_HEADS, "kv", strict=True)}
_PAIRS = {
    f"{_ATTENTION}.q_proj": "pairs of latent attention's queries",
    f"{_ATTENTION}.q_b_proj": "pairs of latent attention's queries",
    f"{_ATTENTION}.kv_a_proj_with_mqa": "pairs behind latent vectors",
}
# Neighbouring dimensions turn together; MiniCPM 3's are those of two halves.
_PAIRS_TURN = {"rope_interleave": True}
_LAYOUT = TensorLayout(
    names=_NAMES,
    by_latent_head=frozenset({f"{_ATTENTION}.kv_b_proj"}),
    row_orders=_PAIRS,
    has_more_layers=True,
)
_MLX_LAYOUT = dataclasses.replace(_LAYOUT, names=_MLX_NAMES)
_MLX_APART_LAYOUT = dataclasses.replace(_LAYOUT, names=_MLX_NAMES | _MLX_APART)
_GGUF_LAYOUT = TensorLayout(
    names=_GGUF_NAMES | _GGUF_APART,
    by_latent_head=frozenset({"blk.{i}.attn_kv_b"}),
    row_orders=_PAIRS,
)
_GGUF_EXPERTS = sigmoid_experts.GGUF_ROUTED | sigmoid_experts.GGUF_DENSE
_GGUF_KEYS: GGUFKeys = dict.fromkeys(
    (
        "attention.kv_lora_rank", "attention.q_lora_rank", "attention.key_length_mla", "attention.value_length_mla",
        "rope.scaling.yarn_log_multiplier", *_GGUF_EXPERTS,
    )
)  # fmt: skip
_GLM_VOCABULARY = 154880  # whose first files do not say how they weigh experts


def latent_config(values: Mapping[str, Any]) -> ModelConfig:
    """Read config.json's values as those of a Llama with latent attention.

    Raises:
        CheckpointError: it has biases in attention, or sizes that no such attention has.
    """
    if hf_values.flag(values, "attention_bias"):
        raise CheckpointError("config.json: attention_bias is true; latent attention with biases is not supported.")
    rank, turning, nope = (
        hf_values.bounded(values, key) for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim")
    )
    turns = dict.fromkeys(("rope_scaling", "rope_parameters"))  # read below: a part of the head alone has pairs
    config = llama.to_model_config({**values, **turns, "num_key_value_heads": 1, "head_dim": rank + turning})
    return dataclasses.replace(
        config,
        **hf_values.rope(values, hf_values.whole_number(values, "max_position_embeddings", 2048)),
        kv_lora_rank=rank,
        q_lora_rank=hf_values.optional_whole_number(values, "q_lora_rank"),
        qk_nope_head_dim=nope,
        v_head_dim=hf_values.whole_number(values, "v_head_dim"),
        attention_multiplier=(nope + turning) ** -0.5 * _growth_of_scores(values),
    )


def _growth_of_scores(values: Mapping[str, Any]) -> float:
    """Return what yarn's scale of all dimensions multiplies the scores by."""
    settings = values.get("rope_scaling") or values.get("rope_parameters") or {}
    factor, scale = (hf_values.number(settings, key, 0.0) for key in ("factor", "mscale_all_dim"))
    if settings.get("rope_type", settings.get("type", "default")) == "default" or factor <= 1:
        return 1.0
    grown = 0.1 * scale * math.log(factor) + 1.0
    return grown * grown  # infinite, which a config refuses, where a power would raise


def _to_v2_config(values: dict[str, Any]) -> ModelConfig:
    config = latent_config(values)
    method, groups = values.get("topk_method", "greedy"), hf_values.whole_number(values, "n_group", 1)
    if method != "greedy" and (method != "group_limited_greedy" or groups != 1):
        raise CheckpointError(
            f"config.json: topk_method is {method!r:.60} and n_group {groups}; supported is 'greedy'."
        )
    values |= {"n_group": 1, "topk_group": 1, "norm_topk_prob": False}
    fields = sigmoid_experts.fields(values, config.num_hidden_layers)
    return dataclasses.replace(config, **fields | {"scoring_func": "softmax", "expert_choice_bias": False})


def _to_v3_config(values: dict[str, Any]) -> ModelConfig:
    config = latent_config(values)
    return dataclasses.replace(config, **sigmoid_experts.fields(values, config.num_hidden_layers))


def _to_sarvam_config(values: dict[str, Any]) -> ModelConfig:
    scaling = values.get("rope_scaling")
    if isinstance(scaling, Mapping) and "deepseek_yarn" in (scaling.get("type"), scaling.get("rope_type")):
        values["rope_scaling"] = {key: value for key, value in scaling.items() if key != "type"} | {"rope_type": "yarn"}
    return _to_v3_config(values)


def _to_minicpm3_config(values: dict[str, Any]) -> ModelConfig:
    hidden, heads, layers = (
        hf_values.bounded(values, key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    values["v_head_dim"] = values.get("v_head_dim") or hidden // heads
    depth, base = hf_values.optional_number(values, "scale_depth"), hf_values.optional_number(values, "dim_model_base")
    return dataclasses.replace(
        latent_config(values),
        embedding_multiplier=hf_values.number(values, "scale_emb", 1.0),
        residual_multiplier=1.0 if depth is None else depth / math.sqrt(layers),
        logits_scaling=hidden / base if base else 1.0,
    )


def _gguf_latent_values(header: GGUFHeader, keys: GGUFKeys = NO_KEYS) -> dict[str, Any]:
    """Make config.json's values of a file of either kind: one head of keys for all queries, or the older one with the
    size of each query's.
    """
    metadata, name = header.metadata, header.architecture
    prefix = f"{name}.attention."
    rank, turning = (
        whole_number(metadata, f"{prefix}kv_lora_rank"),
        whole_number(metadata, f"{name}.rope.dimension_count"),
    )
    mla = "_mla" if f"{prefix}key_length_mla" in metadata else ""
    heads, width = whole_number(metadata, f"{prefix}head_count"), whole_number(metadata, f"{name}.embedding_length")
    key = whole_number(metadata, f"{prefix}key_length{mla}")
    value = whole_number(metadata, f"{prefix}value_length{mla}", width // max(heads, 1))
    sizes_of_one_head = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    header = header.changed({**dict.fromkeys(sizes_of_one_head, rank + turning), "attention.head_count_kv": 1})
    values = gguf_header.to_hf_config(header, {**_GGUF_KEYS, **keys})
    grown = f"{name}.rope.scaling.yarn_log_multiplier"
    if values["rope_scaling"] and grown in metadata:
        scale = 10 * float32_number(metadata, grown)  # a tenth of it is in the file
        values["rope_scaling"] |= {"mscale": scale, "mscale_all_dim": scale}
    ranks = {"kv_lora_rank": rank, "q_lora_rank": metadata.get(f"{prefix}q_lora_rank")}
    sizes = {"qk_nope_head_dim": key - turning, "qk_rope_head_dim": turning, "v_head_dim": value}
    return values | ranks | sizes


def _gguf_to_expert_config(header: GGUFHeader) -> dict[str, Any]:
    metadata, name = header.metadata, "deepseek2"
    values = _gguf_latent_values(header, _GGUF_EXPERTS)
    unsaid = experts.GGUF_SIGMOID if values["vocab_size"] == _GLM_VOCABULARY else experts.GGUF_SOFTMAX
    scoring = whole_number(metadata, f"{name}.expert_gating_func", unsaid)
    if scoring not in (experts.GGUF_SOFTMAX, experts.GGUF_SIGMOID):
        raise CheckpointError(f"GGUF metadata: {name}.expert_gating_func is {scoring}; supported are 1 and 2.")
    if values["norm_topk_prob"] and scoring == experts.GGUF_SOFTMAX:
        raise CheckpointError(f"GGUF metadata: {name}.expert_weights_norm is true, which DeepSeek V2 does not know.")
    kind = "deepseek_v3" if scoring == experts.GGUF_SIGMOID else "deepseek_v2"
    return {"model_type": kind, **values}


DEEPSEEK_V2 = Architecture(
    model_type="deepseek_v2",
    defaults=_V2_DEFAULTS,
    read_config=_to_v2_config,
    layout=_LAYOUT,
    mlx=_MLX_LAYOUT,
    gguf=GGUFFamily(
        architecture="deepseek2", to_hf_config=_gguf_to_expert_config, layout=_GGUF_LAYOUT, has_experts=True
    ),
)
# Files of llama.cpp are those of DeepSeek V2 too.
DEEPSEEK_V3 = Architecture(
    model_type="deepseek_v3",
    defaults=_V3_DEFAULTS,
    fixed=_PAIRS_TURN,
    read_config=_to_v3_config,
    layout=_LAYOUT,
    mlx=_MLX_APART_LAYOUT,
    gguf=None,
)
GLM4_MOE_LITE = dataclasses.replace(DEEPSEEK_V3, model_type="glm4_moe_lite", defaults=_GLM_DEFAULTS)
SARVAM_MLA = dataclasses.replace(
    DEEPSEEK_V3,
    model_type="sarvam_mla",
    defaults=_SARVAM_DEFAULTS,
    renamed={"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"},
    read_config=_to_sarvam_config,
)
YOUTU = Architecture(
    model_type="youtu",
    defaults=_YOUTU_DEFAULTS,
    fixed=_PAIRS_TURN,
    read_config=latent_config,
    layout=_LAYOUT,
    gguf=GGUFFamily(
        architecture="deepseek2",
        to_hf_config=_gguf_latent_values,
        layout=_GGUF_LAYOUT,
    ),
)
MINICPM3 = Architecture(
    model_type="minicpm3",
    defaults=_MINICPM3_DEFAULTS,
    read_config=_to_minicpm3_config,
    layout=dataclasses.replace(_LAYOUT, row_orders={}, has_more_layers=False),
    gguf=GGUFFamily(
        architecture="minicpm3",
        to_hf_config=_gguf_latent_values,
        layout=dataclasses.replace(_GGUF_LAYOUT, row_orders={}, ignored=gguf_header.LONGROPE_TENSORS),
    ),
)
