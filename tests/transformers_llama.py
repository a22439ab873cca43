"""A checkpoint of a Llama as transformers computes it: the oracle of tiny models."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from edgelm.config import ModelConfig

_SAME_NAMES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip


def load_llama(folder: Path) -> LlamaForCausalLM:
    """Load a checkpoint folder whose head is the embedding."""
    ours = ModelConfig.load(folder)
    config = LlamaConfig(
        **{name: getattr(ours, name) for name in _SAME_NAMES}, tie_word_embeddings=True, rms_norm_eps=ours.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta}, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    loaded = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert (loaded.missing_keys, loaded.unexpected_keys) == (["lm_head.weight"], [])
    return model
