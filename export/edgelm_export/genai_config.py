"""genai_config.json: what onnxruntime-genai needs to open the same package."""

from __future__ import annotations

from typing import Any

from edgelm.config import ModelConfig


def genai_config(config: ModelConfig, *, shares_cache: bool) -> dict[str, Any]:
    """Describe the package in onnxruntime-genai's terms; generation is greedy unless its user says otherwise.

    shares_cache: whether past and present are the same memory.
    """
    eos = list(config.eos_token_ids)
    return {
        "model": {
            "type": "llama",  # its name for a decoder with one KV cache a layer
            "bos_token_id": config.bos_token_id if config.bos_token_id is not None else 0,
            "eos_token_id": eos[0] if len(eos) == 1 else eos,
            "pad_token_id": eos[0] if eos else 0,
            "vocab_size": config.vocab_size,
            "context_length": config.max_position_embeddings,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": config.head_size(0),  # as in all layers
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.query_heads(0),
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": config.kv_heads(0),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": config.max_position_embeddings,
            "past_present_share_buffer": shares_cache,
        },
    }
