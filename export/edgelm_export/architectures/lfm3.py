"""LFM3: LFM2's convolutions, norms on both sides, a gate behind each head, and windows in half of the other layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import gemma3, hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_ROPE: Mapping[str, Any] = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5}

_LAYER = "model.layers.{i}"
_NAMES = {
    f"{_LAYER}.input_layernorm": f"{_LAYER}.operator_norm",
    f"{_LAYER}.post_attention_layernorm": f"{_LAYER}.post_operator_norm",
    f"{_LAYER}.pre_feedforward_layernorm": f"{_LAYER}.ffn_norm",
    f"{_LAYER}.mlp.gate_proj": f"{_LAYER}.feed_forward.w1",
    f"{_LAYER}.mlp.up_proj": f"{_LAYER}.feed_forward.w3",
    f"{_LAYER}.mlp.down_proj": f"{_LAYER}.feed_forward.w2",
    f"{_LAYER}.post_feedforward_layernorm": f"{_LAYER}.post_ffn_norm",
    "model.norm": "model.embedding_norm",
}
_LAYOUT = TensorLayout(names=_NAMES, ones_elsewhere=frozenset({f"{_LAYER}.conv.conv.weight"}))
_BEFORE_ALONE = dataclasses.replace(
    _LAYOUT, names=_NAMES | {f"{_LAYER}.post_attention_layernorm": f"{_LAYER}.ffn_norm"}
)


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    if not values.get("rope_parameters"):
        values["rope_parameters"] = {"full_attention": _ROPE}
    values |= gemma3.rotations(values, _ROPE["rope_theta"], values["rope_local_base_freq"])
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    kinds = hf_values.layer_types(values) or _kinds(layers)
    has_windows, is_gated = "sliding_attention" in kinds, hf_values.flag(values, "use_attention_gate")
    config = llama.to_model_config({**values, "mlp_bias": False})
    return dataclasses.replace(
        config,
        norm_placement="both" if hf_values.flag(values, "use_sandwich_norm") else "pre",
        attention_output_gate=is_gated,
        attention_gate_per_head=is_gated,
        layer_types=tuple(kinds),
        sliding_window=hf_values.whole_number(values, "sliding_window") if has_windows else None,
        rope_local_theta=hf_values.number(values, "rope_local_base_freq", 1e4) if has_windows else None,
        conv_L_cache=hf_values.whole_number(values, "conv_L_cache"),
        conv_bias=hf_values.flag(values, "conv_bias"),
    )


def _kinds(layers: int) -> list[str]:
    """Return the kinds of layers of which each second one, behind the first, has attention, every other of them all."""
    kinds = ("sliding_attention", "conv", "full_attention", "conv")
    return [kinds[layer % 4] if layer else "conv" for layer in range(layers)]


# llama.cpp does not know it.
LFM3 = Architecture(
    model_type="lfm3",
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "conv_L_cache": 7,
        "sliding_window": 256,
        "use_sandwich_norm": True,
        "use_attention_gate": True,
        "rope_local_base_freq": 1e4,
        "bos_token_id": 124_894,
        "eos_token_id": 124_900,
    },
    fixed={"attention_bias": False},
    renamed={"rms_norm_eps": "norm_eps"},
    read_config=_to_model_config,
    features={"qk_norm": True},
    layout_of=lambda config: _LAYOUT if config.norm_placement == "both" else _BEFORE_ALONE,
    gguf=None,
)
