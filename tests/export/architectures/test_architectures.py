from __future__ import annotations

from typing import Any

import pytest
import torch
from config_values import SIZES, model_config
from transformers import AutoConfig
from transformers.activations import ACT2FN

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.errors import CheckpointError, ConfigError
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.checkpoints.tensor_map import map_tensors, pattern_of

# GPT-2's names for the same numbers.
GPT2_SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4}
BASES_BESIDE: dict[str, Any] = {"full_attention": {}, "sliding_attention": {}}
BASES_3N = {"rope_local_base_freq": 2e4, "rope_parameters": BASES_BESIDE, "num_kv_shared_layers": 0}
BY_KIND = {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}}
# What a family is refused without.
NEEDED: dict[str, dict[str, Any]] = {
    "cohere_compass_text": BY_KIND,
    "granitemoehybrid": {"layer_types": ["full_attention"] * 2, "num_local_experts": 0, "shared_intermediate_size": 96},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {"vocab_size_per_layer_input": 320},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention"]},
    "afmoe": {"attention_bias": False},
    "laguna": {"attention_bias": False},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "lfm3": {"attention_bias": False, "layer_types": ["full_attention", "sliding_attention"]},
    "dots1": {"moe_intermediate_size": 32, "n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "deepseek": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "bailing_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "bailing_moe_v2": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "llama4_text": {"moe_layers": [], "attention_chunk_size": None},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "deepseek_v2": {"attention_bias": False, "num_experts_per_tok": 2},
    "deepseek_v3": {"attention_bias": False},
    **{name: {"attention_bias": False} for name in ("glm4_moe_lite", "minicpm3", "sarvam_mla", "youtu")},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_row_is_filed_under_its_own_name_and_names_every_tensor_in_each_format(name: str) -> None:
    row = ARCHITECTURES[name]
    assert row.model_type == name
    values = {"model_type": name, "num_key_value_heads": 2, "max_position_embeddings": 1024, "attention_bias": True}
    values |= {"decoder_start_token_id": 0} | NEEDED.get(name, {})
    config = row.to_model_config(SIZES | GPT2_SIZES | values | {"mlp_bias": True, "qk_norm": True})
    assert config.model_type == name
    for layout in (row.layout_for(config), row.mlx, row.stacked, row.gguf and row.gguf.layout):
        if layout is None:
            continue
        present: dict[str, tuple[int, ...]] = {}
        stacks = {
            source
            for tensor in config.tensor_shapes()
            if pattern_of(tensor)[2] and not pattern_of(source := layout.source_name(tensor))[2]
        }
        for tensor, shape in config.tensor_shapes().items():
            rows, *columns = present.get(layout.source_name(tensor), (0, *shape[1:]))
            present[layout.source_name(tensor)] = (rows + shape[0], *columns)
        for source in present:
            pattern = pattern_of(source)[0]
            is_stack, entries = source in stacks, config.num_attention_heads if "attn" in source else config.num_experts
            entries = config.altup_num_inputs - 1 if "altup" in source else entries
            if pattern.removesuffix(".weight") in layout.by_latent_head:
                heads = config.num_attention_heads * ((config.qk_nope_head_dim or 0) + (config.v_head_dim or 0))
                present[source] = (heads, config.kv_lora_rank or 0)
                continue
            if is_stack:
                present[source] = (present[source][0] // entries, *present[source][1:])
            if not source.endswith("bias") and pattern.removesuffix(".weight") in layout.transposed:
                present[source] = present[source][::-1]
            if is_stack:
                present[source] = (entries, *present[source])
            rows, *columns = present[source]
            present[source] = (rows + layout.rows_before.get(pattern.removesuffix(".weight"), 0), *columns)
            if source in layout.stacks_of_one:
                present[source] = (1, *present[source])
        assert map_tensors(config, layout, present, "here").keys() == config.tensor_shapes().keys()


# Of what transformers has by default, the parts that edgelm does not compute; and what it has no default of.
OTHERWISE: dict[str, dict[str, Any]] = {
    "cohere_compass_text": BY_KIND,
    "bamba": {"attn_layer_indices": [9]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"moe_intermediate_size": 32, "n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {"hidden_size": 6144},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "llama4_text": {"moe_layers": [], "attention_chunk_size": None, "num_hidden_layers": 2},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe", "mlp"], "num_hidden_layers": 4},
}
# What a config.json always says, but where its family has a default of it.
ALWAYS_THERE = (*SIZES, *GPT2_SIZES, "num_layers", "num_heads")


@pytest.mark.parametrize("name", [name for name, row in ARCHITECTURES.items() if row.is_in_transformers])
def test_absent_values_are_those_that_transformers_writes_down(name: str) -> None:
    row, given = ARCHITECTURES[name], {"model_type": name} | OTHERWISE.get(name, {})
    theirs = AutoConfig.for_model(**given)
    written = theirs.to_dict()
    own = {key for key in ALWAYS_THERE if key in written and key not in row.defaults and name != "bloom"}
    ours = row.to_model_config({key: written[key] for key in own} | given)
    assert ours == row.to_model_config(written)
    ends = theirs.eos_token_id
    assert ours.eos_token_ids == (tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,))
    assert ours.bos_token_id == getattr(theirs, "bos_token_id", None)
    if ours.encoder is not None:
        begins = [getattr(theirs, key, None) for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id")]
        assert ours.decoder_start_token_id == next(id_ for id_ in begins if id_ is not None)


def test_attention_bias_is_that_of_all_four_projections_and_ids_may_be_lists() -> None:
    config = model_config(attention_bias=True, mlp_bias=True, bos_token_id=1, eos_token_id=[2, 7, 2])
    assert (config.attention_bias, config.attention_output_bias, config.mlp_bias) == (True, True, True)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2, 7))
    assert model_config(eos_token_id=2).eos_token_ids == (2,)


@pytest.mark.parametrize(
    "name", ["silu", "swish", "gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"]
)
def test_an_activation_of_another_name_is_the_same_function(name: str) -> None:
    inputs = torch.linspace(-8, 8, 1001)
    ours = ACT2FN[model_config(hidden_act=name).hidden_act](inputs)
    torch.testing.assert_close(ours, ACT2FN[name](inputs), rtol=0, atol=2e-6)  # 9.5e-7 measured


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5, "partial_rotary_factor": 1.0}},
    ],
)
def test_older_and_newer_rope_settings_mean_the_same(values: dict[str, Any]) -> None:
    config = model_config(**values)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling(rope_type="linear", factor=2.0)


def test_settings_of_a_rope_that_are_null_are_not_there_and_the_older_key_comes_first() -> None:
    older, newer = {"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 4.0}
    assert model_config(rope_scaling=older, rope_parameters=newer).rope_scaling.factor == 2.0
    assert model_config(rope_theta=1e6, rope_parameters=newer | {"rope_theta": 5e5}).rope_theta == 5e5
    yarn = {"rope_type": "yarn", "factor": 4.0, "attention_factor": None, "beta_fast": None}
    assert (
        model_config(rope_scaling=yarn).rope_scaling == model_config(rope_scaling=yarn | {"beta_fast": 32}).rope_scaling
    )
    assert model_config(rope_scaling=yarn).rope_scaling.attention_factor is None


def test_the_part_of_a_head_that_turns_is_that_of_the_rope_settings_before_the_configs() -> None:
    values = SIZES | {"partial_rotary_factor": 0.25, "rope_parameters": {"partial_rotary_factor": 0.5}}
    assert ARCHITECTURES["phi"].to_model_config(values | {"num_key_value_heads": 2}).partial_rotary_factor == 0.5


def test_every_rope_type_is_read_with_its_settings() -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = model_config(rope_scaling=llama3 | {"original_max_position_embeddings": 512})
    assert config.rope_scaling == RopeScaling(**llama3, original_max_position_embeddings=512)
    yarn = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0}
    config = model_config(rope_parameters=yarn, max_position_embeddings=4096)
    assert config.rope_scaling == RopeScaling(**yarn, original_max_position_embeddings=4096)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size is None; it must be a whole number"),
        ({"vocab_size": 1.5}, "vocab_size is 1.5; it must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; it must be a whole number"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True; it must be a number"),
        ({"rope_theta": float("inf")}, "rope_theta is inf; it must be a number"),
        ({"rope_theta": 10**400}, "rope_theta is 1000.*; it must be a number"),
        ({"eos_token_id": [True]}, r"eos_token_id is \[True\]; it must be a token id"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny'; it must be a number"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'; it must be true or false"),
        ({"eos_token_id": ["</s>"]}, "it must be a token id or a list of them"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported; supported: .*silu"),
        (
            {"rope_scaling": {"type": "axial", "factor": 2.0}},
            "rope type 'axial' is not supported; supported: default",
        ),
        (
            {"rope_scaling": {"rope_type": "default", "mrope_section": [4, 4]}},
            r"setting mrope_section = \[4, 4\] is not supported",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": 1.0}},
            "short_factor is 1.0; it must be a list of numbers",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, "2"]}},
            r"short_factor is \[1.0, '2'\]; it must be a list of numbers",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 10**400]}},
            r"short_factor is \[1.0, 1000.*\]; it must be a list of numbers",
        ),
        ({"partial_rotary_factor": 0.5}, "setting partial_rotary_factor = 0.5 is not supported"),
        ({"rope_scaling": [2.0]}, "rope settings are .* must be an object"),
    ],
)
def test_a_config_with_a_value_or_feature_that_is_not_supported_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        model_config(**changes)


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("name", "changes", "windows"),
    [
        ("mistral", {"sliding_window": 512}, [512, 512]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("mistral", {"sliding_window": 1024}, [None, None]),  # the whole context
        ("qwen2", {"use_sliding_window": False, "sliding_window": 512, "layer_types": [FULL, FULL]}, [None, None]),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 512}, [None, None]),  # from layer 28 on
        ("qwen2", {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1}, [None, 512]),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 1, "max_position_embeddings": 8192},
            [None, 4096],
        ),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "layer_types": [SLIDING, FULL]}, [8, None]),
        ("qwen3", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, [None, None]),
        (
            "qwen3_moe",
            {"use_sliding_window": True, "sliding_window": None, "max_position_embeddings": 8192},
            [None, None],
        ),
        ("gemma2", {"sliding_window": 8}, [8, None]),
        ("gemma2", {"sliding_window": None}, [None, None]),
        ("gemma3_text", {"sliding_window": 8}, [8, 8]),
        ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 2}, [8, None]),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2}, [None, 8]),
        ("smollm3", {"sliding_window": 8, "layer_types": [SLIDING, FULL]}, [8, None]),
        ("gpt_neo", {"attention_layers": ["local", "global"], "window_size": 8}, [8, None]),
        ("phi3", {"sliding_window": 8}, [8, 8]),
    ],
)
def test_windows_are_read_layer_by_layer(name: str, changes: dict[str, Any], windows: list[int | None]) -> None:
    sizes = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 1024, "head_dim": 16}
    config = ARCHITECTURES[name].to_model_config(sizes | changes)
    assert [config.window(layer) for layer in range(2)] == windows


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen2", {"layer_types": 3}, "layer_types is 3; it must be a list of names"),
        (
            "qwen3",
            {"use_sliding_window": True, "layer_types": [FULL, "chunked_attention"]},
            "layer_types has 'chunked_attention'; supported: full_attention, sliding_attention",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True; supported is causal"),
        (
            "gemma3_text",
            {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}},
            "layers with a window have rope type 'linear'; supported is default alone",
        ),
        ("smollm3", {"no_rope_layers": [1]}, r"no_rope_layers is \[1\]; it must have a number for each layer"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; supported is"),
        (
            "minicpm",
            {"sparse_config": {"dense_len": 8192}},
            r"sparse_config is set; attention that leaves tokens out \(InfLLM v2\) is not supported. Take it out",
        ),
        ("minicpm", {"dim_model_base": 0}, "dim_model_base is 0.0; it must be above 0"),
        (
            "granite_swa",
            {"layer_rope_theta": [1e4]},
            r"layer_rope_theta is \[10000.0\]; it must have a number for each",
        ),
        (
            "granite_swa",
            {"layer_rope_theta": [1e4, 10**400]},
            r"layer_rope_theta is \[10000.0, 1000.*; it must have a number for each",
        ),
        (
            "granite_swa",
            {"layer_rope_theta": [1e4, 1e3], "layer_types": [FULL, FULL]},
            "supported is one base for layers with a window and one for others",
        ),
        ("gpt_neo", {"attention_types": [[["global"], 1]]}, "one must say global or local of each of the 2 layers"),
        ("gpt_neo", {"attention_types": [[["strided"], 2]]}, "attention_types is .*strided"),
        ("qwen3_5_text", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported is 'silu'"),
        (
            "opt",
            {"word_embed_proj_dim": 32},
            r"word_embed_proj_dim is 32 \(OPT 350M\); supported is the hidden_size, 64",
        ),
        ("gpt2", {"n_embd": "64"}, "n_embd is '64'"),
        ("xglm", {"activation_function": "mish"}, "config.json: activation_function 'mish' is not supported"),
        ("codegen", {"n_head": 6, "n_embd": 96, "rotary_dim": 8}, "n_head is 6; of CodeGen it must be a multiple of 4"),
        ("iquestcoder", {"use_sliding_window": True}, "of IQuest-Coder, windows are not supported"),
        (
            "modernbert-decoder",
            {"classifier_bias": True},
            "classifier_bias is True; supported are a head whose projection has no bias and the activation of all",
        ),
        (
            "modernbert-decoder",
            {"rope_scaling": {"factor": 2.0}},
            "rope_scaling is .*; supported are .* without scaling",
        ),
        (
            "cohere_compass_text",
            {},
            "rope_parameters is None; it must say of each kind in layer_types how its heads turn",
        ),
        (
            "cohere_compass_text",
            {"rope_parameters": {"full_attention": 5}},
            "rope_parameters is {'full_attention': 5}; it must hold objects or null",
        ),
        ("lfm3", {"attention_bias": True}, "attention_bias is True; supported is False"),
        ("hyperclovax", {"logits_scaling": 0.0}, "logits_scaling is 0.0; it must be above 0"),
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm is true; supported is a residual stream that no norm is before",
        ),
        (
            "xglm",
            {"add_cross_attention": True},
            "add_cross_attention is true; supported is an XGLM that reads one text",
        ),
        ("mpt", {"no_bias": False}, "no_bias is False; supported is True"),
        ("mpt", {"attn_config": {"clip_qkv": 6}}, "attn_config.clip_qkv is 6; supported is None"),
        ("mpt", {"attn_config": {"alibi": False}}, "attn_config.alibi is False; supported is True"),
        ("mpt", {"attn_config": [1]}, r"attn_config is \[1\]; it must be an object"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False; supported is True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True; supported is False"),
        (
            "gpt_oss",
            {"per_layer_config": {"1": {"num_experts_per_tok": 1}}},
            "per_layer_config is {.*}; of gpt_oss models supported are the same settings for all layers",
        ),
        (
            "hunyuan_v1_dense",
            {"rope_scaling": {"type": "dynamic", "alpha": 0.5, "factor": 1.0}},
            "alpha is 0.5 and head_dim 16; they must be from 1 to 1000000, and 4 or more",
        ),
        (
            "nanochat",
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "rope type 'yarn' is not supported before a norm; supported: default, linear, dynamic, llama3",
        ),
    ],
)
def test_a_feature_that_only_some_of_a_family_have_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str
) -> None:
    sizes = SIZES | GPT2_SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 1024, "head_dim": 16}
    with pytest.raises((CheckpointError, ConfigError), match=message):
        ARCHITECTURES[name].to_model_config(sizes | changes)


@pytest.mark.parametrize(
    ("name", "changes", "field", "value"),
    [
        ("gpt_oss", {"swiglu_alpha": 1.5, "num_key_value_heads": 4}, "swiglu_alpha", 1.5),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_act", "gelu"),
        (
            "exaone4",
            {"sliding_window_pattern": "LLLG", "num_hidden_layers": 4, "num_key_value_heads": 4},
            "layers_without_rope",
            (3,),
        ),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping", None),  # as transformers computes
        ("hunyuan_v1_dense", {"use_qk_norm": False}, "qk_norm", False),
        ("exaone", {"num_hidden_layers": None, "num_layers": 3, "num_key_value_heads": 4}, "num_hidden_layers", 3),
        (
            "hunyuan_v1_moe",
            {
                "num_experts": 64,
                "moe_topk": [8, 8],
                "moe_intermediate_size": [48, 48],
                "num_shared_expert": [2, 2],
                "num_key_value_heads": 4,
            },
            "shared_expert_intermediate_size",
            192,
        ),
        (
            "hunyuan_v1_moe",
            {"num_local_experts": 6, "num_experts_per_tok": 3, "num_key_value_heads": 4},
            "num_experts_per_tok",
            3,
        ),
        (
            "hunyuan_v1_moe",
            {"num_experts": 6, "moe_topk": 3, "num_experts_per_tok": None, "num_key_value_heads": 4},
            "num_experts_per_tok",
            3,
        ),
        ("cohere", {"layer_norm_eps": None, "num_key_value_heads": 4}, "norm_eps", 1e-5),
        (
            "sarvam_moe",
            {"num_experts": 6, "num_shared_experts": 2, "num_experts_per_tok": 2},
            "shared_expert_intermediate_size",
            2048,
        ),
        ("sarvam_moe", {"use_qkv_bias": True}, "attention_bias", True),
        ("glm4", {"eos_token_id": None, "num_key_value_heads": 4}, "eos_token_ids", (151329, 151336, 151338)),
        ("minicpm", {"scale_depth": 1.5, "num_hidden_layers": 9}, "residual_multiplier", 0.5),
        ("internlm2", {}, "attention_output_bias", True),
        (
            "lfm3",
            {"num_hidden_layers": 5},
            "layer_types",
            ("conv", "conv", "full_attention", "conv", "sliding_attention"),
        ),
        ("openai-gpt", {"afn": "relu", "activation_function": "silu"}, "hidden_act", "relu"),
        ("t5", {"n_positions": 99}, "max_position_embeddings", 99),
        ("t5", {"layer_norm_epsilon": 1e-3}, "norm_eps", 1e-3),
        ("t5", {"d_ff": None}, "intermediate_size", 2048),
        ("gemma3_text", {"rope_theta": 5e5, "rope_parameters": BASES_BESIDE}, "rope_theta", 5e5),
        ("gemma3n_text", BASES_3N, "rope_local_theta", 2e4),
    ],
)
def test_what_few_configs_say_is_read_too(name: str, changes: dict[str, Any], field: str, value: object) -> None:
    config = ARCHITECTURES[name].to_model_config(SIZES | {"model_type": name} | changes)
    assert getattr(config, field) == value


def test_older_files_of_minicpm_have_the_multipliers_of_the_published_models() -> None:
    keys = {"embedding_length": 64, "block_count": 4, "attention.head_count": 4, "feed_forward_length": 96}
    metadata = {f"minicpm.{key}": value for key, value in keys.items()}
    metadata |= {"minicpm.context_length": 1024, "minicpm.attention.layer_norm_rms_epsilon": 1e-5}
    row = ARCHITECTURES["minicpm"]
    assert row.gguf is not None
    header = GGUFHeader(
        metadata={"general.architecture": "minicpm", **metadata},
        shapes={"token_embd.weight": (320, 64)},
        rope_factors={},
    )
    config = row.to_model_config(row.gguf.to_hf_config(header))
    multipliers = (config.embedding_multiplier, config.residual_multiplier, config.logits_scaling)
    assert multipliers == (12.0, 0.7, 0.25)


def test_sizes_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a multiple"):
        model_config(num_key_value_heads=3)
    with pytest.raises(ConfigError, match="num_attention_heads is 0"):
        model_config(num_attention_heads=0)


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("gemma3_text", {"num_hidden_layers": 2**31}, "num_hidden_layers is 2147483648; it must be from 1 to 4096"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0; it must be from 1 to 2147483647"),
        ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar is -1; it must be from 1 to"),
        ("gemma2", {"query_pre_attn_scalar": 10**400}, "query_pre_attn_scalar is 1000"),
        ("gemma3_text", {"rope_parameters": {"full_attention": 1}}, "rope_parameters is .*; it must hold objects"),
    ],
)
def test_what_is_computed_with_before_a_config_checks_it_is_checked(
    family: str, values: dict[str, Any], message: str
) -> None:
    sizes = {
        "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 8, "layer_types": None,
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=message):
        ARCHITECTURES[family].to_model_config(sizes | values)
