"""Models that also read images: their text part is imported, and computes what transformers does for text alone."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import GEMMA4, GEMMA4_EXPERTS, QWEN3_5, QWEN3_5_MOE, randomize
from json_files import change_json, edited_json
from mlx_folder import pack_folder
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedTokenizerFast,
)
from unchecked_export import export_unchecked

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm.runtime.session import DecoderSession
from edgelm_export.huggingface import HuggingFaceCheckpoint
from edgelm_export.importer import import_checkpoint
from edgelm_export.reference import reference_logits
from edgelm_export.text_part import text_part

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


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_part_gives_the_logits_of_transformers(
    kind: str, tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    expected_TV = save(kind, tmp_path / "hf", bpe_tokenizer)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "hf")
    family = KINDS[kind][0]
    assert checkpoint.config.model_type == family
    whole = json.loads((tmp_path / "hf/config.json").read_text())["architectures"]
    assert checkpoint.hf_config.get("architectures") not in (None, whole) or kind in STORED_OTHERWISE
    assert (checkpoint.config.bos_token_id, checkpoint.config.eos_token_ids) == (1, (2,))
    assert any("reads images or sound" in note for note in checkpoint.notes)
    (logits_TV,) = reference_logits(checkpoint, [IDS])
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)

    export_unchecked(checkpoint, tmp_path / "package", "fp32")
    session = DecoderSession(tmp_path / "package", ModelConfig.load(tmp_path / "package"))
    logits_TV = session.forward(IDS, session.new_cache(), all_logits=True)
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)
    if kind not in STORED_OTHERWISE:
        import_checkpoint(tmp_path / "hf", tmp_path / "ours")
        text = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
        assert text.config.model_type in (family, "llama")  # a Mistral without a window is one
        with torch.no_grad():
            np.testing.assert_allclose(text(torch.tensor([IDS])).logits[0].numpy(), expected_TV, rtol=0, atol=1e-4)


def test_a_text_part_that_stands_by_itself_is_read_as_that_of_the_whole(
    tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    """As transformers saves Gemma4UnifiedForCausalLM, which is Gemma 4 12B without what reads images and sound."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma4_unified_text", **(TEXT | KINDS["gemma4_unified"][1]))
    model = AutoModelForCausalLM.from_config(config).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    bpe_tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        expected_TV = model(torch.tensor([IDS])).logits[0].numpy()
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert (checkpoint.config.model_type, checkpoint.notes) == ("gemma4_text", ())
    (logits_TV,) = reference_logits(checkpoint, [IDS])
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("has_adapters", [False, True])
def test_the_text_part_of_phi_4_multimodal_is_a_phi_3_without_adapters(
    has_adapters: bool, tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    """As transformers has it, and as its author's own code: with the adapters of images and sound beside matrices."""
    torch.manual_seed(0)
    vision = VISION | {"crop_size": 28, "image_size": 28}
    sound = {
        "hidden_size": 16, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2, "input_size": 80,
        "ext_pw_out_channel": 16, "nemo_conv_channels": 16,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = AutoConfig.for_model(
        "phi4_multimodal", **TEXT, vision_config=vision, audio_config=sound, rope_parameters=rope
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    bpe_tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        expected_TV = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    if has_adapters:
        tensors = {}
        for name, tensor in load_file(tmp_path / "model.safetensors").items():
            module, _, kind = name.rpartition(".")
            is_adapted = name.startswith("model.layers.") and module.endswith("_proj")
            tensors[f"{module}.base_layer.{kind}" if is_adapted else name] = tensor
            if is_adapted:
                tensors |= {
                    f"{module}.lora_{side}.{of}.weight": torch.ones(2, 2)
                    for side in "AB"
                    for of in ("vision", "speech")
                }
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        path = tmp_path / "config.json"
        values = json.loads(path.read_text()) | {"model_type": "phi4mm", "architectures": ["Phi4MMForCausalLM"]}
        path.write_text(json.dumps({key: value for key, value in values.items() if not key.endswith("o_config")}))
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert checkpoint.config.model_type == "phi3"
    assert any("reads images or sound" in note for note in checkpoint.notes)
    (logits_TV,) = reference_logits(checkpoint, [IDS])
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)


def test_a_template_beside_the_settings_of_its_processor_is_that_of_the_model(
    tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    save("smolvlm", tmp_path, bpe_tokenizer)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    change_json(tmp_path / "tokenizer_config.json", chat_template=None)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0]['content'] }}"}))
    assert HuggingFaceCheckpoint(tmp_path).text_files["chat_template.jinja"] == "{{ messages[0]['content'] }}"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": 3}))
    assert "chat_template.jinja" not in HuggingFaceCheckpoint(tmp_path).text_files


def change_config(folder: Path, change: dict[str, Any], *, flat: bool = False) -> None:
    with edited_json(folder / "config.json") as values:
        values |= values.pop("text_config") | {"model_type": values["model_type"]} if flat else {}
        values |= change


def test_the_first_configs_of_qwen_have_all_in_one_object(
    tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    save("qwen2_5_vl", tmp_path, bpe_tokenizer)
    expected = HuggingFaceCheckpoint(tmp_path).config
    rope = {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    change_config(tmp_path, rope, flat=True)
    assert HuggingFaceCheckpoint(tmp_path).config == expected


def test_a_model_that_speaks_too_is_read_as_the_part_that_writes(
    tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Qwen2.5-Omni, as published."""
    save("qwen2_5_omni_thinker", tmp_path, bpe_tokenizer)
    thinker = HuggingFaceCheckpoint(tmp_path)
    weights = {name: thinker.tensor(name) for name in thinker.config.tensor_shapes()}
    path, values = tmp_path / "config.json", json.loads((tmp_path / "config.json").read_text())
    path.write_text(json.dumps({"model_type": "qwen2_5_omni", "talker_config": {}, "thinker_config": values}))
    tensors = load_file(tmp_path / "model.safetensors")
    others = {"talker.model.norm.weight": tensors["model.norm.weight"].clone(), "token2wav.x": torch.ones(2)}
    save_file({f"thinker.{name}": tensors[name] for name in tensors} | others, tmp_path / "model.safetensors")
    whole = HuggingFaceCheckpoint(tmp_path)
    assert whole.config == thinker.config
    for name, weight in weights.items():
        np.testing.assert_array_equal(whole.tensor(name), weight, err_msg=name)


def test_the_tokens_of_the_whole_model_count(tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast) -> None:
    save("gemma3", tmp_path, bpe_tokenizer)
    change_config(tmp_path, {"eos_token_id": [1, 106]})
    assert HuggingFaceCheckpoint(tmp_path).config.eos_token_ids == (1, 106, 2)  # and generation_config.json's


def test_modules_that_mlx_packed_keep_the_settings_of_their_own(
    tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    """mlx-vlm writes the names of the whole model, in config.json as in the file."""
    save("gemma3", tmp_path, bpe_tokenizer)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({name.replace("model.language_model", "language_model.model"): tensors[name] for name in tensors}, path)
    own = {"language_model.model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 32}}
    packed = pack_folder(
        tmp_path,
        {"bits": 4, "group_size": 32} | own,
        lambda name: 0 if not name.startswith("language_model.") else 8 if "layers.0.mlp.down_proj" in name else 4,
    )
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert checkpoint.source["tensor_types"] == ["F32", "MLX-4bit", "MLX-8bit"]
    for name, weight in packed.items():
        ours = name.removeprefix("language_model.")
        np.testing.assert_allclose(checkpoint.tensor(ours), weight, rtol=1e-6, atol=1e-7, err_msg=name)


def test_two_tensors_of_one_place_are_refused() -> None:
    names = ["model.text_model.norm.weight", "model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"model.text_model.norm.weight and model.norm.weight are one tensor"):
        text_part({"model_type": "smolvlm", "text_config": {}}, names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "mllama", "text_config": {"model_type": "mllama_text_model", "cross_attention_layers": 3}},
            "cross_attention_layers is 3 of 40 layers; it must be a list of their numbers",
        ),
        ({"text_config": [1]}, r"config.json: text_config is \[1\]; it must be an object"),
        ({"text_config": {"model_type": "mamba"}}, r"model_type 'mamba' is not supported \(it has no layer"),
        ({"model_type": "paligemma"}, r"'paligemma' is not supported \(SmolVLM.* reads images or sound too"),
    ],
)
def test_another_text_part_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    save("smolvlm", tmp_path, bpe_tokenizer)
    change_config(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "others"),
    [
        ("gemma4", ("audio_tower.layers.0.norm.weight", "embed_audio.embedding_projection.weight", "embed_vision.x")),
        ("apertus1p5", ("vision_tokenizer.quant_conv.bias", "audio_tokenizer.quantizer.x", "vision_tokenizer.x")),
    ],
)
def test_what_reads_sound_is_left_out_too(model_type: str, others: tuple[str, ...]) -> None:
    values = {"model_type": model_type, "text_config": {"model_type": f"{model_type}_text"}, "audio_config": {}}
    part = text_part(values, ["model.language_model.norm.weight", *(f"model.{name}" for name in others)])
    assert part is not None
    assert part.sources == {"model.norm.weight": "model.language_model.norm.weight"}
    assert part.left_out == 3
