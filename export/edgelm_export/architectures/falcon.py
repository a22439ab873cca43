"""Falcon (7B, 40B, 2 11B): attention and feed-forward side by side, layer norms, one key head for many query heads.

Falcon RW (1B, 7B) has scores that fall with the distance of a key, scaled as all scores are. transformers rounds them
to bfloat16, by the place of a key: beyond 256 tokens neighbours have one and the same. Here they are exact, as in vLLM.
Falcon 3 is a Llama.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.phi3 import GGUF_FUSED
from edgelm_export.checkpoints.tensor_map import TensorLayout

_BLOCK = "transformer.h.{i}"
_FUSED = f"{_BLOCK}.self_attention.query_key_value"
NAMES = {
    "model.embed_tokens": "transformer.word_embeddings",
    "model.layers.{i}.input_layernorm": f"{_BLOCK}.input_layernorm",
    **{f"model.layers.{{i}}.self_attn.{part}_proj": _FUSED for part in "qkv"},
    "model.layers.{i}.self_attn.o_proj": f"{_BLOCK}.self_attention.dense",
    "model.layers.{i}.post_attention_layernorm": f"{_BLOCK}.post_attention_layernorm",
    "model.layers.{i}.mlp.up_proj": f"{_BLOCK}.mlp.dense_h_to_4h",
    "model.layers.{i}.mlp.down_proj": f"{_BLOCK}.mlp.dense_4h_to_h",
    "model.norm": "transformer.ln_f",
}
_LAYOUT = TensorLayout(names=NAMES, by_group=frozenset({_FUSED}))
_TWO_NORMS = dataclasses.replace(
    _LAYOUT,
    names=NAMES
    | {
        "model.layers.{i}.input_layernorm": f"{_BLOCK}.ln_attn",
        "model.layers.{i}.post_attention_layernorm": f"{_BLOCK}.ln_mlp",
    },
)


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    size, heads = (hf_values.whole_number(values, key) for key in ("hidden_size", "num_attention_heads"))
    is_newer, has_biases = (hf_values.flag(values, key) for key in ("new_decoder_architecture", "bias"))
    is_shared = not is_newer and hf_values.flag(values, "multi_query")
    in_parallel = is_newer or hf_values.flag(values, "parallel_attn")
    norms = hf_values.whole_number(values, "num_ln_in_parallel_attn", 2 if is_newer else 1)
    config = llama.to_model_config(
        {
            **values,
            "intermediate_size": hf_values.whole_number(values, "ffn_hidden_size", 4 * size),
            "num_key_value_heads": 1 if is_shared else hf_values.whole_number(values, "num_kv_heads", heads),
            "head_dim": None,
        }
    )
    falls: dict[str, Any] = {"position": "alibi", "alibi_multiplier": config.attention_scale}
    return dataclasses.replace(
        config,
        **(falls if hf_values.flag(values, "alibi") else {}),
        norm_placement="shared" if in_parallel and not (is_newer and norms == 2) else "pre",
        parallel_residual=in_parallel,
        **hf_values.biases(has_biases),
    )


def _layout_of(config: ModelConfig) -> TensorLayout:
    return _TWO_NORMS if config.parallel_residual and config.norm_placement == "pre" else _LAYOUT


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, norm="layer")
    return {
        **values,
        "ffn_hidden_size": values["intermediate_size"],
        "num_kv_heads": values["num_key_value_heads"],
        # One norm a layer, and as many key heads as the file says.
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 1,
    }


FALCON = Architecture(
    model_type="falcon",
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "multi_query": True,
        "parallel_attn": True,
        "tie_word_embeddings": True,
        "bos_token_id": 11,
        "eos_token_id": 11,
    },
    renamed={"rms_norm_eps": "layer_norm_epsilon", "hidden_act": "activation"},
    read_config=_to_model_config,
    features={"norm": "layer", "mlp_gated": False},
    layout_of=_layout_of,
    gguf=GGUFFamily(
        architecture="falcon",
        to_hf_config=_gguf_to_hf_config,
        # llama.cpp's converter has taken queries, keys and values apart.
        layout=TensorLayout(names=llama.GGUF_NAMES | GGUF_FUSED),
    ),
)
