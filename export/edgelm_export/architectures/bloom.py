"""BLOOM and BLOOMZ: a GPT-2 whose scores fall with the distance of a key, behind a norm of the embedding."""

from __future__ import annotations

from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import falcon, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.architectures.phi3 import GGUF_FUSED
from edgelm_export.checkpoints.tensor_map import TensorLayout

_FUSED = "transformer.h.{i}.self_attention.query_key_value"
_NAMES = falcon.NAMES | {"model.embed_norm": "transformer.word_embeddings_layernorm"}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    if hf_values.flag(values, "apply_residual_connection_post_layernorm"):
        raise CheckpointError(
            "config.json: apply_residual_connection_post_layernorm is true; supported is a residual stream that no "
            "norm is before."
        )
    sizes = {"intermediate_size": 4 * hf_values.whole_number(values, "hidden_size"), "hidden_act": "gelu_pytorch_tanh"}
    return llama.to_model_config({**values, **sizes, "num_key_value_heads": None, "head_dim": None})


BLOOM = Architecture(
    model_type="bloom",
    # Of the context transformers knows no end, the models were trained on this one.
    defaults={
        "vocab_size": 250880,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "rms_norm_eps": 1e-5,
        "seq_length": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    null_keys=frozenset(),
    # The first three are older names, which the published models have.
    renamed={
        "hidden_size": "n_embed",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "rms_norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "seq_length",
    },
    read_config=_to_model_config,
    features={
        "norm": "layer",
        "embedding_norm": True,
        "position": "alibi",
        "mlp_gated": False,
        **hf_values.biases(True),
    },
    layout=TensorLayout(names=_NAMES, by_head=frozenset({_FUSED})),
    gguf=GGUFFamily(
        architecture="bloom",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, {"context_length": "seq_length"}, norm="layer"),
        layout=TensorLayout(names=llama.GGUF_NAMES | GGUF_FUSED | {"model.embed_norm": "token_embd_norm"}),
    ),
)
