"""Gemma 3, the models of text alone: Gemma 2 with query and key norms instead of soft-caps, and two rotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gemma, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import GGUFKeys, float32_number
from edgelm_export.checkpoints.tensor_map import TensorLayout

_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_GGUF_KEYS: GGUFKeys = {"rope.freq_base_swa": ("rope_local_base_freq", 1e4), "final_logit_softcapping": None}
_LAYERS_OF_27B = 62


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    values |= rotations(values, values["rope_theta"], values["rope_local_base_freq"])
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    pattern = hf_values.bounded(values, "sliding_window_pattern")
    if values.get("layer_types") is None:
        values["layer_types"] = hf_values.last_sees_all(layers, pattern)
    # transformers reads a soft-cap of attention here, and computes without it.
    config = gemma.to_gemma2_config(values | {"attn_logit_softcapping": None})
    return dataclasses.replace(config, rope_local_theta=hf_values.number(values, "rope_local_base_freq", 1e4))


def rotations(values: Mapping[str, Any], theta: float, local_theta: float) -> dict[str, Any]:
    """Read transformers 5's rope_parameters by kind of layer as the older keys for the two.

    theta, local_theta: the bases where they have none.

    Raises:
        CheckpointError: the layers with a window have a scaling, or a kind of layer has no object of settings.
    """
    settings = values.get("rope_parameters") or {}
    if not isinstance(settings, Mapping) or not settings.keys() & {"full_attention", "sliding_attention"}:
        return {}
    local, every = (settings.get(kind) or {} for kind in ("sliding_attention", "full_attention"))
    if not isinstance(local, Mapping) or not isinstance(every, Mapping):
        raise CheckpointError(f"config.json: rope_parameters is {settings!r:.80}; it must hold objects.")
    if local.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"config.json: the layers with a window have rope type {local['rope_type']!r}; supported is default alone."
        )
    return {
        "rope_parameters": every,
        "rope_theta": every.get("rope_theta", theta),
        "rope_local_base_freq": local.get("rope_theta", local_theta),
    }


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gemma.gguf_values(header, _LAYERS_OF_27B, _GGUF_KEYS)
    if "gemma3.final_logit_softcapping" in header.metadata:
        values["final_logit_softcapping"] = float32_number(header.metadata, "gemma3.final_logit_softcapping")
    return values


GEMMA3 = Architecture(
    model_type="gemma3_text",
    defaults=_DEFAULTS,
    read_config=_to_model_config,
    features={"qk_norm": True},
    gguf=GGUFFamily(
        architecture="gemma3",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=gemma.GGUF_NAMES | llama.GGUF_QK_NORMS, norms_plus_one=True),
    ),
)
