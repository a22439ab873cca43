"""Models that also read images or sound, with random weights: their configs, and folders of them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_models import GEMMA4, GEMMA4_EXPERTS, QWEN3_5, QWEN3_5_MOE, randomize
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedTokenizerFast

TEXT = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_VISION = {"depth": 1, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64}
GLM_VISION = QWEN_VISION | {"hidden_size": 32, "image_size": 28}
THREE_POSITIONS = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
GLM_POSITIONS = THREE_POSITIONS | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
GLM_TEXT = {"model_type": "glm4v_text", "head_dim": 16, "rope_parameters": GLM_POSITIONS}
COMPASS = {
    "model_type": "cohere_compass_text", "sliding_window": 9, "num_hidden_layers": 4, "head_dim": 16,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}  # fmt: skip
# Each kind: the family of its text part, and what it has beside the sizes.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "gemma3": (
        "gemma3_text",
        {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 9},
        VISION | {"model_type": "siglip_vision_model"},
    ),
    "gemma4": (
        "gemma4_text",
        GEMMA4 | {"model_type": "gemma4_text", "use_bidirectional_attention": "vision"},
        VISION | {"num_key_value_heads": 2, "head_dim": 16},
    ),
    "gemma4, with experts": (
        "gemma4_text",
        GEMMA4_EXPERTS | {"model_type": "gemma4_text", "use_bidirectional_attention": "vision"},
        VISION | {"num_key_value_heads": 2, "head_dim": 16},
    ),
    "mistral3": (
        "mistral",
        {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        VISION | {"model_type": "pixtral", "head_dim": 16},
    ),
    "mistral3, Ministral 3": (
        "ministral3",
        {
            "model_type": "ministral3",
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 16,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
        VISION | {"model_type": "pixtral", "head_dim": 16},
    ),
    "qwen2_vl": ("qwen2", {"rope_parameters": THREE_POSITIONS}, QWEN_VISION | {"embed_dim": 32, "hidden_size": 64}),
    "qwen2_5_vl": (
        "qwen2",
        {"rope_parameters": THREE_POSITIONS},
        QWEN_VISION | {"hidden_size": 32, "fullatt_block_indexes": [0]},
    ),
    "qwen3_vl": (
        "qwen3",
        {"head_dim": 16, "rope_parameters": THREE_POSITIONS | {"mrope_interleaved": True}},
        QWEN_VISION | {"hidden_size": 32, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_5": (
        "qwen3_5_text",
        QWEN3_5
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": THREE_POSITIONS | {"mrope_interleaved": True, "partial_rotary_factor": 0.25},
        },
        QWEN_VISION | {"hidden_size": 32},
    ),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        QWEN3_5_MOE | {"rope_parameters": THREE_POSITIONS | {"partial_rotary_factor": 0.25}},
        QWEN_VISION | {"hidden_size": 32},
    ),
    "qwen3_vl_moe": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "mlp_only_layers": [0],
            "rope_parameters": THREE_POSITIONS | {"mrope_interleaved": True},
        },
        QWEN_VISION | {"hidden_size": 32, "deepstack_visual_indexes": [0]},
    ),
    "smolvlm": ("llama", {"model_type": "llama"}, VISION),
    "idefics3": ("llama", {"model_type": "llama"}, VISION),
    "lfm2_vl": (
        "lfm2",
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        VISION | {"model_type": "siglip2_vision_model", "num_patches": 4},
    ),
    "glm4v": ("glm4", GLM_TEXT, GLM_VISION),
    "glm46v": ("glm4", GLM_TEXT, GLM_VISION),
    "glm4v_moe": (
        "glm4_moe",
        {
            "model_type": "glm4v_moe_text",
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "rope_parameters": GLM_POSITIONS,
        },
        GLM_VISION,
    ),
    "lfm3_vl": (
        "lfm3",
        {"model_type": "lfm3", "head_dim": 16, "layer_types": ["conv", "full_attention"]},
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
    ),
    "gemma4_unified": (
        "gemma4_text",
        {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 9,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
        },
        {"mm_embed_dim": 64, "output_proj_dims": 64, "mm_posemb_size": 8},
    ),
    "internvl": ("qwen3", {"model_type": "qwen3", "head_dim": 16}, VISION),
    "llava": ("llama", {"model_type": "llama"}, VISION | {"model_type": "clip_vision_model"}),
    "llava_next": (
        "mistral",
        {"model_type": "mistral", "sliding_window": 9},
        VISION | {"model_type": "clip_vision_model"},
    ),
    "llava_onevision": ("qwen2", {"model_type": "qwen2"}, VISION | {"model_type": "siglip_vision_model"}),
    "aya_vision": (
        "cohere2",
        {"model_type": "cohere2", "sliding_window": 9, "num_hidden_layers": 4, "logit_scale": 0.25},
        VISION | {"model_type": "siglip_vision_model"},
    ),
    "cohere2_vision": (
        "cohere2",
        {"model_type": "cohere2", "sliding_window": 9, "num_hidden_layers": 4, "logit_scale": 0.25},
        VISION | {"model_type": "siglip_vision_model"},
    ),
    "cohere_compass": (
        "cohere_compass_text",
        COMPASS | {"rope_parameters": {"full_attention": None, "sliding_attention": THREE_POSITIONS}},
        QWEN_VISION | {"hidden_size": 32, "deepstack_visual_indexes": [0]},
    ),
    "cohere_compass, two rotations": (
        "cohere_compass_text",
        COMPASS
        | {
            "rope_parameters": {
                "full_attention": THREE_POSITIONS | {"rope_theta": 5e5},
                "sliding_attention": THREE_POSITIONS,
            },
            "logit_scale": 0.25,
        },
        QWEN_VISION | {"hidden_size": 32, "deepstack_visual_indexes": [0]},
    ),
    "exaone4_5": (
        "exaone4",
        {"model_type": "exaone4", "sliding_window": 9, "num_hidden_layers": 4, "sliding_window_pattern": 4},
        QWEN_VISION | {"hidden_size": 32, "num_key_value_heads": 1, "fullatt_block_indexes": [0]},
    ),
    **dict.fromkeys(
        ("minicpmv4_6", "minicpmv4_7"),
        (
            "qwen3_5_text",
            QWEN3_5 | {"model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"]},
            VISION,
        ),
    ),
    "granite4_vision": (
        "granite",
        {"attention_multiplier": 0.3, "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "logits_scaling": 3.0},
        VISION | {"model_type": "siglip_vision_model", "hidden_size": 64},
    ),
    "qwen2_5_omni_thinker": (
        "qwen2",
        {"rope_parameters": THREE_POSITIONS},
        QWEN_VISION | {"hidden_size": 32, "fullatt_block_indexes": [0]},
    ),
    "qwen3_omni_moe_thinker": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "rope_parameters": THREE_POSITIONS | {"mrope_interleaved": True},
        },
        QWEN_VISION | {"hidden_size": 32, "deepstack_visual_indexes": [0]},
    ),
    "mllama": (
        "mllama_text_model",
        {"num_hidden_layers": 5, "cross_attention_layers": [1, 3]},
        VISION
        | {
            "attention_heads": 2,
            "num_global_layers": 1,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
            "max_num_tiles": 1,
        },
    ),
    "deepseek_vl": ("llama", {"model_type": "llama"}, VISION | {"model_type": "siglip_vision_model"}),
    "emu3": ("llama", {"tie_word_embeddings": False}, None),
    "idefics2": ("mistral", {"model_type": "mistral", "sliding_window": 9}, VISION),
    "video_llama_3": ("qwen2", {"model_type": "qwen2"}, VISION | {"model_type": "video_llama_3_vision"}),
    "voxtral": ("llama", {"model_type": "llama", "head_dim": 32}, None),
    "qwen2_audio": ("qwen2", {"model_type": "qwen2"}, None),
}
# What a kind's config has beside those of its parts.
_ENCODER = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
_SOUND = _ENCODER | {"d_model": 32, "output_dim": 64}
MORE: dict[str, dict[str, Any]] = {
    "emu3": {
        "vocabulary_map": {"<image>": 3},
        "vq_config": {
            "codebook_size": 8,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "hidden_size": 32,
            "latent_channels": 4,
        },
    },
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2"},
    "qwen2_5_omni_thinker": {"audio_config": _SOUND},
    "qwen3_omni_moe_thinker": {"audio_config": _SOUND | {"downsample_hidden_size": 32}},
    "voxtral": {
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_mel_bins": 8,
        }
    },
    "qwen2_audio": {"audio_config": _ENCODER | {"d_model": 32}},
}
IDS = np.random.default_rng(0).integers(3, 320, 60).tolist()
STORED_OTHERWISE = (
    "gemma4, with experts",
    "qwen3_5",
    "qwen3_5_moe",
    "lfm2_vl",
    "lfm3_vl",
    "glm4v",
    "glm46v",
    "aya_vision",
    "cohere2_vision",
    "cohere_compass",
    "cohere_compass, two rotations",
    "minicpmv4_6",
    "minicpmv4_7",
)  # by transformers


def save(kind: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Save a random model, and return the logits of a text [T, V]."""
    _, text, vision = deepcopy(KINDS[kind])
    torch.manual_seed(0)
    model_type = kind.partition(",")[0]
    more = deepcopy(MORE.get(kind, {}))
    more |= {} if vision is None else {"vision_config": vision}
    config = AutoConfig.for_model(model_type, text_config=TEXT | text, pad_token_id=0, **more)
    model = AutoModelForMultimodalLM.from_config(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    if kind == "qwen3_vl_moe":  # whose published files have experts the other way round
        tensors = load_file(folder / "model.safetensors")
        turned = {name: tensor.mT.contiguous() if ".experts." in name else tensor for name, tensor in tensors.items()}
        save_file(turned, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    # transformers scales the logits of a Cohere 2, but not where images are read too.
    return logits_TV * text["logit_scale"] if text.get("model_type") == "cohere2" else logits_TV
