"""Sizes that the text part of a config leaves out, against transformers', whose classes write what is not usual."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from edgelm_export.architectures import architecture_of
from edgelm_export.text_part import text_part

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip
# A kind, the class of its text part where it may have several, and what that makes another size of.
KINDS = {
    "llava": ("llama", ""), "llava_next": ("mistral", ""), "llava_onevision": ("qwen2", ""), "internvl": ("qwen3", ""),
    "aya_vision": ("cohere2", ""), "lfm2_vl": ("lfm2", "intermediate_size"), "gemma3": ("gemma3_text", ""),
    "mistral3": ("ministral3", ""), "glm4v": (None, ""), "qwen2_vl": (None, ""), "qwen2_5_vl": (None, ""),
    "qwen2_5_omni_thinker": (None, ""), "qwen3_vl": (None, ""), "qwen3_vl_moe": (None, "intermediate_size"),
    "qwen3_5": (None, ""), "exaone4_5": ("exaone4", ""), "granite4_vision": (None, ""), "lfm3_vl": (None, ""),
    "gemma4": (None, ""), "emu3": (None, ""), "mllama": (None, "num_hidden_layers"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_are_left_out_are_those_that_transformers_takes(kind: str) -> None:
    """As LLaVA 1.5 is published, whose text_config names no size but the vocabulary's."""
    model_type, other = KINDS[kind]
    config = AutoConfig.for_model(kind, text_config={} if model_type is None else {"model_type": model_type})
    theirs = config.text_config
    values = {"model_type": kind, "text_config": {"model_type": theirs.model_type}}
    part = text_part(values, ["language_model.model.norm.weight"])
    assert part is not None
    ours = architecture_of(part.values, kind).to_model_config(part.values)
    names = [name for name in _SIZES if name != other]
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}
