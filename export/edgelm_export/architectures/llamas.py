"""Llamas under other names: rows with other defaults, or one feature more.

They are Arcee's, CWM, Helium, InternLM 3, IQuest-Coder, Llama 3.2 Vision's text part, Seed-OSS and SmolLM3.

llama.cpp's converter calls InternLM 3 and IQuest-Coder "llama", so their GGUF files are read by that row, the first of
that name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values, llama, olmo
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.checkpoints.tensor_map import TensorLayout

# Arcee's foundation models (AFM 4.5B): a Llama whose feed-forward squares a relu, without a gate.
ARCEE = Architecture(
    model_type="arcee",
    defaults={
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    read_config=llama.to_model_config,
    features={"mlp_gated": False},
    gguf=GGUFFamily(architecture="arcee", layout=llama.GGUF_LAYOUT),
)

# Meta's CWM: a Llama of which three in four layers attend in a window.
_CWM_ROPE: Mapping[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_CWM_PATTERN = 4  # of these, the first layer sees all


def _to_cwm_config(values: dict[str, Any]) -> ModelConfig:
    if "rope_scaling" not in values and "rope_parameters" not in values:
        values["rope_parameters"] = _CWM_ROPE
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    window = hf_values.optional_whole_number(values, "sliding_window") or None
    windows = hf_values.windows(values, window, hf_values.first_sees_all(layers, _CWM_PATTERN))
    return dataclasses.replace(llama.to_model_config(values), **windows)


# llama.cpp's converter does not know it.
CWM = dataclasses.replace(
    llama.LLAMA,
    model_type="cwm",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "sliding_window": 8192,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "rope_theta": 1e6,
    },
    null_keys=frozenset({"sliding_window"}),
    read_config=_to_cwm_config,
    features={"attention_bias": False, "attention_output_bias": False},
    gguf=None,
)

# Kyutai's Helium: a Llama that turns neighbouring dimensions.
HELIUM = Architecture(
    model_type="helium",
    defaults={
        "num_key_value_heads": 20,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-8,
        "rope_theta": 1e5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read_config=llama.to_model_config,
    features={"attention_output_bias": False},
    layout=TensorLayout(row_orders=llama.GGUF_ROW_ORDERS),
    gguf=None,
)


# InternLM 3: a Llama with other names for its two switches of biases.
def _to_internlm3_config(values: dict[str, Any]) -> ModelConfig:
    return dataclasses.replace(llama.to_model_config(values), attention_output_bias=hf_values.flag(values, "mlp_bias"))


INTERNLM3 = dataclasses.replace(
    llama.LLAMA,
    model_type="internlm3",
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    # As the model's own code has them: of queries, keys and values, and of all else.
    renamed={"attention_bias": "qkv_bias", "mlp_bias": "bias"},
    read_config=_to_internlm3_config,
)


# IQuest-Coder V1: a Llama under a name of its own.
def _to_iquestcoder_config(values: dict[str, Any]) -> ModelConfig:
    olmo.refuse_clipping(values)
    if values.get("use_sliding_window"):  # which the models' own code knows, and none of them has
        raise CheckpointError("config.json: use_sliding_window is true; of IQuest-Coder, windows are not supported.")
    return llama.to_model_config(values)


IQUESTCODER = dataclasses.replace(
    llama.LLAMA,
    model_type="iquestcoder",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read_config=_to_iquestcoder_config,
)

# The text part of Llama 3.2 Vision: a Llama whose embedding has rows of images behind the last token of the head.
MLLAMA = dataclasses.replace(
    llama.LLAMA,
    model_type="mllama_text_model",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    layout=TensorLayout(rows_behind=frozenset({"model.embed_tokens"})),
    gguf=None,
)

# ByteDance's Seed-OSS: a Llama with a switch of its own for the bias of o_proj.
_SEED_OSS_GGUF_NAMES = llama.GGUF_NAMES | {"model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm"}


def _to_seed_oss_config(values: dict[str, Any]) -> ModelConfig:
    has_bias = hf_values.flag(values, "attention_out_bias")
    return dataclasses.replace(llama.to_model_config(values), attention_output_bias=has_bias)


SEED_OSS = Architecture(
    model_type="seed_oss",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "attention_bias": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    read_config=_to_seed_oss_config,
    gguf=GGUFFamily(architecture="seed_oss", layout=TensorLayout(names=_SEED_OSS_GGUF_NAMES)),
)


# SmolLM3: a Llama of which every fourth layer does not turn its heads.
def _to_smollm3_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values)
    layers = range(config.num_hidden_layers)
    without_rope = hf_values.layers_without_rope(values, config.num_hidden_layers)
    has_windows = hf_values.flag(values, "use_sliding_window") or hf_values.layer_types(values) is not None
    window = values.get("sliding_window") if has_windows else None
    kinds = ["sliding_attention" if layer in without_rope else "full_attention" for layer in layers]
    return dataclasses.replace(
        config,
        layers_without_rope=without_rope,
        **hf_values.windows(values, window, kinds),
    )


SMOLLM3 = Architecture(
    model_type="smollm3",
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "no_rope_layer_interval": 4,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    read_config=_to_smollm3_config,
    gguf=GGUFFamily(architecture="smollm3", layout=llama.GGUF_LAYOUT),
)
