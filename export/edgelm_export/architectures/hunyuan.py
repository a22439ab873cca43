"""Tencent's Hunyuan: a Llama that norms each query and key head behind the rotation.

That of 80B (A13B, model_type hunyuan_v1_moe) has experts in every layer, beside a shared one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.checkpoints.tensor_map import TensorLayout

_DEFAULTS: Mapping[str, Any] = {"rms_norm_eps": 1e-5, "use_qk_norm": True, "bos_token_id": 1, "eos_token_id": 2}
_FEATURES: Mapping[str, Any] = {"mlp_bias": False, "qk_norm_scope": "turned_head"}
_LARGEST_ALPHA = 1_000_000  # in use is 1000
_NAMES = {
    "model.layers.{i}.self_attn.q_norm": "model.layers.{i}.self_attn.query_layernorm",
    "model.layers.{i}.self_attn.k_norm": "model.layers.{i}.self_attn.key_layernorm",
}
_MLP = "model.layers.{i}.mlp"
_MOE_NAMES = {
    **_NAMES,
    f"{_MLP}.gate": f"{_MLP}.gate.wg",
    **experts.shared_expert_names(_MLP, "shared_mlp"),
}
_GGUF_MOE_KEYS = experts.gguf_keys("num_experts", "moe_topk") | {
    "expert_shared_count": ("num_shared_expert", 1),
    "expert_shared_feed_forward_length": None,
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config({**values, **_stretched_base(values)})
    return dataclasses.replace(config, qk_norm=hf_values.flag(values, "use_qk_norm"))


def _to_moe_config(values: dict[str, Any]) -> ModelConfig:
    # All but the first may be a list of each layer's.
    sizes = {"intermediate_size": hf_values.whole_number(values, "intermediate_size"), "num_experts": 1, "moe_topk": 1}
    sizes |= {"moe_intermediate_size": sizes["intermediate_size"], "num_shared_expert": 1}
    sizes |= {key: _of_every_layer(values, key, default) for key, default in sizes.items()}
    return dataclasses.replace(
        _to_model_config({**values, **sizes}),
        moe_intermediate_size=sizes["moe_intermediate_size"],
        shared_expert_intermediate_size=sizes["intermediate_size"] * sizes["num_shared_expert"],
        **experts.expert_fields(sizes, "num_experts", "moe_topk"),
    )


def _of_every_layer(values: Mapping[str, Any], key: str, default: int) -> int:
    listed = values.get(key)
    if not isinstance(listed, list):
        return hf_values.whole_number(values, key, default)
    if not listed or any(size != listed[0] for size in listed):
        raise CheckpointError(f"config.json: {key} is {listed!r:.60}; supported is one number for all layers.")
    return hf_values.whole_number({key: listed[0]}, key)


def _stretched_base(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rope settings of a `dynamic` scaling with an `alpha`: the base alone, which that stretches once."""
    settings = values.get("rope_scaling") or values.get("rope_parameters") or {}
    is_dynamic = isinstance(settings, Mapping) and "dynamic" in (settings.get("type"), settings.get("rope_type"))
    if not is_dynamic or not settings.get("alpha"):
        return {}
    alpha = hf_values.number(settings, "alpha", 1.0)
    size, heads = hf_values.whole_number(values, "hidden_size"), hf_values.bounded(values, "num_attention_heads")
    head_dim = hf_values.whole_number(values, "head_dim", size // heads)
    if not 1 <= alpha <= _LARGEST_ALPHA or head_dim < 4:
        raise CheckpointError(
            f"config.json: alpha is {alpha} and head_dim {head_dim!r:.60}; they must be from 1 to {_LARGEST_ALPHA}, "
            "and 4 or more."
        )
    theta = hf_values.number(settings, "rope_theta", hf_values.number(values, "rope_theta", 1e4))
    return {"rope_scaling": None, "rope_parameters": {"rope_theta": theta * alpha ** (head_dim / (head_dim - 2))}}


HUNYUAN = Architecture(
    model_type="hunyuan_v1_dense",
    defaults=_DEFAULTS,
    read_config=_to_model_config,
    features=_FEATURES,
    layout=TensorLayout(names=_NAMES),
    gguf=GGUFFamily(
        architecture="hunyuan-dense",  # whose base llama.cpp's converter has stretched
        layout=TensorLayout(names=llama.GGUF_NAMES | llama.GGUF_QK_NORMS),
    ),
)
HUNYUAN_MOE = Architecture(
    model_type="hunyuan_v1_moe",
    defaults=_DEFAULTS,
    # What the models' own code lets a config say, and transformers does not read.
    fixed={"use_cla": False, "moe_layer_num_skipped": 0, "use_mixed_mlp_moe": True},
    # What most families call them, which transformers reads too.
    renamed={"num_experts": "num_local_experts", "moe_topk": "num_experts_per_tok"},
    read_config=_to_moe_config,
    features=_FEATURES,
    layout=TensorLayout(names=_MOE_NAMES),
    mlx=TensorLayout(names=_MOE_NAMES | experts.mlx_names(f"{_MLP}.switch_mlp")),
    gguf=GGUFFamily(
        architecture="hunyuan-moe",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, _GGUF_MOE_KEYS),
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS),
        has_experts=True,
    ),
)
