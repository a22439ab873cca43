"""Tencent's Hunyuan, the dense models: a Llama that norms each query and key head behind the rotation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key.
_DEFAULTS: Mapping[str, Any] = {"rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
_LARGEST_ALPHA = 1_000_000  # in use is 1000
_NAMES = {name: name for name in llama.GGUF_NAMES} | {
    "model.layers.{i}.self_attn.q_norm": "model.layers.{i}.self_attn.query_layernorm",
    "model.layers.{i}.self_attn.k_norm": "model.layers.{i}.self_attn.key_layernorm",
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **values}
    config = llama.to_model_config({**values, **_stretched_base(values)})
    return dataclasses.replace(
        config,
        model_type="hunyuan_v1_dense",
        mlp_bias=False,
        qk_norm=hf_values.flag({"use_qk_norm": True, **values}, "use_qk_norm"),
        qk_norm_scope="turned_head",
    )


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


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    # llama.cpp's converter has stretched the base.
    values = gguf_header.to_hf_config(header, "hunyuan-dense")
    return {"model_type": "hunyuan_v1_dense", **values, "attention_bias": "blk.0.attn_q.bias" in header.shapes}


HUNYUAN = Architecture(
    model_type="hunyuan_v1_dense",
    to_model_config=_to_model_config,
    layout=TensorLayout(names=_NAMES),
    gguf=GGUFFamily(
        architecture="hunyuan-dense",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=llama.GGUF_NAMES | llama.GGUF_QK_NORMS),
    ),
)
