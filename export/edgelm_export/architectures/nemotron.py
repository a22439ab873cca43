"""Nemotron and Minitron, the dense models: layer norms of 1 + weight, and a squared relu without a gate."""

from __future__ import annotations

from functools import partial
from typing import Any

from edgelm_export.architectures import gguf_header, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.checkpoints.tensor_map import TensorLayout


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, norm="layer", turns_a_part=True)
    return {
        **values,
        "attention_bias": "blk.0.attn_output.bias" in header.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in header.shapes,
    }


NEMOTRON = Architecture(
    model_type="nemotron",
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    renamed={"rms_norm_eps": "norm_eps"},
    read_config=partial(llama.to_model_config, partial=0.5),
    features={"norm": "layer_offset", "mlp_gated": False},
    gguf=GGUFFamily(
        architecture="nemotron",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=llama.GGUF_NAMES, norms_plus_one=True),
    ),
)
