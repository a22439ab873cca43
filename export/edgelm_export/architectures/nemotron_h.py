"""Nemotron-H: Mamba 2, a few layers of attention without positions, and feed-forwards, each in a block of its own.

The feed-forwards of Nemotron 3 Nano are experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, gguf_header, hf_values, llama, mamba2, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import GGUFKeys
from edgelm_export.checkpoints.tensor_map import TensorLayout

_OF_MAMBA = {
    "mamba_n_heads": "mamba_num_heads",
    "mamba_d_head": "mamba_head_dim",
    "mamba_n_groups": "n_groups",
    "mamba_d_state": "ssm_state_size",
    "mamba_d_conv": "conv_kernel",
    "mamba_conv_bias": "use_conv_bias",
    "mamba_proj_bias": "use_bias",
}
_MARKS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_BLOCK, _MIXER = "backbone.layers.{i}", "backbone.layers.{i}.mixer"
_MLP = "model.layers.{i}.mlp"
_NAMES = {
    "model.embed_tokens": "backbone.embeddings",
    "model.norm": "backbone.norm_f",
    "model.layers.{i}.input_layernorm": f"{_BLOCK}.norm",
    "model.layers.{i}.post_attention_layernorm": f"{_BLOCK}.norm",
    **{f"model.layers.{{i}}.self_attn.{part}_proj": f"{_MIXER}.{part}_proj" for part in "qkvo"},
    **mamba2.names(_MIXER),
    f"{_MLP}.gate": f"{_MIXER}.gate",
    **{
        f"{_MLP}.{of}{part}_proj": f"{_MIXER}.{of}{part}_proj"
        for of in ("", "experts.{e}.", "shared_experts.")
        for part in ("up", "down")
    },
}
_GGUF_NAMES = (
    experts.GGUF_NAMES | mamba2.GGUF_NAMES | {"model.layers.{i}.post_attention_layernorm": "blk.{i}.attn_norm"}
)
_GGUF_EXPERTS = sigmoid_experts.GGUF_ROUTED | {
    "expert_shared_feed_forward_length": "moe_shared_expert_intermediate_size"
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    listed = _kinds(values)
    kinds = mamba2.kinds_of(listed)
    _refuse_what_is_not_read(values, listed)
    # A feed-forward without a gate, as Llama's reader calls its parts.
    values |= {"num_hidden_layers": len(kinds)}
    has_experts = "moe" in listed
    size = "moe_intermediate_size" if has_experts and "mlp" not in listed else "intermediate_size"
    return dataclasses.replace(
        llama.to_model_config({**values, "intermediate_size": values[size]}),
        layer_types=kinds,
        layers_without_feed_forward=tuple(i for i, kind in enumerate(kinds) if kind != "feed_forward"),
        **(mamba2.fields(values) if "mamba2" in kinds else {}),
        **(_expert_fields(values, listed) if has_experts else {}),
    )


def _kinds(values: Mapping[str, Any]) -> list[str]:
    """Read the kinds of the blocks, which older configs have as one letter each."""
    listed, pattern = values.get("layers_block_type"), values.get("hybrid_override_pattern")
    if listed is None and isinstance(pattern, str):
        listed = [_MARKS.get(mark, mark) for mark in pattern]
    kinds = hf_values.layer_types({"layers_block_type": listed}, "layers_block_type")
    if not kinds:
        raise CheckpointError(
            "config.json: it has neither layers_block_type nor hybrid_override_pattern, which say what a block has."
        )
    return kinds


def _refuse_what_is_not_read(values: Mapping[str, Any], kinds: list[str]) -> None:
    for key, supported in (("mamba_hidden_act", "silu"), ("moe_latent_size", None)):
        value = values.get(key, supported)
        if value != supported and (key.startswith("mamba") or "moe" in kinds):
            raise CheckpointError(f"config.json: {key} is {value!r:.60}; supported is {supported!r}.")


def _expert_fields(values: Mapping[str, Any], kinds: list[str]) -> dict[str, Any]:
    return {
        "layers_without_experts": hf_values.layers_of(kinds, "mlp"),
        "moe_intermediate_size": hf_values.whole_number(values, "moe_intermediate_size"),
        "shared_expert_intermediate_size": hf_values.whole_number(values, "moe_shared_expert_intermediate_size"),
        "scoring_func": "sigmoid",
        "norm_topk_prob": hf_values.flag(values, "norm_topk_prob"),
        **{key: hf_values.bounded({key: 1, **values}, key) for key in ("n_group", "topk_group")},
        "routed_scaling_factor": hf_values.number(values, "routed_scaling_factor", 1.0),
        "expert_choice_bias": True,
        **experts.expert_fields(values, "n_routed_experts"),
    }


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    name = "nemotron_h"
    header, of_mamba = mamba2.gguf_values(header)
    header, sizes = gguf_header.by_layer(header, "feed_forward_length")
    if f"{name}.attention.key_length" in header.metadata:
        # Nothing turns. Where a config has no `head_dim`, llama.cpp's converter says how wide heads would be without.
        header = header.changed({"rope.dimension_count": header.metadata[f"{name}.attention.key_length"]})
    metadata, mixing = header.metadata, of_mamba.pop("layer_types")
    has_experts = f"{name}.expert_count" in metadata
    of_block = "moe" if has_experts else "mlp"
    # Files have both epsilons, or the one alone that a config of this family has.
    norm = "rms" if f"{name}.attention.layer_norm_rms_epsilon" in metadata else "layer"
    keys: GGUFKeys = dict.fromkeys(_GGUF_EXPERTS)
    if has_experts:
        experts.check_gguf_scoring(header)
        keys = _GGUF_EXPERTS
    return {
        **gguf_header.to_hf_config(header, {**mamba2.GGUF_KEYS, **keys}, norm=norm),
        **of_mamba,
        "layers_block_type": [of_block if size else kind for size, kind in zip(sizes, mixing, strict=True)],
    }


NEMOTRON_H = Architecture(
    model_type="nemotron_h",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "intermediate_size": 21504,
        "rms_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
        "norm_topk_prob": True,
        "mamba_n_heads": 128,
        "mamba_d_head": 64,
        "mamba_n_groups": 8,
        "mamba_d_state": 128,
        "mamba_d_conv": 4,
    },
    renamed={**_OF_MAMBA, "rms_norm_eps": "layer_norm_epsilon", "hidden_act": "mlp_hidden_act"},
    read_config=_to_model_config,
    features={
        "position": "none",
        "attention_bias": False,  # whatever a config says
        "attention_output_bias": False,
        "mlp_gated": False,
    },
    layout=TensorLayout(names=_NAMES),
    gguf=GGUFFamily(
        architecture="nemotron_h",
        to_hf_config=_gguf_to_hf_config,
        layout=mamba2.gguf_layout(_GGUF_NAMES, llama.GGUF_ROW_ORDERS),
        also_called=("nemotron_h_moe",),
    ),
)
