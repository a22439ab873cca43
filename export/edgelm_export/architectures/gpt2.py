"""GPT-2, StarCoder 1, OpenAI's first GPT: layer norms, learned positions, a plain feed-forward, weights [in, out]."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.architectures.phi3 import GGUF_FUSED
from edgelm_export.checkpoints.tensor_map import TensorLayout

_BLOCK = "transformer.h.{i}"
NAMES = {
    "model.embed_tokens": "transformer.wte",
    "model.embed_positions": "transformer.wpe",
    "model.layers.{i}.input_layernorm": f"{_BLOCK}.ln_1",
    **{f"model.layers.{{i}}.self_attn.{part}_proj": f"{_BLOCK}.attn.c_attn" for part in "qkv"},
    "model.layers.{i}.self_attn.o_proj": f"{_BLOCK}.attn.c_proj",
    "model.layers.{i}.post_attention_layernorm": f"{_BLOCK}.ln_2",
    "model.layers.{i}.mlp.up_proj": f"{_BLOCK}.mlp.c_fc",
    "model.layers.{i}.mlp.down_proj": f"{_BLOCK}.mlp.c_proj",
    "model.norm": "transformer.ln_f",
}
GGUF_NAMES = llama.GGUF_NAMES | GGUF_FUSED | {"model.embed_positions": "position_embd"}
# The causal mask, which older versions of transformers stored.
MASKS = frozenset({f"{_BLOCK}.attn.bias", f"{_BLOCK}.attn.masked_bias"})


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    usual = 4 * hf_values.whole_number(values, "hidden_size")
    key = "n_inner" if "n_inner" in values else "intermediate_size"  # null is the usual size, whatever else is there
    sizes = {"intermediate_size": hf_values.whole_number(values, key, usual)}
    return llama.to_model_config({**values, **sizes, "num_key_value_heads": None, "head_dim": None})


GPT2 = Architecture(
    model_type="gpt2",
    defaults={
        "max_position_embeddings": 1024,
        "hidden_act": "gelu_new",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    # Features that have no place in ModelConfig.
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    renamed={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    read_config=_to_model_config,
    features={
        "norm": "layer",
        "position": "learned",
        "mlp_gated": False,
        **hf_values.biases(True),
    },
    layout=TensorLayout(
        names=NAMES,
        ignored=MASKS,
        transposed=frozenset(f"{_BLOCK}.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    ),
    mlx=TensorLayout(names={name: source.replace("transformer.", "model.") for name, source in NAMES.items()}),
    gguf=GGUFFamily(
        architecture="gpt2",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, norm="layer"),
        layout=TensorLayout(names=GGUF_NAMES),
    ),
)


# StarCoder 1 and SantaCoder: a GPT-2 whose query heads share one key head, with weights as [out, in].
_FUSED = "transformer.h.{i}.attn.c_attn"


def _to_gpt_bigcode_config(values: dict[str, Any]) -> ModelConfig:
    config = GPT2.to_model_config(values)
    is_shared = hf_values.flag(values, "multi_query")
    return dataclasses.replace(config, num_key_value_heads=1 if is_shared else config.num_attention_heads)


GPT_BIGCODE = Architecture(
    model_type="gpt_bigcode",
    defaults={"hidden_act": "gelu_pytorch_tanh", "multi_query": True},
    read_config=_to_gpt_bigcode_config,
    layout=TensorLayout(names=NAMES, by_group=frozenset({_FUSED}), ignored=MASKS),
    gguf=GGUFFamily(
        architecture="starcoder",  # whose converter writes models with one key head alone
        to_hf_config=lambda header: gguf_header.to_hf_config(header, norm="layer"),
        layout=TensorLayout(names=GGUF_NAMES),
    ),
)


# OpenAI's first GPT: a GPT-2 that norms the residual stream behind each part of a block.
_LAYER = "model.layers.{i}"
_OTHERS = {
    "model.embed_tokens": "transformer.tokens_embed",
    "model.embed_positions": "transformer.positions_embed",
    f"{_LAYER}.post_attention_layernorm": "transformer.h.{i}.ln_1",
    f"{_LAYER}.post_feedforward_layernorm": "transformer.h.{i}.ln_2",
}


def _to_openai_gpt_config(values: dict[str, Any]) -> ModelConfig:
    # It computes gelu by a tanh, whatever that name means elsewhere.
    activation = "gelu_new" if values.get("afn", "gelu") == "gelu" else values["afn"]
    return GPT2.to_model_config({**values, "n_inner": None, "activation_function": activation})


OPENAI_GPT = dataclasses.replace(
    GPT2,
    model_type="openai-gpt",
    defaults={"max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None},
    fixed={},
    renamed={},
    read_config=_to_openai_gpt_config,
    features={"norm_placement": "residual", "final_norm": False},
    layout=dataclasses.replace(GPT2.layout, names=NAMES | _OTHERS),
    mlx=None,
    gguf=None,  # llama.cpp does not know it
)
