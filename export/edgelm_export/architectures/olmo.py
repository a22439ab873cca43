"""OLMo 1 to 3, OLMoE and FlexOlmo: the first is a Llama whose layer norms have no weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, gemma3, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gemma import GGUF_NAMES
from edgelm_export.architectures.gguf_values import WINDOW_PATTERN, float32_number, rope_by_kind, whole_number
from edgelm_export.checkpoints.tensor_map import TensorLayout

_EPSILON = 1e-5  # in no config


def refuse_clipping(values: Mapping[str, Any]) -> None:
    """Refuse a config that clips queries, keys and values, as a few of OLMo's do.

    Raises:
        CheckpointError: it does.
    """
    if values.get("clip_qkv") is not None:
        raise CheckpointError(
            f"config.json: clip_qkv is {values['clip_qkv']!r}; clipped queries, keys and values are not supported."
        )


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    refuse_clipping(values)
    values = {"eos_token_id": 50279, **values, "rms_norm_eps": _EPSILON}
    return dataclasses.replace(llama.to_model_config(values), norm="layer_plain", mlp_bias=False)


OLMO = Architecture(
    model_type="olmo",
    read_config=_to_model_config,
    gguf=GGUFFamily(
        architecture="olmo",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, norm="layer"),
        layout=llama.GGUF_LAYOUT,
    ),
)


# OLMo 2: a Llama with norms behind each part, and of all query and of all key heads together. Its row reads GGUF files
# of OLMo 3 too, which llama.cpp tells apart by their window.
_WINDOW_KEYS = dict.fromkeys(("attention.sliding_window", WINDOW_PATTERN, "rope.freq_base_swa"))
# llama.cpp's converter writes config.json's attention_factor there, which is the whole; llama.cpp multiplies by it.
_ATTENTION = "olmo2.rope.scaling.attn_factor"


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, _WINDOW_KEYS)
    if values["rope_scaling"] and _ATTENTION in header.metadata:
        factor = float32_number(header.metadata, _ATTENTION)
        values["rope_scaling"] = {**values["rope_scaling"], "attention_factor": factor}
    window = whole_number(header.metadata, "olmo2.attention.sliding_window", 0)
    if not window:
        return values
    # llama.cpp takes the pattern of the published models, whatever the file has for it.
    values |= {"model_type": "olmo3", "sliding_window": window}
    return rope_by_kind(values, header)


OLMO2 = Architecture(
    model_type="olmo2",
    defaults={"rms_norm_eps": 1e-5, "eos_token_id": 50279},
    read_config=llama.to_model_config,
    features={"norm_placement": "post", "qk_norm": True, "qk_norm_scope": "projection", "mlp_bias": False},
    gguf=GGUFFamily(
        architecture="olmo2",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=GGUF_NAMES | llama.GGUF_QK_NORMS),
    ),
)


# OLMo 3: an OLMo 2 of which three in four layers attend in a window, and turn their heads unscaled there.
_PATTERN = 4  # of these, the last layer sees all


def _to_olmo3_config(values: dict[str, Any]) -> ModelConfig:
    values |= gemma3.rotations(values, values["rope_theta"], values["rope_theta"])
    config = OLMO2.to_model_config(values)
    window = hf_values.optional_whole_number(values, "sliding_window")
    windows = hf_values.windows(values, window, hf_values.last_sees_all(config.num_hidden_layers, _PATTERN))
    local = hf_values.number(values, "rope_local_base_freq", config.rope_theta) if windows else None
    return dataclasses.replace(config, rope_local_theta=local, **windows)


# llama.cpp's converter calls it "olmo2", so its GGUF files are read by that row, the first of that name.
OLMO3 = dataclasses.replace(
    OLMO2, model_type="olmo3", defaults={"rope_theta": 5e5, "sliding_window": 4096}, read_config=_to_olmo3_config
)


# OLMoE: a Llama with experts, and norms of all query and of all key heads together.
def _to_olmoe_config(values: dict[str, Any]) -> ModelConfig:
    refuse_clipping(values)
    return dataclasses.replace(
        llama.to_model_config(values | {"mlp_bias": False}),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **experts.expert_fields(values, "num_experts"),
    )


OLMOE = Architecture(
    model_type="olmoe",
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "eos_token_id": 50279,
    },
    renamed={"num_experts": "num_local_experts"},
    read_config=_to_olmoe_config,
    features={"qk_norm": True, "qk_norm_scope": "projection"},
    mlx=TensorLayout(names=experts.MLX_NAMES),
    gguf=GGUFFamily(
        architecture="olmoe",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, experts.gguf_keys("num_experts", size=None)),
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS),
        has_experts=True,
    ),
)


# FlexOlmo: an OLMo 2 whose feed-forwards are experts.
def _to_flex_olmo_config(values: dict[str, Any]) -> ModelConfig:
    return dataclasses.replace(
        OLMO2.to_model_config(values),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **experts.expert_fields(values, "num_experts"),
    )


# Neither llama.cpp nor mlx-lm knows it.
FLEX_OLMO = Architecture(
    model_type="flex_olmo",
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e5,
        "num_experts": 7,
        "num_experts_per_tok": 5,
        "eos_token_id": 100257,
    },
    read_config=_to_flex_olmo_config,
    gguf=None,
)
