"""Random models with both stacks, one of each family and feature, and what transformers computes with them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

T5 = {"d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "pad_token_id": 0}
T5 |= {"decoder_start_token_id": 0}
BART = {
    "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 96, "decoder_ffn_dim": 80,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "max_position_embeddings": 200, "pad_token_id": 0,
    "bos_token_id": 1, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
MARIAN = BART | {"activation_function": "swish", "scale_embedding": True, "decoder_start_token_id": 0}
M2M_100 = BART | {"pad_token_id": 1, "bos_token_id": 0}
GEMMA2 = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 20,
    "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0, "max_position_embeddings": 200, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PLAIN = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": ["full_attention"] * 4}
LARGER_ENCODER = {"hidden_size": 80, "intermediate_size": 112, "num_hidden_layers": 4, "num_key_value_heads": 1}
# The source of 150 tokens is longer than the largest distance of T5's that has a bucket of its own.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", T5),
    "t5 v1.1, untied": ("t5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    # As transformers 5 saves it: the head is tied, and nothing scales what it reads.
    "t5 v1.1, tied": (
        "t5",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "initializer_factor": 0.5},
    ),
    "t5, other buckets": (
        "t5",
        T5 | {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 40},
    ),
    "t5 without gates, few buckets": ("t5", T5 | {"relative_attention_num_buckets": 12, "d_ff": 128}),
    "mt5": ("mt5", T5 | {"initializer_factor": 0.5}),
    "mt5, untied, without gates": ("mt5", T5 | {"feed_forward_proj": "relu"}),
    "umt5, untied": ("umt5", T5 | {"tie_word_embeddings": False, "initializer_factor": 0.5}),
    "umt5, other buckets": (
        "umt5",
        T5 | {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 40},
    ),
    "umt5, one layer before three": ("umt5", T5 | {"num_layers": 1}),
    "bart": ("bart", BART),
    "bart that begins with a language": ("bart", BART | {"forced_bos_token_id": 5, "scale_embedding": True}),
    "blenderbot": ("blenderbot", BART | {"scale_embedding": True}),
    "blenderbot-small": ("blenderbot-small", BART),
    "marian": ("marian", MARIAN),
    "marian without its padding": ("marian", MARIAN | {"bad_words_ids": [[0]]}),
    "m2m_100": ("m2m_100", M2M_100),
    "m2m_100 that begins with a language": ("m2m_100", M2M_100 | {"forced_bos_token_id": 5, "scale_embedding": False}),
    "mbart": ("mbart", BART | {"scale_embedding": True}),
    "mbart that begins with a language": ("mbart", BART | {"activation_function": "relu", "forced_bos_token_id": 5}),
    "t5gemma": ("t5gemma", {"encoder": GEMMA2, "decoder": GEMMA2}),
    "t5gemma, untied, a larger encoder, without caps and windows": (
        "t5gemma",
        {
            "encoder": GEMMA2 | LARGER_ENCODER | PLAIN,
            "decoder": GEMMA2 | PLAIN | {"num_hidden_layers": 4, "num_key_value_heads": 4, "head_dim": 32},
            "tie_word_embeddings": False,
        },
    ),
    "t5gemma, windows without caps, keys of each head's own": (
        "t5gemma",
        dict.fromkeys(("encoder", "decoder"), GEMMA2 | {"attn_logit_softcapping": None, "num_key_value_heads": 4}),
    ),
    "t5gemma, heads that attention does not turn": (
        "t5gemma",
        dict.fromkeys(("encoder", "decoder"), GEMMA2 | {"head_dim": 24}),
    ),
    "plbart": ("plbart", BART | {"scale_embedding": True}),
    "mvp": ("mvp", BART | {"scale_embedding": True}),
    "pegasus": ("pegasus", BART | {"scale_embedding": True, "decoder_start_token_id": 0}),
}


def new_pair(name: str, **others: Any) -> PreTrainedModel:
    """Make a model of `MODELS`; others: fields of its config that are to have other values."""
    model_type, changes = MODELS[name][0], MODELS[name][1] | others
    torch.manual_seed(0)
    sizes = {} if model_type == "t5gemma" else {"vocab_size": 320, "d_model": 64}
    config = AutoConfig.for_model(model_type, **copy.deepcopy(sizes | {"eos_token_id": 2} | changes))
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    if "untied" in name:
        model.get_output_embeddings().weight = torch.nn.Parameter(torch.randn(320, 64) * 0.1)
    for parameter_name, parameter in model.named_parameters():
        if model_type not in ("marian", "pegasus") or "embed_positions" not in parameter_name:  # which nobody stores
            parameter.data += torch.randn_like(parameter) * 0.1
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
        for (word,) in changes.get("bad_words_ids", ()):
            model.final_logits_bias[0, word] = 9.0  # it would be every token of an answer
    model.generation_config.forced_bos_token_id = changes.get("forced_bos_token_id")
    model.generation_config.bad_words_ids = changes.get("bad_words_ids")
    return model


def random_ids(count: int, seed: int) -> list[int]:
    """Without padding, to whose embedding transformers gives no gradient."""
    return np.random.default_rng(seed).integers(3, 320, count).tolist()


SOURCE, ANSWER = random_ids(150, 0), random_ids(150, 1)


def theirs(model: PreTrainedModel, source: list[int], answer: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        return model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([answer])).logits[0].numpy()
