"""Models that also read images: their text part is imported, and computes what transformers does for text alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import randomize
from json_files import change_json, edited_json
from mlx_folder import pack_folder
from safetensors.torch import load_file, save_file
from text_part_models import IDS, KINDS, STORED_OTHERWISE, TEXT, VISION, save
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from unchecked_export import export_unchecked

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm.runtime.session import DecoderSession
from edgelm_export.checkpoints.text_part import text_part
from edgelm_export.importer import import_checkpoint
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

# Of kinds that are one family behind their reader, one is enough for what the family's config becomes.
_IN_FULL = {*{family: kind for kind, (family, *_) in reversed(KINDS.items())}.values(), "cohere_compass, two rotations"}


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
    if kind not in _IN_FULL:
        return

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


def test_a_text_part_that_was_loaded_from_the_whole_and_saved_is_read_under_the_names_of_the_whole(
    tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    """transformers loads a Qwen3.5 that reads images as the model of text that it is tuned as, and saves that so."""
    expected_TV = save("qwen3_5", tmp_path / "whole", bpe_tokenizer)
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "text")
    assert "model.language_model.norm.weight" in load_file(tmp_path / "text/model.safetensors")
    checkpoint = HuggingFaceCheckpoint(tmp_path / "text")
    assert checkpoint.config.model_type == "qwen3_5_text"
    (logits_TV,) = reference_logits(checkpoint, [IDS])
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)
    tensors = load_file(tmp_path / "text/model.safetensors")
    tensors.pop("lm_head.weight")  # whose config says that it is not the embedding
    save_file(tensors, tmp_path / "text/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight"):
        HuggingFaceCheckpoint(tmp_path / "text")


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


def test_a_config_that_says_no_kind_is_left_to_who_refuses_it() -> None:
    part = text_part({}, ["model.language_model.norm.weight"])
    assert part is not None
    assert part.values["model_type"] is None


@pytest.mark.parametrize("stack", ["model.language_model.model", "language_model.model.model"])
def test_a_prefix_that_some_versions_of_transformers_doubled_is_taken_off(stack: str) -> None:
    part = text_part({"model_type": "voxtral", "text_config": {}}, [f"{stack}.norm.weight", "lm_head.weight"])
    assert part is not None
    assert part.sources == {"model.norm.weight": f"{stack}.norm.weight", "lm_head.weight": "lm_head.weight"}


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
