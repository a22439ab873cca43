"""StableLM: a Llama with layer norms, whose heads turn in part."""

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
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **values}
    if hf_values.flag(values, "qk_layernorm"):
        raise CheckpointError(
            "config.json: qk_layernorm is true; a norm of its own for each query and key head is not supported."
        )
    config = llama.to_model_config(values | {"rms_norm_eps": values["layer_norm_eps"]}, partial=0.25)
    parallel = hf_values.flag(values, "use_parallel_residual")
    return dataclasses.replace(
        config,
        norm="layer",
        norm_placement="shared" if parallel else "pre",
        parallel_residual=parallel,
        attention_bias=hf_values.flag(values, "use_qkv_bias"),
        attention_output_bias=False,
        mlp_bias=False,
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    keys = frozenset({"use_parallel_residual"})
    values = gguf_header.to_hf_config(header, "stablelm", keys=keys, norm="layer", turns_a_part=True)
    return {
        **values,
        "layer_norm_eps": values["rms_norm_eps"],
        "use_qkv_bias": "blk.0.attn_q.bias" in header.shapes,
        # llama.cpp tells the two forms apart by the second norm, which a shared one leaves out.
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in header.shapes,
    }


STABLELM = Architecture(
    model_type="stablelm",
    read_config=_to_model_config,
    gguf=GGUFFamily(
        architecture="stablelm", to_hf_config=_gguf_to_hf_config, layout=TensorLayout(names=llama.GGUF_NAMES)
    ),
)
