"""Headers of GGUF files: which row of the architectures reads one, and what config.json it becomes."""

from __future__ import annotations

import dataclasses
import json
from array import array
from typing import Any

import numpy as np
import pytest
from config_values import SIZES

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, ConfigError
from edgelm_export.architectures import ARCHITECTURES, gguf_architecture_of
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.architectures.experts import GGUF_SOFTMAX, check_gguf_scoring
from edgelm_export.architectures.gguf_header import without_guessing_layers
from edgelm_export.architectures.gguf_values import sampling_values
from edgelm_export.architectures.llama import LLAMA

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 131072,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.rope.freq_base": 500000.0,
    "llama.rope.dimension_count": 16,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def hf_config(changes: dict[str, Any] | None = None, **header: Any) -> dict[str, Any]:
    fields = {"shapes": {"token_embd.weight": (320, 64)}, "rope_factors": {}} | header
    return LLAMA.gguf.to_hf_config(GGUFHeader(metadata=METADATA | (changes or {}), **fields))


def test_a_mistral_is_a_llama_in_gguf() -> None:
    assert gguf_architecture_of({"general.architecture": "llama"}, "here") == (LLAMA, LLAMA.gguf)


def test_a_llama_with_experts_is_a_mixtral_in_gguf() -> None:
    row, _ = gguf_architecture_of({"general.architecture": "llama", "llama.expert_count": 8}, "here")
    assert row.model_type == "mixtral"


def test_a_llama_4_in_gguf_is_one_whose_layers_see_all_tokens() -> None:
    metadata = {key.replace("llama.", "llama4."): value for key, value in METADATA.items()}
    metadata["general.architecture"] = "llama4"
    row, family = gguf_architecture_of(metadata, "here")

    def config(**said: Any) -> ModelConfig:
        header = GGUFHeader(metadata=metadata | said, shapes={"token_embd.weight": (320, 64)}, rope_factors={})
        return row.to_model_config(family.to_hf_config(header))

    # As in the file of MobileLLM-R1-950M.
    read = config(**{"llama4.attention.sliding_window": 0, "llama4.expert_count": 0, "llama4.expert_used_count": 0})
    assert (read.qk_norm, read.qk_norm_weights, read.layers_without_rope) == (True, False, ())
    with pytest.raises(CheckpointError, match=r"llama4.attention.sliding_window is None; of Llama 4, models with"):
        config()


def test_a_gguf_header_becomes_a_config_with_the_decimals_it_was_written_from() -> None:
    values = hf_config()
    json.dumps(values)
    config = LLAMA.to_model_config(values)
    assert config == LLAMA.to_model_config(
        SIZES
        | {
            "num_key_value_heads": 2,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    )


def test_the_ends_of_turns_and_messages_are_end_tokens() -> None:
    assert hf_config({"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 2})["eos_token_id"] == [2, 7]
    without = {key: value for key, value in METADATA.items() if not key.startswith("tokenizer")}
    header = GGUFHeader(metadata=without, shapes={"token_embd.weight": (320, 64)}, rope_factors={})
    assert LLAMA.gguf.to_hf_config(header)["eos_token_id"] is None


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        # Phi-3's files name <|endoftext|> alone, and their turns end with <|end|>.
        (["<unk>", "<s>", "<|endoftext|>", "<|end|>", "<|user|>"], [2, 3]),
        (["<|im_end|>", "<s>", "</s>"], [2, 0]),
        # Of GPT-OSS <|end|> ends a part of an answer.
        (["<|end|>", "<|call|>", "<|return|>"], [2, 1]),
        (["a", "b", "c"], 2),
    ],
)
def test_tokens_that_end_an_answer_in_llama_cpp_by_their_names_are_end_tokens(
    tokens: list[str], ends: int | list[int]
) -> None:
    assert hf_config({"tokenizer.ggml.tokens": tokens})["eos_token_id"] == ends


@pytest.mark.parametrize(("type_", "ends"), [(1, [2, 0]), (4, [2, 0]), (3, [2, 0, 1])])
def test_a_tag_of_html_in_the_vocabulary_is_no_end(type_: int, ends: list[int]) -> None:
    """Qwen's has it as a text like others, Gemma's as a user-defined one; with it an answer in HTML was over."""
    tokens = {"tokenizer.ggml.tokens": ["<|im_end|>", "</s>", "<|endoftext|>"]}
    types = {"tokenizer.ggml.token_type": array("i", [3, type_, 3])}
    assert hf_config(tokens | types)["eos_token_id"] == ends
    assert hf_config(tokens | types | {"tokenizer.ggml.eos_token_id": 1})["eos_token_id"] == [1, 0, 2]


def test_all_tokens_are_taken_where_a_file_takes_fewer_than_one() -> None:
    assert sampling_values({"general.sampling.top_k": -1}) == {"top_k": 0, "do_sample": True}
    with pytest.raises(CheckpointError, match=r"general\.sampling\.temp is hot; it must be a number"):
        sampling_values({"general.sampling.temp": "hot"})


def test_tokens_that_a_file_never_wants_are_those_of_generation_config() -> None:
    assert sampling_values({"tokenizer.ggml.suppress_tokens": array("i", [3, 5])}) == {"suppress_tokens": [3, 5]}
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.suppress_tokens is 5; it must be a list of token ids"):
        sampling_values({"tokenizer.ggml.suppress_tokens": 5})


def test_an_olmo_3_has_the_attention_factor_of_its_config() -> None:
    """llama.cpp's converter writes it as a factor of the usual one; of Olmo-3-7B it is the usual one."""
    usual = 0.1 * np.log(8.0) + 1
    yarn = {"type": "yarn", "factor": 8.0, "original_context_length": 8192, "attn_factor": usual}
    sizes = {
        "block_count": 4, "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 4,
        "context_length": 65536, "attention.layer_norm_rms_epsilon": 1e-6, "attention.sliding_window": 4096,
    }  # fmt: skip
    metadata = {f"olmo2.{key}": value for key, value in sizes.items()}
    metadata |= {f"olmo2.rope.scaling.{key}": value for key, value in yarn.items()}
    shapes = {"token_embd.weight": (320, 64)}
    row = ARCHITECTURES["olmo2"]
    assert row.gguf is not None
    header = GGUFHeader(metadata={"general.architecture": "olmo2", **metadata}, shapes=shapes, rope_factors={})
    scaling = ARCHITECTURES["olmo3"].to_model_config(row.gguf.to_hf_config(header)).rope_scaling
    assert scaling.attention_factor == pytest.approx(usual)


def test_what_newer_converters_say_of_yarns_attention_beside_its_factor_has_no_effect() -> None:
    """As in llama.cpp: it is what config.json says, which for Olmo-3-7B is what follows from the factor."""
    yarn = {"type": "yarn", "factor": 8.0, "original_context_length": 8192}
    metadata = {f"llama.rope.scaling.{key}": value for key, value in yarn.items()}
    assert hf_config(metadata | {"llama.rope.scaling.yarn_attn_factor": 1.2079}) == hf_config(metadata)


def test_a_pooling_that_a_model_for_embeddings_names_is_the_callers_choice() -> None:
    assert hf_config({"llama.pooling_type": 3}) == hf_config({})


def test_gguf_rope_scalings_become_ours() -> None:
    factor = {"llama.rope.scaling.factor": 4.0}
    older = {"llama.rope.scale_linear": 4.0, "llama.tensor_data_layout": "Meta AI original pth"}
    # llama.cpp takes it for what has no name.
    for linear in (factor | {"llama.rope.scaling.type": "linear"}, factor, older):
        assert LLAMA.to_model_config(hf_config(linear)).rope_scaling == RopeScaling(rope_type="linear", factor=4.0)
    for nothing in (factor | {"llama.rope.scaling.type": "none"}, {"llama.rope.scaling.factor": 0.0}):
        assert LLAMA.to_model_config(hf_config(nothing)).rope_scaling == RopeScaling()
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 4096,
    }
    expected = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=4096)
    assert LLAMA.to_model_config(hf_config(yarn)).rope_scaling == expected
    # Newer converters write them for every family: GPT-OSS' and DeepSeek's are 32 and 1.
    ramp = {"llama.rope.scaling.yarn_beta_fast": 16.0, "llama.rope.scaling.yarn_beta_slow": 2.0}
    expected = dataclasses.replace(expected, beta_fast=16.0, beta_slow=2.0)
    assert LLAMA.to_model_config(hf_config(yarn | ramp)).rope_scaling == expected


def test_a_deepseek_moe_is_scored_by_softmax() -> None:
    metadata = {"general.architecture": "deepseek", "deepseek.expert_gating_func": 2}
    header = GGUFHeader(metadata=metadata, shapes={}, rope_factors={})
    with pytest.raises(CheckpointError, match=r"expert_gating_func is 2; supported is this family's 1 \(softmax\)"):
        check_gguf_scoring(header, GGUF_SOFTMAX)


def test_of_two_epsilons_a_family_reads_that_of_its_norm() -> None:
    config = LLAMA.to_model_config(hf_config({"llama.attention.layer_norm_epsilon": 0.5}))
    assert config.norm_eps == 1e-5


def llama3_factors(factor: float) -> np.ndarray:
    """What llama.cpp's converter writes, frequency by frequency of heads of 16."""
    factors = []
    for frequency in (1.0 / 500000.0 ** (np.arange(0, 16, 2, dtype=np.float32) / 16)).tolist():
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_the_frequency_factors_of_llama_3_become_its_scaling() -> None:
    config = LLAMA.to_model_config(hf_config(rope_factors={"rope_freqs.weight": llama3_factors(32.0)}))
    assert config.rope_scaling == RopeScaling(
        rope_type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    assert hf_config(rope_factors={"rope_freqs.weight": np.ones(8, np.float32)})["rope_scaling"] is None


@pytest.mark.parametrize("factors", [llama3_factors(32.0)[:4], np.linspace(1, 4, 8, dtype=np.float32)])
def test_other_frequency_factors_are_refused(factors: np.ndarray) -> None:
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight does not hold the frequency factors of Llama 3.1"):
        hf_config(rope_factors={"rope_freqs.weight": factors})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.expert_count": 8}, "features that are not supported: llama.expert_count = 8"),
        ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window = 4096"),
        (
            {"llama.attention.head_count_kv": array("i", [2, 1])},
            r"head_count_kv is \[2, 1\]; supported is one whole number",
        ),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.block_count": True}, "llama.block_count is True; supported is one whole number"),
        ({"llama.layers": array("i")}, "features that are not supported: llama.layers = array"),
        ({"llama.rope.freq_base": True}, "rope.freq_base is True; it must be a number"),
        ({"llama.rope.freq_base": float("inf")}, "rope.freq_base is inf; it must be a number"),
        ({"llama.rope.freq_base": 1e308}, r"rope.freq_base is 1e\+308; it must be a number that float32 holds"),
        ({"llama.rope.freq_base": 3.4028236e38}, r"rope.freq_base is 3\.4028236e\+38; it must be a number"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "epsilon is missing; it must be a number"),
        ({"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.factor is missing"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count is 8; supported is the head's own size, 16"),
        ({"llama.attention.value_length": 8}, "value_length is 8; supported"),
        (
            {"llama.rope.scaling.type": "longrope"},
            "scaling.type 'longrope' is not supported; supported: none, linear, yarn",
        ),
        (
            {"llama.rope.scaling.attn_factor": 0.5},
            "attn_factor is 0.5; with a rope.scaling.type of 'none' supported is 1",
        ),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
            "rope.scaling.original_context_length is missing",
        ),
        ({"tokenizer.ggml.eos_token_id": array("i", [2, 3])}, r"eos_token_id is \[2, 3\]; it must be the id of one"),
        ({"tokenizer.ggml.eot_token_id": [[True]]}, r"eot_token_id is \[\[True\]\]; it must be the id"),
    ],
)
def test_a_gguf_header_with_a_value_or_feature_that_is_not_supported_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        hf_config(changes)


def test_a_gguf_header_of_no_heads_is_refused_by_the_config() -> None:
    with pytest.raises(ConfigError, match="num_attention_heads is 0"):
        LLAMA.to_model_config(hf_config({"llama.attention.head_count": 0, "llama.rope.dimension_count": 64}))


def test_the_embedding_says_how_many_tokens_there_are_and_the_metadata_which_one_fills() -> None:
    values = hf_config({"llama.vocab_size": 300, "tokenizer.ggml.padding_token_id": 3})
    assert (values["vocab_size"], values["pad_token_id"]) == (320, 3)


def test_features_that_a_gguf_header_turns_off_are_passed_over() -> None:
    assert (
        hf_config({"llama.expert_count": 0, "llama.attention.head_count_kv": array("i", [2, 2])})["num_key_value_heads"]
        == 2
    )


def test_a_gguf_file_without_an_embedding_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"has no tensor token_embd.weight"):
        hf_config(shapes={})


def family_config(family: str, changes: dict[str, Any], **header: Any) -> dict[str, Any]:
    """Make config.json of METADATA as that of another family."""
    gguf = ARCHITECTURES[family].gguf
    metadata = {key.replace("llama.", f"{gguf.architecture}."): value for key, value in METADATA.items()} | changes
    metadata["general.architecture"] = gguf.architecture
    fields = {"shapes": {"token_embd.weight": (320, 64)}, "rope_factors": {}} | header
    return gguf.to_hf_config(GGUFHeader(metadata=metadata, **fields))


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3_text", 62)])
def test_the_largest_gemma_alone_scales_its_scores_by_the_size_of_its_layers(family: str, layers: int) -> None:
    name = ARCHITECTURES[family].gguf.architecture
    for count, scalar in ((layers, 16), (layers - 1, 32)):
        sizes = {"block_count": count, "attention.key_length": 32, "attention.value_length": 32}
        sizes |= {"attention.sliding_window": 9, "rope.dimension_count": 32}
        values = family_config(family, {f"{name}.{key}": value for key, value in sizes.items()})
        assert values["query_pre_attn_scalar"] == scalar


def test_the_soft_caps_and_the_window_of_a_gemma_are_those_of_the_file_or_its_family() -> None:
    values = family_config("gemma2", {"gemma2.attn_logit_softcapping": 5.0})
    assert (values["attn_logit_softcapping"], values["final_logit_softcapping"]) == (5.0, 30.0)
    assert values["sliding_window"] == 4096  # of the first files, which do not say it
    assert family_config("gemma2", {"gemma2.attention.sliding_window": 9})["sliding_window"] == 9
    gemma3 = {"gemma3.attention.sliding_window": 9}
    assert "final_logit_softcapping" not in family_config("gemma3_text", gemma3)
    values = family_config("gemma3_text", gemma3 | {"gemma3.final_logit_softcapping": 2.0})
    assert values["final_logit_softcapping"] == 2.0


def test_a_phi_3_has_the_attention_factor_and_the_window_of_its_file() -> None:
    factors = {f"rope_factors_{kind}.weight": np.full(8, 1.1, np.float32) for kind in ("short", "long")}
    named = {"phi3.rope.scaling.attn_factor": 1.19, "phi3.attention.sliding_window": 9}
    values = family_config("phi3", named, rope_factors=factors)
    assert values["rope_scaling"]["attention_factor"] == 1.19
    assert values["rope_scaling"]["long_factor"] == [1.1] * 8
    assert (values["sliding_window"], values["original_max_position_embeddings"]) == (9, 131072)


def test_the_windowed_layers_of_a_gemma_3_turn_by_the_base_of_the_file_or_of_the_family() -> None:
    windowed = {"gemma3.attention.sliding_window": 9}
    assert family_config("gemma3_text", windowed)["rope_local_base_freq"] == 1e4
    named = family_config("gemma3_text", windowed | {"gemma3.rope.freq_base_swa": 5e4})
    config = ARCHITECTURES["gemma3_text"].to_model_config(named)
    assert (config.rope_local_theta, config.rope_theta) == (5e4, 5e5)


@pytest.mark.parametrize("family", ["phi", "stablelm", "gpt_neox"])
def test_a_layer_norm_and_a_rotation_in_part_are_as_the_file_says(family: str) -> None:
    name = ARCHITECTURES[family].gguf.architecture
    changes = {
        f"{name}.attention.layer_norm_rms_epsilon": 0.0,
        f"{name}.attention.layer_norm_epsilon": float(np.float32(3e-6)),
        f"{name}.rope.dimension_count": 12,
    }
    config = ARCHITECTURES[family].to_model_config(family_config(family, changes))
    assert (config.norm, config.norm_eps) == ("layer", 3e-6)
    assert (config.rope_theta, config.partial_rotary_factor) == (5e5, 0.75)


def test_a_gpt_neox_is_parallel_where_its_file_does_not_say_otherwise() -> None:
    norm = {"gptneox.attention.layer_norm_rms_epsilon": 0.0, "gptneox.attention.layer_norm_epsilon": 1e-5}
    assert family_config("gpt_neox", norm)["use_parallel_residual"] is True
    assert family_config("gpt_neox", norm | {"gptneox.use_parallel_residual": False})["use_parallel_residual"] is False


def test_layers_that_guess_further_tokens_are_left_out_behind_those_of_the_model() -> None:
    metadata = METADATA | {
        "llama.block_count": 3, "llama.nextn_predict_layers": 1,
        "llama.attention.head_count_kv": array("i", [2, 0, 2]), "llama.a_pattern": [True, False, False],
        "llama.others": array("i", [1, 2]), "tokenizer.ggml.token_type": array("i", [1, 1, 3]),
    }  # fmt: skip
    own = {"token_embd.weight": (320, 64), "blk.1.attn_q.weight": (64, 64)}
    guessing = {"blk.2.attn_q.weight": (64, 64), "blk.2.nextn.eh_proj.weight": (64, 128)}
    header = without_guessing_layers(GGUFHeader(metadata=metadata, shapes=own | guessing, rope_factors={}))
    assert header.shapes == own
    assert header.metadata == metadata | {
        "llama.block_count": 2, "llama.nextn_predict_layers": 0,
        "llama.attention.head_count_kv": array("i", [2, 0]), "llama.a_pattern": [True, False],
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"has the layers alone that guess further tokens \(MTP\)"):
        without_guessing_layers(dataclasses.replace(header, metadata=metadata, shapes=guessing))
    own["blk.2.attn_q.weight"] = (64, 64)
    with pytest.raises(CheckpointError, match="nextn_predict_layers is 1, and of the 3 layers none guesses"):
        without_guessing_layers(dataclasses.replace(header, metadata=metadata, shapes=own))
    for count in (3, -1):
        changed = metadata | {"llama.nextn_predict_layers": count}
        with pytest.raises(CheckpointError, match=f"llama.nextn_predict_layers is {count} of 3 layers"):
            without_guessing_layers(dataclasses.replace(header, metadata=changed))


def test_a_file_whose_layers_all_have_experts_may_leave_out_the_size_of_others() -> None:
    metadata = {key.replace("llama.", "qwen3moe."): value for key, value in METADATA.items() if "forward" not in key}
    experts = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    metadata |= {"general.architecture": "qwen3moe"} | {f"qwen3moe.{key}": value for key, value in experts.items()}
    header = GGUFHeader(metadata=metadata, shapes={"token_embd.weight": (320, 64)}, rope_factors={})
    row = ARCHITECTURES["qwen3_moe"]
    config = row.to_model_config(row.gguf.to_hf_config(header))
    assert (config.intermediate_size, config.moe_intermediate_size) == (32, 32)


def test_weights_of_experts_that_are_not_those_of_the_family_are_refused() -> None:
    metadata = {key.replace("llama.", "lfm2moe."): value for key, value in METADATA.items()}
    metadata |= {"general.architecture": "lfm2moe", "lfm2moe.shortconv.l_cache": 3, "lfm2moe.expert_gating_func": 1}
    header = GGUFHeader(metadata=metadata, shapes={"token_embd.weight": (320, 64)}, rope_factors={})
    with pytest.raises(CheckpointError, match=r"expert_gating_func is 1; supported is this family's 2 \(sigmoid\)"):
        ARCHITECTURES["lfm2_moe"].gguf.to_hf_config(header)


@pytest.mark.parametrize("factors", [None, 0.5, array("f", [0.5])])
def test_an_apertus_has_the_factors_of_its_activation_for_each_layer(factors: object) -> None:
    metadata = {"apertus.block_count": 2, "xielu.alpha_p": array("f", [0.5, 0.25]), "xielu.alpha_n": factors}
    header = GGUFHeader(metadata=metadata, shapes={}, rope_factors={})
    with pytest.raises(CheckpointError, match=r"xielu.alpha_n is .*; it must have a number for each layer"):
        ARCHITECTURES["apertus"].gguf.computed(header)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "phi",
            {
                "attention.key_length": 0, "attention.layer_norm_rms_epsilon": 0.0,
                "attention.layer_norm_epsilon": 1e-5,
            },
            "head_dim is 0; it must be a whole number from 1",
        ),
        ("exaone4", {"block_count": 2**31}, "num_hidden_layers is 2147483648; it must be from 1 to 4096"),
        (
            "nemotron_h",
            {"block_count": 5000, "feed_forward_length": array("i", [96] * 5000)},
            "nemotron_h.block_count is 5000; at most 4096 are supported",
        ),
        (
            "minimax_m2",
            {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32},
            "minimax-m2.expert_feed_forward_length is 32; supported is feed_forward_length, 96",
        ),
        ("minicpm", {"residual_scale": 3.3e38}, r"scale_depth is 4\.6.*e\+38; it must be a number"),
        ("minicpm", {"logit_scale": 1e-45}, "dim_model_base is .*; it must be a number"),
    ],
)  # fmt: skip
def test_sizes_that_no_model_has_are_refused_before_anything_is_made_of_them(
    family: str, changes: dict[str, Any], message: str
) -> None:
    name = ARCHITECTURES[family].gguf.architecture
    with pytest.raises((CheckpointError, ConfigError), match=message):
        ARCHITECTURES[family].to_model_config(
            family_config(family, {f"{name}.{key}": value for key, value in changes.items()})
        )
