"""The text part of a model that reads images or sound too: its config and its tensors, as those of a model of text.

With text alone such a model is one of the families of architectures/ under other names. What reads the rest is left
out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgelm.errors import CheckpointError

# The model_types whose text part sees text alone as a model of text does.
_WHOLE = frozenset(
    {
        "apertus1p5", "aya_vision", "cohere2_vision", "cohere_compass", "deepseek_vl", "emu3", "exaone4_5", "gemma3",
        "gemma3n", "gemma4", "gemma4_unified", "gemma4_unified_text", "glm46v", "glm4v", "glm4v_moe", "granite4_vision",
        "idefics2", "idefics3", "internvl", "lfm2_vl", "lfm3_vl", "llava", "llava_next", "llava_onevision",
        "minicpmv4_6", "minicpmv4_7", "mllama", "phi4_multimodal", "phi4mm", "mistral3", "qwen2_vl", "qwen2_5_omni",
        "qwen2_5_omni_thinker", "qwen2_5_vl", "qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe",
        "qwen3_5", "qwen3_5_moe",
        "qwen2_audio", "smolvlm", "video_llama_3", "voxtral",
    }
)  # fmt: skip
# A position has three numbers in these, which are the same without an image: rope as it is.
_SAME_FAMILY = {
    "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2",
    "emu3_text_model": "llama", "gemma4_unified_text": "gemma4_text", "glm4v_text": "glm4",
    "glm4v_moe_text": "glm4_moe", "granite4_vision_text": "granite", "qwen2_5_omni_text": "qwen2",
    "qwen3_omni_moe_text": "qwen3_moe", "qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe",
    "phi4_multimodal": "phi3", "phi4mm": "phi3",
}  # fmt: skip
_CROSSING = "cross_attention_layers"  # which look at an image, and are no part of the model without one
# Phi-4-multimodal as its author's own code reads it: each matrix stands beside those of two adapters, which images and
# sound have, and text alone has not.
_WITH_ADAPTERS, _BASE, _ADAPTERS = "phi4mm", ".base_layer.", (".lora_A.", ".lora_B.")
# Of a config within another, transformers writes what is not its class's default, so that sizes may be left out: those
# of vocabulary, hidden states and feed-forward, of layers, and of heads.
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_USUAL_SIZES = {
    "apertus1p5_text": (266_752, 4096, 14_336, 32, 32),
    "cohere2": (256_000, 8192, 22_528, 40, 64),
    "emu3_text_model": (184_622, 4096, 14_336, 32, 32),
    "exaone4": (102_400, 4096, 16_384, 32, 32),
    "gemma3_text": (262_208, 2304, 9216, 26, 8),
    "glm4v_moe_text": (151_424, 4096, 10_944, 46, 96),
    "glm4v_text": (151_552, 4096, 13_696, 40, 32),
    "granite4_vision_text": (32_000, 4096, 11_008, 32, 32),
    "lfm2": (65_536, 2560, 12_288, 32, 32),
    "lfm3": (128_000, 2048, 7680, 24, 16),
    "llama": (32_000, 4096, 11_008, 32, 32),
    "ministral3": (131_072, 4096, 14_336, 34, 32),
    "mistral": (32_000, 4096, 14_336, 32, 32),
    "mllama_text_model": (128_256, 4096, 14_336, 40, 32),
    "qwen2": (151_936, 4096, 22_016, 32, 32),
    "qwen2_5_omni_text": (152_064, 3584, 18_944, 28, 28),
    "qwen2_5_vl_text": (152_064, 8192, 29_568, 80, 64),
    "qwen2_vl_text": (152_064, 8192, 29_568, 80, 64),
    "qwen3": (151_936, 4096, 22_016, 32, 32),
    "qwen3_5_moe_text": (248_320, 2048, 512, 40, 16),
    "qwen3_5_text": (248_320, 4096, 12_288, 32, 16),
    "qwen3_vl_text": (151_936, 4096, 22_016, 32, 32),
    "qwen3_vl_moe_text": (151_936, 2048, 5632, 24, 16),
}
_QWEN2_VL: Mapping[str, Any] = {
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "bos_token_id": 151_643, "eos_token_id": 151_645,
}  # fmt: skip
# What else it takes where config.json has no such key, and otherwise than in the family.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "emu3_text_model": {
        "num_key_value_heads": 8, "max_position_embeddings": 9216, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "bos_token_id": 151_849, "eos_token_id": 151_850,
    },
    "gemma4_unified_text": {
        "hidden_size_per_layer_input": 0, "max_position_embeddings": 262_144, "sliding_window": 1024,
    },
    "phi4_multimodal": {
        "num_key_value_heads": 8, "max_position_embeddings": 131_072, "bos_token_id": 199_999,
        "eos_token_id": [199_999, 200_020],
    },
    "glm4v_moe_text": {"max_position_embeddings": 65_536, "attention_bias": True},
    "glm4v_text": {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "partial_rotary_factor": 1.0},
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen2_5_omni_text": {"num_key_value_heads": 4, "rope_theta": 1e6},
    "qwen3_vl_text": {"max_position_embeddings": 128_000, "rope_theta": 5e5},
    "qwen3_vl_moe_text": {
        "num_key_value_heads": 16, "max_position_embeddings": 128_000, "rope_theta": 5e5, "num_experts": 60,
        "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
    },
    "voxtral": {  # a Llama, of which this kind has other sizes
        "vocab_size": 131_072, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 30,
        "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "rope_theta": 1e8,
    },
    "mllama_text_model": {_CROSSING: [3, 8, 13, 18, 23, 28, 33, 38]},
}  # fmt: skip
# What all models of a kind have, and config.json does not say of them as it would in their family.
_SAID: Mapping[str, Mapping[str, Any]] = {
    "qwen3_vl_moe_text": {"norm_topk_prob": True},
    "glm4v_text": {"attention_bias": True},
}
_OF_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
_ROPES = ("rope_scaling", "rope_parameters")
_THREE_POSITIONS = ("mrope_section", "mrope_interleaved")
# What the names of the text part begin with, where another part has its own, and those of its head.
# transformers 5.10 to 5.23 wrote the first two of models that hear.
_STACKS = (
    "model.language_model.model.", "language_model.model.model.", "model.language_model.", "language_model.model.",
    "model.text_model.", "text_model.model.", "thinker.model.",
)  # fmt: skip
_HEADS = ("language_model.lm_head.", "text_model.lm_head.", "thinker.lm_head.")
# The part of a model that speaks too, which reads and writes text; its config is within the whole's.
_THINKER = "thinker_config"
# What those of the parts begin with that read images or sound, speak, or guess further tokens.
_OTHER_PARTS = tuple(
    f"{before}{part}"
    for before in ("", "model.", "thinker.")
    for part in (
        "vision_tower.", "vision_tokenizer.", "vision_model.", "vision_embedder.", "visual.", "vqmodel.",
        "multi_modal_projector.", "projector.", "connector.", "aligner.", "merger.", "layerwise_projectors.",
        "spatial_projectors.", "image_newline", "audio_tower.", "audio_tokenizer.", "embed_vision.", "embed_audio.",
        "embed_tokens_extend.", "talker.", "token2wav.", "code2wav.", "mtp.",
    )
)  # fmt: skip
_SENSES = ("vision_config", "audio_config")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """What is left of a folder.

    values: config.json's, as of a model of text. sources: the names that its tensors have in such a model, and in the
    folder. left_out: how many tensors are of other parts.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    left_out: int

    def renamed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings with those of single modules under the names that the modules have in such a model."""
        modules = {source.rpartition(".")[0]: name.rpartition(".")[0] for name, source in self.sources.items()}
        return {modules.get(key, key): value for key, value in settings.items()}


def text_part(values: Mapping[str, Any], names: Iterable[str]) -> TextPart | None:
    """Find the text part of a model; None where it is no model of a kind that has one.

    A text part that was saved by itself may keep the names that its tensors have in the whole: transformers saves a
    Qwen3.5 so that it loaded for text alone.

    values: config.json's. names: of the folder's tensors.

    Raises:
        CheckpointError: text_config is no object, or two tensors have one place.
    """
    names = list(names)
    stack = _stack_of(names)
    is_part = stack is not None and values.keys().isdisjoint(("text_config", *_SENSES))
    is_whole = str(values.get("model_type")) in _WHOLE
    if not is_whole and not is_part:
        return None
    stack = stack or "model."
    if isinstance(values.get(_THINKER), Mapping):
        values = {**values, **values[_THINKER]}
    own = values.get("text_config", {key: value for key, value in values.items() if key not in _SENSES})
    if not isinstance(own, Mapping):
        raise CheckpointError(f"config.json: text_config is {own!r:.80}; it must be an object.")
    kept = [name for name in names if not name.startswith(_OTHER_PARTS)]
    if values.get("model_type") == _WITH_ADAPTERS:
        kept = [name for name in kept if not any(part in name for part in _ADAPTERS)]
    sources = {_name_in_text(name, stack): name for name in kept}
    if len(sources) < len(kept):
        both = next(name for name in kept if sources[_name_in_text(name, stack)] != name)
        raise CheckpointError(f"{both} and {sources[_name_in_text(both, stack)]} are one tensor of the text part.")
    model_type = own.get("model_type")
    text_values = {
        **dict(zip(_SIZES, _USUAL_SIZES.get(str(model_type), ()), strict=False)),
        **_DEFAULTS.get(str(model_type), {}),
        **_DEFAULTS.get(str(values.get("model_type")), {}),
        **own,
        **_SAID.get(str(model_type), {}),
        **{key: values[key] for key in _TOKENS if values.get(key) is not None},
        **{key: plain_rope(own[key]) for key in _ROPES if isinstance(own.get(key), Mapping)},
        "model_type": _SAME_FAMILY.get(str(model_type), model_type),
    }
    # Of a whole, which of the two configs says it differs from one version of transformers to the next.
    if is_whole or own.get("tie_word_embeddings") is None:
        text_values["tie_word_embeddings"] = not any(name.startswith("lm_head.") for name in sources)
    if _CROSSING in text_values:
        text_values, sources = _without_crossing(text_values, sources)
    return TextPart(values=text_values, sources=sources, left_out=len(names) - len(sources))


def layers_in_text(layers: Collection[str], model_type: str) -> dict[str, str]:
    """Return what layers of a whole model are called in its text part, without those of other parts.

    They are as they are where they are no whole model's, or where the layers of its text part are counted anew.
    """
    stack = _stack_of(layers)
    if stack is None or _CROSSING in _DEFAULTS.get(model_type, {}):
        return {layer: layer for layer in layers}
    return {layer: _name_in_text(layer, stack) for layer in layers if not layer.startswith(_OTHER_PARTS)}


def _stack_of(names: Collection[str]) -> str | None:
    """Return what the names of the text part begin with, where that tells them from those of other parts."""
    return next((stack for stack in _STACKS if any(name.startswith(stack) for name in names)), None)


def _without_crossing(values: dict[str, Any], sources: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Leave out the layers that look at an image, and count the others anew: the config, and the sources by name.

    Raises:
        CheckpointError: the config says of no numbers that they are such layers.
    """
    crossing, count = values[_CROSSING], values.get("num_hidden_layers")
    if not isinstance(crossing, list) or not all(type(i) is int for i in crossing) or type(count) is not int:
        raise CheckpointError(
            f"config.json: {_CROSSING} is {crossing!r:.80} of {count!r:.20} layers; it must be a list of their numbers."
        )
    kept = {}
    for name, source in sources.items():
        layer = _OF_LAYER.match(name)
        number = int(layer[1]) if layer else -1
        if number in crossing:
            continue
        before = sum(other < number for other in set(crossing))
        kept[f"model.layers.{number - before}.{name[layer.end() :]}" if layer else name] = source
    left = count - len({i for i in crossing if 0 <= i < count})
    return values | {"num_hidden_layers": left}, kept


def _name_in_text(name: str, stack: str) -> str:
    for head in _HEADS:
        if name.startswith(head):
            return f"lm_head.{name.removeprefix(head)}"
    name = name.replace(_BASE, ".")
    return f"model.{name.removeprefix(stack)}" if name.startswith(stack) else name


def plain_rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a rope with one position a token."""
    kept = {key: value for key, value in settings.items() if key not in _THREE_POSITIONS}
    names = (key for key in ("type", "rope_type") if kept.get(key) == "mrope")
    return kept | dict.fromkeys(names, "default")
