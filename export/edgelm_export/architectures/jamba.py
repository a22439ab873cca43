"""Jamba: most layers have Mamba in the place of attention, none turns its heads, some may have experts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import bamba, experts, gguf_header, hf_values, llama, mamba2
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import GGUFKeys, whole_number
from edgelm_export.checkpoints.tensor_map import TensorLayout

_LAYER = mamba2.LAYER
_NORMS = {f"{_LAYER}.{part}_layernorm": f"ssm_{part}_norm" for part in ("dt", "b", "c")}
_PARTS = {
    f"{_LAYER}.conv1d": "ssm_conv1d", f"{_LAYER}.x_proj": "ssm_x", f"{_LAYER}.dt_proj": "ssm_dt",
    f"{_LAYER}.A_log": "ssm_a", f"{_LAYER}.D": "ssm_d", f"{_LAYER}.out_proj": "ssm_out", **_NORMS,
}  # fmt: skip
_EXPERTS = {
    name: name.replace(".mlp.gate", ".feed_forward.router").replace(".mlp.", ".feed_forward.")
    for name in experts.GGUF_NAMES
    if name.endswith(".mlp.gate") or ".experts." in name
}
_NAMES = {
    **{name: source for name, source in bamba.NAMES.items() if ".mamba." not in name},
    **_EXPERTS,
    f"{_LAYER}.dt_bias": f"{_LAYER}.dt_proj.bias",
    **{f"{_LAYER}.in_proj_{part}": f"{_LAYER}.in_proj" for part in ("x", "z")},
}
_GGUF_NAMES = {
    **experts.GGUF_NAMES,
    **{name: f"blk.{{i}}.{part}" for name, part in _PARTS.items()},
    f"{_LAYER}.dt_bias": "blk.{i}.ssm_dt.bias",
    **{f"{_LAYER}.in_proj_{part}": "blk.{i}.ssm_in" for part in ("x", "z")},
}
_GGUF_KEYS: GGUFKeys = {
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.state_size": "mamba_d_state",
    "ssm.time_step_rank": "mamba_dt_rank",
    "ssm.inner_size": None,
    "expert_count": None,
    "expert_used_count": ("num_experts_per_tok", 1),
    "expert_feed_forward_length": None,
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    layers = range(hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS))
    attending, having = (_of_period(values, key, layers) for key in ("attn_layer", "expert_layer"))
    kinds = tuple("full_attention" if layer in attending else "mamba" for layer in layers)
    config = llama.to_model_config(values)
    mamba2.refuse_other_activations(config)
    chosen = {
        **experts.expert_fields(values, "num_experts"),
        "norm_topk_prob": False,
        "layers_without_experts": tuple(layer for layer in layers if layer not in having),
    }
    return dataclasses.replace(
        config,
        layer_types=kinds,
        **(_fields(values) if "mamba" in kinds else {}),
        **(chosen if having and chosen["num_experts"] > 1 else {}),
    )


def _of_period(values: Mapping[str, Any], key: str, layers: range) -> list[int]:
    """Return the layers of a kind: those that are listed, as they are of a GGUF file, or one in each period."""
    listed = values.get(f"{key}s")
    if isinstance(listed, list):
        return listed
    period, offset = hf_values.bounded(values, f"{key}_period"), hf_values.whole_number(values, f"{key}_offset")
    return [layer for layer in layers if layer % period == offset]


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ModelConfig for layers of Mamba."""
    hidden = hf_values.bounded(values, "hidden_size")
    for key, supported in (("mamba_conv_bias", True), ("mamba_proj_bias", False)):
        if values.get(key, supported) is not supported:
            raise CheckpointError(f"config.json: {key} is {values[key]!r:.60}; supported is {supported}.")
    is_auto = values["mamba_dt_rank"] == "auto"
    return {
        "linear_num_key_heads": 1,
        "linear_num_value_heads": hf_values.bounded(values, "mamba_expand") * hidden,
        "linear_key_head_dim": hf_values.bounded(values, "mamba_d_state"),
        "linear_value_head_dim": 1,
        "linear_conv_kernel_dim": hf_values.bounded(values, "mamba_d_conv"),
        "mamba_dt_rank": math.ceil(hidden / 16) if is_auto else hf_values.bounded(values, "mamba_dt_rank"),
    }


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    header, heads = gguf_header.by_layer(header)
    values = gguf_header.to_hf_config(header, _GGUF_KEYS)
    inner = whole_number(header.metadata, "jamba.ssm.inner_size")
    count = whole_number(header.metadata, "jamba.expert_count", 0)
    return {
        **values,
        "mamba_expand": inner // max(values["hidden_size"], 1),
        "attn_layers": [layer for layer, count in enumerate(heads) if count],
        "expert_layers": [layer for layer in range(len(heads)) if f"blk.{layer}.ffn_gate_inp.weight" in header.shapes],
        "num_experts": max(count, 1),
    }


JAMBA = Architecture(
    model_type="jamba",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": "auto",
    },
    read_config=_to_model_config,
    features={"position": "none"},
    layout=TensorLayout(names=_NAMES, ones_elsewhere=frozenset({f"{_LAYER}.conv1d.weight"})),  # so mlx-lm has them
    gguf=GGUFFamily(
        architecture="jamba",
        to_hf_config=_gguf_to_hf_config,
        layout=mamba2.gguf_layout(_GGUF_NAMES, {}),
    ),
)
