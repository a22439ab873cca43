"""InternLM 2 and 2.5: a Llama with queries, keys and values in one tensor, the query heads of a key head beside it."""

from __future__ import annotations

from typing import Any

from edgelm_export.architectures import gguf_header, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.checkpoints.tensor_map import TensorLayout

_LAYER = "model.layers.{i}"
_FUSED = f"{_LAYER}.attention.wqkv"
_NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    f"{_LAYER}.input_layernorm": f"{_LAYER}.attention_norm",
    **{f"{_LAYER}.self_attn.{part}_proj": _FUSED for part in "qkv"},
    f"{_LAYER}.self_attn.o_proj": f"{_LAYER}.attention.wo",
    f"{_LAYER}.post_attention_layernorm": f"{_LAYER}.ffn_norm",
    f"{_LAYER}.mlp.gate_proj": f"{_LAYER}.feed_forward.w1",
    f"{_LAYER}.mlp.up_proj": f"{_LAYER}.feed_forward.w3",
    f"{_LAYER}.mlp.down_proj": f"{_LAYER}.feed_forward.w2",
    "lm_head": "output",
}


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    has_biases = "blk.0.attn_output.bias" in header.shapes
    return gguf_header.to_hf_config(header) | {"attention_bias": has_biases}


INTERNLM2 = Architecture(
    model_type="internlm2",
    defaults={"attention_bias": True, "bos_token_id": 1, "eos_token_id": 2},
    renamed={"attention_bias": "bias"},
    read_config=llama.to_model_config,
    features={"mlp_bias": False},
    layout=TensorLayout(names=_NAMES, by_group=frozenset({_FUSED})),
    is_in_transformers=False,
    gguf=GGUFFamily(
        architecture="internlm2",
        to_hf_config=_gguf_to_hf_config,
        layout=llama.GGUF_LAYOUT,
    ),
)
