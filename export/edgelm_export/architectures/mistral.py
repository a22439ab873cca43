"""Mistral: a Llama without biases, whose first versions attend in a window; Ministral does in some of its layers.

Ministral 3's queries grow as a text goes on, and its positions are stretched (YaRN).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import float32_number

# What transformers takes where config.json has no such key.
_ROPE_3: Mapping[str, Any] = {
    "type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_OTHER_ROPE_3 = ("llama_4_scaling_beta", "max_position_embeddings")  # beside what `hf_values.rope` reads
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GGUF_GROWTH = "rope.scaling.yarn_log_multiplier"  # where both have it, attention does not grow with the factor


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    window = hf_values.optional_whole_number(values, "sliding_window")
    windows = hf_values.windows(values, window, ["sliding_attention"])
    return dataclasses.replace(llama.to_model_config(values), **windows)


def _to_ministral3(values: dict[str, Any]) -> ModelConfig:
    settings = values.get("rope_parameters") or values.get("rope_scaling") or _ROPE_3
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"config.json: the rope settings are {settings!r:.80}; they must be an object.")
    rope = {key: value for key, value in settings.items() if key not in _OTHER_ROPE_3}
    config = _to_model_config(values | {"rope_scaling": None, "rope_parameters": rope})
    beta = hf_values.number(settings, "llama_4_scaling_beta", 0.0)
    return dataclasses.replace(config, llama_4_scaling_beta=beta or None)


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    keys = dict.fromkeys((_GGUF_GROWTH, "attention.temperature_scale"))
    values = gguf_header.to_hf_config(header, keys)
    metadata, scaling = header.metadata, values["rope_scaling"]
    if scaling is None:  # Mistral Small 3, which llama.cpp calls so too where it reads images
        return {"model_type": "mistral", **values, "sliding_window": None}
    if (key := f"mistral3.{_GGUF_GROWTH}") in metadata:
        scaling |= dict.fromkeys(("mscale", "mscale_all_dim"), float32_number(metadata, key))
    beta = float32_number(metadata, "mistral3.attention.temperature_scale", 0.0)
    scaling |= {"rope_theta": values["rope_theta"], "llama_4_scaling_beta": beta}
    return {**values, "rope_scaling": scaling}


# llama.cpp's converter calls both "llama", and as Ministral 3 the parts of text of those that read images: so their
# GGUF files are read by Llama's row or by Ministral 3's, the first of these names.
MISTRAL = dataclasses.replace(
    llama.LLAMA,
    model_type="mistral",
    defaults=_DEFAULTS,
    read_config=_to_model_config,
    features=hf_values.biases(False),
    gguf=dataclasses.replace(llama.GGUF, also_called=("mistral3",)),
)
MINISTRAL = dataclasses.replace(MISTRAL, model_type="ministral")
MINISTRAL3 = Architecture(
    model_type="ministral3",
    defaults={
        **_DEFAULTS,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    read_config=_to_ministral3,
    features=MISTRAL.features,
    gguf=GGUFFamily(
        architecture="mistral3",
        to_hf_config=_gguf_to_hf_config,
        layout=llama.GGUF_LAYOUT,
    ),
)
