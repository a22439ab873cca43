from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import LlamaForCausalLM

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.errors import CheckpointError
from edgelm.generation_config import GenerationConfig
from edgelm.text.chat_template import template_of
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SaveLlama = Callable[..., LlamaForCausalLM]
WriteGGUF = Callable[..., Path]


# The others are in test_families.py, of every family.
@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q4_1"])
def test_every_tensor_is_the_originals_rounded_to_the_files_type(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF, quantization: str
) -> None:
    model = save_llama(tmp_path / "hf", head_dim=24, attention_bias=True)
    path = write_gguf(tmp_path / "tiny.gguf", model, quantization)
    state = model.state_dict()
    type_ = gguf.GGMLQuantizationType[quantization]
    with GGUFCheckpoint(path) as checkpoint:
        for name in checkpoint.config.tensor_shapes():
            expected = state[name].numpy()
            if expected.ndim == 2:
                # A row is quantized by itself, so the converter's order of rows does not matter here.
                expected = gguf.quants.dequantize(gguf.quants.quantize(expected, type_), type_)
                assert checkpoint.stored_type(name) == quantization
            np.testing.assert_array_equal(checkpoint.tensor(name), expected, err_msg=name)


@pytest.fixture
def _random_nvfp4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gguf package, which packs no NVFP4, write any bits, and a scale of 1/32 to 2 for each 16 weights."""

    def quantize(_: object, tensor: np.ndarray) -> np.ndarray:
        random = np.random.default_rng(tensor.size)
        packed = random.integers(0, 256, (*tensor.shape[:-1], tensor.shape[-1] // 64, 36), np.uint8)
        packed[..., :4] = random.integers(16, 64, packed[..., :4].shape)
        return packed.reshape(*tensor.shape[:-1], -1)

    monkeypatch.setattr(gguf.quants.NVFP4, "quantize", classmethod(quantize))


@pytest.mark.usefixtures("_random_nvfp4")
def test_a_matrix_in_nvfp4_is_multiplied_by_the_number_beside_it(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    model = save_llama(tmp_path / "hf", intermediate_size=128)
    beside = {"blk.0.ffn_up.scale": np.float32([0.03]), "blk.0.ffn_up.input_scale": np.float32([7])}
    path = write_gguf(tmp_path / "tiny.gguf", model, "NVFP4", extra=beside)
    type_ = gguf.GGMLQuantizationType.NVFP4
    with GGUFCheckpoint(path) as checkpoint:
        for name, factor in (("mlp.up_proj", np.float32(0.03)), ("mlp.gate_proj", np.float32(1))):
            key = f"model.layers.0.{name}.weight"
            expected = gguf.quants.dequantize(gguf.quants.NVFP4.quantize(model.state_dict()[key].numpy()), type_)
            np.testing.assert_array_equal(checkpoint.tensor(key), expected * factor)
            np.testing.assert_array_equal(checkpoint.rows(key, 3, 9), expected[3:9] * factor)
            blocks = checkpoint.quantized_blocks(key)
            assert blocks is not None
            weights = (blocks.scales[:, :, None] * blocks.values).reshape(expected.shape)
            np.testing.assert_allclose(weights, expected * factor, rtol=2**-22)
    beside["blk.0.ffn_up.scale"] = np.float32([1, 2])
    path = write_gguf(tmp_path / "two.gguf", model, "NVFP4", extra=beside)
    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_up\.scale is \[2\] for \[128, 64\] weights"):
        GGUFCheckpoint(path)
    path = write_gguf(tmp_path / "another.gguf", model, "Q8_0", extra={"blk.0.ffn_up.scale": np.float32([1])})
    with pytest.raises(CheckpointError, match=r"unknown: blk\.0\.ffn_up\.scale"):
        GGUFCheckpoint(path)


def test_a_layer_that_guesses_further_tokens_is_passed_over(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    model = save_llama(tmp_path / "hf")
    guessing = {f"blk.2.{part}.weight": np.ones((64, 64), np.float32) for part in ("attn_q", "nextn.eh_proj")}
    said = {"llama.block_count": 3, "llama.nextn_predict_layers": 1}
    with GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", model, metadata=said, extra=guessing)) as checkpoint:
        assert checkpoint.config.num_hidden_layers == 2
    with pytest.raises(CheckpointError, match=r"unknown: blk\.2\.attn_q\.weight, blk\.2\.nextn\.eh_proj\.weight"):
        GGUFCheckpoint(write_gguf(tmp_path / "unsaid.gguf", model, extra=guessing))


def test_types_of_5_bits_have_no_blocks(tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF) -> None:
    model = save_llama(tmp_path / "hf")
    with GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", model, "Q5_1")) as checkpoint:
        assert checkpoint.quantized_blocks("model.layers.0.self_attn.q_proj.weight") is None


def test_frequency_factors_become_the_llama3_scaling_and_no_tensor(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    model = save_llama(tmp_path / "hf", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(0, 16, 2) / 16)
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    path = write_gguf(tmp_path / "tiny.gguf", model, extra={"rope_freqs.weight": factors})
    with GGUFCheckpoint(path) as checkpoint:
        assert checkpoint.config.rope_scaling == RopeScaling(
            rope_type="llama3", factor=8.0, original_max_position_embeddings=8192
        )
        assert checkpoint.hf_config["rope_scaling"]["rope_type"] == "llama3"


def test_text_files_are_the_tokenizer_the_template_and_the_end_tokens(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    model = save_llama(tmp_path / "hf")
    path = write_gguf(tmp_path / "tiny.gguf", model, metadata={"tokenizer.ggml.eot_token_id": 0})
    with GGUFCheckpoint(path) as checkpoint:
        files = checkpoint.text_files
        assert files.keys() >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
        assert json.loads(files["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": [2, 0]}
        assert checkpoint.config.eos_token_ids == (2, 0)


def test_templates_with_names_stay_listed_and_where_none_is_the_default_a_note_says_so(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    model = save_llama(tmp_path / "hf")
    named = {"tokenizer.chat_template.rag": "A", "tokenizer.chat_template.tool_use": "B"}
    with GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", model, metadata=named)) as checkpoint:
        listed = json.loads(checkpoint.text_files["tokenizer_config.json"])["chat_template"]
        templates = {row["name"]: row["template"] for row in listed}
        assert templates == {"default": templates["default"], "rag": "A", "tool_use": "B"}
        assert checkpoint.text_files["chat_template.jinja"] == template_of(templates)
        assert checkpoint.notes == ()
    with GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", model, metadata=named, chat_template=None)) as checkpoint:
        assert "chat_template.jinja" not in checkpoint.text_files
        (note,) = checkpoint.notes
    assert note == (
        "It has no chat template: of 'rag', 'tool_use' none is called 'default'. Import it (edgelm import), and put "
        "the one you mean into chat_template.jinja of that folder."
    )
    import_checkpoint(tmp_path / "tiny.gguf", tmp_path / "ckpt")
    with HuggingFaceCheckpoint(tmp_path / "ckpt") as checkpoint:
        (note,) = checkpoint.notes  # as of any folder
    assert note.startswith("It has no chat template: of 'rag', 'tool_use' none is called 'default'. Put the one")


def test_how_the_author_samples_may_stand_beside_the_file(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", save_llama(tmp_path / "hf"))
    values = {"temperature": 0.2, "do_sample": True, "eos_token_id": 9}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    with GGUFCheckpoint(path) as checkpoint:
        written = json.loads(checkpoint.text_files["generation_config.json"])
    assert (written["temperature"], written["do_sample"]) == (0.2, True)
    assert written["eos_token_id"] != 9  # the tokenizer in the file knows better


def test_how_the_author_samples_is_read_from_the_file_where_none_stands_beside_it(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    model = save_llama(tmp_path / "hf")
    cases: list[tuple[dict[str, int | float], GenerationConfig]] = [
        ({"temp": 0.7, "top_k": 20, "top_p": 0.8}, GenerationConfig(temperature=0.7, top_k=20, top_p=0.8)),
        ({"min_p": 0.05, "top_k": 0}, GenerationConfig(temperature=1.0, min_p=0.05)),
        ({"penalty_repeat": 1.05}, GenerationConfig(repetition_penalty=1.05)),
        ({"temp": 0.0, "xtc_probability": 0.5}, GenerationConfig()),
    ]
    for said, expected in cases:
        metadata = {f"general.sampling.{key}": value for key, value in said.items()}
        path = write_gguf(tmp_path / "tiny.gguf", model, metadata=metadata)
        with GGUFCheckpoint(path) as checkpoint:
            (tmp_path / "read").mkdir(exist_ok=True)
            text = checkpoint.text_files["generation_config.json"]
        (tmp_path / "read/generation_config.json").write_text(text)
        assert GenerationConfig.load(tmp_path / "read") == expected


def test_the_source_says_what_the_file_says_of_itself(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    model = save_llama(tmp_path / "hf")
    with GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", model, "Q8_0")) as checkpoint:
        source = dict(checkpoint.source)
    (entry,) = source.pop("files")
    assert (entry["path"], entry["size"]) == ("tiny.gguf", (tmp_path / "tiny.gguf").stat().st_size)
    assert source == {"format": "gguf", "tensor_types": ["F32", "Q8_0"], "name": "tiny", "license": "apache-2.0"}

    other = {"general.license": "other", "general.license.name": "qwen-research"}
    with GGUFCheckpoint(write_gguf(tmp_path / "other.gguf", model, metadata=other)) as checkpoint:
        assert checkpoint.source["license"] == "qwen-research"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gptoss"}, "tiny.gguf is in a form of Ollama's own, .* Take the GGUF file that .* hub has"),
        (
            {"extra": {"v.patch_embd.weight": np.ones(9, np.float32)}},
            "tiny.gguf is in a form of Ollama's own, .* images",
        ),
        (
            {"metadata": {"llama.expert_shared_count": 8}},
            "tiny.gguf: .*features that are not supported: llama.expert_shared_count = 8",
        ),
        ({"metadata": {"llama.attention.head_count_kv": 3}}, "tiny.gguf: num_attention_heads .* is not a multiple"),
        ({"extra": {"blk.1.attn_q_norm.weight": np.ones(16, np.float32)}}, "unknown: blk.1.attn_q_norm.weight"),
        ({"extra": {"blk.0.attn_norm.weight": np.ones(9, np.float32)}}, r"attn_norm.weight is \[9\] instead of \[64\]"),
        (
            {"metadata": {"llama.block_count": 3}},
            "missing: blk.2.attn_norm.weight, blk.2.attn_q.weight, .*blk.2.ffn_down",
        ),
        (
            {"extra": {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}},
            "tiny.gguf: rope_freqs.weight does not hold",
        ),
    ],
)
def test_a_file_that_is_not_a_supported_model_is_refused_by_name(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF, changes: dict[str, Any], message: str
) -> None:
    model = save_llama(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=message):
        GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", model, **changes))


def test_a_closed_checkpoint_says_so(tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF) -> None:
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", save_llama(tmp_path / "hf")))
    checkpoint.close()
    with pytest.raises(CheckpointError, match="is closed"):
        checkpoint.tensor("model.norm.weight")


@pytest.mark.usefixtures("_random_nvfp4")
def test_each_expert_in_nvfp4_is_multiplied_by_its_own_number(
    tmp_path: Path, save_model: Callable[..., Any], write_gguf: WriteGGUF
) -> None:
    model = save_model("qwen3_moe", tmp_path / "hf", hidden_size=64, moe_intermediate_size=64, pad_token_id=0)
    experts = model.config.num_experts
    factors = np.arange(1, experts + 1, dtype=np.float32) / 8
    plain = write_gguf(tmp_path / "plain.gguf", model, "NVFP4", architecture="qwen3moe")
    extra = {"blk.0.ffn_up_exps.scale": factors}
    scaled = write_gguf(tmp_path / "scaled.gguf", model, "NVFP4", architecture="qwen3moe", extra=extra)
    with GGUFCheckpoint(plain) as without, GGUFCheckpoint(scaled) as checkpoint:
        for expert in range(experts):
            name = f"model.layers.0.mlp.experts.{expert}.up_proj.weight"
            np.testing.assert_array_equal(checkpoint.tensor(name), without.tensor(name) * factors[expert])
            blocks, before = checkpoint.quantized_blocks(name), without.quantized_blocks(name)
            assert blocks is not None
            assert before is not None
            np.testing.assert_array_equal(blocks.scales, before.scales * factors[expert])
