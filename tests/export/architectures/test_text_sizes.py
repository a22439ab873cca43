"""What the text part of a config leaves out, against transformers, whose classes write what is not usual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from transformers import AutoConfig

from edgelm.config import ModelConfig
from edgelm_export.architectures import architecture_of
from edgelm_export.checkpoints.text_part import text_part

# A kind, and the class of its text part where it may have several.
KINDS = {
    "llava": "llama", "llava_next": "mistral", "llava_onevision": "qwen2", "internvl": "qwen3", "aya_vision": "cohere2",
    "lfm2_vl": "lfm2", "gemma3": "gemma3_text", "mistral3": "ministral3", "glm4v": None, "glm46v": None,
    "qwen2_vl": None, "qwen2_5_vl": None, "qwen2_5_omni_thinker": None, "qwen3_vl": None, "qwen3_vl_moe": None,
    "qwen3_5": None, "qwen3_5_moe": None, "exaone4_5": "exaone4", "granite4_vision": None, "lfm3_vl": None,
    "gemma3n": None, "gemma4": None, "emu3": None, "mllama": None, "apertus1p5": None,
    "voxtral": "llama",
}  # fmt: skip


def config_of(kind: str, text_config: Mapping[str, Any]) -> ModelConfig:
    values = {"model_type": kind, "text_config": text_config}
    part = text_part(values, ["language_model.model.norm.weight"])
    assert part is not None
    return architecture_of(part.values, kind).to_model_config(part.values)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_is_what_transformers_takes(kind: str) -> None:
    """As LLaVA 1.5 is published, whose text_config names no size but the vocabulary's."""
    model_type = KINDS[kind]
    config = AutoConfig.for_model(kind, text_config={} if model_type is None else {"model_type": model_type})
    theirs = config.text_config
    assert config_of(kind, {"model_type": theirs.model_type}) == config_of(kind, theirs.to_dict())
