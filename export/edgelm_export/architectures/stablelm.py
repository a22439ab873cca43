"""StableLM: a Llama with layer norms, whose heads turn in part; in 12B with norms of queries and keys, one a head."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.checkpoints.tensor_map import TensorLayout

_MOST_HEADS = 1024  # each makes names of tensors; in use are 32


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values, partial=0.25)
    parallel, has_norms = (hf_values.flag(values, key) for key in ("use_parallel_residual", "qk_layernorm"))
    return dataclasses.replace(
        config,
        norm_placement="shared" if parallel else "pre",
        parallel_residual=parallel,
        qk_norm=has_norms,
        qk_norm_scope="own_head" if has_norms else "head",
    )


def _layout(config: ModelConfig) -> TensorLayout:
    """Return the layout of a folder, where each head's norm is a tensor by itself."""
    if not config.qk_norm:
        return TensorLayout()
    names, assembled = {}, {}
    for part, count in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
        stem = f"model.layers.{{i}}.self_attn.{part}_layernorm"
        names[f"model.layers.{{i}}.self_attn.{part}_norm"] = stem
        parts = (f"{stem}.norms.{head}.weight" for head in range(min(count, _MOST_HEADS)))
        assembled[f"{stem}.weight"] = tuple(parts)
    return TensorLayout(names=names, assembled=assembled)


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    keys = {"use_parallel_residual": None}
    values = gguf_header.to_hf_config(header, keys, norm="layer", turns_a_part=True)
    return {
        **values,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in header.shapes,
        # llama.cpp tells the two forms apart by the second norm, which a shared one leaves out.
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in header.shapes,
    }


STABLELM = Architecture(
    model_type="stablelm",
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    renamed={"rms_norm_eps": "layer_norm_eps", "attention_bias": "use_qkv_bias"},
    read_config=_to_model_config,
    features={"norm": "layer", "attention_output_bias": False, "mlp_bias": False},
    layout_of=_layout,
    gguf=GGUFFamily(
        architecture="stablelm",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(
            names=llama.GGUF_NAMES | llama.GGUF_QK_NORMS,
            vectors_in_rows=frozenset(f"{name}.weight" for name in llama.GGUF_QK_NORMS.values()),
        ),
    ),
)
